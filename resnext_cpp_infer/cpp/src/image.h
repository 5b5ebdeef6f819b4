// From a file to RGB pixels, by the policy of resnext_core/data/decode.py for JPEG and PNG.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rows.h"

namespace resnext {

// A file that cannot be decoded; the message is the reason, without the path.
class BadImage : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// uint8 (height, width, 3).
struct Image {
  int height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

// Throws BadImage for more pixels than any image may have: they are refused before one of them is decoded.
void check_size(int64_t width, int64_t height);

class Jpeg;
struct PngChunks;

// A JPEG (any that libjpeg reads, grayscale and CMYK too) or PNG in memory, told by content, with its header read. The
// memory must stay until this ends. Throws BadImage.
class Picture {
 public:
  Picture(const uint8_t* data, size_t size);
  ~Picture();
  Picture(const Picture&) = delete;
  Picture& operator=(const Picture&) = delete;

  int width() const { return width_; }
  int height() const { return height_; }
  bool jpeg() const { return jpeg_ != nullptr; }
  // Of a sample, in the file.
  int bits() const;
  // By how much it may be reduced while it decodes, so that its sides stay at least `width` x `height`: 1, 2, 4 or 8; 1
  // where these are 0.
  int reduction(int width, int height) const;
  // Decodes once, reduced by `by`: the rows of `region` of the reduced picture go to `sink`. `rows` is scratch.
  void decode(int by, const Region& region, std::vector<uint8_t>& rows, RowSink& sink);

 private:
  std::unique_ptr<Jpeg> jpeg_;
  std::unique_ptr<PngChunks> png_;
  int width_ = 0, height_ = 0;
};

// Gives the rows of `region` of an image to `sink`. `rows` is scratch.
void hand_over(const Image& image, const Region& region, std::vector<uint8_t>& rows, RowSink& sink);

// The content of a regular file; a pipe, a socket, a device, a directory, and what is larger than any image are refused at
// once. Throws BadImage also where it cannot be read.
std::string read_picture(const std::string& path);

}  // namespace resnext

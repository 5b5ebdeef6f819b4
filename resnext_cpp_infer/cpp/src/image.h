// From a file to RGB pixels, by the policy of resnext_core/data/decode.py for JPEG and PNG.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

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

// Decodes JPEG (any that libjpeg reads, grayscale and CMYK too) or PNG, told by content. With `minimum` > 0 a JPEG may
// be decoded at 1/2, 1/4 or 1/8 while both of its sides stay at least that. `oriented` turns it, after that, as its EXIF
// data says. Throws BadImage.
Image decode(const std::string& bytes, int minimum, bool oriented = false);

// The same for a regular file; a pipe, a socket, a device or a directory is refused at once. Throws BadImage also where it
// cannot be read.
Image decode_file(const std::string& path, int minimum, bool oriented = false);

}  // namespace resnext

// JPEG: the header of a file, and the pixels of a part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "rows.h"

namespace resnext {

struct JpegReader;

// A JPEG in memory, which must stay until this ends. Throws BadImage.
class Jpeg {
 public:
  Jpeg(const uint8_t* data, size_t size);
  ~Jpeg();
  Jpeg(const Jpeg&) = delete;
  Jpeg& operator=(const Jpeg&) = delete;

  int width() const;
  int height() const;
  // Decodes once, at 1/by of the size (1, 2, 4 or 8; sides rounded up): `region` of the smaller picture goes to `sink`,
  // through `rows`. Only the blocks that the region needs are transformed, and nothing after its last row is decoded
  // where that cannot fail; the pixels are those of a whole decode, and so is the error of a file that is truncated or
  // broken outside of the region.
  void decode(int by, const Region& region, std::vector<uint8_t>& rows, RowSink& sink);

 private:
  std::unique_ptr<JpegReader> reader_;
};

// The largest of 1, 2, 4, 8 by which the sides of a picture may be divided while they stay at least `width` x `height`;
// 1 where these are 0 (Pillow's draft).
int jpeg_reduction(int from_width, int from_height, int width, int height);

}  // namespace resnext

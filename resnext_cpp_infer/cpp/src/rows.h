// How decoders hand over pixels: the rows of a part of an image, some at a time, so that it is never there as a whole.
#pragma once

#include <cstddef>
#include <cstdint>

namespace resnext {

// Rows and columns [top, top + height) x [left, left + width).
struct Region {
  int left = 0, top = 0, width = 0, height = 0;
};

class RowSink {
 public:
  virtual ~RowSink() = default;
  // The next `count` rows, `stride` bytes from each other, of 4 bytes a pixel: red, green, blue, and one of no meaning.
  // kSlack bytes after the last one (passes.h) are readable.
  virtual void take(const uint8_t* rows, size_t stride, int count) = 0;
};

}  // namespace resnext

// The two resizes of PreprocessSpec, integer by integer as Pillow's and OpenCV's.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"
#include "taps.h"

namespace resnext {

// A part of an output: rows and columns [top, top + height) x [left, left + width).
struct Window {
  int top, left, height, width;
};

// A part of an input, in its pixels, with fractions.
struct Box {
  double left, top, right, bottom;
};

// A resize that takes its input row by row and keeps only the rows that its next output needs. One object does many
// resizes after each other and keeps its memory.
class Resize : public RowSink {
 public:
  // Pillow's resize of `box` of an image to `height` x `width`: the support of `kernel` grows with the reduction, with
  // coefficients of 22 bits; rows first. `part` of the decoded picture is the image, beyond which no tap reaches; `box`
  // is in its pixels. The window of it is written, each row from right to left if `mirrored`.
  void filter(Kernel kernel, const Region& part, const Box& box, int height, int width, const Window& window,
              bool mirrored = false);
  // The two-tap bilinear resize of OpenCV and MindSpore on 8-bit images, of the whole `part`: coefficients of 11 bits.
  void plain(const Region& part, int height, int width, const Window& window, bool mirrored = false);

  // What of the picture is needed, in its pixels: the rows that take() gets.
  const Region& needs() const { return needs_; }

  // Begins to write to `target`, uint8 (window.height, window.width, 3); it is complete when all rows have been taken.
  void begin(uint8_t* target);
  void take(const uint8_t* rows, size_t stride, int count) override;

 private:
  void take_filter(const uint8_t* rows, size_t stride, int count);
  void take_plain(const uint8_t* rows, size_t stride, int count);
  void place(size_t row_bytes, int most_rows);
  uint8_t* kept(int row) { return &kept_[static_cast<size_t>(row % rows_kept_) * kept_stride_]; }

  bool is_plain_ = false;
  Region needs_;
  FilterTaps across_, down_;
  PlainTaps plain_across_, plain_down_;
  int left_ = 0, top_ = 0;  // of needs_, in the part
  int outputs_ = 0;         // rows to write
  size_t length_ = 0;       // values in each
  uint8_t* target_ = nullptr;
  int taken_ = 0, written_ = 0;  // rows
  // Rows after the first pass: the last ones, the newest in the place of the oldest.
  std::vector<uint8_t> kept_;
  int rows_kept_ = 0;
  size_t kept_stride_ = 0;
  std::vector<const uint8_t*> pointers_;
};

}  // namespace resnext

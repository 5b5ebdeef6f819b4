#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "resize.h"

namespace resnext {
namespace {

// A quotient by 2, a half to the even neighbour.
int half_even(int value) { return static_cast<int>(std::nearbyint(value / 2.0)); }

}  // namespace

int decode_minimum(const Preprocess& how) { return how.scaled_decode ? how.resize : 0; }

void eval_pixels(const Image& image, const Preprocess& how, uint8_t* target) {
  int64_t height = how.resize, width = how.resize;
  if (how.mode == Preprocess::Mode::kShorterSide) {
    if (image.height <= image.width)
      width = static_cast<int64_t>(how.resize) * image.width / image.height;
    else
      height = static_cast<int64_t>(how.resize) * image.height / image.width;
  }
  const int new_height = static_cast<int>(height), new_width = static_cast<int>(width);
  const Window crop{half_even(new_height - how.size), half_even(new_width - how.size), how.size, how.size};
  if (how.filter == Preprocess::Filter::kPlain) {
    resize_plain(image, new_height, new_width, crop, target);
    return;
  }
  const Kernel kernel = how.filter == Preprocess::Filter::kBicubic ? Kernel::kBicubic : Kernel::kBilinear;
  const Box whole{0, 0, static_cast<double>(image.width), static_cast<double>(image.height)};
  if (std::max(new_height, new_width) <= 16 * how.resize) {
    resize_antialias(image, whole, kernel, new_height, new_width, crop, target);
    return;
  }
  // A thread of an image: only what the crop shows is resized, from the rows that it needs, as
  // resnext_core/model/preprocess.py does.
  const double down = static_cast<double>(image.height) / new_height,
               across = static_cast<double>(image.width) / new_width;
  const double reach = support(kernel) * std::max(down, 1.0);  // of the filter, to either side
  const double top = crop.top * down, bottom = (crop.top + how.size) * down;
  const int first = std::max(static_cast<int>(std::floor(top - reach)) - 1, 0);
  const int last = std::min(static_cast<int>(std::ceil(bottom + reach)) + 1, image.height);
  const auto stride = static_cast<std::ptrdiff_t>(image.width) * 3;
  Image rows;
  rows.width = image.width;
  rows.height = last - first;
  rows.pixels.assign(image.pixels.begin() + first * stride, image.pixels.begin() + last * stride);
  const Box box{crop.left * across, top - first, std::min((crop.left + how.size) * across, whole.right),
                std::min(bottom - first, static_cast<double>(rows.height))};
  resize_antialias(rows, box, kernel, how.size, how.size, Window{0, 0, how.size, how.size}, target);
}

void normalize(const uint8_t* images, int n, const Preprocess& how, float* target) {
  const size_t area = static_cast<size_t>(how.size) * static_cast<size_t>(how.size);
  for (int i = 0; i < n; ++i) {
    for (size_t c = 0; c < 3; ++c) {
      const uint8_t* source = images + static_cast<size_t>(i) * area * 3 + c;
      for (size_t p = 0; p < area; ++p) *target++ = (static_cast<float>(source[3 * p]) - how.mean[c]) / how.std[c];
    }
  }
}

}  // namespace resnext

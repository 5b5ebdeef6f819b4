#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "exif.h"

namespace resnext {
namespace {

// A quotient by 2, a half to the even neighbour.
int half_even(int value) { return static_cast<int>(std::nearbyint(value / 2.0)); }

int reduced(int side, int by) { return (side + by - 1) / by; }

Kernel kernel_of(Preprocess::Filter filter) {
  return filter == Preprocess::Filter::kBicubic ? Kernel::kBicubic : Kernel::kBilinear;
}

Box box_of(const Region& region) { return {0, 0, static_cast<double>(region.width), static_cast<double>(region.height)}; }

// The rows that an antialiased resize of [top, bottom) may look at, `down` of them for each output.
Region rows_around(Kernel kernel, int width, int height, double top, double bottom, double down) {
  const double reach = support(kernel) * std::max(down, 1.0);  // to either side
  const int first = std::max(static_cast<int>(std::floor(top - reach)) - 1, 0);
  const int last = std::min(static_cast<int>(std::ceil(bottom + reach)) + 1, height);
  return {0, first, width, last - first};
}

// Keeps the rows.
class Collector : public RowSink {
 public:
  void begin(const Region& region) {
    image.width = region.width;
    image.height = region.height;
    image.pixels.resize(static_cast<size_t>(region.width) * static_cast<size_t>(region.height) * 3);
    next_ = image.pixels.data();
  }
  void take(const uint8_t* rows, size_t stride, int count) override {
    for (int y = 0; y < count; ++y, rows += stride)
      for (int x = 0; x < image.width; ++x, next_ += 3) std::memcpy(next_, rows + 4 * static_cast<size_t>(x), 3);
  }

  Image image;

 private:
  uint8_t* next_ = nullptr;
};

}  // namespace

void PixelMaker::set_evaluation(int from_width, int from_height, const Preprocess& how) {
  int64_t height = how.resize, width = how.resize;
  if (how.mode == Preprocess::Mode::kShorterSide) {
    if (from_height <= from_width)
      width = static_cast<int64_t>(how.resize) * from_width / from_height;
    else
      height = static_cast<int64_t>(how.resize) * from_height / from_width;
  }
  if (std::max(height, width) > std::numeric_limits<int>::max())
    throw BadImage(std::to_string(from_width) + " x " + std::to_string(from_height) + " is too long to be resized");
  const int new_height = static_cast<int>(height), new_width = static_cast<int>(width);
  const Window crop{half_even(new_height - how.size), half_even(new_width - how.size), how.size, how.size};
  const Region whole{0, 0, from_width, from_height};
  if (how.filter == Preprocess::Filter::kPlain) {
    resize_.plain(whole, new_height, new_width, crop);
    return;
  }
  const Kernel kernel = kernel_of(how.filter);
  if (std::max(new_height, new_width) <= 16 * how.resize) {
    resize_.filter(kernel, whole, box_of(whole), new_height, new_width, crop);
    return;
  }
  // A thread of an image: only what the crop shows is resized, from the rows that it needs, as
  // resnext_core/model/preprocess.py does.
  const double down = static_cast<double>(from_height) / new_height,
               across = static_cast<double>(from_width) / new_width;
  const double top = crop.top * down, bottom = (crop.top + how.size) * down;
  const Region part = rows_around(kernel, from_width, from_height, top, bottom, down);
  const Box box{crop.left * across, top - part.top,
                std::min((crop.left + how.size) * across, static_cast<double>(from_width)),
                std::min(bottom - part.top, static_cast<double>(part.height))};
  resize_.filter(kernel, part, box, how.size, how.size, Window{0, 0, how.size, how.size});
}

// As _resized and resize_box in resnext_core/data/render.py.
void PixelMaker::set_crop(int from_width, int from_height, double scale, const Crop& crop) {
  const double left = crop.left * scale, top = crop.top * scale;
  const double right = left + crop.width * scale, bottom = top + crop.height * scale;
  const Window window{0, 0, crop.size, crop.size};
  if (crop.filter == Preprocess::Filter::kPlain) {
    const int first_column = std::min(static_cast<int>(left), from_width - 1);
    const int first_row = std::min(static_cast<int>(top), from_height - 1);
    const auto rounded = [](double value, int size) { return static_cast<int>(std::min<double>(std::nearbyint(value), size)); };
    const int last_column = std::min(std::max(first_column + 1, rounded(right, from_width)), from_width);
    const int last_row = std::min(std::max(first_row + 1, rounded(bottom, from_height)), from_height);
    resize_.plain({first_column, first_row, last_column - first_column, last_row - first_row}, crop.size, crop.size, window, crop.flip);
    return;
  }
  const Kernel kernel = kernel_of(crop.filter);
  const double end = std::min(bottom, static_cast<double>(from_height));
  const Region part = rows_around(kernel, from_width, from_height, top, end, (end - top) / crop.size);
  const Box box{left, top - part.top, std::min(right, static_cast<double>(from_width)), end - part.top};
  resize_.filter(kernel, part, box, crop.size, crop.size, window, crop.flip);
}

void PixelMaker::evaluate(Picture& picture, const Preprocess& how, int orientation, uint8_t* target) {
  const int by = how.scaled_decode ? picture.reduction(how.resize, how.resize) : 1;
  int width = reduced(picture.width(), by), height = reduced(picture.height(), by);
  if (turns_sides(orientation)) std::swap(width, height);
  set_evaluation(width, height, how);
  run(picture, by, orientation, target);
}

void PixelMaker::crop(Picture& picture, const Crop& crop, uint8_t* target) {
  const bool sideways = turns_sides(crop.orientation);
  const int by = sideways ? picture.reduction(crop.least_height, crop.least_width)
                          : picture.reduction(crop.least_width, crop.least_height);
  int width = reduced(picture.width(), by), height = reduced(picture.height(), by);
  if (sideways) std::swap(width, height);
  set_crop(width, height, 1.0 / by, crop);
  run(picture, by, crop.orientation, target);
}

void PixelMaker::run(Picture& picture, int by, int orientation, uint8_t* target) {
  resize_.begin(target);
  const Region& needs = resize_.needs();
  if (orientation == 1) {
    picture.decode(by, needs, rows_, resize_);
    return;
  }
  Collector part;
  const Region stored = stored_region(needs, reduced(picture.width(), by), reduced(picture.height(), by), orientation);
  part.begin(stored);
  picture.decode(by, stored, rows_, part);
  hand_over(turned(std::move(part.image), orientation), {0, 0, needs.width, needs.height}, turned_rows_, resize_);
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

#include "resize.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace resnext {
namespace {

// -- antialias -----------------------------------------------------------------------------------

constexpr int kBits = 32 - 8 - 2;  // of a coefficient: products of 8 bits add up without an overflow

// The taps of the outputs [first, first + count) along one axis; `weights` has `most` places for each.
struct Taps {
  int most = 0;
  std::vector<int> start, count;
  std::vector<int32_t> weights;
};

// The kernel at a distance >= 0. Each expression is evaluated in Pillow's order, so that every bit of it is Pillow's.
double value(Kernel kernel, double x) {
  if (kernel == Kernel::kBilinear) return x < 1 ? 1 - x : 0;
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// The edges, and their difference, are of single precision, as Pillow takes them.
Taps filter_taps(Kernel kernel, int size, float from, float to, int new_size, int first, int count) {
  const double scale = static_cast<double>(to - from) / new_size;
  const double stretch = std::max(scale, 1.0);
  const double support = resnext::support(kernel) * stretch;
  const double shrink = 1 / stretch;
  Taps taps;
  taps.most = static_cast<int>(std::ceil(support)) * 2 + 1;
  taps.weights.assign(static_cast<size_t>(taps.most) * static_cast<size_t>(count), 0);
  std::vector<double> raw(static_cast<size_t>(taps.most));
  for (int i = 0; i < count; ++i) {
    const double centre = from + (first + i + 0.5) * scale;
    const int low = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int high = std::min(static_cast<int>(centre + support + 0.5), size);
    double sum = 0;
    for (int x = low; x < high; ++x) {
      const double w = value(kernel, std::abs((x - centre + 0.5) * shrink));
      raw[static_cast<size_t>(x - low)] = w;
      sum += w;
    }
    taps.start.push_back(low);
    taps.count.push_back(high - low);
    int32_t* weights = &taps.weights[static_cast<size_t>(i) * static_cast<size_t>(taps.most)];
    for (int x = 0; x < high - low; ++x) {
      const double w = raw[static_cast<size_t>(x)] / (sum != 0 ? sum : 1);
      weights[x] = static_cast<int32_t>((w < 0 ? -0.5 : 0.5) + w * (1 << kBits));
    }
  }
  return taps;
}

float single(double value) { return static_cast<float>(value); }

uint8_t clip(int32_t value) { return static_cast<uint8_t>(std::clamp(value >> kBits, 0, 255)); }

// -- plain ---------------------------------------------------------------------------------------

struct TwoTaps {
  std::vector<int> first, second;
  std::vector<int32_t> near, far;
};

TwoTaps two_taps(int size, int new_size, int first, int count, bool clamp_fraction) {
  const double scale = 1.0 / (static_cast<double>(new_size) / size);
  TwoTaps taps;
  for (int i = first; i < first + count; ++i) {
    const auto centre = static_cast<float>((i + 0.5) * scale - 0.5);
    const int low = static_cast<int>(std::floor(centre));
    float fraction = centre - static_cast<float>(low);
    if (clamp_fraction && (low < 0 || low >= size - 1)) fraction = 0;
    taps.first.push_back(std::clamp(low, 0, size - 1));
    taps.second.push_back(std::clamp(low + 1, 0, size - 1));
    taps.near.push_back(static_cast<int32_t>(std::nearbyint((1 - fraction) * 2048.0F)));
    taps.far.push_back(static_cast<int32_t>(std::nearbyint(fraction * 2048.0F)));
  }
  return taps;
}

}  // namespace

double support(Kernel kernel) { return kernel == Kernel::kBilinear ? 1 : 2; }

void resize_antialias(const Image& image, const Box& box, Kernel kernel, int height, int width, const Window& window,
                      uint8_t* target) {
  const Taps across =
      filter_taps(kernel, image.width, single(box.left), single(box.right), width, window.left, window.width);
  const Taps down =
      filter_taps(kernel, image.height, single(box.top), single(box.bottom), height, window.top, window.height);
  int low = image.height, high = 0;
  for (size_t y = 0; y < down.start.size(); ++y) {
    low = std::min(low, down.start[y]);
    high = std::max(high, down.start[y] + down.count[y]);
  }
  const auto columns = static_cast<size_t>(window.width), stride = columns * 3;
  std::vector<uint8_t> wide(static_cast<size_t>(std::max(high - low, 0)) * stride);
  for (int y = low; y < high; ++y) {
    const uint8_t* source = &image.pixels[static_cast<size_t>(y) * static_cast<size_t>(image.width) * 3];
    uint8_t* out = &wide[static_cast<size_t>(y - low) * stride];
    for (size_t x = 0; x < columns; ++x) {
      const int32_t* weights = &across.weights[x * static_cast<size_t>(across.most)];
      const uint8_t* pixel = source + static_cast<size_t>(across.start[x]) * 3;
      int32_t red = 1 << (kBits - 1), green = red, blue = red;
      for (int k = 0; k < across.count[x]; ++k, pixel += 3) {
        red += pixel[0] * weights[k];
        green += pixel[1] * weights[k];
        blue += pixel[2] * weights[k];
      }
      *out++ = clip(red);
      *out++ = clip(green);
      *out++ = clip(blue);
    }
  }
  std::vector<int32_t> sums(stride);
  for (size_t y = 0; y < static_cast<size_t>(window.height); ++y) {
    std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
    const int32_t* weights = &down.weights[y * static_cast<size_t>(down.most)];
    for (int k = 0; k < down.count[y]; ++k) {
      const uint8_t* row = &wide[static_cast<size_t>(down.start[y] + k - low) * stride];
      const int32_t w = weights[k];
      for (size_t i = 0; i < stride; ++i) sums[i] += row[i] * w;
    }
    for (size_t i = 0; i < stride; ++i) *target++ = clip(sums[i]);
  }
}

void resize_plain(const Image& image, int height, int width, const Window& window, uint8_t* target) {
  const TwoTaps down = two_taps(image.height, height, window.top, window.height, false);
  const TwoTaps across = two_taps(image.width, width, window.left, window.width, true);
  const size_t stride = static_cast<size_t>(window.width) * 3;
  std::vector<int32_t> above(stride), below(stride);
  const auto widen = [&](int y, std::vector<int32_t>& out) {
    const uint8_t* source = &image.pixels[static_cast<size_t>(y) * static_cast<size_t>(image.width) * 3];
    size_t o = 0;
    for (size_t x = 0; x < static_cast<size_t>(window.width); ++x)
      for (int c = 0; c < 3; ++c)
        out[o++] =
            (source[across.first[x] * 3 + c] * across.near[x] + source[across.second[x] * 3 + c] * across.far[x]) >> 4;
  };
  int have_above = -1, have_below = -1;
  for (size_t y = 0; y < static_cast<size_t>(window.height); ++y) {
    if (have_below == down.first[y]) {
      std::swap(above, below);
      std::swap(have_above, have_below);
    }
    if (have_above != down.first[y]) widen(have_above = down.first[y], above);
    if (have_below != down.second[y]) widen(have_below = down.second[y], below);
    for (size_t i = 0; i < stride; ++i) {
      const int32_t sum = ((above[i] * down.near[y]) >> 16) + ((below[i] * down.far[y]) >> 16);
      *target++ = static_cast<uint8_t>(std::clamp((sum + 2) >> 2, 0, 255));
    }
  }
}

}  // namespace resnext

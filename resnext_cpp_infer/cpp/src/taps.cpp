#include "taps.h"

#include <algorithm>
#include <cmath>

namespace resnext {
namespace {

// The kernel at a distance >= 0. Each expression is evaluated in Pillow's order, so that every bit of it is Pillow's.
double value(Kernel kernel, double x) {
  if (kernel == Kernel::kBilinear) return x < 1 ? 1 - x : 0;
  constexpr double a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

}  // namespace

double support(Kernel kernel) { return kernel == Kernel::kBilinear ? 1 : 2; }

void FilterTaps::set(Kernel kernel, int size, float from, float to, int new_size, int first, int number) {
  const double scale = static_cast<double>(to - from) / new_size;
  const double stretch = std::max(scale, 1.0);
  const double reach = support(kernel) * stretch;
  const double shrink = 1 / stretch;
  most = (static_cast<int>(std::ceil(reach)) * 2 + 1 + 3) / 4 * 4;
  const size_t places = static_cast<size_t>(most) * static_cast<size_t>(number);
  start.resize(static_cast<size_t>(number));
  count.resize(static_cast<size_t>(number));
  weights.assign(places, 0);
  high.assign(places, 0);
  low.assign(places, 0);
  raw_.resize(static_cast<size_t>(most));
  for (int i = 0; i < number; ++i) {
    const double centre = from + (first + i + 0.5) * scale;
    const int begin = std::max(static_cast<int>(centre - reach + 0.5), 0);
    const int end = std::min(static_cast<int>(centre + reach + 0.5), size);
    double sum = 0;
    for (int x = begin; x < end; ++x) {
      const double w = value(kernel, std::abs((x - centre + 0.5) * shrink));
      raw_[static_cast<size_t>(x - begin)] = w;
      sum += w;
    }
    const auto at = static_cast<size_t>(i);
    start[at] = std::min(begin, size - 1);  // rounding may leave nothing of an output at the edge
    count[at] = std::max(end - begin, 0);
    for (int x = 0; x < end - begin; ++x) {
      const double w = raw_[static_cast<size_t>(x)] / (sum != 0 ? sum : 1);
      const size_t place = at * static_cast<size_t>(most) + static_cast<size_t>(x);
      const auto weight = static_cast<int32_t>((w < 0 ? -0.5 : 0.5) + w * (1 << kFilterBits));
      weights[place] = weight;
      high[place] = static_cast<int16_t>(weight >> kLowBits);
      low[place] = static_cast<int16_t>(weight & ((1 << kLowBits) - 1));
    }
  }
}

void FilterTaps::reverse() {
  std::reverse(start.begin(), start.end());
  std::reverse(count.begin(), count.end());
  const auto blocks = [this](auto& values) {
    for (auto one = values.begin(), other = values.end() - most; one < other; one += most, other -= most)
      std::swap_ranges(one, one + most, other);
  };
  blocks(weights);
  blocks(high);
  blocks(low);
}

void PlainTaps::set(int size, int new_size, int from, int number, bool clamp_fraction) {
  const double scale = 1.0 / (static_cast<double>(new_size) / size);
  const auto outputs = static_cast<size_t>(number);
  first.resize(outputs);
  second.resize(outputs);
  near.resize(outputs);
  far.resize(outputs);
  for (size_t i = 0; i < outputs; ++i) {
    const auto centre = static_cast<float>((from + static_cast<int>(i) + 0.5) * scale - 0.5);
    const int low = static_cast<int>(std::floor(centre));
    float fraction = centre - static_cast<float>(low);
    if (clamp_fraction && (low < 0 || low >= size - 1)) fraction = 0;
    first[i] = std::clamp(low, 0, size - 1);
    second[i] = std::clamp(low + 1, 0, size - 1);
    near[i] = static_cast<int16_t>(std::nearbyint((1 - fraction) * 2048.0F));
    far[i] = static_cast<int16_t>(std::nearbyint(fraction * 2048.0F));
  }
}

void PlainTaps::reverse() {
  for (auto* values : {&first, &second}) std::reverse(values->begin(), values->end());
  for (auto* values : {&near, &far}) std::reverse(values->begin(), values->end());
}

}  // namespace resnext

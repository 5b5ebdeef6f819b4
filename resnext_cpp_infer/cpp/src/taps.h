// The taps of the two resizes of PreprocessSpec along one axis: which source pixels an output takes, with which weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace resnext {

// Pillow's filters: the triangle, and the cubic convolution with a = -0.5 (Keys 1981).
enum class Kernel { kBilinear, kBicubic };

// How far a kernel reaches to either side, in pixels of the input where it is enlarged, of the output where it is reduced.
double support(Kernel kernel);

// Bits of a coefficient of Pillow's: products with 8 bits add up without an overflow.
constexpr int kFilterBits = 32 - 8 - 2;
// Lower bits of a coefficient that are multiplied on their own: the upper ones and these have 16 bits with their signs.
constexpr int kLowBits = 12;

// Pillow's taps. `weights` has `most` places for each output, a multiple of 4, with zeros after the last tap.
struct FilterTaps {
  int most = 0;
  std::vector<int> start, count;
  std::vector<int32_t> weights;
  std::vector<int16_t> high, low;  // weight = high * 2^kLowBits + low

  const int32_t* weights_of(int output) const { return &weights[static_cast<size_t>(output) * static_cast<size_t>(most)]; }

  // Those of the outputs [first, first + number), where the pixels [from, to) of `size` become `new_size`. Edges are of
  // single precision, as Pillow takes them.
  void set(Kernel kernel, int size, float from, float to, int new_size, int first, int number);
  // The last output becomes the first.
  void reverse();

 private:
  std::vector<double> raw_;
};

// Bits of a coefficient of OpenCV's.
constexpr int kPlainBits = 11;

// OpenCV's taps: each output takes the pixels first and second.
struct PlainTaps {
  std::vector<int> first, second;
  std::vector<int16_t> near, far;

  // Those of the outputs [from, from + number), where `size` pixels become `new_size`. `clamp_fraction` as along x.
  void set(int size, int new_size, int from, int number, bool clamp_fraction);
  void reverse();
};

}  // namespace resnext

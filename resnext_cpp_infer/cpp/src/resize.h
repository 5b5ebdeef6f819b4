// The two resizes of PreprocessSpec, integer by integer as Pillow's and OpenCV's.
#pragma once

#include <cstdint>

#include "image.h"

namespace resnext {

// A part of an output: rows and columns [top, top + height) x [left, left + width).
struct Window {
  int top, left, height, width;
};

// A part of an input, in its pixels, with fractions.
struct Box {
  double left, top, right, bottom;
};

// Pillow's filters: the triangle, and the cubic convolution with a = -0.5 (Keys 1981).
enum class Kernel { kBilinear, kBicubic };

// How far a kernel reaches to either side, in pixels of the input where it is enlarged, of the output where it is reduced.
double support(Kernel kernel);

// Pillow's resize of `box` to `height` x `width`: the support of `kernel` grows with the reduction, with coefficients of
// 22 bits; rows first. Writes the window of it, uint8 (window.height, window.width, 3).
void resize_antialias(const Image& image, const Box& box, Kernel kernel, int height, int width, const Window& window,
                      uint8_t* target);

// The two-tap bilinear resize of OpenCV and MindSpore on 8-bit images: coefficients of 11 bits. Writes the window.
void resize_plain(const Image& image, int height, int width, const Window& window, uint8_t* target);

}  // namespace resnext

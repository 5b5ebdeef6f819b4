// The operations of a plan on an RGB image, to the bit as resnext_core/data/operations.py defines them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "resnext_pixels.h"

namespace resnext {

// A value that cannot be; the message names it.
class WrongArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws WrongArgument on an operation that is unknown, or has other values than it takes.
void check_operations(const resnext_pixels_operation* operations, int count);

// Does operations; one object serves one thread and keeps its memory.
class Operator {
 public:
  // On uint8 (size, size, 3), in place. The operations have been checked.
  void operate(const resnext_pixels_operation* operations, int count, int size, uint8_t* image);

 private:
  void sharpen(float factor, int size, uint8_t* image);
  void affine(const double* values, int size, uint8_t* image);

  std::vector<uint8_t> copy_, branched_;
  std::vector<uint32_t> total_;
};

}  // namespace resnext

// The two passes of each resize over rows of pixels, with AVX2 where the processor has it, to the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "taps.h"

namespace resnext {

// Bytes beyond a row of pixels that must be readable, and beyond a row that is written that must be writable.
constexpr size_t kSlack = 64;

// The first pass, along rows of 4 bytes a pixel (red, green, blue, anything), of which `left` is the column of the first
// one. Writes `columns` pixels of 3 values for each of the `count` rows: bytes, or for `plain` numbers of 15 bits.
void filter_rows(const uint8_t* rows, size_t stride, int count, int left, const FilterTaps& taps, uint8_t* const* targets);
void plain_rows(const uint8_t* rows, size_t stride, int count, int left, const PlainTaps& taps, uint16_t* const* targets);

// The second pass: one output row of `length` values from the rows above each other that its taps take.
void filter_column(const uint8_t* const* rows, int count, const int32_t* weights, const int16_t* high, const int16_t* low,
                   size_t length, uint8_t* target);
void plain_column(const uint16_t* above, const uint16_t* below, int near, int far, size_t length, uint8_t* target);

}  // namespace resnext

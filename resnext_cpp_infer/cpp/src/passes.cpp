#include "passes.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace resnext {
namespace {

constexpr int32_t kHalf = 1 << (kFilterBits - 1);

uint8_t clip(int32_t value) { return static_cast<uint8_t>(std::clamp(value >> kFilterBits, 0, 255)); }

void filter_row_anywhere(const uint8_t* row, int left, const FilterTaps& taps, uint8_t* out) {
  for (size_t x = 0; x < taps.start.size(); ++x) {
    const int32_t* weights = taps.weights_of(static_cast<int>(x));
    const uint8_t* pixel = row + static_cast<size_t>(taps.start[x] - left) * 4;
    int32_t red = kHalf, green = kHalf, blue = kHalf;
    for (int k = 0; k < taps.count[x]; ++k, pixel += 4) {
      red += pixel[0] * weights[k];
      green += pixel[1] * weights[k];
      blue += pixel[2] * weights[k];
    }
    *out++ = clip(red);
    *out++ = clip(green);
    *out++ = clip(blue);
  }
}

void plain_row_anywhere(const uint8_t* row, int left, const PlainTaps& taps, uint16_t* out) {
  for (size_t x = 0; x < taps.first.size(); ++x) {
    const uint8_t* one = row + static_cast<size_t>(taps.first[x] - left) * 4;
    const uint8_t* other = row + static_cast<size_t>(taps.second[x] - left) * 4;
    for (int c = 0; c < 3; ++c) *out++ = static_cast<uint16_t>((one[c] * taps.near[x] + other[c] * taps.far[x]) >> 4);
  }
}

void filter_column_anywhere(const uint8_t* const* rows, int count, const int32_t* weights, size_t from, size_t length,
                            uint8_t* target) {
  constexpr size_t kPart = 256;
  int32_t sums[kPart];
  for (size_t begin = from; begin < length; begin += kPart) {
    const size_t part = std::min(kPart, length - begin);
    std::fill(sums, sums + part, kHalf);
    for (int k = 0; k < count; ++k) {
      const uint8_t* row = rows[k] + begin;
      const int32_t w = weights[k];
      for (size_t i = 0; i < part; ++i) sums[i] += row[i] * w;
    }
    for (size_t i = 0; i < part; ++i) target[begin + i] = clip(sums[i]);
  }
}

inline __attribute__((always_inline)) void plain_column_body(const uint16_t* above, const uint16_t* below, int near,
                                                             int far, size_t length, uint8_t* target) {
  for (size_t i = 0; i < length; ++i) {
    const int sum = ((above[i] * near) >> 16) + ((below[i] * far) >> 16);
    target[i] = static_cast<uint8_t>(std::min((sum + 2) >> 2, 255));
  }
}

#ifdef RESNEXT_AVX2

// Two weights as the pairs that pmaddwd multiplies with two neighbours.
__attribute__((target("avx2"))) inline __m256i pair(const int16_t* weights) {
  int32_t both;
  std::memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

// Products of the upper and of the lower bits of the weights add up on their own: exact, as one product of 32 bits is.
__attribute__((target("avx2"))) inline __m256i whole(__m256i high, __m256i low) {
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high, kLowBits), low);
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kFilterBits);
}

__attribute__((target("avx2"))) inline __m256i two_rows(const uint8_t* one, const uint8_t* other) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(one))),
                                 _mm_loadu_si128(reinterpret_cast<const __m128i*>(other)), 1);
}

// Two rows at a time: the same weights hold for both. Four pixels of each a step.
__attribute__((target("avx2"))) void filter_two_rows_avx2(const uint8_t* one, const uint8_t* other, int left,
                                                          const FilterTaps& taps, uint8_t* first, uint8_t* second) {
  const char z = -128;
  const __m256i front = _mm256_setr_epi8(0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z,  //
                                         0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z);
  const __m256i back = _mm256_setr_epi8(8, z, 12, z, 9, z, 13, z, 10, z, 14, z, 11, z, 15, z,  //
                                        8, z, 12, z, 9, z, 13, z, 10, z, 14, z, 11, z, 15, z);
  const auto most = static_cast<size_t>(taps.most);
  for (size_t x = 0; x < taps.start.size(); ++x) {
    const int16_t* high = &taps.high[x * most];
    const int16_t* low = &taps.low[x * most];
    const size_t at = static_cast<size_t>(taps.start[x] - left) * 4;
    __m256i upper = _mm256_setzero_si256(), lower = _mm256_setzero_si256();
    for (int k = 0; k < taps.count[x]; k += 4) {
      const __m256i pixels = two_rows(one + at + 4 * k, other + at + 4 * k);
      const __m256i near = _mm256_shuffle_epi8(pixels, front), far = _mm256_shuffle_epi8(pixels, back);
      upper = _mm256_add_epi32(upper, _mm256_madd_epi16(near, pair(high + k)));
      lower = _mm256_add_epi32(lower, _mm256_madd_epi16(near, pair(low + k)));
      upper = _mm256_add_epi32(upper, _mm256_madd_epi16(far, pair(high + k + 2)));
      lower = _mm256_add_epi32(lower, _mm256_madd_epi16(far, pair(low + k + 2)));
    }
    __m256i sum = whole(upper, lower);
    sum = _mm256_packs_epi32(sum, sum);
    sum = _mm256_packus_epi16(sum, sum);
    const int a = _mm_cvtsi128_si32(_mm256_castsi256_si128(sum)), b = _mm_cvtsi128_si32(_mm256_extracti128_si256(sum, 1));
    std::memcpy(first + 3 * x, &a, sizeof a);  // the fourth byte is the next pixel's, or slack
    std::memcpy(second + 3 * x, &b, sizeof b);
  }
}

#define RESNEXT_AVX512_TARGET __attribute__((target("avx512f,avx512bw")))

RESNEXT_AVX512_TARGET inline __m512i pair_512(const int16_t* weights) {
  int32_t both;
  std::memcpy(&both, weights, sizeof both);
  return _mm512_set1_epi32(both);
}

// As filter_two_rows_avx2, for four rows.
RESNEXT_AVX512_TARGET void filter_four_rows_avx512(const uint8_t* const* rows, int left, const FilterTaps& taps,
                                                   uint8_t* const* targets) {
  const char z = -128;
  const __m512i front = _mm512_broadcast_i32x4(_mm_setr_epi8(0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z));
  const __m512i back = _mm512_broadcast_i32x4(_mm_setr_epi8(8, z, 12, z, 9, z, 13, z, 10, z, 14, z, 11, z, 15, z));
  const __m512i half = _mm512_set1_epi32(kHalf);
  const auto most = static_cast<size_t>(taps.most);
  const auto load = [](const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); };
  for (size_t x = 0; x < taps.start.size(); ++x) {
    const int16_t* high = &taps.high[x * most];
    const int16_t* low = &taps.low[x * most];
    const size_t at = static_cast<size_t>(taps.start[x] - left) * 4;
    __m512i upper = _mm512_setzero_si512(), lower = upper;
    for (int k = 0; k < taps.count[x]; k += 4) {
      const size_t place = at + 4 * static_cast<size_t>(k);
      __m512i pixels = _mm512_castsi128_si512(load(rows[0] + place));
      pixels = _mm512_inserti32x4(pixels, load(rows[1] + place), 1);
      pixels = _mm512_inserti32x4(pixels, load(rows[2] + place), 2);
      pixels = _mm512_inserti32x4(pixels, load(rows[3] + place), 3);
      const __m512i near = _mm512_shuffle_epi8(pixels, front), far = _mm512_shuffle_epi8(pixels, back);
      upper = _mm512_add_epi32(upper, _mm512_madd_epi16(near, pair_512(high + k)));
      lower = _mm512_add_epi32(lower, _mm512_madd_epi16(near, pair_512(low + k)));
      upper = _mm512_add_epi32(upper, _mm512_madd_epi16(far, pair_512(high + k + 2)));
      lower = _mm512_add_epi32(lower, _mm512_madd_epi16(far, pair_512(low + k + 2)));
    }
    __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(upper, kLowBits), lower);
    sum = _mm512_srai_epi32(_mm512_add_epi32(sum, half), kFilterBits);
    // Clipped to bytes, of which each row has four.
    const __m128i bytes = _mm512_cvtusepi32_epi8(_mm512_max_epi32(sum, _mm512_setzero_si512()));
    alignas(16) uint8_t all[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(all), bytes);
    for (int row = 0; row < 4; ++row) std::memcpy(targets[row] + 3 * x, all + 4 * row, 4);
  }
}

__attribute__((target("avx2"))) void plain_two_rows_avx2(const uint8_t* one, const uint8_t* other, int left,
                                                         const PlainTaps& taps, uint16_t* first, uint16_t* second) {
  const char z = -128;
  const __m256i front = _mm256_setr_epi8(0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z,  //
                                         0, z, 4, z, 1, z, 5, z, 2, z, 6, z, 3, z, 7, z);
  for (size_t x = 0; x < taps.first.size(); ++x) {
    // Where second is not the pixel after first, its weight is 0 along x.
    const size_t at = static_cast<size_t>(taps.first[x] - left) * 4;
    const __m256i weights =
        _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint16_t>(taps.near[x])) | taps.far[x] * 65536);
    const __m256i near = _mm256_shuffle_epi8(two_rows(one + at, other + at), front);
    __m256i sum = _mm256_srai_epi32(_mm256_madd_epi16(near, weights), 4);
    sum = _mm256_packs_epi32(sum, sum);
    const int64_t a = _mm_cvtsi128_si64(_mm256_castsi256_si128(sum)), b = _mm_cvtsi128_si64(_mm256_extracti128_si256(sum, 1));
    std::memcpy(first + 3 * x, &a, sizeof a);
    std::memcpy(second + 3 * x, &b, sizeof b);
  }
}

__attribute__((target("avx2"))) void filter_16_avx2(const uint8_t* const* rows, int count, const int16_t* high,
                                                    const int16_t* low, size_t at, uint8_t* target) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i upper[2] = {zero, zero}, lower[2] = {zero, zero};
  for (int k = 0; k < count; k += 2) {
    // An odd row at the end is multiplied with its weight and with 0.
    const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[k] + at));
    const __m128i other = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[std::min(k + 1, count - 1)] + at));
    const __m256i near = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, other));
    const __m256i far = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, other));
    const __m256i h = pair(high + k), l = pair(low + k);
    upper[0] = _mm256_add_epi32(upper[0], _mm256_madd_epi16(near, h));
    lower[0] = _mm256_add_epi32(lower[0], _mm256_madd_epi16(near, l));
    upper[1] = _mm256_add_epi32(upper[1], _mm256_madd_epi16(far, h));
    lower[1] = _mm256_add_epi32(lower[1], _mm256_madd_epi16(far, l));
  }
  const __m256i sums = _mm256_packs_epi32(whole(upper[0], lower[0]), whole(upper[1], lower[1]));
  const __m256i order = _mm256_permute4x64_epi64(sums, 0xD8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(order), _mm256_extracti128_si256(order, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target + at), bytes);
}

__attribute__((target("avx2"))) void plain_column_avx2(const uint16_t* above, const uint16_t* below, int near, int far,
                                                       size_t length, uint8_t* target) {
  plain_column_body(above, below, near, far, length, target);
}

#endif

}  // namespace

void filter_rows(const uint8_t* rows, size_t stride, int count, int left, const FilterTaps& taps, uint8_t* const* targets) {
  for (int y = 0; y < count; ++y) {
    const uint8_t* row = rows + static_cast<size_t>(y) * stride;
#ifdef RESNEXT_AVX2
    if (has_avx512() && y + 4 <= count) {
      const uint8_t* four[4] = {row, row + stride, row + 2 * stride, row + 3 * stride};
      filter_four_rows_avx512(four, left, taps, targets + y);
      y += 3;
      continue;
    }
    if (has_avx2()) {
      const int other = std::min(y + 1, count - 1);  // a last one is done twice, to the same place
      filter_two_rows_avx2(row, rows + static_cast<size_t>(other) * stride, left, taps, targets[y], targets[other]);
      ++y;
      continue;
    }
#endif
    filter_row_anywhere(row, left, taps, targets[y]);
  }
}

void plain_rows(const uint8_t* rows, size_t stride, int count, int left, const PlainTaps& taps, uint16_t* const* targets) {
  for (int y = 0; y < count; ++y) {
    const uint8_t* row = rows + static_cast<size_t>(y) * stride;
#ifdef RESNEXT_AVX2
    if (has_avx2()) {
      const int other = std::min(y + 1, count - 1);
      plain_two_rows_avx2(row, rows + static_cast<size_t>(other) * stride, left, taps, targets[y], targets[other]);
      ++y;
      continue;
    }
#endif
    plain_row_anywhere(row, left, taps, targets[y]);
  }
}

void filter_column(const uint8_t* const* rows, int count, const int32_t* weights, const int16_t* high, const int16_t* low,
                   size_t length, uint8_t* target) {
  size_t at = 0;
#ifdef RESNEXT_AVX2
  if (has_avx2() && length >= 16) {
    for (; at + 16 <= length; at += 16) filter_16_avx2(rows, count, high, low, at, target);
    if (at < length) filter_16_avx2(rows, count, high, low, length - 16, target);
    return;
  }
#endif
  filter_column_anywhere(rows, count, weights, at, length, target);
}

void plain_column(const uint16_t* above, const uint16_t* below, int near, int far, size_t length, uint8_t* target) {
#ifdef RESNEXT_AVX2
  if (has_avx2()) {
    plain_column_avx2(above, below, near, far, length, target);
    return;
  }
#endif
  plain_column_body(above, below, near, far, length, target);
}

}  // namespace resnext

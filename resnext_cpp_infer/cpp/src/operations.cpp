#include "operations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "simd.h"

namespace resnext {
namespace {

using Bytes4 = uint8_t __attribute__((vector_size(4)));
using Doubles4 = double __attribute__((vector_size(32)));

// Pixels that are worked on together, so that they stay in the cache.
constexpr size_t kPart = 512;

// -- colour --------------------------------------------------------------------------------------

// Pillow's Image.blend, `from` where `alpha` is 0 and `to` where it is 1: single precision, cut off, and clipped, which
// does nothing between 0 and 1.
uint8_t blended(int from, int to, float alpha) {
  const float value = static_cast<float>(from) + alpha * static_cast<float>(to - from);
  return static_cast<uint8_t>(value <= 0.0F ? 0.0F : value >= 255.0F ? 255.0F : value);
}

// Pillow's conversion to gray.
uint8_t gray_of(const uint8_t* pixel) {
  return static_cast<uint8_t>((pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16);
}

#ifdef RESNEXT_AVX2

// As blended().
__attribute__((target("avx2"))) inline __m256i blended_avx2(__m256i from, __m256i to, __m256 alpha) {
  const __m256 change = _mm256_mul_ps(alpha, _mm256_cvtepi32_ps(_mm256_sub_epi32(to, from)));
  const __m256 value = _mm256_add_ps(_mm256_cvtepi32_ps(from), change);
  const __m256 clipped = _mm256_max_ps(_mm256_min_ps(value, _mm256_set1_ps(255.0F)), _mm256_setzero_ps());
  return _mm256_cvttps_epi32(clipped);
}

__attribute__((target("avx2"))) inline __m256i eight_levels(const uint8_t* at) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
}

// Sixteen values a step, of one level or of an image; returns how many were done.
template <bool kLevel>
__attribute__((target("avx2"))) size_t blend_avx2(const uint8_t* from, float alpha, size_t count, uint8_t* to) {
  const __m256 factor = _mm256_set1_ps(alpha);
  const __m256i level = _mm256_set1_epi32(kLevel ? *from : 0);
  size_t done = 0;
  for (; done + 16 <= count; done += 16) {
    const __m256i first = blended_avx2(kLevel ? level : eight_levels(from + done), eight_levels(to + done), factor);
    const __m256i second = blended_avx2(kLevel ? level : eight_levels(from + done + 8), eight_levels(to + done + 8), factor);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + done),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
  }
  return done;
}

// Eight pixels a step; returns how many pixels were done. Green has two halves of its weight, which does not fit 16 bits.
__attribute__((target("avx2"))) size_t gray_avx2(const uint8_t* pixels, size_t count, uint8_t* gray) {
  const char z = -128;
  const __m256i red_green = _mm256_setr_epi8(0, z, 1, z, 3, z, 4, z, 6, z, 7, z, 9, z, 10, z,  //
                                             0, z, 1, z, 3, z, 4, z, 6, z, 7, z, 9, z, 10, z);
  const __m256i green_blue = _mm256_setr_epi8(1, z, 2, z, 4, z, 5, z, 7, z, 8, z, 10, z, 11, z,  //
                                              1, z, 2, z, 4, z, 5, z, 7, z, 8, z, 10, z, 11, z);
  const __m256i first = _mm256_set1_epi32(19595 | 19235 << 16), second = _mm256_set1_epi32(19235 | 7471 << 16);
  const __m256i half = _mm256_set1_epi32(0x8000);
  size_t done = 0;
  for (; done + 10 <= count; done += 8) {  // the last load reaches 4 bytes beyond the eighth pixel
    const uint8_t* from = pixels + 3 * done;
    const __m256i eight = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))),
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 12)), 1);
    const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(eight, red_green), first),
                                         _mm256_madd_epi16(_mm256_shuffle_epi8(eight, green_blue), second));
    const __m256i level = _mm256_srli_epi32(_mm256_add_epi32(sum, half), 16);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(level), _mm256_extracti128_si256(level, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(gray + done), _mm_packus_epi16(words, words));
  }
  return done;
}

// Eight levels to eight gray pixels a step.
__attribute__((target("avx2"))) size_t thrice_avx2(const uint8_t* gray, size_t count, uint8_t* pixels) {
  const __m128i first = _mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5);
  const __m128i second = _mm_setr_epi8(5, 5, 6, 6, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7);
  size_t done = 0;
  for (; done + 8 <= count; done += 8) {
    const __m128i levels = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(gray + done));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pixels + 3 * done), _mm_shuffle_epi8(levels, first));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(pixels + 3 * done + 16), _mm_shuffle_epi8(levels, second));
  }
  return done;
}

#endif

void blend_level(uint8_t from, float alpha, size_t count, uint8_t* to) {
  size_t done = 0;
#ifdef RESNEXT_AVX2
  if (has_avx2()) done = blend_avx2<true>(&from, alpha, count, to);
#endif
  for (; done < count; ++done) to[done] = blended(from, to[done], alpha);
}

void blend(const uint8_t* from, float alpha, size_t count, uint8_t* to) {
  size_t done = 0;
#ifdef RESNEXT_AVX2
  if (has_avx2()) done = blend_avx2<false>(from, alpha, count, to);
#endif
  for (; done < count; ++done) to[done] = blended(from[done], to[done], alpha);
}

void to_gray(const uint8_t* pixels, size_t count, uint8_t* gray) {
  size_t done = 0;
#ifdef RESNEXT_AVX2
  if (has_avx2()) done = gray_avx2(pixels, count, gray);
#endif
  for (; done < count; ++done) gray[done] = gray_of(pixels + 3 * done);
}

void thrice(const uint8_t* gray, size_t count, uint8_t* pixels) {
  size_t done = 0;
#ifdef RESNEXT_AVX2
  if (has_avx2()) done = thrice_avx2(gray, count, pixels);
#endif
  for (; done < count; ++done) std::memset(pixels + 3 * done, gray[done], 3);
}

uint8_t mean_gray(const uint8_t* image, size_t count) {
  uint8_t gray[kPart];
  uint64_t sum = 0;
  for (size_t at = 0; at < count; at += kPart) {
    const size_t part = std::min(kPart, count - at);
    to_gray(image + 3 * at, part, gray);
    uint32_t levels = 0;
    for (size_t i = 0; i < part; ++i) levels += gray[i];
    sum += levels;
  }
  return static_cast<uint8_t>(static_cast<double>(sum) / static_cast<double>(count) + 0.5);
}

void saturate(float factor, size_t count, uint8_t* image) {
  uint8_t gray[kPart], pixels[3 * kPart];
  for (size_t at = 0; at < count; at += kPart) {
    const size_t part = std::min(kPart, count - at);
    to_gray(image + 3 * at, part, gray);
    thrice(gray, part, pixels);
    blend(pixels, factor, 3 * part, image + 3 * at);
  }
}

// -- tables --------------------------------------------------------------------------------------

using Table = uint8_t[256];

void look_up(const Table (&tables)[3], size_t count, uint8_t* image) {
  for (size_t i = 0; i < count; ++i, image += 3)
    for (int c = 0; c < 3; ++c) image[c] = tables[c][image[c]];
}

template <typename Function>
void point(size_t count, uint8_t* image, const Function& level) {
  Table table;
  for (int v = 0; v < 256; ++v) table[v] = static_cast<uint8_t>(std::clamp<int>(level(v), 0, 255));
  for (size_t i = 0; i < 3 * count; ++i) image[i] = table[image[i]];
}

using Histogram = uint32_t[256];

void histograms(const uint8_t* image, size_t count, Histogram (&counts)[3]) {
  for (size_t i = 0; i < count; ++i, image += 3)
    for (int c = 0; c < 3; ++c) ++counts[c][image[c]];
}

void identity(Table& table) {
  for (int v = 0; v < 256; ++v) table[v] = static_cast<uint8_t>(v);
}

void stretch(const Histogram& counts, Table& table) {
  int low = 0, high = 255;
  while (low < 255 && counts[low] == 0) ++low;
  while (high > 0 && counts[high] == 0) --high;
  if (high <= low) return identity(table);
  const double scale = 255.0 / (high - low), offset = -low * scale;
  for (int v = 0; v < 256; ++v) table[v] = static_cast<uint8_t>(std::clamp(static_cast<int>(v * scale + offset), 0, 255));
}

void flatten(const Histogram& counts, Table& table) {
  uint32_t sum = 0, last = 0;
  int levels = 0;
  for (const uint32_t n : counts) {
    sum += n;
    if (n == 0) continue;
    last = n;
    ++levels;
  }
  const uint32_t step = levels <= 1 ? 0 : (sum - last) / 255;
  if (step == 0) return identity(table);
  uint32_t n = step / 2;
  for (int v = 0; v < 256; ++v) {
    table[v] = static_cast<uint8_t>(std::min(n / step, 255U));
    n += counts[v];
  }
}

template <typename Make>
void by_histogram(size_t count, uint8_t* image, const Make& make) {
  Histogram counts[3] = {};
  histograms(image, count, counts);
  Table tables[3];
  for (int c = 0; c < 3; ++c) make(counts[c], tables[c]);
  look_up(tables, count, image);
}

// -- geometry ------------------------------------------------------------------------------------

// The image as 4 bytes a pixel, and where the transformed one is written.
struct Canvas {
  const uint8_t* from;
  int size;
  uint8_t* to;

  const uint8_t* at(int x, int y) const { return from + (static_cast<size_t>(y) * static_cast<size_t>(size) + static_cast<size_t>(x)) * 4; }
  int inside(int at) const { return std::clamp(at, 0, size - 1); }
};

inline __attribute__((always_inline)) Doubles4 colours(const uint8_t* pixel) {
  Bytes4 bytes;
  std::memcpy(&bytes, pixel, sizeof bytes);
  return __builtin_convertvector(bytes, Doubles4);
}

inline __attribute__((always_inline)) Doubles4 between(const Doubles4& a, const Doubles4& b, double d) { return a + (b - a) * d; }

inline __attribute__((always_inline)) Doubles4 cubic(const Doubles4& a, const Doubles4& b, const Doubles4& c,
                                                     const Doubles4& e, double d) {
  const Doubles4 one = c - a;
  const Doubles4 two = 2 * (a - b) + c - e;
  const Doubles4 three = b - a - c + e;
  return b + d * (one + d * (two + d * three));
}

inline __attribute__((always_inline)) void write(const Doubles4& value, uint8_t* to) {
  for (int c = 0; c < 3; ++c) to[c] = static_cast<uint8_t>(value[c] <= 0.0 ? 0.0 : value[c] >= 255.0 ? 255.0 : value[c]);
}

inline __attribute__((always_inline)) void bilinear(const Canvas& canvas, double xin, double yin, uint8_t* to) {
  xin -= 0.5;
  yin -= 0.5;
  const int x = static_cast<int>(std::floor(xin)), y = static_cast<int>(std::floor(yin));
  const double dx = xin - x, dy = yin - y;
  const int left = canvas.inside(x), right = canvas.inside(x + 1), row = canvas.inside(y);
  const Doubles4 above = between(colours(canvas.at(left, row)), colours(canvas.at(right, row)), dx);
  Doubles4 below = above;
  if (y + 1 >= 0 && y + 1 < canvas.size)
    below = between(colours(canvas.at(left, y + 1)), colours(canvas.at(right, y + 1)), dx);
  write(between(above, below, dy), to);
}

inline __attribute__((always_inline)) void bicubic(const Canvas& canvas, double xin, double yin, uint8_t* to) {
  xin -= 0.5;
  yin -= 0.5;
  const int x = static_cast<int>(std::floor(xin)), y = static_cast<int>(std::floor(yin));
  const double dx = xin - x, dy = yin - y;
  const int columns[4] = {canvas.inside(x - 1), canvas.inside(x), canvas.inside(x + 1), canvas.inside(x + 2)};
  Doubles4 rows[4];
  for (int k = 0; k < 4; ++k) {
    const int row = y - 1 + k;
    if (k > 0 && (row < 0 || row >= canvas.size)) {
      rows[k] = rows[k - 1];
      continue;
    }
    const int line = canvas.inside(row);
    rows[k] = cubic(colours(canvas.at(columns[0], line)), colours(canvas.at(columns[1], line)),
                    colours(canvas.at(columns[2], line)), colours(canvas.at(columns[3], line)), dx);
  }
  write(cubic(rows[0], rows[1], rows[2], rows[3], dy), to);
}

template <bool kCubic>
inline __attribute__((always_inline)) void interpolate_body(const Canvas& canvas, const double* a) {
  for (int y = 0; y < canvas.size; ++y) {
    for (int x = 0; x < canvas.size; ++x) {
      const double xout = x + 0.5, yout = y + 0.5;
      const double xin = a[0] * xout + a[1] * yout + a[2], yin = a[3] * xout + a[4] * yout + a[5];
      if (!(xin >= 0.0 && xin < canvas.size && yin >= 0.0 && yin < canvas.size)) continue;
      uint8_t* to = canvas.to + (static_cast<size_t>(y) * static_cast<size_t>(canvas.size) + static_cast<size_t>(x)) * 3;
      if (kCubic)
        bicubic(canvas, xin, yin, to);
      else
        bilinear(canvas, xin, yin, to);
    }
  }
}

#ifdef RESNEXT_AVX2
template <bool kCubic>
__attribute__((target("avx2"))) void interpolate_avx2(const Canvas& canvas, const double* a) {
  interpolate_body<kCubic>(canvas, a);
}
#endif

template <bool kCubic>
void interpolate(const Canvas& canvas, const double* a) {
#ifdef RESNEXT_AVX2
  if (has_avx2()) return interpolate_avx2<kCubic>(canvas, a);
#endif
  interpolate_body<kCubic>(canvas, a);
}

void copy_pixel(const Canvas& canvas, int x, int y, int from_x, int from_y) {
  std::memcpy(canvas.to + (static_cast<size_t>(y) * static_cast<size_t>(canvas.size) + static_cast<size_t>(x)) * 3,
              canvas.at(from_x, from_y), 3);
}

// The integer part, or -1 outside.
int place(double at, int size) { return at >= 0.0 && at < size ? static_cast<int>(at) : -1; }

// Pillow's nearest neighbour has three forms, which differ in rounding.
void nearest(const Canvas& canvas, const double* a) {
  const int size = canvas.size;
  if (a[1] == 0 && a[3] == 0) {  // positions are sums
    double yo = a[5] + a[4] * 0.5;
    for (int y = 0; y < size; ++y, yo += a[4]) {
      const int from_y = place(yo, size);
      double xo = a[2] + a[0] * 0.5;
      for (int x = 0; x < size; ++x, xo += a[0]) {
        const int from_x = place(xo, size);
        if (from_x >= 0 && from_y >= 0) copy_pixel(canvas, x, y, from_x, from_y);
      }
    }
    return;
  }
  const auto small = [a](int x, int y) {
    return std::abs(x * a[0] + y * a[1] + a[2]) < 32768.0 && std::abs(x * a[3] + y * a[4] + a[5]) < 32768.0;
  };
  if (small(0, 0) && small(size, size) && small(0, size) && small(size, 0)) {  // 16 bits of fraction
    const auto fixed = [](double value) { return static_cast<int64_t>(std::floor(value * 65536.0 + 0.5)); };
    const int64_t a0 = fixed(a[0]), a1 = fixed(a[1]), a3 = fixed(a[3]), a4 = fixed(a[4]);
    int64_t a2 = fixed(a[2] + a[0] * 0.5 + a[1] * 0.5), a5 = fixed(a[5] + a[3] * 0.5 + a[4] * 0.5);
    for (int y = 0; y < size; ++y, a2 += a1, a5 += a4) {
      int64_t xx = a2, yy = a5;
      for (int x = 0; x < size; ++x, xx += a0, yy += a3) {
        const int64_t from_x = xx >> 16, from_y = yy >> 16;
        if (from_x >= 0 && from_x < size && from_y >= 0 && from_y < size)
          copy_pixel(canvas, x, y, static_cast<int>(from_x), static_cast<int>(from_y));
      }
    }
    return;
  }
  double xo = a[2] + a[1] * 0.5 + a[0] * 0.5, yo = a[5] + a[4] * 0.5 + a[3] * 0.5;
  for (int y = 0; y < size; ++y, xo += a[1], yo += a[4]) {
    double xx = xo, yy = yo;
    for (int x = 0; x < size; ++x, xx += a[0], yy += a[3]) {
      const int from_x = place(xx, size), from_y = place(yy, size);
      if (from_x >= 0 && from_y >= 0) copy_pixel(canvas, x, y, from_x, from_y);
    }
  }
}

// -- boxes ---------------------------------------------------------------------------------------

uint8_t byte(double value) { return static_cast<uint8_t>(std::clamp<int64_t>(static_cast<int64_t>(value), 0, 255)); }

// Calls `at` with the row and column in the box, and the pixel, of each pixel of the box that lies in the image.
template <typename At>
void in_box(const double* values, int size, uint8_t* image, const At& at) {
  const auto left = static_cast<int64_t>(values[0]), top = static_cast<int64_t>(values[1]);
  const auto width = static_cast<int64_t>(values[2]), height = static_cast<int64_t>(values[3]);
  for (int64_t y = std::max<int64_t>(top, 0); y < std::min<int64_t>(top + height, size); ++y)
    for (int64_t x = std::max<int64_t>(left, 0); x < std::min<int64_t>(left + width, size); ++x)
      at(y - top, x - left, image + (y * size + x) * 3);
}

void erase(const double* values, int size, uint8_t* image) {
  const uint8_t colour[3] = {byte(values[4]), byte(values[5]), byte(values[6])};
  in_box(values, size, image, [&](int64_t, int64_t, uint8_t* pixel) { std::memcpy(pixel, colour, 3); });
}

// The sum of the bytes of the word of splitmix64.
int byte_sum(uint64_t word) {
  word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9U;
  word = (word ^ word >> 27) * 0x94D049BB133111EBU;
  word ^= word >> 31;
  int sum = 0;
  for (; word != 0; word >>= 8) sum += static_cast<int>(word & 0xFF);
  return sum;
}

void erase_noise(const double* values, int size, uint8_t* image) {
  const auto width = static_cast<uint64_t>(static_cast<int64_t>(values[2]));
  const auto seed = static_cast<uint64_t>(static_cast<int64_t>(values[4]));
  in_box(values, size, image, [&](int64_t y, int64_t x, uint8_t* pixel) {
    const uint64_t first = (static_cast<uint64_t>(y) * width + static_cast<uint64_t>(x)) * 3;
    for (int c = 0; c < 3; ++c) {
      const auto mean = static_cast<int64_t>(values[5 + c]), step = static_cast<int64_t>(values[8 + c]);
      const int sum = byte_sum(seed + (first + static_cast<uint64_t>(c) + 1) * 0x9E3779B97F4A7C15U);
      pixel[c] = static_cast<uint8_t>(std::clamp<int64_t>((mean + step * (sum - 1020) + 32768) >> 16, 0, 255));
    }
  });
}

// -- checks --------------------------------------------------------------------------------------

struct Kind {
  const char* name;
  int count;
};

// By number, from 1.
constexpr Kind kKinds[] = {
    {"brightness", 1}, {"contrast", 1},  {"saturation", 1}, {"sharpness", 1},    {"autocontrast", 0}, {"equalize", 0},
    {"invert", 0},     {"posterize", 1}, {"solarize", 1},   {"solarize_add", 1}, {"affine", 10},      {"branch", 0},
    {"add", 1},        {"merge", 1},     {"erase", 7},      {"erase_noise", 11},
};

// So that whole numbers are exact, and products of a few do not overflow.
constexpr double kMostValue = 9007199254740992.0;  // 2^53

void check_whole(const Kind& kind, double value, double least, double most) {
  if (!(value >= least && value <= most))
    throw WrongArgument(std::string(kind.name) + " cannot have the value " + std::to_string(value));
}

}  // namespace

void check_operations(const resnext_pixels_operation* operations, int count) {
  bool branched = false;
  for (int i = 0; i < count; ++i) {
    const resnext_pixels_operation& operation = operations[i];
    if (operation.kind < 1 || operation.kind > static_cast<int>(std::size(kKinds)))
      throw WrongArgument("no operation " + std::to_string(operation.kind));
    const Kind& kind = kKinds[operation.kind - 1];
    if (operation.count != kind.count)
      throw WrongArgument(std::string(kind.name) + " takes " + std::to_string(kind.count) + " values, not " +
                          std::to_string(operation.count));
    for (int v = 0; v < kind.count; ++v) check_whole(kind, operation.values[v], -kMostValue, kMostValue);
    const double* values = operation.values;
    switch (operation.kind) {
      case RESNEXT_PIXELS_POSTERIZE: check_whole(kind, values[0], 0, 8); break;
      case RESNEXT_PIXELS_SOLARIZE_ADD: check_whole(kind, values[0], -255, 255); break;
      case RESNEXT_PIXELS_AFFINE:
        if (values[6] != 0 && values[6] != 2 && values[6] != 3) throw WrongArgument("affine takes the filters 0, 2 and 3");
        break;
      case RESNEXT_PIXELS_BRANCH: branched = true; break;
      case RESNEXT_PIXELS_ADD:
      case RESNEXT_PIXELS_MERGE:
        check_whole(kind, values[0], 0, 65536);
        if (!branched) throw WrongArgument(std::string(kind.name) + " without a branch");
        break;
      case RESNEXT_PIXELS_ERASE_NOISE:
        check_whole(kind, values[4], 0, kMostValue);
        for (int v = 5; v < 11; ++v) check_whole(kind, values[v], -1e12, 1e12);
        break;
      default: break;
    }
  }
}

void Operator::operate(const resnext_pixels_operation* operations, int count, int size, uint8_t* image) {
  const size_t pixels = static_cast<size_t>(size) * static_cast<size_t>(size), bytes = 3 * pixels;
  for (int i = 0; i < count; ++i) {
    const double* values = operations[i].values;
    const auto factor = static_cast<float>(values[0]);
    const bool same = factor == 1.0F;  // Pillow's blend returns a copy then
    switch (operations[i].kind) {
      case RESNEXT_PIXELS_BRIGHTNESS:
        if (!same) blend_level(0, factor, bytes, image);
        break;
      case RESNEXT_PIXELS_CONTRAST:
        if (!same) blend_level(mean_gray(image, pixels), factor, bytes, image);
        break;
      case RESNEXT_PIXELS_SATURATION:
        if (!same) saturate(factor, pixels, image);
        break;
      case RESNEXT_PIXELS_SHARPNESS:
        if (!same) sharpen(factor, size, image);
        break;
      case RESNEXT_PIXELS_AUTOCONTRAST: by_histogram(pixels, image, stretch); break;
      case RESNEXT_PIXELS_EQUALIZE: by_histogram(pixels, image, flatten); break;
      case RESNEXT_PIXELS_INVERT:
        point(pixels, image, [](int v) { return 255 - v; });
        break;
      case RESNEXT_PIXELS_POSTERIZE:
        point(pixels, image, [cut = 8 - static_cast<int>(values[0])](int v) { return v >> cut << cut; });
        break;
      case RESNEXT_PIXELS_SOLARIZE:
        point(pixels, image, [threshold = values[0]](int v) { return v < threshold ? v : 255 - v; });
        break;
      case RESNEXT_PIXELS_SOLARIZE_ADD:
        point(pixels, image, [more = static_cast<int>(values[0])](int v) { return v < 128 ? v + more : v; });
        break;
      case RESNEXT_PIXELS_AFFINE: affine(values, size, image); break;
      case RESNEXT_PIXELS_BRANCH:
        branched_.assign(image, image + bytes);
        total_.assign(bytes, 0);
        break;
      case RESNEXT_PIXELS_ADD: {
        const auto weight = static_cast<uint32_t>(values[0]);
        for (size_t k = 0; k < bytes; ++k) total_[k] += weight * image[k];
        std::copy(branched_.begin(), branched_.end(), image);
        break;
      }
      case RESNEXT_PIXELS_MERGE: {
        const auto weight = static_cast<uint32_t>(values[0]);
        for (size_t k = 0; k < bytes; ++k) {
          total_[k] += weight * branched_[k];
          image[k] = static_cast<uint8_t>((total_[k] + 32768) >> 16);
        }
        break;
      }
      case RESNEXT_PIXELS_ERASE: erase(values, size, image); break;
      case RESNEXT_PIXELS_ERASE_NOISE: erase_noise(values, size, image); break;
      default: break;
    }
  }
}

// Towards Pillow's SMOOTH, (1 1 1, 1 5 1, 1 1 1) / 13, whose sums are never halfway between two levels.
void Operator::sharpen(float factor, int size, uint8_t* image) {
  const auto stride = static_cast<size_t>(size) * 3;
  copy_.assign(image, image + stride * static_cast<size_t>(size));
  const uint8_t* from = copy_.data();
  for (size_t y = 0; y < static_cast<size_t>(size); ++y) {
    for (size_t i = 0; i < stride; ++i) {
      const uint8_t* p = from + y * stride + i;
      int smooth = *p;
      if (y > 0 && y + 1 < static_cast<size_t>(size) && i >= 3 && i + 3 < stride) {
        const uint8_t *above = p - stride, *below = p + stride;
        const int sum = above[-3] + above[0] + above[3] + p[-3] + 5 * p[0] + p[3] + below[-3] + below[0] + below[3];
        smooth = (2 * sum + 13) / 26;
      }
      image[y * stride + i] = blended(smooth, *p, factor);
    }
  }
}

void Operator::affine(const double* values, int size, uint8_t* image) {
  const size_t pixels = static_cast<size_t>(size) * static_cast<size_t>(size);
  if (copy_.size() < 4 * pixels) copy_.resize(4 * pixels);
  const uint8_t colour[3] = {byte(values[7]), byte(values[8]), byte(values[9])};
  for (size_t i = 0; i < pixels; ++i) {
    std::memcpy(&copy_[4 * i], image + 3 * i, 3);
    std::memcpy(image + 3 * i, colour, 3);
  }
  const Canvas canvas{copy_.data(), size, image};
  if (values[6] == 0)
    nearest(canvas, values);
  else if (values[6] == 2)
    interpolate<false>(canvas, values);
  else
    interpolate<true>(canvas, values);
}

}  // namespace resnext

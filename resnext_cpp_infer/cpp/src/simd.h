// Which instructions this processor has beyond those that the compiler may always use.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RESNEXT_AVX2
#include <immintrin.h>
#endif

#include <atomic>

namespace resnext {

// Instructions that may be used: 0 those that any processor has, 1 AVX2 too, 2 AVX-512 too. For tests of each.
inline std::atomic<int> simd_allowed{2};

inline bool has_avx2() {
#ifdef RESNEXT_AVX2
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has && simd_allowed.load(std::memory_order_relaxed) >= 1;
#else
  return false;
#endif
}

inline bool has_avx512() {
#ifdef RESNEXT_AVX2
  static const bool has = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  return has && simd_allowed.load(std::memory_order_relaxed) >= 2;
#else
  return false;
#endif
}

}  // namespace resnext

// Which instructions this processor has beyond those that the compiler may always use.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RESNEXT_AVX2
#include <immintrin.h>
#endif

#include <atomic>

namespace resnext {

// False leaves the code that any processor runs: for its tests.
inline std::atomic<bool> simd_allowed{true};

inline bool has_avx2() {
#ifdef RESNEXT_AVX2
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has && simd_allowed.load(std::memory_order_relaxed);
#else
  return false;
#endif
}

}  // namespace resnext

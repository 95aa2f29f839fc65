// Element types of the kernels: float and double compute in themselves, bfloat16 and float16 are storage only and
// compute in float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "shared/interp_geometry.h"

namespace repro {

// Bit-compatible with c10::BFloat16 and c10::Half, so that kernels need neither torch's nor CUDA's headers.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

template <class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<bfloat16> {
  using type = float;
};
template <>
struct Accumulator<float16> {
  using type = float;
};
template <class T>
using acc_t = typename Accumulator<T>::type;

REPRO_HD uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

REPRO_HD float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

REPRO_HD float load(float x) { return x; }
REPRO_HD double load(double x) { return x; }
REPRO_HD float load(bfloat16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
REPRO_HD float load(float16 x) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t exponent = (x.bits >> 10) & 31;
  const uint32_t fraction = x.bits & 0x3ff;
  if (exponent == 0)  // zero or subnormal: a multiple of 2^-24
    return from_bits(bits_of(static_cast<float>(fraction) * 5.9604644775390625e-8f) | sign);
  return from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
#endif
}

// Stores round to nearest even; a NaN stays a NaN.
REPRO_HD void store(float* p, float x) { *p = x; }
REPRO_HD void store(double* p, double x) { *p = x; }
REPRO_HD void store(bfloat16* p, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  const uint32_t bits = bits_of(x);
  p->bits = x != x ? static_cast<uint16_t>((bits >> 16) | 0x40)
                   : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}
REPRO_HD void store(float16* p, float x) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  const uint32_t sign = bits_of(x) >> 16 & 0x8000;
  const uint32_t magnitude = bits_of(x) & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // 65520 and beyond round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000) {  // below 2^-14: beside 0.5 one unit in the last place is 2^-24, a subnormal's
    half = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000;
  } else {
    half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  }
  p->bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace repro

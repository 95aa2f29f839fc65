// Element types of the kernels: float and double compute in themselves, bfloat16 is storage only and computes in
// float32.
#pragma once

#include <cstdint>
#include <cstring>

#include "interp_geometry.h"

namespace repro {

// Bit-compatible with c10::BFloat16 and __nv_bfloat16, so that kernels need neither torch's nor CUDA's header.
struct bfloat16 {
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
template <class T>
using acc_t = typename Accumulator<T>::type;

REPRO_HD float load(float x) { return x; }
REPRO_HD double load(double x) { return x; }
REPRO_HD float load(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

REPRO_HD void store(float* p, float x) { *p = x; }
REPRO_HD void store(double* p, double x) { *p = x; }
REPRO_HD void store(bfloat16* p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  // Round to nearest even; a NaN keeps its sign and stays a NaN.
  p->bits = x != x ? static_cast<uint16_t>((bits >> 16) | 0x40)
                   : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace repro

// The exponential that the softmaxes of both devices take.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "shared/interp_geometry.h"

namespace repro {

// e^x for x <= 0, to 2 units in the last place; 0 below log(FLT_MIN). One formula for both devices, without branches so
// that loops over it vectorise: x = n log 2 + r with |r| <= log(2) / 2, then Cephes' polynomial (expf) in r.
// V is float, or a vector of floats, and I the integers beside it.
template <class V, class I>
REPRO_HD V exponential_of(const V& x) {
  const V lowest = V{} - 87.3365f;
  const V round = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, kept in the low bits
  const V clamped = x < lowest ? lowest : x;
  const V shifted = clamped * 1.44269504088896341f + round;
  const V n = shifted - round;
  const V r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const V value = (p * (r * r) + r) + 1.0f;
  I bits, zero;
  memcpy(&bits, &shifted, sizeof bits);
  memcpy(&zero, &round, sizeof zero);
  bits = (bits - zero + 127) << 23;
  V power;  // 2^n
  memcpy(&power, &bits, sizeof power);
  return x < lowest ? V{} : value * power;
}
REPRO_HD float exponential(float x) { return exponential_of<float, int32_t>(x); }
REPRO_HD double exponential(double x) { return exp(x); }

// The e^-x for x >= 0 of Caffe's DenseCRF, rounding by rounding: a polynomial of the argument halved until it is at most
// 0.69, squared as often; 0 beyond 20. V is float, or a vector of floats.
// Caffe: include/caffe/util/densecrf_util.hpp, fast_exp.
template <class V>
REPRO_HD V crf_exponential(const V& x) {
  V halved = x;
  for (float limit = 0.69f; limit < 20.0f; limit *= 2) halved = x > limit ? halved * 0.5f : halved;
  V value = 0.0013298820f - halved * 0.0001413161f;
  value = 0.0083013598f - halved * value;
  value = 0.0416573475f - halved * value;
  value = 0.1666653019f - halved * value;
  value = 0.4999999206f - halved * value;
  value = 0.9999999995f - halved * value;
  value = 1.0f - halved * value;
  for (float limit = 0.69f; limit < 20.0f; limit *= 2) value = x > limit ? value * value : value;
  return x > 20.0f ? V{} : value;
}

}  // namespace repro

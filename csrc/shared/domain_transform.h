// The weights of the domain transform: the only copy of their formula, for host and device.
#pragma once

#include <cmath>
#include <cstring>

#include "ops.h"

namespace repro {

// e^x for x <= 0, 1 beyond, in double to 3e-13 and 0 below 1e-65: a float32 result is rounded from it. As
// shared/exponential.h's, with Taylor's polynomial.
// V is double, or a vector of doubles, and I the integers beside it.
template <class V, class I>
REPRO_HD V wide_exponential_of(const V& x) {
  const V lowest = V{} - 150.0;
  const V round = V{} + 6755399441055744.0;  // 1.5 * 2^52
  const V below = x > V{} ? V{} : x;
  const V clamped = below < lowest ? lowest : below;
  const V shifted = clamped * 1.4426950408889634 + round;
  const V n = shifted - round;
  const V r = clamped - n * 0.6931471805599453;
  V p = r * (1.0 / 3628800) + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r + 1.0;
  const V value = p * r + 1.0;
  I bits, zero;
  memcpy(&bits, &shifted, sizeof bits);
  memcpy(&zero, &round, sizeof zero);
  bits = (bits - zero + 1023) << 52;
  V power;  // 2^n
  memcpy(&power, &bits, sizeof power);
  return x < lowest ? V{} : value * power;
}
// The exponential to the last place, for what must not multiply its error.
REPRO_HD float exact_exponential(float x) {
  return static_cast<float>(wide_exponential_of<double, int64_t>(static_cast<double>(x)));
}
REPRO_HD double exact_exponential(double x) { return exp(x); }

// What an iteration makes of the edge map. The exponential is exact to the last place, since the filter divides its
// error by what a weight lacks of 1.
// Caffe: ComputeSigma and SetUpWeightImage round every number to the program's type.
template <class Acc>
struct EdgeWeight {
  Acc edge_scale;  // spatial_sigma / range_sigma
  Acc decay;       // -sqrt(2) / sigma_i
  Acc min_weight;

  EdgeWeight() = default;
  EdgeWeight(const Filter& filter, int64_t iteration)
      : edge_scale(static_cast<Acc>(filter.spatial_sigma) / static_cast<Acc>(filter.range_sigma)),
        min_weight(filter.min_weight) {
    const auto passed = static_cast<double>(iteration + 1);
    const auto all = static_cast<double>(filter.num_iter);
    const auto sigma = static_cast<Acc>(filter.spatial_sigma * std::sqrt(3.0) * std::pow(2.0, all - passed) /
                                        std::sqrt(std::pow(4.0, all) - 1.0));
    decay = static_cast<Acc>(-std::sqrt(2.0) / static_cast<double>(sigma));
  }

  // The weight is clip(exact_exponential(distance(edge))). V is Acc, or a vector of them; NaN stays NaN.
  template <class V>
  REPRO_HD V distance(const V& edge) const {
    return decay * (edge * edge_scale + Acc(1));
  }
  template <class V>
  REPRO_HD V clip(const V& weight) const {
    const V least = V{} + min_weight;
    const V most = V{} + Acc(1);
    const V raised = weight < least ? least : weight;
    return raised > most ? most : raised;
  }

  // The gradient of the edge from the weight's.
  // Caffe: ComputeReferenceGradientDiff: that of the unclipped weight, taken at the clipped one.
  REPRO_HD Acc backward(Acc weight, Acc dweight) const { return decay * edge_scale * dweight * weight; }
};

}  // namespace repro

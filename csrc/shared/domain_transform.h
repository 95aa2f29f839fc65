// The weights of the domain transform: the only copy of their formula, for host and device.
#pragma once

#include <cmath>

#include "ops.h"

namespace repro {

// What an iteration makes of the edge map.
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

  // The exponential is float64's, rounded once: the filter multiplies what a weight lacks of 1, and so its error too.
  // NaN stays NaN.
  REPRO_HD Acc operator()(Acc edge) const {
    const auto weight = static_cast<Acc>(exp(static_cast<double>(decay * (Acc(1) + edge * edge_scale))));
    return weight < min_weight ? min_weight : weight > Acc(1) ? Acc(1) : weight;
  }

  // The gradient of the edge from the weight's.
  // Caffe: ComputeReferenceGradientDiff: that of the unclipped weight, taken at the clipped one.
  REPRO_HD Acc backward(Acc weight, Acc dweight) const { return decay * edge_scale * dweight * weight; }
};

}  // namespace repro

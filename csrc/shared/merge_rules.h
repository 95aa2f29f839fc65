// What one output element of merge_scores is, for host and device: the arithmetic that the CPU and CUDA kernels share.
#pragma once

#include "ops.h"
#include "shared/exponential.h"

namespace repro {

// The sample of a row of C channels at the tap tx.
template <class T, class Acc = acc_t<T>>
REPRO_HD Acc sample_row(const T* row, int64_t C, const Tap<Acc>& tx) {
  const Acc left = load(row[tx.lo * C]);
  return tx.hi < 0 ? left : tx.w_lo * left + tx.w_hi * load(row[tx.hi * C]);
}

// The bilinear sample of channel c at the taps (ty, tx) of one image of a dense NHWC map.
// Caffe: caffe_cpu_interp2 sums in this order.
template <class T, class Acc = acc_t<T>>
REPRO_HD Acc sample(const T* image, int64_t W, int64_t C, const Tap<Acc>& ty, const Tap<Acc>& tx, int64_t c) {
  const Acc top = sample_row(image + ty.lo * W * C + c, C, tx);
  return ty.hi < 0 ? top : ty.w_lo * top + ty.w_hi * sample_row(image + ty.hi * W * C + c, C, tx);
}

// Softmax over the S values of w, in place.
// Caffe: src/caffe/layers/softmax_layer.cpp: subtract the maximum, exponentiate, divide by the sum.
template <class Acc>
REPRO_HD void softmax(Acc* w, int S) {
  Acc highest = w[0];
  for (int s = 1; s < S; ++s) highest = w[s] > highest ? w[s] : highest;
  Acc sum = 0;
  for (int s = 0; s < S; ++s) {
    w[s] = exponential(w[s] - highest);
    sum += w[s];
  }
  for (int s = 0; s < S; ++s) w[s] /= sum;
}

// The weight of each of S maps in their average.
// Caffe: Eltwise's coefficients are float32, in the float64 program too.
template <class Acc>
REPRO_HD Acc average_weight(int S) {
  return static_cast<Acc>(1.0f / static_cast<float>(S));
}

// Whether the value of map s takes the maximum over from the best of the maps before it.
// Caffe: src/caffe/layers/eltwise_layer.cpp: map 0 stays where it is greater than map 1, a later map enters where it is
// greater; NaN is neither.
template <class Acc>
REPRO_HD bool takes_over(int s, Acc value, Acc best) {
  return s == 0 || (s == 1 ? !(best > value) : value > best);
}

// The gradient with respect to logit s of one position: w_s * (g_s - sum_k w_k g_k).
template <class Acc>
REPRO_HD Acc softmax_backward(const Acc* w, const Acc* g, int S, int s) {
  Acc dot = 0;
  for (int k = 0; k < S; ++k) dot += w[k] * g[k];
  return w[s] * (g[s] - dot);
}

}  // namespace repro

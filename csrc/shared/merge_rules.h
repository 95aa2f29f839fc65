// What one output element of merge_scores is, for host and device: the arithmetic that the CPU and CUDA kernels share.
#pragma once

#include "ops.h"
#include "shared/exponential.h"

namespace repro {

// The bilinear sample of channel c at the taps (ty, tx) of one image of a dense NHWC map.
// Caffe: caffe_cpu_interp2 sums in this order.
template <class T, class Acc = acc_t<T>>
REPRO_HD Acc sample(const T* image, int64_t W, int64_t C, const Tap<Acc>& ty, const Tap<Acc>& tx, int64_t c) {
  const T* top = image + ty.lo * W * C + c;
  const T* bottom = image + ty.hi * W * C + c;
  return ty.w_lo * (tx.w_lo * load(top[tx.lo * C]) + tx.w_hi * load(top[tx.hi * C])) +
         ty.w_hi * (tx.w_lo * load(bottom[tx.lo * C]) + tx.w_hi * load(bottom[tx.hi * C]));
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
template <class Acc>
REPRO_HD bool takes_over(int s, Acc value, Acc best) {
  return s == 0 || (s == 1 ? value >= best : value > best);
}

// The gradient with respect to logit s of one position: w_s * (g_s - sum_k w_k g_k).
template <class Acc>
REPRO_HD Acc softmax_backward(const Acc* w, const Acc* g, int S, int s) {
  Acc dot = 0;
  for (int k = 0; k < S; ++k) dot += w[k] * g[k];
  return w[s] * (g[s] - dot);
}

}  // namespace repro

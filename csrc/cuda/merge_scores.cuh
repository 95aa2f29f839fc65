// What the forward and the backward pass of merge_scores share on CUDA.
#pragma once

#include <stdexcept>

#include "cuda/tile.cuh"

namespace repro {

// The attention weights of output position (o, p) into w: softmax over S of Interp(logits).
template <int S, class T>
__device__ void attention_weights(const T* logits, Size logits_size, Size out, int64_t n, int64_t o, int64_t p,
                                  acc_t<T>* w) {
  using Acc = acc_t<T>;
  const T* image = logits + n * logits_size.H * logits_size.W * S;
  if (logits_size == out) {
#pragma unroll
    for (int s = 0; s < S; ++s) w[s] = load(image[(o * out.W + p) * S + s]);
  } else {
    const Tap<Acc> ty = Axis(logits_size.H, out.H).template tap<Acc>(o);
    const Tap<Acc> tx = Axis(logits_size.W, out.W).template tap<Acc>(p);
#pragma unroll
    for (int s = 0; s < S; ++s) w[s] = sample(image, logits_size.W, S, ty, tx, s);
  }
  softmax(w, S);
}

// Calls visit(std::integral_constant<int, S>): kernels know the number of maps, so that what they hold of each stays in
// registers.
template <class Visit>
void with_scales(int S, const Visit& visit) {
  switch (S) {
#define CASE(S) \
  case S:       \
    return visit(std::integral_constant<int, S>());
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
    CASE(5)
    CASE(6)
    CASE(7)
    CASE(8)
#undef CASE
  }
  static_assert(kMaxScales == 8);
}

// The map that each maximum comes from: winner (N, C, out.H, out.W).
template <class T>
void merge_winners(Cuda device, const Maps<const T>& scores, int64_t N, int64_t C, Size out, uint8_t* winner);

}  // namespace repro

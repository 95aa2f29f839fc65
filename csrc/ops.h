// The kernels' declarations: this header is their specification.
//
// Every map is dense NHWC (torch's channels_last): element (n, y, x, c) of an (N, C, H, W) map lies at ((n*H + y)*W +
// x)*C + c. T is float, double or bfloat16; sums are taken in acc_t<T> (float32 for bfloat16). All kernels are
// deterministic: every element is written by one thread, in one order of summation, whatever the number of threads.
// "Interp" is the sampling rule of interp_geometry.h.
#pragma once

#include "interp_geometry.h"
#include "storage.h"

namespace repro {

// Where a kernel runs. Cpu: torch's intra-op pool. Cuda: asynchronously on `stream` (a cudaStream_t) of the current
// device.
struct Cpu {};
struct Cuda {
  void* stream;
};

constexpr int kMaxScales = 8;

enum class Merge { attention, average, max };

// The S score maps (or their gradients), each at its own size; passed to kernels by value.
template <class T>
struct Maps {
  T* data[kMaxScales];
  Size size[kMaxScales];
  int S;
};

// y = Interp(x), and its exact adjoint dx = Interp^T(dy), gathered.
//   x, dx  (N, C, in.H, in.W)
//   y, dy  (N, C, out.H, out.W)
// Caffe: src/caffe/util/interp.cpp, caffe_cpu_interp2 and caffe_cpu_interp2_backward.
template <class T>
void interp(Cpu, const T* x, Size in, int64_t N, int64_t C, Size out, T* y);
template <class T>
void interp(Cuda, const T* x, Size in, int64_t N, int64_t C, Size out, T* y);
template <class T>
void interp_backward(Cpu, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx);
template <class T>
void interp_backward(Cuda, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx);

// merged = sum_s w_s * Interp(score_s) with w = softmax over s of Interp(logits)     (attention; Paper: eq. 1 and 2)
//        = sum_s float32(1/S) * Interp(score_s)                                       (average)
//        = max_s Interp(score_s), per position and class                              (max)
//   scores   S maps (N, C, H_s, W_s), finest first
//   logits   (N, S, logits_size.H, logits_size.W); read for attention only
//   merged   (N, C, out.H, out.W)    output
//   weights  (N, S, out.H, out.W)    output, for attention only
// Caffe: Interp, Softmax, Slice, SpatialProduct and Eltwise layers in this order.
template <class T>
void merge_scores(Cpu, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights);
template <class T>
void merge_scores(Cuda, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights);

// The gradients of merge_scores.
//   dmerged   (N, C, out.H, out.W)
//   dweights  (N, S, out.H, out.W), or null for zeros; attention only
//   weights   (N, S, out.H, out.W), as merge_scores wrote them; attention only
//   winner    (N, C, out.H, out.W) uint8 scratch: the map that each maximum came from; max only
//   dscores   S maps (N, C, H_s, W_s)    output
//   dlogits   (N, S, out.H, out.W)       output, before the adjoint of the logits' own Interp; attention only, may be
//   null
// Caffe: src/caffe/layers/eltwise_layer.cpp, MAX: between maps 0 and 1 an equal value counts for map 1, a later map
// must be strictly greater.
template <class T>
void merge_scores_backward(Cpu, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores, const T* weights,
                           int64_t N, int64_t C, Size out, uint8_t* winner, Maps<T> dscores, T* dlogits);
template <class T>
void merge_scores_backward(Cuda, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores,
                           const T* weights, int64_t N, int64_t C, Size out, uint8_t* winner, Maps<T> dscores,
                           T* dlogits);

}  // namespace repro

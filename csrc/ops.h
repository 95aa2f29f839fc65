// The kernels' declarations: this header is their specification.
//
// Every map is dense NHWC (torch's channels_last): element (n, y, x, c) of an (N, C, H, W) map lies at
//   ((n*H + y)*W + x)*C + c.
// T is float, double, bfloat16 or float16; sums are taken in acc_t<T> (float32 for 16-bit storage) and rounded once.
// All kernels are deterministic: every element is written by one thread, in one order of summation, whatever the number
// of threads. "Interp" is the sampling rule of shared/interp_geometry.h.
//
// NaN and infinity, the same on both devices and in repro/ops/reference.py:
//   Interp        copies along an axis that keeps its length; else both pixels count, also with weight 0 (0 * inf is
//                 NaN). Its adjoint leaves out weights of 0.
//   softmax       NaN or inf among the values makes all results NaN, -inf its own result 0, -inf everywhere NaN
//   attention,
//   average       as the sums go: 0 * inf and inf - inf are NaN
//   max           compares as Caffe: map 0 stays where it is greater than map 1, a later map enters where it is
//                 greater; so NaN in map 1 is taken, NaN in map 0 gives way to map 1, NaN in a later map to the others
//   predict       NaN is no best score; the label is 0 where no class is greater than -inf
//   domain        a NaN of the edge map makes its weight NaN, +inf gives min_weight, -inf 1; in the map itself NaN and
//   transform     infinity go wherever the recursion carries them (inf - inf and 0 * inf are NaN)
//   loss          NaN where a position that counts has NaN probabilities. An ignored position counts for nothing.
#pragma once

#include "shared/interp_geometry.h"
#include "shared/storage.h"

namespace repro {

// Where a kernel runs.
//   Cpu   in torch's intra-op pool
//   Cuda  asynchronously on `stream` (a cudaStream_t) of the current device
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
//   weights  (N, S, out.H, out.W)    output, may be null; for attention only
// Caffe: Interp, Softmax, Slice, SpatialProduct and Eltwise layers in this order.
template <class T>
void merge_scores(Cpu, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights);
template <class T>
void merge_scores(Cuda, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights);

// The gradients of merge_scores; the softmax and the maxima's winners are recomputed, not stored by the forward pass.
//   dmerged   (N, C, out.H, out.W)
//   dweights  (N, S, out.H, out.W), or null for zeros; attention only
//   weights   (N, S, out.H, out.W) acc_t<T> scratch; attention only
//   winner    (N, C, out.H, out.W) uint8 scratch: the map that each maximum came from; max only
//   dscores   S maps (N, C, H_s, W_s)    output
//   dlogits   (N, S, out.H, out.W)       output, before the adjoint of the logits' own Interp; attention only
// Caffe: src/caffe/layers/eltwise_layer.cpp, MAX: between maps 0 and 1 an equal value counts for map 1, a later map
// must be strictly greater.
template <class T>
void merge_scores_backward(Cpu, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores, const T* logits,
                           Size logits_size, int64_t N, int64_t C, Size out, acc_t<T>* weights, uint8_t* winner,
                           Maps<T> dscores, T* dlogits);
template <class T>
void merge_scores_backward(Cuda, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores, const T* logits,
                           Size logits_size, int64_t N, int64_t C, Size out, acc_t<T>* weights, uint8_t* winner,
                           Maps<T> dscores, T* dlogits);

// label = argmax over c of Interp(x; out), the first of equal scores, for the positions within crop; the enlarged
// scores never exist. The second kernel of the op predict, whose first is merge_scores.
//   x            (N, C, in.H, in.W)
//   labels       (N, crop.H, crop.W) uint8 or int16                        output
//   probability  (N, crop.H, crop.W) acc_t<T>, of the label by softmax     output, may be null
// Caffe: Interp with zoom_factor 8, Softmax, ArgMax.
template <class T, class L>
void predict(Cpu, const T* x, Size in, int64_t N, int64_t C, Size out, Size crop, L* labels, acc_t<T>* probability);
template <class T, class L>
void predict(Cuda, const T* x, Size in, int64_t N, int64_t C, Size out, Size crop, L* labels, acc_t<T>* probability);

// Softmax cross-entropy of Interp(scores; grid) against every shrink-th label, and its gradient in the same pass, after
// the labels have been counted; grid = (image - 1) / shrink + 1.
//   labels  (N, image.H, image.W) uint8 or int64, each 0..C-1 or ignore_label
//   counts  counts_of_loss(device) int64: valid positions of the grid, those of them whose label is no class, and on
//           Cuda scratch, from which segmentation_loss adds up these two; on Cpu count_labels has done so
//   scores  (N, C, in.H, in.W)
//   terms   (N, grid.H) double        scratch: a row's sum of -log p, each at most 87.3365 (p is floored at FLT_MIN)
//   loss    double                    output: the sum of the terms / max(1, valid positions)
//   dgrid   (N, C, grid.H, grid.W)    output, may be null: (p - onehot) / max(1, valid positions), 0 where ignored: the
//                                     gradient with respect to Interp(scores), computed in acc_t<T> and rounded once
// Where a label is no class, loss and dgrid are NaN on Cuda; Cpu's caller, who can read counts, must not come so far.
// Caffe: src/caffe/layers/softmax_loss_layer.cpp; Interp's label shrinking.
constexpr int64_t kCountingBlocks = 128;  // on Cuda, at most
inline int64_t counts_of_loss(Cpu) { return 2; }
inline int64_t counts_of_loss(Cuda) { return 3 + 2 * kCountingBlocks; }
template <class L>
void count_labels(Cpu, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink, int64_t ignore_label,
                  int64_t* counts);
template <class L>
void count_labels(Cuda, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink, int64_t ignore_label,
                  int64_t* counts);
template <class T, class L>
void segmentation_loss(Cpu, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink,
                       int64_t ignore_label, int64_t* counts, double* terms, double* loss, T* dgrid);
template <class T, class L>
void segmentation_loss(Cuda, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C,
                       int64_t shrink, int64_t ignore_label, int64_t* counts, double* terms, double* loss, T* dgrid);

// The parameters of the domain transform.
// Caffe: DomainTransformParameter's numbers are float32, in the float64 program too.
struct Filter {
  int64_t num_iter;
  float spatial_sigma;
  float range_sigma;
  float min_weight;
};

// How many images of N the domain transform takes at once: what its scratch has room for.
inline int64_t images_at_once(Cpu, int64_t N) { return N < 1 ? N : 1; }
inline int64_t images_at_once(Cuda, int64_t N) { return N; }
// How many maps of such images its gradients need: on Cpu those between the iterations' rows and columns, on Cuda one of
// every iteration and what a line keeps of its steps.
inline int64_t maps_of_backward(Cpu, int64_t num_iter) { return 2 * (num_iter - 1); }
inline int64_t maps_of_backward(Cuda, int64_t num_iter) { return num_iter + 2; }

// y = the domain transform of x: K = num_iter times over every row from left to right and back, then over every column
// from top to bottom and back,
//   y[p] += w_i[p] * (y[p-1] - y[p])   and   y[p] += w_i[p+1] * (y[p+1] - y[p])
// with w_i = clip(exp(-sqrt(2) / sigma_i * (1 + edge * spatial_sigma / range_sigma)), min_weight, 1)
// and  sigma_i = spatial_sigma * sqrt(3) * 2^(K-i-1) / sqrt(4^K - 1).
//   x, y        (N, C, H, W)    y: output
//   edge        (N, 1, H, W)
//   valid_size  (N, 2) int64, each image's height and width in the top left corner, or null for the whole map. Outside
//               y = x. Where a size does not lie within the map y is NaN on Cuda; Cpu's caller, who can read it, must
//               not come so far.
//   weights     (K, images, H, W) acc_t<T>       scratch
//   map         (images, C, H, W) acc_t<T> scratch for 16-bit T; null else: the recursion runs in y
// with images = images_at_once(device, N).
// Caffe: src/caffe/layers/domain_transform_layer.cpp.
template <class T>
void domain_transform(Cpu, const T* x, const T* edge, const int64_t* valid_size, Size size, int64_t N, int64_t C,
                      const Filter& filter, acc_t<T>* weights, acc_t<T>* map, T* y);
template <class T>
void domain_transform(Cuda, const T* x, const T* edge, const int64_t* valid_size, Size size, int64_t N, int64_t C,
                      const Filter& filter, acc_t<T>* weights, acc_t<T>* map, T* y);

// The gradients of domain_transform. Nothing is kept by the forward pass; the iterations run again, and the maps before
// and between them stay in `maps`, where Caffe keeps four maps of every iteration and image.
//   dy       (N, C, H, W)
//   weights  (K, images, H, W) acc_t<T>          scratch
//   maps     maps_of_backward(device, K) pointers to (images, C, H, W) acc_t<T>: scratch
//   dmap     (images, C, H, W) acc_t<T> scratch for 16-bit T; null else: the gradient's recursion runs in dx
//   sums     (2, images, H, W) acc_t<T>          scratch: the gradients of an iteration's weights, and of the edge map
//   dx       (N, C, H, W)    output; outside the valid size dy
//   dedge    (N, 1, H, W)    output; outside the valid size 0
template <class T>
void domain_transform_backward(Cpu, const T* dy, const T* x, const T* edge, const int64_t* valid_size, Size size,
                               int64_t N, int64_t C, const Filter& filter, acc_t<T>* weights, acc_t<T>* const* maps,
                               acc_t<T>* dmap, acc_t<T>* sums, T* dx, T* dedge);
template <class T>
void domain_transform_backward(Cuda, const T* dy, const T* x, const T* edge, const int64_t* valid_size, Size size,
                               int64_t N, int64_t C, const Filter& filter, acc_t<T>* weights, acc_t<T>* const* maps,
                               acc_t<T>* dmap, acc_t<T>* sums, T* dx, T* dedge);

// counts[label * num_classes + prediction] += 1 for every pixel whose label is not ignored.
//   prediction, label  (pixels) uint8 or int64
//   counts             (num_classes, num_classes) int64    output
//   outside            int64: the pixels that are outside 0..num_classes-1 in either    output
// Integer sums: the same whatever the order.
template <class L>
void confusion_matrix(Cpu, const L* prediction, const L* label, int64_t pixels, int64_t num_classes,
                      int64_t ignore_label, int64_t* counts, int64_t* outside);
template <class L>
void confusion_matrix(Cuda, const L* prediction, const L* label, int64_t pixels, int64_t num_classes,
                      int64_t ignore_label, int64_t* counts, int64_t* outside);

// Mean-field inference in a fully connected CRF over the pixels of every image, `iterations` times:
//   q = softmax(log_prob), then q = softmax(log_prob + pos_w K_pos q + bi_w K_bi q)
// K_pos filters with a Gaussian of the positions (x, y) / pos_xy_std, K_bi with one of (x, y) / bi_xy_std and
// (colour) / bi_rgb_std, both by the permutohedral lattice (shared/permutohedral.h), divided by what they make of ones,
// plus 1e-20. All is float32, and the e^x that of shared/exponential.h's crf_exponential.
//   log_prob     (N, C, H, W), 1 <= C <= kMostCrfClasses, finite
//   image        (N, 3, H, W) uint8 or float, finite; H*W <= kMostCrfPixels
//   scratch      dense_crf_scratch bytes, aligned to 256. (Cpu takes what the image's lattice needs for itself.)
//   probability  (N, C, H, W)    output
// Vertices' sums go over the pixels in their order, as Caffe's do, so that the results are Caffe's.
// Caffe: src/caffe/layers/densecrf_layer.cpp, src/caffe/util/densecrf_pairwise.cpp and permutohedral.cpp.
// Deviates: every image has its own K_bi; Caffe builds those of a whole batch from the first image.
struct DenseCrf {
  int64_t iterations;
  float pos_w;
  float pos_xy_std;
  float bi_w;
  float bi_xy_std;
  float bi_rgb_std;
};
constexpr int64_t kMostCrfPixels = 1 << 27;  // their vertices' slots in a hash table are numbered in 32 bits
constexpr int64_t kMostCrfClasses = 4096;    // a pixel's scores are in shared memory together
constexpr int64_t dense_crf_scratch(Cpu, Size, int64_t) { return 0; }
int64_t dense_crf_scratch(Cuda, Size size, int64_t C);
template <class I>
void dense_crf(Cpu, const float* log_prob, const I* image, Size size, int64_t N, int64_t C, const DenseCrf& crf,
               void* scratch, float* probability);
template <class I>
void dense_crf(Cuda, const float* log_prob, const I* image, Size size, int64_t N, int64_t C, const DenseCrf& crf,
               void* scratch, float* probability);

}  // namespace repro

// The gradients of merge_scores on CUDA in two launches (one for average). First, attention: a group of lanes owns a
// position, a lane every kth channel; it recomputes the softmax, and its dot products with the resampled scores become
// dlogits. Or max: the merge again, keeping which map won. Then one launch gathers (gather.cuh) the gradients of all
// score maps: every block belongs to one map. Bytes: first the maps, the logits and dmerged once, the scratch once;
// then dmerged and the scratch once per map (the overlap of gathers from cache), every gradient once. No atomics.
#include "cuda/gather.cuh"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"
#include "cuda/merge_scores.cuh"

namespace repro {

namespace {

constexpr int kPositions = 16;  // of a block's tile in one output row

template <class T, int S>
__global__ void __launch_bounds__(kThreads)
    logits_backward_kernel(const T* dmerged, const T* dweights, Maps<const T> scores, const T* logits, Size logits_size,
                           int64_t C, Size out, Tiling tiling, acc_t<T>* weights, T* dlogits) {
  using Acc = acc_t<T>;
  __shared__ Tap<Acc> row_tap[S];
  __shared__ Tap<Acc> column_tap[kPositions][S];
  __shared__ Acc attention[kPositions][S];
  const int thread = static_cast<int>(threadIdx.x);
  const Tile tile = tiling.tile(blockIdx.x, kPositions);
  const int count =
      tiling.elements - tile.element < kPositions ? static_cast<int>(tiling.elements - tile.element) : kPositions;
  const int64_t first = (tile.n * out.H + tile.row) * out.W + tile.element;  // of all positions
  for (int t = thread; t < (count + 1) * S; t += kThreads) {
    const int q = t / S;
    const int s = t % S;
    const Size in = scores.size[s];
    if (q < count)
      column_tap[q][s] = Axis(in.W, out.W).template tap<Acc>(tile.element + q);
    else
      row_tap[s] = Axis(in.H, out.H).template tap<Acc>(tile.row);
  }
  if (thread < count) {
    Acc w[S];
    attention_weights<S>(logits, logits_size, out, tile.n, tile.row, tile.element + thread, w);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      attention[thread][s] = w[s];
      weights[(first + thread) * S + s] = w[s];
    }
  }
  __syncthreads();

  const Lanes lanes(C);
  for (int q0 = 0; q0 < count; q0 += lanes.groups) {  // the same number of rounds for all, since lanes exchange values
    const int q = q0 + lanes.group;
    const bool inside = q < count;
    const T* const d = dmerged + (first + q) * C;
    Acc g[S] = {};
    if (inside) {
      for (int64_t c = lanes.lane; c < C; c += lanes.width) {
        const Acc gradient = load(d[c]);
#pragma unroll
        for (int s = 0; s < S; ++s) {
          const Size in = scores.size[s];
          const T* const image = scores.data[s] + tile.n * in.H * in.W * C;
          g[s] += gradient * (in == out ? load(image[(tile.row * out.W + tile.element + q) * C + c])
                                        : sample(image, in.W, C, row_tap[s], column_tap[q][s], c));
        }
      }
    }
#pragma unroll
    for (int s = 0; s < S; ++s) g[s] = lanes.sum(g[s]);
    if (!inside || lanes.lane != 0) continue;
    Acc w[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      w[s] = attention[q][s];
      if (dweights != nullptr) g[s] += load(dweights[(first + q) * S + s]);
    }
#pragma unroll
    for (int s = 0; s < S; ++s) store(dlogits + (first + q) * S + s, softmax_backward(w, g, S, s));
  }
}

// What the adjoint of Interp sums for map s: dmerged times the map's share in the merged value.
template <class T>
struct Share {
  Merge mode;
  int s;
  int S;
  const T* dmerged;         // (N, out.H, out.W, C)
  const acc_t<T>* weights;  // (N, out.H, out.W, S)
  const uint8_t* winner;    // (N, out.H, out.W, C)
  int64_t C;

  __device__ acc_t<T> operator()(acc_t<T> weight, int64_t position, int64_t c) const {
    using Acc = acc_t<T>;
    const int64_t at = position * C + c;
    if (mode == Merge::max) return winner[at] == s ? weight * load(dmerged[at]) : Acc(0);
    return weight * (mode == Merge::attention ? weights[position * S + s] : average_weight<Acc>(S)) * load(dmerged[at]);
  }
};

// Blocks [begin[s], begin[s + 1]) belong to map s.
struct Shared {
  uint32_t begin[kMaxScales];
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    scores_backward_kernel(Share<T> share, Maps<T> dscores, Size out, Shared blocks) {
  uint32_t begin = 0;
#pragma unroll
  for (int s = 1; s < kMaxScales; ++s)
    if (s < share.S && blockIdx.x >= blocks.begin[s]) {
      share.s = s;
      begin = blocks.begin[s];
    }
  const Size in = dscores.size[share.s];
  gather(Axis(in.H, out.H), Axis(in.W, out.W), share.C, Tiling(in.W * share.C, in.H, 1), blockIdx.x - begin, share,
         dscores.data[share.s]);
}

}  // namespace

template <class T>
void merge_scores_backward(Cuda device, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores,
                           const T* logits, Size logits_size, int64_t N, int64_t C, Size out, acc_t<T>* weights,
                           uint8_t* winner, Maps<T> dscores, T* dlogits) {
  if (mode == Merge::max) merge_winners(device, scores, N, C, out, winner);
  if (mode == Merge::attention) {
    const Tiling tiling(out.W, out.H, 1, kPositions);
    with_scales(scores.S, [&](auto S) {
      launch(device, tiling.blocks(N), kThreads, logits_backward_kernel<T, S()>, dmerged, dweights, scores, logits,
             logits_size, C, out, tiling, weights, dlogits);
    });
  }
  Shared blocks{};
  int64_t total = 0;
  for (int s = 0; s < scores.S; ++s) {
    const Size in = dscores.size[s];
    blocks.begin[s] = static_cast<uint32_t>(total);
    total += Tiling(in.W * C, in.H, 1).blocks(N);
  }
  launch(device, total, kThreads, scores_backward_kernel<T>, Share<T>{mode, 0, scores.S, dmerged, weights, winner, C},
         dscores, out, blocks);
}

#define INSTANTIATE(T)                                                                                            \
  template void merge_scores_backward<T>(Cuda, Merge, const T*, const T*, Maps<const T>, const T*, Size, int64_t, \
                                         int64_t, Size, acc_t<T>*, uint8_t*, Maps<T>, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

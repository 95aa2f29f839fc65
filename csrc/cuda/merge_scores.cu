// merge_scores on CUDA in one launch. A block owns kThreads elements of a run of rows of the merged map. First its
// threads find, once per position, the softmax over the logits, and once per row and map where that row is read; then
// each thread owns one channel of one column and goes down: at each row it loads what it needs of all S maps before it
// uses any of it, so that it waits once, not S times. (Inputs that two rows share it loads again, from cache: keeping
// them would take a branch for each map and row.) Bytes: each map and the logits once (rows at the border of two runs
// again, from cache), the merged map once, the weights once where they are wanted. No atomics.
//
// The paper's maps have 7, 21 or 81 channels, and a row begins anywhere: four elements at a time would belong to two
// positions, with other weights.
#include "cuda/merge_scores.cuh"

namespace repro {

namespace {

// Rows of a tile at most: their weights of attention are in shared memory, of which a block has 48 KB.
template <class Acc, int S>
constexpr int kRows = S * sizeof(Acc) <= 24 ? 8 : 4;

// Where an output row reads a map: two input rows, as bytes from the image's first, and their weights.
template <class Acc>
struct alignas(16) Row {
  int64_t top;
  int64_t bottom;
  Acc lower;
  Acc upper;
};

template <class T, int S>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t C, Size out,
                 Tiling tiling, T* merged, T* weights, uint8_t* winner) {
  using Acc = acc_t<T>;
  __shared__ Row<Acc> table[kRows<Acc, S>][S];
  __shared__ Acc attention[kRows<Acc, S>][kThreads][S];  // by row, position of the tile and map
  const int thread = static_cast<int>(threadIdx.x);
  const Tile tile = tiling.tile(blockIdx.x);
  const int rows = tiling.rows_of(tile);
  const Positions positions(tiling, tile, C);
  const int64_t first_row = tile.n * out.H + tile.row;  // of all images' rows

  for (int t = thread; t < S * rows; t += kThreads) {
    const int r = t / S;
    const int s = t % S;
    const Size in = scores.size[s];
    const int64_t stride = in.W * C * static_cast<int64_t>(sizeof(T));
    const Tap<Acc> tap = Axis(in.H, out.H).template tap<Acc>(tile.row + r);
    table[r][s] = {tap.lo * stride, tap.hi * stride, tap.w_lo, tap.w_hi};
  }
  if (mode == Merge::attention) {
    for (int t = thread; t < rows * positions.count; t += kThreads) {
      const int r = t / positions.count;
      const int q = t % positions.count;
      const int64_t p = positions.first + q;
      Acc w[S];
      attention_weights<S>(logits, logits_size, out, tile.n, tile.row + r, p, w);
      const bool ours = weights != nullptr && p * C >= tile.element;  // else the block to the left writes it
#pragma unroll
      for (int s = 0; s < S; ++s) {
        attention[r][q][s] = w[s];
        if (ours) store(weights + ((first_row + r) * out.W + p) * S + s, w[s]);
      }
    }
  }
  __syncthreads();

  const int64_t e = tile.element + thread;
  if (e >= tiling.elements || (merged == nullptr && winner == nullptr)) return;
  const int64_t p = e / C;
  const int q = static_cast<int>(p - positions.first);
  Column<T> column[S];
  bool blends[S];  // rows
#pragma unroll
  for (int s = 0; s < S; ++s) {
    const Size in = scores.size[s];
    column[s] = Column<T>(scores.data[s] + tile.n * in.H * in.W * C, Axis(in.W, out.W), C, p, e - p * C);
    blends[s] = in.H != out.H;
  }
  for (int r = 0; r < rows; ++r) {
    typename Column<T>::Inputs above[S];
    typename Column<T>::Inputs below[S];
#pragma unroll
    for (int s = 0; s < S; ++s) {
      above[s] = column[s].read(table[r][s].top);
      below[s] = {};
      if (blends[s]) below[s] = column[s].read(table[r][s].bottom);
    }
    const int64_t index = (first_row + r) * tiling.elements + e;
    Acc value = 0;
    int from = 0;
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const Acc top = column[s].value(above[s]);
      const Acc score = blends[s] ? table[r][s].lower * top + table[r][s].upper * column[s].value(below[s]) : top;
      if (mode == Merge::max) {
        if (takes_over(s, score, value)) {
          value = score;
          from = s;
        }
      } else {
        value += (mode == Merge::attention ? attention[r][q][s] : average_weight<Acc>(S)) * score;
      }
    }
    if (winner == nullptr)
      store(merged + index, value);
    else
      winner[index] = static_cast<uint8_t>(from);
  }
}

template <class T>
void launch_merge(Cuda device, Merge mode, const Maps<const T>& scores, const T* logits, Size logits_size, int64_t N,
                  int64_t C, Size out, T* merged, T* weights, uint8_t* winner) {
  const int64_t elements = out.W * C;
  with_scales(scores.S, [&](auto S) {
    const Tiling tiling(elements, out.H, tile_rows(elements, out.H, N, kRows<acc_t<T>, S()>));
    launch(device, tiling.blocks(N), kThreads, merge_kernel<T, S()>, mode, scores, logits, logits_size, C, out, tiling,
           merged, weights, winner);
  });
}

}  // namespace

template <class T>
void merge_scores(Cuda device, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N,
                  int64_t C, Size out, T* merged, T* weights) {
  if (mode != Merge::attention) weights = nullptr;
  if (C == 0 && weights == nullptr) return;
  // Without classes there is nothing to merge, but there are weights: one block element per position writes them.
  launch_merge<T>(device, mode, scores, logits, logits_size, N, C == 0 ? 1 : C, out, C == 0 ? nullptr : merged, weights,
                  nullptr);
}

template <class T>
void merge_winners(Cuda device, const Maps<const T>& scores, int64_t N, int64_t C, Size out, uint8_t* winner) {
  launch_merge<T>(device, Merge::max, scores, nullptr, out, N, C, out, nullptr, nullptr, winner);
}

#define INSTANTIATE(T)                                                                                       \
  template void merge_scores<T>(Cuda, Merge, Maps<const T>, const T*, Size, int64_t, int64_t, Size, T*, T*); \
  template void merge_winners<T>(Cuda, const Maps<const T>&, int64_t, int64_t, Size, uint8_t*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

// The adjoint of Interp as a gather: a block owns kThreads elements of one input row, a thread one of them, which may
// be a quad of channels. Which outputs read which input, and the weights, are found once per block into shared memory.
// The sum runs over output rows and columns in Caffe's order, without those of weight 0; no atomics.
#pragma once

#include "cuda/tile.cuh"

namespace repro {

constexpr int kRowChunk = 32;      // output rows and columns whose weights the block
constexpr int kColumnChunk = 256;  // holds at a time

template <class Acc>
__device__ Weights<Acc> weights_of(const Axis& axis, int64_t o) {
  const Tap<Acc> tap = axis.tap<Acc>(o);
  return {tap.hi == tap.lo ? tap.w_lo + tap.w_hi : tap.w_lo, tap.w_hi};
}

// dx[n, i, j, c] = sum over the outputs (o, p) that read input (i, j) of term(weight, position of (n, o, p), c), where
// weight is that of the row times that of the column. Called by all threads of block `block` of `tiling`.
template <class T, class Term>
__device__ void gather(const Axis& rows, const Axis& columns, int64_t C, const Tiling& tiling, uint32_t block,
                       const Term& term, T* dx) {
  using Acc = acc_t<T>;
  using Weight = weight_t<T>;
  __shared__ int64_t first_row[3];                // the first outputs whose lower input is i - 1, i, i + 1
  __shared__ int64_t first_column[kThreads + 2];  // the same of j - 1, j, ... for the tile's positions
  __shared__ Weights<Weight> row_weights[kRowChunk];
  __shared__ Weights<Weight> column_weights[kColumnChunk];
  const int thread = static_cast<int>(threadIdx.x);
  const Tile tile = tiling.tile(block);
  const int64_t e = tile.element + thread;
  const bool inside = e < tiling.elements;
  const int64_t image = tile.n * rows.n_out * columns.n_out;
  T* const to = dx + (tile.n * rows.n_in + tile.row) * tiling.elements + e;

  if (rows.n_in == rows.n_out && columns.n_in == columns.n_out) {  // every output reads one input, with weight 1
    const int64_t j = e / C;
    if (inside) store(to, term(Weight(1), image + tile.row * columns.n_out + j, e - j * C));
    return;
  }

  const Positions positions(tiling, tile, C);
  for (int t = thread; t < positions.count + 2; t += kThreads)
    first_column[t] = columns.first_output(positions.first - 1 + t);
  if (thread < 3) first_row[thread] = rows.first_output(tile.row - 1 + thread);
  __syncthreads();

  const int64_t j = inside ? e / C : positions.first;
  const int64_t c = e - j * C;
  const int64_t* const mine = first_column + (j - positions.first);
  const int64_t columns_end = first_column[positions.count + 1];
  Acc sum{};
  for (int64_t o0 = first_row[0]; o0 < first_row[2]; o0 += kRowChunk) {
    const int64_t o_end = first_row[2] < o0 + kRowChunk ? first_row[2] : o0 + kRowChunk;
    for (int64_t p0 = first_column[0]; p0 < columns_end; p0 += kColumnChunk) {
      const int64_t p_end = columns_end < p0 + kColumnChunk ? columns_end : p0 + kColumnChunk;
      __syncthreads();  // the chunk before has been used
      for (int t = thread; t < p_end - p0; t += kThreads) column_weights[t] = weights_of<Weight>(columns, p0 + t);
      if (thread < o_end - o0) row_weights[thread] = weights_of<Weight>(rows, o0 + thread);
      __syncthreads();
      if (!inside) continue;
      int begin = static_cast<int>((mine[0] > p0 ? mine[0] : p0) - p0);
      const int middle = static_cast<int>((mine[1] > p0 ? (mine[1] < p_end ? mine[1] : p_end) : p0) - p0);
      const int end = static_cast<int>((mine[2] < p_end ? mine[2] : p_end) - p0);
      while (begin < middle && column_weights[begin].upper == 0) ++begin;
      for (int64_t o = o0; o < o_end; ++o) {
        const Weights<Weight> of_row = row_weights[o - o0];
        const Weight w_row = o < first_row[1] ? of_row.upper : of_row.lower;
        if (w_row == 0) continue;
        const int64_t position = image + o * columns.n_out + p0;
        for (int p = begin; p < middle; ++p) sum = sum + term(w_row * column_weights[p].upper, position + p, c);
        for (int p = begin > middle ? begin : middle; p < end; ++p)
          sum = sum + term(w_row * column_weights[p].lower, position + p, c);
      }
    }
  }
  if (inside) store(to, sum);
}

}  // namespace repro

// Interp and its adjoint on CUDA. Forward: a block owns kThreads elements of up to kRows rows of the result; a thread
// owns one channel of one column, or four neighbouring ones (quad.cuh), and goes down the map from one pair of input
// rows to the next. It interpolates a pair's columns once and mixes them for all output rows in between; a row that two
// pairs share it keeps. Which pairs there are, and the rows' weights, the block finds once, in shared memory. Backward:
// gather.cuh. Bytes: the input once (rows at the border of two tiles again, from cache), the output once. No atomics.
#include "cuda/gather.cuh"
#include "cuda/tile.cuh"

namespace repro {

namespace {

constexpr int kRows = 16;

// Two input rows, as bytes from the image's first, and the output rows of the tile between them.
struct Pair {
  int64_t top;
  int64_t bottom;
  int end;    // the tile's row behind the last of them
  bool kept;  // whether `top` is the bottom of the pair before
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    interp_kernel(const T* x, Axis rows, Axis columns, int64_t C, Tiling tiling, T* y) {
  using Acc = acc_t<T>;
  __shared__ Pair pairs[kRows];  // by their first row
  __shared__ Weights<weight_t<T>> weights[kRows];
  const Tile tile = tiling.tile(blockIdx.x);
  const int count = tiling.rows_of(tile);
  const int64_t image = rows.n_in * columns.n_in * C;
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < count) {
    const auto tap = rows.tap<weight_t<T>>(tile.row + thread);
    int end = thread + 1;
    while (end < count && rows.lo(tile.row + end) == tap.lo) ++end;
    const bool kept = thread > 0 && rows.tap<weight_t<T>>(tile.row + thread - 1).hi == tap.lo;
    const int64_t stride = columns.n_in * C * static_cast<int64_t>(sizeof(T));
    pairs[thread] = {tap.lo * stride, tap.hi * stride, end, kept};
    weights[thread] = {tap.w_lo, tap.w_hi};
  }
  __syncthreads();
  const int64_t e = tile.element + thread;
  if (e >= tiling.elements) return;
  const int64_t p = e / C;
  const Column<T> column(x + tile.n * image, columns, C, p, e - p * C);
  T* to = y + (tile.n * rows.n_out + tile.row) * tiling.elements + e;
  if (rows.n_in == rows.n_out) {
#pragma unroll 4
    for (int r = 0; r < count; ++r, to += tiling.elements) store(to, column.value(column.read(pairs[r].top)));
    return;
  }
  Acc bottom{};
  for (int r = 0; r < count;) {
    const Pair pair = pairs[r];
    typename Column<T>::Inputs above{};
    if (!pair.kept) above = column.read(pair.top);
    const auto below = column.read(pair.bottom);
    const Acc top = pair.kept ? bottom : column.value(above);
    bottom = column.value(below);
#pragma unroll 4
    for (; r < pair.end; ++r, to += tiling.elements) store(to, weights[r].lower * top + weights[r].upper * bottom);
  }
}

// What the adjoint of Interp sums: dy itself.
template <class T>
struct Gradient {
  const T* dy;  // (N, out.H, out.W, C)
  int64_t C;

  __device__ acc_t<T> operator()(weight_t<T> weight, int64_t position, int64_t c) const {
    return weight * load(dy[position * C + c]);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    interp_backward_kernel(Gradient<T> gradient, Axis rows, Axis columns, Tiling tiling, T* dx) {
  gather(rows, columns, gradient.C, tiling, blockIdx.x, gradient, dx);
}

}  // namespace

template <class T>
void interp(Cuda device, const T* x, Size in, int64_t N, int64_t C, Size out, T* y) {
  with_quads(x, y, C, [&](const auto* from, auto* to, int64_t channels) {
    const int64_t elements = out.W * channels;
    const Tiling tiling(elements, out.H, tile_rows(elements, out.H, N, kRows));
    launch(device, tiling.blocks(N), kThreads, interp_kernel<std::remove_reference_t<decltype(*to)>>, from,
           Axis(in.H, out.H), Axis(in.W, out.W), channels, tiling, to);
  });
}

template <class T>
void interp_backward(Cuda device, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx) {
  with_quads(dy, dx, C, [&](const auto* from, auto* to, int64_t channels) {
    using Element = std::remove_reference_t<decltype(*to)>;
    const Tiling tiling(in.W * channels, in.H, 1);
    launch(device, tiling.blocks(N), kThreads, interp_backward_kernel<Element>, Gradient<Element>{from, channels},
           Axis(in.H, out.H), Axis(in.W, out.W), tiling, to);
  });
}

#define INSTANTIATE(T)                                                       \
  template void interp<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

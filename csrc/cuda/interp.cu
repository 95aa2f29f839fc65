// Interp and its adjoint on CUDA. Forward: a block owns kThreads elements of kRows rows of the result; a thread owns
// one channel of one column and walks down (tile.cuh). Backward: gather.cuh. Bytes: the input once (rows at the border
// of two runs again, from cache), the output once. No atomics.
#include "cuda/gather.cuh"
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace repro {

namespace {

constexpr int kRows = 8;

template <class T>
__global__ void __launch_bounds__(kThreads)
    interp_kernel(const T* x, Axis rows, Axis columns, int64_t C, Tiling tiling, T* y) {
  using Acc = acc_t<T>;
  __shared__ Step<Acc> steps[kRows];
  const Tile tile = tiling.tile(blockIdx.x);
  const int count = tiling.rows_of(tile);
  const int64_t stride = columns.n_in * C;
  if (static_cast<int>(threadIdx.x) < count)
    steps[threadIdx.x] = step_to<Acc>(rows, tile.row + threadIdx.x, threadIdx.x == 0, stride);
  __syncthreads();
  const int64_t e = tile.element + threadIdx.x;
  if (e >= tiling.elements) return;
  const int64_t p = e / C;
  Column<T> column(x + tile.n * rows.n_in * stride, columns, C, p, e - p * C);
  T* to = y + (tile.n * rows.n_out + tile.row) * tiling.elements + e;
  for (int r = 0; r < count; ++r, to += tiling.elements) store(to, column.move(steps[r], stride));
}

// What the adjoint of Interp sums: dy itself.
template <class T>
struct Gradient {
  const T* dy;  // (N, out.H, out.W, C)
  int64_t C;

  __device__ acc_t<T> operator()(acc_t<T> weight, int64_t position, int64_t c) const {
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
  const Tiling tiling(out.W * C, out.H, kRows);
  launch(device, tiling.blocks(N), kThreads, interp_kernel<T>, x, Axis(in.H, out.H), Axis(in.W, out.W), C, tiling, y);
}

template <class T>
void interp_backward(Cuda device, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx) {
  const Tiling tiling(in.W * C, in.H, 1);
  launch(device, tiling.blocks(N), kThreads, interp_backward_kernel<T>, Gradient<T>{dy, C}, Axis(in.H, out.H),
         Axis(in.W, out.W), tiling, dx);
}

#define INSTANTIATE(T)                                                       \
  template void interp<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

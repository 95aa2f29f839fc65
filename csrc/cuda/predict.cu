// Interp and argmax on CUDA. A thread owns kRows pixels of one column and takes the classes one after the other,
// walking down the column (tile.cuh); best score and label of each pixel stay in registers. Bytes: the map once
// (neighbouring pixels share it through cache), the labels once, the probabilities once; the enlarged scores exist
// nowhere. No atomics.
#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace repro {

namespace {

constexpr int kRows = 4;
constexpr int kPixels = 64;  // threads of a block: labels are few, and small blocks fill the device

template <class T, class L, bool kProbability>
__global__ void __launch_bounds__(kPixels)
    predict_kernel(const T* x, Axis rows, Axis columns, int64_t C, Tiling tiling, L* labels, acc_t<T>* probability) {
  using Acc = acc_t<T>;
  __shared__ Step<Acc> shared_steps[kRows];
  const Tile tile = tiling.tile(blockIdx.x, kPixels);
  const int count = tiling.rows_of(tile);
  const int64_t stride = columns.n_in * C;
  if (threadIdx.x < kRows) {
    const int r = static_cast<int>(threadIdx.x);
    shared_steps[r] = r < count ? step_to<Acc>(rows, tile.row + r, r == 0, stride) : Step<Acc>{};
  }
  __syncthreads();
  const int64_t p = tile.element + threadIdx.x;
  if (p >= tiling.elements) return;

  Step<Acc> steps[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) steps[r] = shared_steps[r];
  const T* const image = x + tile.n * rows.n_in * stride;
  Column<T> column(image, columns, C, p, 0);
  Acc best[kRows];
  int label[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const Acc value = column.move(steps[r], stride);
    best[r] = value > -static_cast<Acc>(INFINITY) ? value : -static_cast<Acc>(INFINITY);  // NaN is no best score
    label[r] = 0;
  }
  const int classes = static_cast<int>(C);
  for (int c = 1; c < classes; ++c) {
    ++column.left;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Acc value = column.move(steps[r], stride);
      const bool better = value > best[r];
      best[r] = better ? value : best[r];
      label[r] = better ? c : label[r];
    }
  }
  const int64_t to = (tile.n * tiling.H + tile.row) * tiling.elements + p;
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (r < count) labels[to + r * tiling.elements] = static_cast<L>(label[r]);

  if constexpr (kProbability) {
    Acc sum[kRows] = {};
    column.left -= classes - 1;
    for (int c = 0; c < classes; ++c, ++column.left)
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] += exponential(column.move(steps[r], stride) - best[r]);
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (r < count) probability[to + r * tiling.elements] = Acc(1) / sum[r];
  }
}

}  // namespace

template <class T, class L>
void predict(Cuda device, const T* x, Size in, int64_t N, int64_t C, Size out, Size crop, L* labels,
             acc_t<T>* probability) {
  const Tiling tiling(crop.W, crop.H, kRows, kPixels);
  const auto kernel = probability == nullptr ? predict_kernel<T, L, false> : predict_kernel<T, L, true>;
  launch(device, tiling.blocks(N), kPixels, kernel, x, Axis(in.H, out.H), Axis(in.W, out.W), C, tiling, labels,
         probability);
}

#define INSTANTIATE(T)                                                                                        \
  template void predict<T, uint8_t>(Cuda, const T*, Size, int64_t, int64_t, Size, Size, uint8_t*, acc_t<T>*); \
  template void predict<T, int16_t>(Cuda, const T*, Size, int64_t, int64_t, Size, Size, int16_t*, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

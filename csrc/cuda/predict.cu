// Interp and argmax on CUDA. A block owns two neighbouring rows of the map and the kPixels columns of the result's rows
// between them, kRows of these at a time, whose weights are in shared memory once. A thread owns a column: it takes the
// classes one after the other, interpolates both rows, and mixes them for all kRows pixels, whose best scores and
// labels stay in registers. Bytes: the map once (neighbouring pixels share it through cache), the labels once, the
// probabilities once; the enlarged scores exist nowhere. No atomics.
#include "cuda/tile.cuh"

namespace repro {

namespace {

constexpr int kRows = 8;     // 8 pixels between two of the map, as the paper enlarges it
constexpr int kHalf = 4;     // rows that are left out together where there are fewer
constexpr int kPixels = 64;  // threads of a block: labels are few, and small blocks fill the device

// How blocks share the result: across its columns, then `shares` to a pair of rows, then down the pairs.
struct Grid {
  uint32_t across;
  uint32_t shares;
  uint32_t pairs;

  Grid(const Axis& rows, Size crop)
      : across(static_cast<uint32_t>(ceil_div(crop.W, kPixels))),
        pairs(static_cast<uint32_t>(rows.lo(crop.H - 1) + 1)) {
    shares = static_cast<uint32_t>(ceil_div(crop.H, static_cast<int64_t>(pairs) * kRows));
  }
};

template <class T, class L, bool kProbability>
__global__ void __launch_bounds__(kPixels) predict_kernel(const T* x, Axis rows, Axis columns, int64_t C, Size crop,
                                                          Grid grid, L* labels, acc_t<T>* probability) {
  using Acc = acc_t<T>;
  // Classes loaded together; beside sums, registers lack.
  [[maybe_unused]] constexpr int kUnrolled = kProbability ? 1 : 2;
  __shared__ int64_t bounds[2];  // of the result's rows between the two of the map
  __shared__ Weights<Acc> weights[kRows];
  const int thread = static_cast<int>(threadIdx.x);
  const uint32_t share = blockIdx.x / grid.across % grid.shares;
  const uint32_t pair = blockIdx.x / grid.across / grid.shares;  // of all images' pairs
  const int64_t n = pair / grid.pairs;
  const int64_t i = pair % grid.pairs;
  if (thread < 2) {
    const int64_t o = rows.first_output(i + thread);
    bounds[thread] = o < crop.H ? o : crop.H;
  }
  __syncthreads();

  const int64_t p = static_cast<int64_t>(blockIdx.x % grid.across) * kPixels + thread;
  const bool inside = p < crop.W;  // a thread beyond does as the last one does, but for the results
  const int64_t stride = columns.n_in * C;
  const Column<T> column(x + (n * rows.n_in + i) * stride, columns, C, inside ? p : crop.W - 1, 0);
  const bool blends = rows.n_in != rows.n_out;
  const int64_t down = i + 1 < rows.n_in ? stride : 0;
  const int classes = static_cast<int>(C);
  for (int64_t o = bounds[0] + share * kRows; o < bounds[1]; o += static_cast<int64_t>(grid.shares) * kRows) {
    const int count = bounds[1] - o < kRows ? static_cast<int>(bounds[1] - o) : kRows;
    __syncthreads();  // the weights before have been read
    if (thread < kRows) {
      const Tap<Acc> tap = rows.tap<Acc>(o + (thread < count ? thread : 0));
      weights[thread] = {tap.w_lo, tap.w_hi};
    }
    __syncthreads();
    Weights<Acc> own[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) own[r] = weights[r];
    // Calls see(r, c, score) for every class and row.
    const auto visit = [&](const auto& see) {
      const T* left = column.left;
      const T* right = column.right;
#pragma unroll kUnrolled
      for (int c = 0; c < classes; ++c, ++left, ++right) {
        const Acc top = column.value({load(*left), column.blends ? load(*right) : Acc(0)});
        Acc bottom = 0;  // where rows are copied its weight is 0
        if (blends) bottom = column.value({load(left[down]), column.blends ? load(right[down]) : Acc(0)});
#pragma unroll
        for (int first = 0; first < kRows; first += kHalf) {
          if (first >= count) continue;
#pragma unroll
          for (int r = first; r < first + kHalf; ++r) see(r, c, own[r].lower * top + own[r].upper * bottom);
        }
      }
    };

    Acc best[kRows];
    int label[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      best[r] = -static_cast<Acc>(INFINITY);
      label[r] = 0;
    }
    visit([&](int r, int c, Acc score) {
      const bool better = score > best[r];  // NaN is no best score
      best[r] = better ? score : best[r];
      label[r] = better ? c : label[r];
    });
    const int64_t to = (n * crop.H + o) * crop.W + p;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (inside && r < count) labels[to + r * crop.W] = static_cast<L>(label[r]);

    if constexpr (kProbability) {
      Acc sum[kRows] = {};
      visit([&](int r, int, Acc score) { sum[r] += exponential(score - best[r]); });
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (inside && r < count) probability[to + r * crop.W] = Acc(1) / sum[r];
    }
  }
}

}  // namespace

template <class T, class L>
void predict(Cuda device, const T* x, Size in, int64_t N, int64_t C, Size out, Size crop, L* labels,
             acc_t<T>* probability) {
  const Axis rows(in.H, out.H);
  const Grid grid(rows, crop);
  const auto kernel = probability == nullptr ? predict_kernel<T, L, false> : predict_kernel<T, L, true>;
  launch(device, N * grid.pairs * grid.shares * grid.across, kPixels, kernel, x, rows, Axis(in.W, out.W), C, crop, grid,
         labels, probability);
}

#define INSTANTIATE(T)                                                                                        \
  template void predict<T, uint8_t>(Cuda, const T*, Size, int64_t, int64_t, Size, Size, uint8_t*, acc_t<T>*); \
  template void predict<T, int16_t>(Cuda, const T*, Size, int64_t, int64_t, Size, Size, int16_t*, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

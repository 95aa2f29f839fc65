// The confusion matrix on CUDA in two launches. One zeroes the counts; then a thread reads 16 bytes of labels and of
// predictions at a time. Where the matrix fits into shared memory, each block counts there and adds its counts to the
// result at the end; else threads add to the result directly, one for all lanes of a warp that have the same cell.
// Atomics on integers only: their sums are the same in any order. Bytes: both label maps once.
//
// In shared memory an addition of 1 is one instruction that counts a warp's equal addresses by itself (ATOMS.POPC.INC):
// asking first which lanes agree would cost more than it saves. In global memory there is no such instruction. Where
// most pixels are background, 32 additions per warp to one address would follow each other; one of their sum does not.
#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/tile.cuh"

namespace repro {

namespace {

constexpr int kBlock = 128;        // so that a 513-pixel square of bytes has a block for each multiprocessor
constexpr int64_t kBlocks = 2048;  // at most; beyond, a thread has more than 16 bytes of each map

template <class L>
struct alignas(16) Pack {
  L item[16 / sizeof(L)];
};

__device__ void add(int64_t* to, uint64_t count) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
}

__global__ void __launch_bounds__(kBlock) zero_kernel(int64_t cells, int64_t* counts, int64_t* outside) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  for (int64_t k = first; k < cells; k += static_cast<int64_t>(gridDim.x) * kBlock) counts[k] = 0;
  if (first == 0) *outside = 0;
}

// kBins: counters in shared memory, at least num_classes^2; 0: none, the counts lie in global memory only.
template <class L, int kBins>
__global__ void __launch_bounds__(kBlock)
    confusion_kernel(const L* prediction, const L* label, int64_t pixels, bool aligned, int64_t num_classes,
                     int64_t ignore_label, int64_t* counts, int64_t* outside) {
  __shared__ uint32_t bins[kBins > 0 ? kBins : 1];
  const int cells = kBins > 0 ? static_cast<int>(num_classes * num_classes) : 0;
  for (int k = static_cast<int>(threadIdx.x); k < cells; k += kBlock) bins[k] = 0;
  __syncthreads();

  uint32_t own_outside = 0;
  const auto classes = static_cast<uint64_t>(num_classes);
  const auto cell_of = [&](L predicted, L labelled) {  // -1: none
    const auto to = static_cast<int64_t>(labelled);
    const auto from = static_cast<int64_t>(predicted);
    if (to == ignore_label) return -1;
    if (static_cast<uint64_t>(to) >= classes || static_cast<uint64_t>(from) >= classes) {
      ++own_outside;
      return -1;
    }
    return static_cast<int>(to) * static_cast<int>(num_classes) + static_cast<int>(from);
  };
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto count = [&](int cell) {  // all lanes of the warp must call
    if constexpr (kBins > 0) {
      if (cell >= 0) atomicAdd(bins + cell, 1u);
    } else {
      const uint32_t same = __match_any_sync(0xffffffffu, cell);
      if (cell >= 0 && lane == __ffs(static_cast<int>(same)) - 1) add(counts + cell, __popc(same));
    }
  };
  constexpr int kItems = 16 / sizeof(L);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kBlock;
  const int64_t packs = aligned ? pixels / kItems : 0;
  for (int64_t i = first; i - lane < packs; i += step) {
    const bool inside = i < packs;
    const Pack<L> from = inside ? reinterpret_cast<const Pack<L>*>(prediction)[i] : Pack<L>{};
    const Pack<L> to = inside ? reinterpret_cast<const Pack<L>*>(label)[i] : Pack<L>{};
#pragma unroll
    for (int k = 0; k < kItems; ++k) count(inside ? cell_of(from.item[k], to.item[k]) : -1);
  }
  for (int64_t i = packs * kItems + first; i - lane < pixels; i += step)
    count(i < pixels ? cell_of(prediction[i], label[i]) : -1);
  if (own_outside > 0) add(outside, own_outside);

  __syncthreads();
  for (int k = static_cast<int>(threadIdx.x); k < cells; k += kBlock)
    if (bins[k] > 0) add(counts + k, bins[k]);
}

}  // namespace

template <class L>
void confusion_matrix(Cuda device, const L* prediction, const L* label, int64_t pixels, int64_t num_classes,
                      int64_t ignore_label, int64_t* counts, int64_t* outside) {
  const auto bits = reinterpret_cast<uintptr_t>(prediction) | reinterpret_cast<uintptr_t>(label);
  const bool aligned = bits % sizeof(Pack<L>) == 0;
  const int64_t of_block = kBlock * (aligned ? 16 / static_cast<int64_t>(sizeof(L)) : 1);
  const int64_t blocks = std::min(ceil_div(pixels, of_block), kBlocks);
  const int64_t cells = num_classes * num_classes;
  launch(device, std::min(ceil_div(cells, kBlock), kBlocks), kBlock, zero_kernel, cells, counts, outside);
  const auto kernel = cells <= 1024   ? confusion_kernel<L, 1024>
                      : cells <= 8192 ? confusion_kernel<L, 8192>
                                      : confusion_kernel<L, 0>;
  launch(device, blocks, kBlock, kernel, prediction, label, pixels, aligned, num_classes, ignore_label, counts,
         outside);
}

#define INSTANTIATE(L) \
  template void confusion_matrix<L>(Cuda, const L*, const L*, int64_t, int64_t, int64_t, int64_t*, int64_t*);
INSTANTIATE(uint8_t)
INSTANTIATE(int64_t)

}  // namespace repro

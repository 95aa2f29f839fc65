// How blocks share a map: a block owns kThreads consecutive elements of a row, neighbouring threads neighbouring
// channels, so that a warp writes whole 128-byte lines (of 4-byte elements); down the map it owns a run of rows.
#pragma once

#include "shared/merge_rules.h"

namespace repro {

constexpr int kThreads = 128;

REPRO_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Where a block's tile begins: image, row, element of the row.
struct Tile {
  int64_t n;
  int64_t row;
  int64_t element;
};

// The tiles of N maps: `across` of them share a row of elements, `down` of them the height of an image.
struct Tiling {
  int64_t elements;  // of a row
  int64_t H;
  int rows;  // of a tile
  uint32_t across;
  uint32_t down;

  REPRO_HD Tiling(int64_t elements_, int64_t H_, int rows_, int threads = kThreads)
      : elements(elements_),
        H(H_),
        rows(rows_),
        across(static_cast<uint32_t>(ceil_div(elements_, threads))),
        down(static_cast<uint32_t>(ceil_div(H_, rows_))) {}

  int64_t blocks(int64_t N) const { return N * across * down; }

  __device__ Tile tile(uint32_t block, int threads = kThreads) const {
    const uint32_t run = block / across;
    return {run / down, static_cast<int64_t>(run % down) * rows, static_cast<int64_t>(block % across) * threads};
  }

  // The rows that the tile really has.
  __device__ int rows_of(const Tile& tile) const { return H - tile.row < rows ? static_cast<int>(H - tile.row) : rows; }
};

// The positions that a tile of elements touches: the first, and how many.
struct Positions {
  int64_t first;
  int count;

  __device__ Positions(const Tiling& tiling, const Tile& tile, int64_t C) : first(tile.element / C) {
    const int64_t end = tile.element + kThreads < tiling.elements ? tile.element + kThreads : tiling.elements;
    count = static_cast<int>((end - 1) / C - first) + 1;
  }
};

// What a thread does to come from one output row to the next; the same for every thread of a block.
enum : int { kLoadTop = 1, kTopFromBottom = 2, kLoadBottom = 4, kBlend = 8, kClamped = 16 };

template <class Acc>
struct alignas(16) Step {
  int64_t top;  // elements from an image's row 0 to the upper input row
  Acc w_hi;
  int action;
};

// The step to output row o; `begins` where no row came before it. `stride` is the map's row in elements.
template <class Acc>
__device__ Step<Acc> step_to(const Axis& rows, int64_t o, bool begins, int64_t stride) {
  const Tap<Acc> tap = rows.tap<Acc>(o);
  if (tap.hi < 0) return {tap.lo * stride, Acc(0), kLoadTop};
  const Tap<Acc> before = rows.tap<Acc>(begins ? o : o - 1);
  int action = kBlend;
  if (begins || before.lo != tap.lo) action |= !begins && before.hi == tap.lo ? kTopFromBottom : kLoadTop;
  if (begins || before.hi != tap.hi) action |= kLoadBottom;
  if (tap.hi == tap.lo) action |= kClamped;
  return {tap.lo * stride, tap.w_hi, action};
}

// One channel of one column of Interp(map), read downwards: of the two input rows around an output row the thread keeps
// the horizontal interpolations, so that an input is loaded once for all output rows beside it.
// Caffe: caffe_cpu_interp2 sums in this order.
template <class T>
struct Column {
  using Acc = acc_t<T>;

  const T* left;  // row 0, the left pixel
  int64_t right;  // elements from there to the right pixel; negative where the axis is copied
  Acc w_hi;
  Acc top = 0;
  Acc bottom = 0;

  Column() = default;
  __device__ Column(const T* image, const Axis& columns, int64_t C, int64_t p, int64_t c) {
    const Tap<Acc> tap = columns.tap<Acc>(p);
    left = image + tap.lo * C + c;
    right = tap.hi < 0 ? -1 : (tap.hi - tap.lo) * C;
    w_hi = tap.w_hi;
  }

  __device__ Acc row(int64_t offset) const {
    const Acc at_left = load(left[offset]);
    return right < 0 ? at_left : (Acc(1) - w_hi) * at_left + w_hi * load(left[offset + right]);
  }

  // The value at the output row that `step` leads to.
  __device__ Acc move(const Step<Acc>& step, int64_t stride) {
    if (step.action & kTopFromBottom) top = bottom;
    if (step.action & kLoadTop) top = row(step.top);
    if (step.action & kLoadBottom) bottom = row(step.top + (step.action & kClamped ? 0 : stride));
    return step.action & kBlend ? (Acc(1) - step.w_hi) * top + step.w_hi * bottom : top;
  }
};

}  // namespace repro

// How blocks share a map: a block owns kThreads consecutive elements of a row, neighbouring threads neighbouring
// channels, so that a warp writes whole 128-byte lines (of 4-byte elements); down the map it owns a run of rows.
#pragma once

#include "cuda/launch.cuh"
#include "cuda/quad.cuh"
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

// Rows of a tile: as many as `most`, but fewer where kEnoughBlocks would not be reached. What a thread finds out once
// serves all its rows; a small map has to be shared among all multiprocessors first. No result depends on it.
inline int tile_rows(int64_t elements, int64_t H, int64_t N, int most) {
  int rows = most;
  while (rows > 1 && Tiling(elements, H, rows).blocks(N) < kEnoughBlocks) rows /= 2;
  return rows;
}

// The weights of an output for its lower and its upper input.
template <class Acc>
struct Weights {
  Acc lower;
  Acc upper;
};

// The element `offset` bytes behind another. Bytes, since a pointer plus elements is worked out from the map's address
// again, in 64 bits, for every load: 4 instructions in place of 2.
template <class T>
__device__ const T* behind(const T* element, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(element) + offset);
}

// One channel of one column of Interp(map): where it reads each input row. Both inputs of a row, and both rows of an
// output, are loaded before the first is used, so that a thread waits for them together.
// Caffe: caffe_cpu_interp2 sums in this order.
template <class T>
struct Column {
  using Acc = acc_t<T>;

  const T* left;  // in the image's row 0
  const T* right;
  weight_t<T> lower;
  weight_t<T> upper;
  bool blends;  // false where the axis is copied: the same for the whole grid

  Column() = default;
  __device__ Column(const T* image, const Axis& columns, int64_t C, int64_t p, int64_t c) {
    const auto tap = columns.tap<weight_t<T>>(p);
    blends = columns.n_in != columns.n_out;
    left = image + tap.lo * C + c;
    right = blends ? image + tap.hi * C + c : left;
    lower = tap.w_lo;
    upper = tap.w_hi;
  }

  struct Inputs {
    Acc left;
    Acc right;
  };
  // Of the row that begins `offset` bytes behind the image's first.
  __device__ Inputs read(int64_t offset) const {
    return {load(*behind(left, offset)), blends ? load(*behind(right, offset)) : Acc()};
  }
  __device__ Acc value(const Inputs& inputs) const {
    return blends ? lower * inputs.left + upper * inputs.right : inputs.left;
  }
};

}  // namespace repro

// A group of lanes of one warp that owns one position, each lane every width-th channel: neighbouring lanes read
// neighbouring channels.
#pragma once

#include <cstdint>

#include "cuda/tile.cuh"

namespace repro {

struct Lanes {
  int width;   // a power of two, at most 32; no wider than C needs
  int group;   // of the block
  int groups;  // in the block
  int lane;    // of the group

  __device__ explicit Lanes(int64_t C) : width(1) {
    while (width < C && width < 32) width *= 2;
    group = static_cast<int>(threadIdx.x) / width;
    groups = kThreads / width;
    lane = static_cast<int>(threadIdx.x) % width;
  }

  // Over the group's lanes, the same bits in each of them. All lanes of the warp must call.
  template <class Acc>
  __device__ Acc sum(Acc value) const {
    for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
  }
  template <class Acc>
  __device__ Acc max(Acc value) const {
    for (int step = width / 2; step > 0; step /= 2) {
      const Acc other = __shfl_xor_sync(0xffffffffu, value, step);
      value = other > value ? other : value;
    }
    return value;
  }
};

}  // namespace repro

// The lines that the domain transform runs along, rows or columns, and one thread's way along one channel of a line.
#pragma once

#include <type_traits>

#include "cuda/tile.cuh"
#include "shared/domain_transform.h"

namespace repro {

// Positions that a thread loads before it computes; back over the gradient more would not fit into registers.
constexpr int kAhead = 8;
constexpr int kBackAhead = 4;

// One line of one image, in positions of all images.
struct Line {
  int64_t first;
  int64_t step;
  int64_t length;  // of its valid part
  bool known;      // false where the image's valid size is no part of the map: then there is no valid part
};

struct Direction {
  Size map;
  const int64_t* valid_size;  // as the op's
  bool rows;

  REPRO_HD int64_t lines() const { return rows ? map.H : map.W; }  // of an image
  REPRO_HD int64_t length() const { return rows ? map.W : map.H; }

  __device__ Line line(int64_t of_all) const {
    const int64_t n = of_all / lines();
    const int64_t l = of_all % lines();
    const Size valid = valid_size == nullptr ? map : Size{valid_size[2 * n], valid_size[2 * n + 1]};
    const bool known = valid.H >= 0 && valid.H <= map.H && valid.W >= 0 && valid.W <= map.W;
    const bool inside = known && l < (rows ? valid.H : valid.W);
    return {n * map.H * map.W + (rows ? l * map.W : l), rows ? 1 : map.W,
            !inside ? 0
            : rows  ? valid.W
                    : valid.H,
            known};
  }
};

// `steps` steps of the recursion along one channel, `ahead` loaded at a time, from the value `last` of the position before; returns the last one's.
//   from, to, added  the first step's position; they may be the same. `to` takes the results, `added` what each step
//                    added, before the weight; either may be null
//   w                the weight of the first step's link
template <int ahead, class From, class Acc>
__device__ Acc run(const From* from, const Acc* w, int64_t steps, int64_t step, int64_t w_step, Acc last, Acc* to,
                   Acc* added) {
  for (int64_t k = 0; k < steps; k += ahead) {
    Acc value[ahead];
    Acc weight[ahead];
#pragma unroll
    for (int j = 0; j < ahead; ++j) {
      const bool there = k + j < steps;
      value[j] = there ? load(from[(k + j) * step]) : Acc(0);
      weight[j] = there ? w[(k + j) * w_step] : Acc(0);
    }
#pragma unroll
    for (int j = 0; j < ahead; ++j)
      if (k + j < steps) {
        const Acc difference = last - value[j];
        last = value[j] + weight[j] * difference;
        if (added != nullptr) added[(k + j) * step] = difference;
        if (to != nullptr) to[(k + j) * step] = last;
      }
  }
  return last;
}

// The forward pass's launches, which the backward pass runs too (domain_transform.cu).
template <class T>
void make_weights(Cuda device, const T* edge, Size size, int64_t N, const Filter& filter, acc_t<T>* weights);
template <class From, class Acc>
void filter_lines(Cuda device, const From* from, const Acc* w, const Direction& direction, int64_t N, int64_t C,
                  bool begins, Acc* to);
template <class T>
void round_map(Cuda device, const acc_t<T>* from, int64_t count, T* to);

}  // namespace repro

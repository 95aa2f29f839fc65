// What the CUDA kernels' elements share: where an element lies, and the adjoint's sum over output positions, computed
// on the fly where the CPU uses tables.
#pragma once

#include "merge_rules.h"

namespace repro {

// Element `index` of a dense NHWC map.
struct Place {
  int64_t n;
  int64_t row;
  int64_t column;
  int64_t c;
};

REPRO_HD Place place_of(int64_t index, Size size, int64_t C) {
  const int64_t position = index / C;
  return {position / size.W / size.H, position / size.W % size.H, position % size.W, index % C};
}

// The sum over the output positions that read input pixel (i, j): visit(o * W_out + p) * row weight * column weight.
template <class Acc, class Visit>
__device__ Acc gather(const Axis& rows, const Axis& columns, int64_t i, int64_t j, const Visit& visit) {
  Acc sum = 0;
  const int64_t o_end = rows.end(i);
  const int64_t p_begin = columns.begin(j);
  const int64_t p_end = columns.end(j);
  for (int64_t o = rows.begin(i); o < o_end; ++o) {
    const Acc w_row = rows.weight<Acc>(o, i);
    for (int64_t p = p_begin; p < p_end; ++p) sum += w_row * columns.weight<Acc>(p, j) * visit(o * columns.n_out + p);
  }
  return sum;
}

}  // namespace repro

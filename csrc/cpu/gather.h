// The adjoint of Interp on the CPU, gathered in Caffe's order.
#pragma once

#include "rows.h"

namespace repro {

// K vectors (each a Lanes<Acc>, or one Acc) of channels of one input pixel: the sum over the positions that read it.
template <int K, class V, class From, class T, class Acc>
REPRO_INLINE void gather(const From* dy, const Readers<Acc>& rows, const Readers<Acc>& columns, int64_t W_out,
                         int64_t C, T* dx) {
  constexpr int64_t step = sizeof(V) / sizeof(Acc);
  V total[K] = {};
  const From* row = dy + (rows.begin * W_out + columns.begin) * C;
  for (const Acc row_weight : rows.weights) {
    const From* at = row;
    for (const Acc column_weight : columns.weights) {
      const Acc weight = row_weight * column_weight;
      for (int k = 0; k < K; ++k) {
        V value;
        get(value, at + k * step);
        total[k] += weight * value;
      }
      at += C;
    }
    row += W_out * C;
  }
  for (int k = 0; k < K; ++k) put(dx + k * step, total[k]);
}

// Rows begin..end of the adjoint of all images: every input pixel sums the positions that read it.
// Caffe: caffe_cpu_interp2_backward scatters in the order of the outputs; gathering in that order gives its bits.
template <class From, class T>
REPRO_INLINE void gather_rows(const From* dy, const MapReaders<acc_t<T>>& readers, int64_t C, int64_t begin,
                              int64_t end, T* dx) {
  using Acc = acc_t<T>;
  const int64_t W_in = readers.in.W;
  const int64_t W_out = readers.out.W;
  const int64_t packed = (C + kLanes - 1) / kLanes * kLanes;
  for (int64_t r = begin; r < end; ++r) {
    const Readers<Acc>& rows = readers.rows[r % readers.in.H];
    const From* const image = dy + r / readers.in.H * readers.out.H * W_out * C;
    for (int64_t j = 0; j < W_in; ++j) {
      const Readers<Acc>& columns = readers.columns[j];
      const int64_t last = columns.begin + static_cast<int64_t>(columns.weights.size()) - 1;
      T* const to = dx + (r * W_in + j) * C;
      int64_t c = 0;
      // As for_positions: vectors may run over into the next position of their own row.
      if (last * C + packed <= W_out * C && j * C + packed <= W_in * C) {
        for (; c + 3 * kLanes <= packed; c += 3 * kLanes)
          gather<3, Lanes<Acc>>(image + c, rows, columns, W_out, C, to + c);
        for (; c < packed; c += kLanes) gather<1, Lanes<Acc>>(image + c, rows, columns, W_out, C, to + c);
      }
      for (; c < C; ++c) gather<1, Acc>(image + c, rows, columns, W_out, C, to + c);
    }
  }
}

}  // namespace repro

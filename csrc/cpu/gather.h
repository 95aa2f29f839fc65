// The adjoint of Interp on the CPU, gathered in Caffe's order.
#pragma once

#include "rows.h"

namespace repro {

// K vectors (each a Lanes<Acc>, or one Acc) of channels of one input pixel: the sum over the positions that read it.
template <int K, class V, class From, class T, class Acc>
REPRO_INLINE void gather(const From* dy, const Readers<Acc>& rows, const Readers<Acc>& columns, int64_t W_out,
                         int64_t C, T* dx) {
  constexpr int64_t step = sizeof(V) / sizeof(Acc);
  V total[K];
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) total[k] = V{};
  const From* row = dy + (rows.begin * W_out + columns.begin) * C;
  for (const Acc row_weight : rows.weights) {
    const From* at = row;
    for (const Acc column_weight : columns.weights) {
      const Acc weight = row_weight * column_weight;
#pragma GCC unroll 4
      for (int k = 0; k < K; ++k) {
        V value;
        get(value, at + k * step);
        total[k] += weight * value;
      }
      at += C;
    }
    row += W_out * C;
  }
#pragma GCC unroll 4
  for (int k = 0; k < K; ++k) put(dx + k * step, total[k]);
}

// Rows begin..end of the adjoint of all images: every input pixel sums the positions that read it. `dy` ends at
// `dy_end`. Caffe: caffe_cpu_interp2_backward scatters in the order of the outputs; gathering in that order gives its
// bits.
template <class From, class T>
REPRO_INLINE void gather_rows(const From* dy, const From* dy_end, const MapReaders<acc_t<T>>& readers, int64_t C,
                              int64_t begin, int64_t end, T* dx) {
  using Acc = acc_t<T>;
  const int64_t W_in = readers.in.W;
  const int64_t W_out = readers.out.W;
  const int64_t packed = (C + kLanes - 1) / kLanes * kLanes;
  std::vector<T> position(packed);
  for (int64_t r = begin; r < end; ++r) {
    const Readers<Acc>& rows = readers.rows[r % readers.in.H];
    const From* const image = dy + r / readers.in.H * readers.out.H * W_out * C;
    const int64_t last_row = rows.begin + static_cast<int64_t>(rows.weights.size()) - 1;
    for (int64_t j = 0; j < W_in; ++j) {
      const Readers<Acc>& columns = readers.columns[j];
      const int64_t last = columns.begin + static_cast<int64_t>(columns.weights.size()) - 1;
      T* const to = dx + (r * W_in + j) * C;
      // Vectors may read beyond their position, but not beyond dy; and write beyond it where the next is written after.
      if (image + (last_row * W_out + last) * C + packed > dy_end) {
        for (int64_t c = 0; c < C; ++c) gather<1, Acc>(image + c, rows, columns, W_out, C, to + c);
        continue;
      }
      const bool beyond = j * C + packed > W_in * C;
      T* const first = beyond ? position.data() : to;
      int64_t c = 0;
      for (; c + 3 * kLanes <= packed; c += 3 * kLanes)
        gather<3, Lanes<Acc>>(image + c, rows, columns, W_out, C, first + c);
      for (; c < packed; c += kLanes) gather<1, Lanes<Acc>>(image + c, rows, columns, W_out, C, first + c);
      if (beyond) std::copy(first, first + C, to);
    }
  }
}

}  // namespace repro

// Interp and its adjoint on the CPU. One task owns rows of the result. Forward: each input row is resampled in columns
// once per task, then every output row is one pass over two of these. Backward, gathered: every input pixel sums the
// positions that read it. Bytes: the input once, the output once (neighbouring rows share theirs in cache).
#include <ATen/Parallel.h>

#include "rows.h"

namespace repro {

namespace {

template <class T>
REPRO_CLONES void interp_rows(const T* x, const MapTaps<acc_t<T>>& taps, int64_t C, int64_t begin, int64_t end, T* y) {
  Resampled<T> map(x, taps, C);
  for (int64_t r = begin; r < end; ++r) map.write(r / taps.out.H, r % taps.out.H, y + r * taps.out.W * C);
}

// K vectors (each a Lanes<Acc>, or one Acc) of channels of one input pixel: the sum over the positions that read it.
template <int K, class V, class T, class Acc>
REPRO_INLINE void gather(const T* dy, const Readers<Acc>& rows, const Readers<Acc>& columns, int64_t W_out, int64_t C,
                         T* dx) {
  constexpr int64_t step = sizeof(V) / sizeof(Acc);
  V total[K] = {};
  const T* row = dy + (rows.begin * W_out + columns.begin) * C;
  for (const Acc row_weight : rows.weights) {
    const T* at = row;
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

// Caffe: caffe_cpu_interp2_backward scatters in the order of the outputs; gathering in that order gives its bits.
template <class T>
REPRO_CLONES void interp_backward_rows(const T* dy, const MapReaders<acc_t<T>>& readers, int64_t C, int64_t begin,
                                       int64_t end, T* dx) {
  using Acc = acc_t<T>;
  const int64_t W_in = readers.in.W;
  const int64_t W_out = readers.out.W;
  const int64_t packed = (C + kLanes - 1) / kLanes * kLanes;
  for (int64_t r = begin; r < end; ++r) {
    const Readers<Acc>& rows = readers.rows[r % readers.in.H];
    const T* const image = dy + r / readers.in.H * readers.out.H * W_out * C;
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

}  // namespace

template <class T>
void interp(Cpu, const T* x, Size in, int64_t N, int64_t C, Size out, T* y) {
  const MapTaps<acc_t<T>> taps(in, out);
  at::parallel_for(0, N * out.H, rows_per_task(out.W * C),
                   [&](int64_t begin, int64_t end) { interp_rows(x, taps, C, begin, end, y); });
}

template <class T>
void interp_backward(Cpu, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx) {
  const MapReaders<acc_t<T>> readers(in, out);
  at::parallel_for(0, N * in.H, rows_per_task(in.W * C),
                   [&](int64_t begin, int64_t end) { interp_backward_rows(dy, readers, C, begin, end, dx); });
}

#define INSTANTIATE(T)                                                      \
  template void interp<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

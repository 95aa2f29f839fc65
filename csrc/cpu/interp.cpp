// Interp and its adjoint on the CPU. One task owns rows of the result. Forward: each input row is resampled in columns
// once per task, then every output row is one pass over two of these. Backward, gathered: every input pixel sums the
// positions that read it. Bytes: the input once, the output once (neighbouring rows share theirs in cache).
#include <ATen/Parallel.h>

#include "gather.h"

namespace repro {

namespace {

template <class T>
REPRO_CLONES void interp_rows(const T* x, const MapTaps<acc_t<T>>& taps, int64_t C, int64_t begin, int64_t end, T* y) {
  Resampled<T> map(x, taps, C);
  for (int64_t r = begin; r < end; ++r) map.write(r / taps.out.H, r % taps.out.H, y + r * taps.out.W * C);
}

template <class T>
REPRO_CLONES void interp_backward_rows(const T* dy, const T* dy_end, const MapReaders<acc_t<T>>& readers, int64_t C,
                                       int64_t begin, int64_t end, T* dx) {
  gather_rows(dy, dy_end, readers, C, begin, end, dx);
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
  at::parallel_for(0, N * in.H, rows_per_task(in.W * C), [&](int64_t begin, int64_t end) {
    interp_backward_rows(dy, dy + N * out.H * out.W * C, readers, C, begin, end, dx);
  });
}

#define INSTANTIATE(T)                                                      \
  template void interp<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

// Interp and its adjoint on the CPU. One task owns rows of the result; the innermost loop runs over the contiguous
// channels. Bytes: each input row is read by the few output rows that touch it (from cache), each output is written
// once.
#include <ATen/Parallel.h>

#include "merge_rules.h"
#include "tables.h"

namespace repro {

template <class T>
void interp(Cpu, const T* x, Size in, int64_t N, int64_t C, Size out, T* y) {
  using Acc = acc_t<T>;
  const auto rows = taps<Acc>(Axis(in.H, out.H));
  const auto columns = taps<Acc>(Axis(in.W, out.W));
  at::parallel_for(0, N * out.H, rows_per_task(out.W * C), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* image = x + r / out.H * in.H * in.W * C;
      const Tap<Acc> ty = rows[r % out.H];
      T* y_row = y + r * out.W * C;
      for (int64_t p = 0; p < out.W; ++p)
        for (int64_t c = 0; c < C; ++c) store(y_row + p * C + c, sample(image, in.W, C, ty, columns[p], c));
    }
  });
}

template <class T>
void interp_backward(Cpu, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx) {
  using Acc = acc_t<T>;
  const auto rows = readers<Acc>(Axis(in.H, out.H));
  const auto columns = readers<Acc>(Axis(in.W, out.W));
  at::parallel_for(0, N * in.H, rows_per_task(in.W * C), [&](int64_t begin, int64_t end) {
    std::vector<Acc> sum(C);
    for (int64_t r = begin; r < end; ++r) {
      const T* image = dy + r / in.H * out.H * out.W * C;
      for (int64_t j = 0; j < in.W; ++j) {
        std::fill(sum.begin(), sum.end(), Acc(0));
        for_each_reader(rows[r % in.H], columns[j], out.W, [&](int64_t position, Acc weight) {
          for (int64_t c = 0; c < C; ++c) sum[c] += weight * load(image[position * C + c]);
        });
        for (int64_t c = 0; c < C; ++c) store(dx + (r * in.W + j) * C + c, sum[c]);
      }
    }
  });
}

#define INSTANTIATE(T)                                                      \
  template void interp<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cpu, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)

}  // namespace repro

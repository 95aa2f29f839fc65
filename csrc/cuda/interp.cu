// Interp and its adjoint on CUDA. One thread owns one element of the result; neighbouring threads own neighbouring
// channels, so reads and writes coalesce. Bytes: the input once (the taps overlap in cache), the output once. No
// atomics.
#include "gather.cuh"
#include "launch.cuh"

namespace repro {

template <class T>
struct InterpElement {
  const T* x;  // (N, in.H, in.W, C)
  Axis rows;
  Axis columns;
  int64_t C;
  T* y;  // (N, out.H, out.W, C)

  __device__ void operator()(int64_t index) const {
    using Acc = acc_t<T>;
    const auto [n, o, p, c] = place_of(index, {rows.n_out, columns.n_out}, C);
    const T* image = x + n * rows.n_in * columns.n_in * C;
    store(y + index, sample(image, columns.n_in, C, rows.tap<Acc>(o), columns.tap<Acc>(p), c));
  }
};

template <class T>
struct InterpBackwardElement {
  const T* dy;  // (N, out.H, out.W, C)
  Axis rows;
  Axis columns;
  int64_t C;
  T* dx;  // (N, in.H, in.W, C)

  __device__ void operator()(int64_t index) const {
    using Acc = acc_t<T>;
    const auto [n, i, j, c] = place_of(index, {rows.n_in, columns.n_in}, C);
    const T* image = dy + n * rows.n_out * columns.n_out * C + c;
    const int64_t stride = C;
    store(dx + index,
          gather<Acc>(rows, columns, i, j, [=](int64_t position) { return load(image[position * stride]); }));
  }
};

template <class T>
void interp(Cuda device, const T* x, Size in, int64_t N, int64_t C, Size out, T* y) {
  for_each(device, N * out.H * out.W * C, InterpElement<T>{x, Axis(in.H, out.H), Axis(in.W, out.W), C, y});
}

template <class T>
void interp_backward(Cuda device, const T* dy, Size out, int64_t N, int64_t C, Size in, T* dx) {
  for_each(device, N * in.H * in.W * C, InterpBackwardElement<T>{dy, Axis(in.H, out.H), Axis(in.W, out.W), C, dx});
}

#define INSTANTIATE(T)                                                       \
  template void interp<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*); \
  template void interp_backward<T>(Cuda, const T*, Size, int64_t, int64_t, Size, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)

}  // namespace repro

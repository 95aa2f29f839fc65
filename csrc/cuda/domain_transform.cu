// The domain transform on CUDA, three launches an iteration: the weights, then the rows there and back, then the columns
// there and back. A thread owns one channel of one line, so that neighbouring threads read neighbouring channels in both
// directions; it loads kAhead positions at a time, since a step waits for the one before. Bytes: in each iteration the
// map four times read and written, half of it from cache. No atomics.
#include <cmath>

#include "cuda/filter_lines.cuh"
#include "cuda/launch.cuh"

namespace repro {

namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const T* edge, EdgeWeight<acc_t<T>> weight, int64_t positions, acc_t<T>* weights) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < positions) weights[i] = weight.clip(exact_exponential(weight.distance(load(edge[i]))));
}

// Filters every line of one direction; `begins` copies what lies outside the valid part too.
template <class From, class Acc>
__global__ void __launch_bounds__(kThreads)
    filter_kernel(const From* from, const Acc* w, Direction direction, int64_t N, int64_t C, bool begins, Acc* to) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (t >= N * direction.lines() * C) return;
  const Line line = direction.line(t / C);
  const int64_t step = line.step * C;
  const int64_t first = line.first * C + t % C;
  if (begins)
    for (int64_t p = line.length; p < direction.length(); ++p)
      to[first + p * step] = line.known ? load(from[first + p * step]) : static_cast<Acc>(NAN);
  if (line.length == 0) return;
  const Acc last = load(from[first]);
  to[first] = last;
  const int64_t steps = line.length - 1;
  const int64_t end = first + steps * step;
  Acc* const none = nullptr;
  const Acc turned = run<kAhead>(from + first + step, w + line.first + line.step, steps, step, line.step, last,
                                 to + first + step, none);
  const int64_t back = end - step;
  run<kAhead>(to + back, w + line.first + steps * line.step, steps, -step, -line.step, turned, to + back, none);
}

template <class T>
__global__ void __launch_bounds__(kThreads) round_kernel(const acc_t<T>* from, int64_t count, T* to) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) store(to + i, from[i]);
}

}  // namespace

template <class T>
void make_weights(Cuda device, const T* edge, Size size, int64_t N, const Filter& filter, acc_t<T>* weights) {
  const int64_t positions = N * size.H * size.W;
  for (int64_t i = 0; i < filter.num_iter; ++i)
    launch(device, ceil_div(positions, kThreads), kThreads, weights_kernel<T>, edge, EdgeWeight<acc_t<T>>(filter, i),
           positions, weights + i * positions);
}

template <class From, class Acc>
void filter_lines(Cuda device, const From* from, const Acc* w, const Direction& direction, int64_t N, int64_t C,
                  bool begins, Acc* to) {
  launch(device, ceil_div(N * direction.lines() * C, kThreads), kThreads, filter_kernel<From, Acc>, from, w, direction,
         N, C, begins, to);
}

template <class T>
void round_map(Cuda device, const acc_t<T>* from, int64_t count, T* to) {
  launch(device, ceil_div(count, kThreads), kThreads, round_kernel<T>, from, count, to);
}

template <class T>
void domain_transform(Cuda device, const T* x, const T* edge, const int64_t* valid_size, Size size, int64_t N,
                      int64_t C, const Filter& filter, acc_t<T>* weights, acc_t<T>* map, T* y) {
  using Acc = acc_t<T>;
  Acc* to = map;
  if constexpr (std::is_same_v<T, Acc>) to = y;
  const int64_t positions = N * size.H * size.W;
  const Direction rows{size, valid_size, true};
  const Direction columns{size, valid_size, false};
  make_weights(device, edge, size, N, filter, weights);
  for (int64_t i = 0; i < filter.num_iter; ++i) {
    const Acc* const w = weights + i * positions;
    if (i == 0)
      filter_lines(device, x, w, rows, N, C, true, to);
    else
      filter_lines(device, to, w, rows, N, C, false, to);
    filter_lines(device, to, w, columns, N, C, false, to);
  }
  if constexpr (!std::is_same_v<T, Acc>) round_map(device, to, positions * C, y);
}

#define INSTANTIATE_LINES(From, Acc) \
  template void filter_lines<From, Acc>(Cuda, const From*, const Acc*, const Direction&, int64_t, int64_t, bool, Acc*);
#define INSTANTIATE(T)                                                                                               \
  INSTANTIATE_LINES(T, acc_t<T>)                                                                                     \
  template void make_weights<T>(Cuda, const T*, Size, int64_t, const Filter&, acc_t<T>*);                            \
  template void round_map<T>(Cuda, const acc_t<T>*, int64_t, T*);                                                    \
  template void domain_transform<T>(Cuda, const T*, const T*, const int64_t*, Size, int64_t, int64_t, const Filter&, \
                                    acc_t<T>*, acc_t<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

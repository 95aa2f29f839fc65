// The gradients of the domain transform on CUDA: the iterations again, each one's map kept, then from the last to the
// first four launches: the iteration's rows once more, the gradient of its columns, of its rows, and what the edge map's
// gradient gains. A group of lanes owns a line, each lane a channel of 32 at a time: it runs there and back, keeps what
// each step added (before the weight), and goes back over the gradient while the group sums, in one order, what the
// weights' gradient is. Memory: K + 2 maps and three planes of all images. No atomics.
#include <cmath>

#include "cuda/filter_lines.cuh"
#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace repro {

namespace {

// What a thread reads for its step over a position and back, at the first step.
template <class From, class Acc>
struct Back {
  const Acc* added;  // by the step, before the weight
  const From* next;  // the gradient of the position that the step came from
  const Acc* w;      // of the link
  Acc* gradient;     // of the position: what is left of it
  Acc* dweight;      // of the link
};

// `steps` steps back over the gradient from `current`, the first position's; returns the last one's. `all` is the same
// for every lane of a warp, for they sum together; `adds` adds to what dweight holds.
// Caffe: a step's gradient goes on to the position that it came from, and what is left stays.
template <class From, class Acc>
__device__ Acc run_back(const Back<From, Acc>& at, const Lanes& lanes, int64_t all, int64_t steps, int64_t step,
                        int64_t w_step, bool adds, Acc current) {
  const bool writes = lanes.lane == 0;
  for (int64_t k = 0; k < all; k += kBackAhead) {
    Acc added[kBackAhead];
    Acc next[kBackAhead];
    Acc weight[kBackAhead];
    Acc before[kBackAhead];
#pragma unroll
    for (int j = 0; j < kBackAhead; ++j) {
      const bool there = k + j < steps;
      added[j] = there ? at.added[(k + j) * step] : Acc(0);
      next[j] = there ? load(at.next[(k + j) * step]) : Acc(0);
      weight[j] = there ? at.w[(k + j) * w_step] : Acc(0);
      before[j] = there && adds && writes ? at.dweight[(k + j) * w_step] : Acc(0);
    }
#pragma unroll
    for (int j = 0; j < kBackAhead; ++j) {
      const bool there = k + j < steps;
      const Acc sum = lanes.sum(there ? current * added[j] : Acc(0));
      if (!there) continue;
      if (writes) at.dweight[(k + j) * w_step] = adds ? before[j] + sum : sum;
      at.gradient[(k + j) * step] = (Acc(1) - weight[j]) * current;
      current = next[j] + weight[j] * current;
    }
  }
  return current;
}

// The gradient before one direction's lines from that after them, `from`, and the weights'. In columns, which come
// first, dweight is written, in rows it is added to.
//   x         the map before the lines
//   down, up  maps: what the steps there and back added
template <class X, class From, class Acc>
__global__ void __launch_bounds__(kThreads)
    lines_backward_kernel(const X* x, const Acc* w, const From* from, Direction direction, int64_t N, int64_t C,
                          bool begins, Acc* gradient, Acc* down, Acc* up, Acc* dweight) {
  const Lanes lanes(C);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * lanes.groups + lanes.group;
  const bool here = index < N * direction.lines();
  const Line line = direction.line(here ? index : 0);
  const int64_t length = here ? line.length : 0;
  const int64_t step = line.step * C;
  const bool in_rows = direction.rows;
  if (length > 0 && lanes.lane == 0 && !in_rows) dweight[line.first] = 0;
  for (int64_t channel = 0; channel < C; channel += lanes.width) {
    const int64_t first = line.first * C + channel + lanes.lane;
    const bool has = channel + lanes.lane < C;
    if (begins && here && has)
      for (int64_t p = length; p < direction.length(); ++p)
        gradient[first + p * step] = line.known ? load(from[first + p * step]) : static_cast<Acc>(NAN);
    const int64_t steps = has && length > 0 ? length - 1 : 0;
    const int64_t end = first + steps * step;
    const int64_t link = line.first + line.step;
    const int64_t last_link = line.first + steps * line.step;
    Acc current = 0;
    if (has && length > 0) {
      const Acc value = load(x[first]);
      up[first] = value;
      const Acc turned = run<kBackAhead>(x + first + step, w + link, steps, step, line.step, value, up + first + step,
                                         down + first + step);
      Acc* const back = up + end - step;
      Acc* const none = nullptr;
      run<kBackAhead>(back, w + last_link, steps, -step, -line.step, turned, none, back);
      current = load(from[first]);
    }
    const Back<From, Acc> there{up + first, from + first + step, w + link, gradient + first, dweight + link};
    const int64_t all = direction.length() - 1;
    current = run_back(there, lanes, all, steps, step, line.step, in_rows || channel > 0, current);
    const Back<Acc, Acc> back{down + end, gradient + end - step, w + last_link, gradient + end, dweight + last_link};
    current = run_back(back, lanes, all, steps, -step, -line.step, true, current);
    if (has && length > 0) gradient[first] = current;
  }
}

// dedge of one iteration more; written as T after the first iteration, which is the last one here.
template <class T>
__global__ void __launch_bounds__(kThreads)
    edge_kernel(const acc_t<T>* w, const acc_t<T>* dweight, EdgeWeight<acc_t<T>> weight, Direction rows, int64_t N,
                bool begins, acc_t<T>* sums, T* dedge) {
  using Acc = acc_t<T>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= N * rows.map.H * rows.map.W) return;
  const Line line = rows.line(i / rows.map.W);
  const Acc before = begins ? Acc(0) : sums[i];
  const bool inside = dweight != nullptr && i - line.first < line.length;
  const Acc sum = inside ? before + weight.backward(w[i], dweight[i]) : line.known ? Acc(0) : static_cast<Acc>(NAN);
  sums[i] = sum;
  if (dedge != nullptr) store(dedge + i, sum);
}

}  // namespace

template <class T>
void domain_transform_backward(Cuda device, const T* dy, const T* x, const T* edge, const int64_t* valid_size,
                               Size size, int64_t N, int64_t C, const Filter& filter, acc_t<T>* weights,
                               acc_t<T>* const* maps, acc_t<T>* dmap, acc_t<T>* sums, T* dx, T* dedge) {
  using Acc = acc_t<T>;
  Acc* gradient = dmap;
  if constexpr (std::is_same_v<T, Acc>) gradient = dx;
  const int64_t positions = N * size.H * size.W;
  const int64_t last = filter.num_iter - 1;
  Acc* const dweight = sums;
  const Direction rows{size, valid_size, true};
  const Direction columns{size, valid_size, false};
  make_weights(device, edge, size, N, filter, weights);
  // The map before iteration i is maps[i - 1], that before its columns maps[last].
  const auto filter_rows = [&](int64_t i, Acc* to) {
    const Acc* const w = weights + i * positions;
    if (i == 0)
      filter_lines(device, x, w, rows, N, C, false, to);
    else
      filter_lines(device, maps[i - 1], w, rows, N, C, false, to);
  };
  for (int64_t i = 0; i < last; ++i) {
    filter_rows(i, maps[i]);
    filter_lines(device, maps[i], weights + i * positions, columns, N, C, false, maps[i]);
  }
  for (int64_t i = last; i >= 0; --i) {
    const Acc* const w = weights + i * positions;
    filter_rows(i, maps[last]);
    const auto backward = [&](const Direction& direction, const auto* before, const auto* from, bool begins) {
      int width = 1;  // as Lanes
      while (width < C && width < 32) width *= 2;
      using X = std::remove_cvref_t<decltype(*before)>;
      using From = std::remove_cvref_t<decltype(*from)>;
      const int64_t blocks = C == 0 ? 0 : ceil_div(N * direction.lines(), kThreads / width);
      launch(device, blocks, kThreads, lines_backward_kernel<X, From, Acc>, before, w, from, direction, N, C, begins,
             gradient, maps[last + 1], maps[last + 2], dweight);
    };
    const Acc* const through = gradient;
    const Acc* const before_columns = maps[last];
    if (i == last)
      backward(columns, before_columns, dy, true);
    else
      backward(columns, before_columns, through, false);
    if (i == 0)
      backward(rows, x, through, false);
    else
      backward(rows, static_cast<const Acc*>(maps[i - 1]), through, false);
    launch(device, ceil_div(positions, kThreads), kThreads, edge_kernel<T>, w, C == 0 ? nullptr : dweight,
           EdgeWeight<Acc>(filter, i), rows, N, i == last, sums + positions, i == 0 ? dedge : nullptr);
  }
  if constexpr (!std::is_same_v<T, Acc>) round_map(device, gradient, positions * C, dx);
}

#define INSTANTIATE(T)                                                                                          \
  template void domain_transform_backward<T>(Cuda, const T*, const T*, const T*, const int64_t*, Size, int64_t, \
                                             int64_t, const Filter&, acc_t<T>*, acc_t<T>* const*, acc_t<T>*,    \
                                             acc_t<T>*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

// The softmax loss and its gradient on CUDA in three launches. Threads count the labels, and add what each warp counted
// to the result. Then a block owns one row of the label grid, a group of lanes one position at a time, a lane every kth
// class: maximum, sum of powers and gradient, the scores coming from cache after their first reading. Then one block
// adds the rows. Sums of terms are float64, in an order that does not depend on timing. Bytes: the scores once, every
// shrink-th label twice, the gradient once. Atomics on integers only.
#include <algorithm>
#include <cmath>

#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace repro {

namespace {

// Caffe: a probability is floored at FLT_MIN before its logarithm, in the float64 program too: -log(FLT_MIN).
constexpr double kLargestTerm = 87.336544750553108986;

constexpr int64_t kCountingBlocks = 256;  // at most

__device__ void add(int64_t* to, int count) {
  if (count > 0) atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(count));
}

template <class L>
__global__ void __launch_bounds__(kThreads)
    count_labels_kernel(const L* labels, Size image, Size grid, int64_t positions, int64_t C, int64_t shrink,
                        int64_t ignore_label, int64_t* counts) {
  int valid = 0;
  int unknown = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < positions; i += step) {
    const int64_t row = i / grid.W;  // of all images' rows
    const int64_t line = row / grid.H * image.H + row % grid.H * shrink;
    const int64_t y = static_cast<int64_t>(labels[line * image.W + i % grid.W * shrink]);
    valid += y != ignore_label;
    unknown += y != ignore_label && (y < 0 || y >= C);
  }
  const Lanes warp(32);
  valid = warp.sum(valid);
  unknown = warp.sum(unknown);
  if (warp.lane != 0) return;
  add(counts, valid);
  add(counts + 1, unknown);
}

// What the sums are divided by; NaN where a label is neither a class nor ignored.
__device__ double normaliser(const int64_t* counts) {
  return counts[1] > 0 ? nan("") : static_cast<double>(counts[0] > 1 ? counts[0] : 1);
}

// The sum over the block's threads, in thread 0. All threads must call.
__device__ double add_threads(double own) {
  __shared__ double sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  sums[thread] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  return sums[0];
}

// Interp(scores; grid) at one position.
template <class T>
struct Sampled {
  using Acc = acc_t<T>;

  const T* image;
  int64_t W;
  int64_t C;
  bool whole;  // the scores have the grid's size: `at` points to the position
  const T* at;
  Tap<Acc> ty;
  Tap<Acc> tx;

  __device__ Acc operator()(int64_t c) const { return whole ? load(at[c]) : sample(image, W, C, ty, tx, c); }
};

template <class T, class L>
__global__ void __launch_bounds__(kThreads)
    loss_rows_kernel(const T* scores, Size in, const L* labels, Size image, Size grid, int64_t C, int64_t shrink,
                     int64_t ignore_label, const int64_t* counts, double* terms, T* dgrid) {
  using Acc = acc_t<T>;
  const int64_t row = blockIdx.x;  // of all images' rows
  const int64_t n = row / grid.H;
  const int64_t o = row % grid.H;
  const Axis columns(in.W, grid.W);
  const L* const label = labels + (n * image.H + o * shrink) * image.W;
  Sampled<T> score;
  score.image = scores + n * in.H * in.W * C;
  score.W = in.W;
  score.C = C;
  score.whole = in == grid;
  score.ty = Axis(in.H, grid.H).template tap<Acc>(o);
  const Lanes lanes(C);
  const auto scale = static_cast<Acc>(1 / normaliser(counts));
  double own = 0;
  for (int64_t p0 = 0; p0 < grid.W; p0 += lanes.groups) {  // the same number of rounds for all: lanes exchange values
    const int64_t p = p0 + lanes.group;
    const bool inside = p < grid.W;
    const int64_t begin = inside ? lanes.lane : C;  // the group's first class, none beyond the row
    score.at = score.image + (o * in.W + p) * C;
    score.tx = columns.tap<Acc>(inside ? p : 0);
    Acc highest = -static_cast<Acc>(INFINITY);
    for (int64_t c = begin; c < C; c += lanes.width) {
      const Acc value = score(c);
      highest = value > highest ? value : highest;
    }
    highest = lanes.max(highest);
    Acc sum = 0;
    for (int64_t c = begin; c < C; c += lanes.width) sum += exponential(score(c) - highest);
    sum = lanes.sum(sum);
    if (!inside) continue;
    const int64_t y = static_cast<int64_t>(label[p * shrink]);
    const bool valid = y != ignore_label;
    const bool known = valid && y >= 0 && y < C;
    if (dgrid != nullptr) {
      const Acc inverse = known ? Acc(1) / sum : Acc(0);
      T* const to = dgrid + (row * grid.W + p) * C;
      for (int64_t c = begin; c < C; c += lanes.width) {
        const Acc probability = known ? exponential(score(c) - highest) * inverse : Acc(0);
        store(to + c, (known && c == y ? probability - Acc(1) : probability) * scale);
      }
    }
    if (lanes.lane == 0 && known) {
      const double term = log(static_cast<double>(sum)) - static_cast<double>(score(y) - highest);
      own += term > kLargestTerm ? kLargestTerm : term;  // NaN stays NaN
    }
  }
  const double total = add_threads(own);
  if (threadIdx.x == 0) terms[row] = total;
}

__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(int64_t rows, const double* terms, const int64_t* counts, double* loss) {
  double own = 0;
  for (int64_t r = threadIdx.x; r < rows; r += kThreads) own += terms[r];
  const double total = add_threads(own);
  if (threadIdx.x == 0) *loss = total / normaliser(counts);
}

}  // namespace

template <class L>
void count_labels(Cuda device, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink, int64_t ignore_label,
                  int64_t* counts) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const int64_t positions = N * grid.H * grid.W;
  launch(device, std::min(ceil_div(positions, kThreads), kCountingBlocks), kThreads, count_labels_kernel<L>, labels,
         image, grid, positions, C, shrink, ignore_label, counts);
}

template <class T, class L>
void segmentation_loss(Cuda device, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C,
                       int64_t shrink, int64_t ignore_label, const int64_t* counts, double* terms, double* loss,
                       T* dgrid) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const int64_t rows = N * grid.H;
  launch(device, rows, kThreads, loss_rows_kernel<T, L>, scores, in, labels, image, grid, C, shrink, ignore_label,
         counts, terms, dgrid);
  launch(device, 1, kThreads, add_rows_kernel, rows, terms, counts, loss);
}

#define INSTANTIATE_FOR(T, L)                                                                                     \
  template void segmentation_loss<T, L>(Cuda, const T*, Size, const L*, Size, int64_t, int64_t, int64_t, int64_t, \
                                        const int64_t*, double*, double*, T*);
#define INSTANTIATE(T)        \
  INSTANTIATE_FOR(T, uint8_t) \
  INSTANTIATE_FOR(T, int64_t)
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
template void count_labels<uint8_t>(Cuda, const uint8_t*, Size, int64_t, int64_t, int64_t, int64_t, int64_t*);
template void count_labels<int64_t>(Cuda, const int64_t*, Size, int64_t, int64_t, int64_t, int64_t, int64_t*);

}  // namespace repro

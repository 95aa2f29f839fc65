// The softmax loss and its gradient on CUDA in two launches. Blocks count labels, each for itself. Then a block, once it
// has added up these counts, owns one row of the label grid, a group of lanes one position at a time, a lane every kth
// class: maximum, sum of powers and gradient. Of up to 3 classes a lane keeps score and power in registers; of more it
// reads the scores again, from cache. The block that ends last adds the rows. Sums of terms are float64, in an order
// that does not depend on timing. Bytes: the scores once, every shrink-th label twice, the gradient once. Atomics on
// integers only.
#include <algorithm>
#include <cmath>

#include "cuda/lanes.cuh"
#include "cuda/launch.cuh"

namespace repro {

namespace {

// Caffe: a probability is floored at FLT_MIN before its logarithm, in the float64 program too: -log(FLT_MIN).
constexpr double kLargestTerm = 87.336544750553108986;

// The sum over the block's threads, in each of them. All threads must call.
template <class Sum>
__device__ Sum add_threads(Sum own) {
  __shared__ Sum sums[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // the sum before has been read
  sums[thread] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  __syncthreads();
  return sums[0];
}

// What is in `counts`: the sums, the blocks that have added their row, and each counting block's two counts.
constexpr int kFinished = 2;
constexpr int kPartial = 3;
static_assert(kCountingBlocks <= kThreads);

template <class L>
__global__ void __launch_bounds__(kThreads)
    count_labels_kernel(const L* labels, Size image, Size grid, int64_t positions, int64_t C, int64_t shrink,
                        int64_t ignore_label, int64_t* counts) {
  int64_t valid = 0;
  int64_t unknown = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < positions; i += step) {
    const int64_t row = i / grid.W;  // of all images' rows
    const int64_t line = row / grid.H * image.H + row % grid.H * shrink;
    const int64_t y = static_cast<int64_t>(labels[line * image.W + i % grid.W * shrink]);
    valid += y != ignore_label;
    unknown += y != ignore_label && (y < 0 || y >= C);
  }
  valid = add_threads(valid);
  unknown = add_threads(unknown);
  if (threadIdx.x != 0) return;
  counts[kPartial + 2 * blockIdx.x] = valid;
  counts[kPartial + 2 * blockIdx.x + 1] = unknown;
  if (blockIdx.x == 0) counts[kFinished] = 0;
}

// What the sums are divided by; NaN where a label is neither a class nor ignored.
__device__ double normaliser(int64_t valid, int64_t unknown) {
  return unknown > 0 ? nan("") : static_cast<double>(valid > 1 ? valid : 1);
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

// kHeld: classes that a lane keeps, all that it has; 0: none.
template <class T, class L, int kHeld>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(const T* scores, Size in, const L* labels, Size image, Size grid, int64_t rows, int64_t C,
                int64_t shrink, int64_t ignore_label, int counting_blocks, int64_t* counts, double* terms, double* loss,
                T* dgrid) {
  using Acc = acc_t<T>;
  [[maybe_unused]] constexpr int kUnrolled = kHeld > 0 ? kHeld : 1;
  const int thread = static_cast<int>(threadIdx.x);
  const bool counted = thread < counting_blocks;
  const int64_t all_valid = add_threads(counted ? counts[kPartial + 2 * thread] : 0);
  const int64_t all_unknown = add_threads(counted ? counts[kPartial + 2 * thread + 1] : 0);
  const int64_t row = blockIdx.x;  // of all images' rows; there is a block without one where there are no images
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
  const int rounds = kHeld > 0 ? kHeld : static_cast<int>(ceil_div(C, lanes.width));
  const auto scale = static_cast<Acc>(1 / normaliser(all_valid, all_unknown));
  double own = 0;
  for (int64_t p0 = 0; row < rows && p0 < grid.W;
       p0 += lanes.groups) {  // the same number of rounds for all: lanes exchange values
    const int64_t p = p0 + lanes.group;
    const bool inside = p < grid.W;
    const int64_t begin = inside ? lanes.lane : C;  // the group's first class, none beyond the row
    score.at = score.image + (o * in.W + p) * C;
    score.tx = columns.tap<Acc>(inside ? p : 0);
    Acc held[kHeld > 0 ? kHeld : 1];  // the scores, then their powers
    Acc highest = -static_cast<Acc>(INFINITY);
#pragma unroll kUnrolled
    for (int k = 0; k < rounds; ++k) {
      const int64_t c = begin + k * lanes.width;
      if (c >= C) continue;
      const Acc value = score(c);
      if constexpr (kHeld > 0) held[k] = value;
      highest = value > highest ? value : highest;
    }
    highest = lanes.max(highest);
    Acc sum = 0;
#pragma unroll kUnrolled
    for (int k = 0; k < rounds; ++k) {
      const int64_t c = begin + k * lanes.width;
      if (c >= C) continue;
      if constexpr (kHeld > 0)
        sum += held[k] = exponential(held[k] - highest);
      else
        sum += exponential(score(c) - highest);
    }
    sum = lanes.sum(sum);
    if (!inside) continue;
    const int64_t y = static_cast<int64_t>(label[p * shrink]);
    const bool valid = y != ignore_label;
    const bool known = valid && y >= 0 && y < C;
    if (dgrid != nullptr) {
      const Acc inverse = known ? Acc(1) / sum : Acc(0);
      T* const to = dgrid + (row * grid.W + p) * C;
#pragma unroll kUnrolled
      for (int k = 0; k < rounds; ++k) {
        const int64_t c = begin + k * lanes.width;
        if (c >= C) continue;
        Acc power;
        if constexpr (kHeld > 0)
          power = held[k];
        else
          power = exponential(score(c) - highest);
        const Acc probability = known ? power * inverse : Acc(0);
        store(to + c, (known && c == y ? probability - Acc(1) : probability) * scale);
      }
    }
    if (lanes.lane == 0 && known) {
      const double term = log(static_cast<double>(sum)) - static_cast<double>(score(y) - highest);
      own += term > kLargestTerm ? kLargestTerm : term;  // NaN stays NaN
    }
  }
  const double total = add_threads(own);
  int64_t before = 0;  // blocks that ended before this one
  if (thread == 0) {
    if (row < rows) terms[row] = total;
    __threadfence();  // the term is seen before the number
    before = static_cast<int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(counts + kFinished), 1ull));
  }
  if (add_threads(before) + 1 < gridDim.x) return;
  __threadfence();
  own = 0;
  for (int64_t r = thread; r < rows; r += kThreads) own += static_cast<const volatile double*>(terms)[r];
  const double sum = add_threads(own);
  if (thread != 0) return;
  *loss = sum / normaliser(all_valid, all_unknown);
  counts[0] = all_valid;
  counts[1] = all_unknown;
}

int counting_blocks_of(int64_t positions) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div(positions, kThreads), 1, kCountingBlocks));
}

}  // namespace

template <class L>
void count_labels(Cuda device, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink, int64_t ignore_label,
                  int64_t* counts) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const int64_t positions = N * grid.H * grid.W;
  launch(device, counting_blocks_of(positions), kThreads, count_labels_kernel<L>, labels, image, grid, positions, C,
         shrink, ignore_label, counts);
}

template <class T, class L>
void segmentation_loss(Cuda device, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C,
                       int64_t shrink, int64_t ignore_label, int64_t* counts, double* terms, double* loss, T* dgrid) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const int64_t rows = N * grid.H;
  const auto kernel = C <= 32 ? loss_kernel<T, L, 1> : C <= 96 ? loss_kernel<T, L, 3> : loss_kernel<T, L, 0>;
  launch(device, std::max<int64_t>(rows, 1), kThreads, kernel, scores, in, labels, image, grid, rows, C, shrink,
         ignore_label, counting_blocks_of(rows * grid.W), counts, terms, loss, dgrid);
}

#define INSTANTIATE_FOR(T, L)                                                                                     \
  template void segmentation_loss<T, L>(Cuda, const T*, Size, const L*, Size, int64_t, int64_t, int64_t, int64_t, \
                                        int64_t*, double*, double*, T*);
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

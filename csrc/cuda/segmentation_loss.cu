// The softmax loss and its gradient on CUDA in two launches. First a block owns one row of the label grid, a group of
// lanes one position at a time, a lane every kth class: maximum, sum of powers and gradient, the scores coming from
// cache after their first reading. Then one block adds the rows. Sums of terms are float64, in an order that does not
// depend on timing. Bytes: the scores once, every shrink-th label once, the gradient once. No atomics.
#include <cfloat>

#include "lanes.cuh"
#include "launch.cuh"

namespace repro {

namespace {

// Caffe: a probability is floored at FLT_MIN before its logarithm, in the float64 program too: -log(FLT_MIN).
constexpr double kLargestTerm = 87.336544750553108986;

// What threads and rows add up.
struct Total {
  double terms;
  int64_t valid;
  int64_t unknown;  // labels that are neither a class nor ignored

  __device__ void add(const Total& other) {
    terms += other.terms;
    valid += other.valid;
    unknown += other.unknown;
  }
};

// The sum over the block's threads, in thread 0. All threads must call.
__device__ Total add_threads(const Total& own) {
  __shared__ Total totals[kThreads];
  const int thread = static_cast<int>(threadIdx.x);
  totals[thread] = own;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) totals[thread].add(totals[thread + half]);
  }
  return totals[0];
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
                     int64_t ignore_label, double* terms, int64_t* counts, T* dgrid) {
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
  score.whole = in.H == grid.H && in.W == grid.W;
  score.ty = Axis(in.H, grid.H).template tap<Acc>(o);
  const Lanes lanes(C);
  Total own{};
  for (int64_t p0 = 0; p0 < grid.W; p0 += lanes.groups) {  // the same number of rounds for all: lanes exchange values
    const int64_t p = p0 + lanes.group;
    const bool inside = p < grid.W;
    const int64_t begin = inside ? lanes.lane : C;  // the group's first class, none beyond the row
    score.at = score.image + (o * in.W + p) * C;
    score.tx = columns.tap<Acc>(inside ? p : 0);
    Acc highest = -static_cast<Acc>(FLT_MAX);
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
        store(to + c, known && c == y ? probability - Acc(1) : probability);
      }
    }
    if (lanes.lane == 0) {
      own.valid += known;
      own.unknown += valid && !known;
      if (known) {
        const double term = log(static_cast<double>(sum)) - static_cast<double>(score(y) - highest);
        own.terms += term < kLargestTerm ? term : kLargestTerm;
      }
    }
  }
  const Total total = add_threads(own);
  if (threadIdx.x == 0) {
    terms[row] = total.terms;
    counts[row] = total.unknown > 0 ? -1 : total.valid;
  }
}

__global__ void __launch_bounds__(kThreads)
    add_rows_kernel(int64_t rows, const double* terms, const int64_t* counts, double* loss, double* normaliser) {
  Total own{};
  for (int64_t r = threadIdx.x; r < rows; r += kThreads)
    own.add({terms[r], counts[r] < 0 ? 0 : counts[r], counts[r] < 0 ? 1 : 0});
  const Total total = add_threads(own);
  if (threadIdx.x != 0) return;
  const double divisor = total.valid > 1 ? static_cast<double>(total.valid) : 1.0;
  *normaliser = total.unknown > 0 ? nan("") : divisor;
  *loss = total.unknown > 0 ? nan("") : total.terms / divisor;
}

}  // namespace

template <class T, class L>
void segmentation_loss(Cuda device, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C,
                       int64_t shrink, int64_t ignore_label, double* terms, int64_t* counts, double* loss,
                       double* normaliser, T* dgrid) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const int64_t rows = N * grid.H;
  launch(device, rows, kThreads, loss_rows_kernel<T, L>, scores, in, labels, image, grid, C, shrink, ignore_label,
         terms, counts, dgrid);
  launch(device, 1, kThreads, add_rows_kernel, rows, terms, counts, loss, normaliser);
}

#define INSTANTIATE_FOR(T, L)                                                                                     \
  template void segmentation_loss<T, L>(Cuda, const T*, Size, const L*, Size, int64_t, int64_t, int64_t, int64_t, \
                                        double*, int64_t*, double*, double*, T*);
#define INSTANTIATE(T)        \
  INSTANTIATE_FOR(T, uint8_t) \
  INSTANTIATE_FOR(T, int64_t)
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

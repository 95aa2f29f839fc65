// The softmax loss and its gradient on the CPU. One task owns rows of the label grid: it resamples the row of scores
// into cache, subtracts each position's maximum, exponentiates the whole row, and writes loss and gradient. Bytes: the
// scores once, every shrink-th label twice, the gradient once.
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <mutex>

#include "rows.h"

namespace repro {

namespace {

// Caffe: a probability is floored at FLT_MIN before its logarithm, in the float64 program too.
const double kLargestTerm = -std::log(static_cast<double>(std::numeric_limits<float>::min()));
constexpr double kSurelyBelowLargest = 70;  // with up to e^17 classes a cost is below kLargestTerm
constexpr int64_t kFactors = 64;            // each 1..32767 or so: their product stays below 1e290

template <class T, class L>
REPRO_WIDE_CLONES void loss_rows(const T* scores, const MapTaps<acc_t<T>>& taps, const L* labels, Size image, int64_t C,
                                 int64_t shrink, int64_t ignore_label, acc_t<T> scale, int64_t begin, int64_t end,
                                 double* terms, T* dgrid) {
  using Acc = acc_t<T>;
  const Size grid = taps.out;
  const int64_t elements = grid.W * C;
  Resampled<T> map(scores, taps, C);
  const int64_t padded = (elements + kWide - 1) / kWide * kWide;
  std::vector<Acc> power(padded + kLanes);
  std::vector<Acc> partial((grid.W + kLanes) * kLanes);
  std::vector<Acc> highest(grid.W + kLanes);
  std::vector<Acc> sums(grid.W + kLanes);  // of a position's powers; 0 where its label counts for nothing
  const Channels<Acc> channels(C);
  for (int64_t r = begin; r < end; ++r) {
    const Acc* const row = map.row(r / grid.H, r % grid.H);
    const L* const label = labels + (r / grid.H * image.H + r % grid.H * shrink) * image.W;
    for (int64_t p = 0; p < grid.W; ++p) {
      const Acc* const at = row + p * C;
      Lanes<Acc> best = Lanes<Acc>{} + at[0];
      channels.each(
          elements - p * C,
          [&](int64_t c, const auto& keep) REPRO_LAMBDA {
            Lanes<Acc> value;
            get(value, at + c);
            value = keep(value, best);
            best = value > best ? value : best;
          },
          [&](int64_t c) REPRO_LAMBDA { best[0] = at[c] > best[0] ? at[c] : best[0]; });
      put(partial.data() + p * kLanes, best);
    }
    max_lanes(partial.data(), grid.W, highest.data());
    Acc* const powers = power.data();
    for_positions<Acc>(grid.W, C, [&](int64_t p, int64_t e, auto lanes) REPRO_LAMBDA {
      get(lanes, row + e);
      lanes -= highest[p];
      put(powers + e, lanes);
    });
    std::fill(powers + elements, powers + padded, Acc(0));
    exponentiate_all(powers, padded);
    for (int64_t p = 0; p < grid.W; ++p) {
      const Acc* const at = powers + p * C;
      Lanes<Acc> total{};
      channels.each(
          elements - p * C,
          [&](int64_t c, const auto& keep) REPRO_LAMBDA {
            Lanes<Acc> value;
            get(value, at + c);
            total += keep(value, Lanes<Acc>{});
          },
          [&](int64_t c) REPRO_LAMBDA { total[0] += at[c]; });
      put(partial.data() + p * kLanes, total);
    }
    sum_lanes(partial.data(), grid.W, sums.data());
    double term = 0;
    double product = 1;  // of the sums, so that one logarithm serves many positions
    int64_t factors = 0;
    for (int64_t p = 0; p < grid.W; ++p) {
      const int64_t y = static_cast<int64_t>(label[p * shrink]);
      const bool counts = y != ignore_label;
      const Acc sum = sums[p];
      if (counts) {
        const double below = static_cast<double>(highest[p] - row[p * C + y]);
        if (below > kSurelyBelowLargest) {
          term += std::min(std::log(static_cast<double>(sum)) + below, kLargestTerm);
        } else {
          term += below;
          product *= static_cast<double>(sum);
          if (++factors % kFactors == 0) {
            term += std::log(product);
            product = 1;
          }
        }
      } else {
        sums[p] = 0;
      }
    }
    terms[r] = term + std::log(product);
    if (dgrid == nullptr) continue;
    T* const to = dgrid + r * elements;
    for_positions<Acc>(grid.W, C, [&](int64_t p, int64_t e, auto lanes) REPRO_LAMBDA {
      const Acc sum = sums[p];
      get(lanes, powers + e);
      lanes = sum == 0 ? decltype(lanes){} : lanes / sum * scale;
      put(to + e, lanes);
    });
    for (int64_t p = 0; p < grid.W; ++p)
      if (sums[p] != 0) {
        const int64_t e = p * C + static_cast<int64_t>(label[p * shrink]);
        store(to + e, (powers[e] / sums[p] - Acc(1)) * scale);
      }
  }
}

}  // namespace

template <class L>
void count_labels(Cpu, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink, int64_t ignore_label,
                  int64_t* counts) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  counts[0] = counts[1] = 0;
  std::mutex adding;
  at::parallel_for(0, N * grid.H, rows_per_task(grid.W), [&](int64_t begin, int64_t end) {
    int64_t valid = 0;
    int64_t known = 0;
    for (int64_t r = begin; r < end; ++r) {
      const L* const label = labels + (r / grid.H * image.H + r % grid.H * shrink) * image.W;
      for (int64_t p = 0; p < grid.W; ++p) {
        const int64_t y = static_cast<int64_t>(label[p * shrink]);
        valid += y != ignore_label;
        known += y != ignore_label && y >= 0 && y < C;
      }
    }
    const std::lock_guard<std::mutex> guard(adding);
    counts[0] += valid;
    counts[1] += valid - known;
  });
}

template <class T, class L>
void segmentation_loss(Cpu, const T* scores, Size in, const L* labels, Size image, int64_t N, int64_t C, int64_t shrink,
                       int64_t ignore_label, int64_t* counts, double* terms, double* loss, T* dgrid) {
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const MapTaps<acc_t<T>> taps(in, grid);
  const auto normaliser = static_cast<double>(std::max<int64_t>(1, counts[0]));
  const auto scale = static_cast<acc_t<T>>(1 / normaliser);
  at::parallel_for(0, N * grid.H, rows_per_task(grid.W * C), [&](int64_t begin, int64_t end) {
    loss_rows(scores, taps, labels, image, C, shrink, ignore_label, scale, begin, end, terms, dgrid);
  });
  double sum = 0;
  for (int64_t r = 0; r < N * grid.H; ++r) sum += terms[r];
  *loss = sum / normaliser;
}

#define INSTANTIATE_FOR(T, L)                                                                                    \
  template void segmentation_loss<T, L>(Cpu, const T*, Size, const L*, Size, int64_t, int64_t, int64_t, int64_t, \
                                        int64_t*, double*, double*, T*);
#define INSTANTIATE(T)        \
  INSTANTIATE_FOR(T, uint8_t) \
  INSTANTIATE_FOR(T, int64_t)
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
template void count_labels<uint8_t>(Cpu, const uint8_t*, Size, int64_t, int64_t, int64_t, int64_t, int64_t*);
template void count_labels<int64_t>(Cpu, const int64_t*, Size, int64_t, int64_t, int64_t, int64_t, int64_t*);

}  // namespace repro

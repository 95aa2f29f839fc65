// The gradients of merge_scores on the CPU, in two kinds of pass. Over the rows of the merged map: the resampled scores
// and the softmax again, hence dlogits (attention) or the winners (max). Over the rows of each score map: the sum over
// the positions that read it, in Caffe's order. Where there are images enough, one task takes an image through all
// passes while it is in cache. Every element is summed in one order, whoever sums it.
#include <ATen/Parallel.h>

#include "gather.h"
#include "softmax.h"

namespace repro {

namespace {

template <class T>
struct Backward {
  using Acc = acc_t<T>;
  Merge mode;
  int64_t C;
  Size out;
  const T* dmerged;
  const T* dweights;
  Maps<const T> scores;
  const T* logits;
  std::vector<MapTaps<Acc>> taps;
  MapTaps<Acc> logit_taps;
  std::vector<MapReaders<Acc>> readers;
  Acc* weights;     // row r: S planes of out.W
  uint8_t* winner;  // as dmerged
  Maps<T> dscores;
  T* dlogits;
};

template <class T>
REPRO_CLONES void logits_rows(const Backward<T>& b, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int S = b.scores.S;
  const int64_t W = b.out.W;
  const int64_t C = b.C;
  std::vector<Resampled<T>> maps;
  for (int s = 0; s < S; ++s) maps.emplace_back(b.scores.data[s], b.taps[s], C);
  AttentionRow<T> attention(b.logits, b.logit_taps, S);
  const int64_t padded = (W + kLanes - 1) / kLanes * kLanes;
  std::vector<Acc> partial(S * padded * kLanes);
  std::vector<Acc> g(S * padded);
  std::vector<Acc> mean(W);
  const Channels<Acc> channels(C);
  for (int64_t r = begin; r < end; ++r) {
    Acc* const w = b.weights + r * S * W;
    attention.write(r / b.out.H, r % b.out.H, w);
    const T* const dy = b.dmerged + r * W * C;
    const Acc* resampled[kMaxScales];
    for (int s = 0; s < S; ++s) resampled[s] = maps[s].row(r / b.out.H, r % b.out.H);
    with_scales(S, [&](auto scales) REPRO_LAMBDA {
      const int count = scales;
      const Acc* row[kRoom<decltype(scales)>];
      for (int s = 0; s < count; ++s) row[s] = resampled[s];
      for (int64_t p = 0; p < W; ++p) {
        Lanes<Acc> sum[kRoom<decltype(scales)>];
#pragma GCC unroll 4
        for (int s = 0; s < count; ++s) sum[s] = Lanes<Acc>{};
        channels.each((W - p) * b.C,
                      [&](int64_t c, const auto& keep) REPRO_LAMBDA {
                        Lanes<Acc> x, y;
                        get(x, dy + p * b.C + c);
                        for (int s = 0; s < count; ++s) {
                          get(y, row[s] + p * b.C + c);
                          sum[s] += keep(x * y, Lanes<Acc>{});
                        }
                      },
                      [&](int64_t c) REPRO_LAMBDA {
                        for (int s = 0; s < count; ++s) sum[s][0] += load(dy[p * C + c]) * row[s][p * C + c];
                      });
#pragma GCC unroll 4
        for (int s = 0; s < count; ++s) put(partial.data() + (s * padded + p) * kLanes, sum[s]);
      }
    });
    for (int s = 0; s < S; ++s) {
      sum_lanes(partial.data() + s * padded * kLanes, W, g.data() + s * padded);
      if (b.dweights != nullptr)
        for (int64_t p = 0; p < W; ++p) g[s * padded + p] += load(b.dweights[(r * W + p) * S + s]);
    }
    std::fill(mean.begin(), mean.end(), Acc(0));
    for (int s = 0; s < S; ++s)
      for (int64_t p = 0; p < W; ++p) mean[p] += w[s * W + p] * g[s * padded + p];
    for (int s = 0; s < S; ++s)
      for (int64_t p = 0; p < W; ++p)
        store(b.dlogits + (r * W + p) * S + s, w[s * W + p] * (g[s * padded + p] - mean[p]));
  }
}

template <class T>
REPRO_CLONES void winner_rows(const Backward<T>& b, int64_t begin, int64_t end) {
  using Acc = acc_t<T>;
  const int S = b.scores.S;
  const int64_t elements = b.out.W * b.C;
  std::vector<Resampled<T>> maps;
  for (int s = 0; s < S; ++s) maps.emplace_back(b.scores.data[s], b.taps[s], b.C);
  using Integer = std::conditional_t<std::is_same_v<Acc, float>, int32_t, int64_t>;  // as Index<Lanes<Acc>>
  std::vector<Integer> winner(elements);
  for (int64_t r = begin; r < end; ++r) {
    const Acc* row[kMaxScales];
    for (int s = 0; s < S; ++s) row[s] = maps[s].row(r / b.out.H, r % b.out.H);
    for_elements<Acc>(elements, [&](int64_t e, auto lanes) REPRO_LAMBDA {
      auto best = lanes;
      Index<decltype(lanes)> from{};
      get(best, row[0] + e);
      for (int s = 1; s < S; ++s) {
        get(lanes, row[s] + e);
        const Index<decltype(lanes)> other = Index<decltype(lanes)>{} + s;
        if (s == 1) {  // as takes_over
          const auto kept = best > lanes;
          best = kept ? best : lanes;
          from = kept ? from : other;
        } else {
          const auto taken = lanes > best;
          best = taken ? lanes : best;
          from = taken ? other : from;
        }
      }
      memcpy(winner.data() + e, &from, sizeof from);
    });
    for (int64_t e = 0; e < elements; ++e) b.winner[r * elements + e] = static_cast<uint8_t>(winner[e]);
  }
}

// Row r of the merged map's gradient, as far as it is map s's.
template <class T>
REPRO_INLINE void share_row(const Backward<T>& b, int s, int64_t r, auto* to) {
  using Acc = acc_t<T>;
  const int64_t elements = b.out.W * b.C;
  const T* const dy = b.dmerged + r * elements;
  if (b.mode == Merge::attention) {
    const Acc* const w = b.weights + (r * b.scores.S + s) * b.out.W;
    const int64_t W = b.out.W;
    const int64_t C = b.C;
    for_positions<Acc>(W, C, [&](int64_t p, int64_t e, auto lanes) REPRO_LAMBDA {
      get(lanes, dy + e);
      lanes = w[p] * lanes;
      put(to + e, lanes);
    });
  } else if (b.mode == Merge::average) {
    const Acc w = average_weight<Acc>(b.scores.S);
    for_elements<Acc>(elements, [&](int64_t e, auto lanes) REPRO_LAMBDA {
      get(lanes, dy + e);
      lanes = w * lanes;
      put(to + e, lanes);
    });
  } else {
    const uint8_t* const winner = b.winner + r * elements;
    for (int64_t e = 0; e < elements; ++e) {
      const Acc value = load(dy[e]);
      store(to + e, winner[e] == s ? value : Acc(0));
    }
  }
}

// Rows begin..end of the merged map's gradient, as far as it is map s's; row 0 of `share` is row `first`.
template <class T>
REPRO_CLONES void share_rows(const Backward<T>& b, int s, int64_t first, int64_t begin, int64_t end, acc_t<T>* share) {
  for (int64_t r = begin; r < end; ++r) share_row(b, s, r, share + (r - first) * b.out.W * b.C);
}

// Rows begin..end of image n of the gradient of map s, whose share of the image's merged gradient is given.
template <class T>
REPRO_CLONES void score_rows(const Backward<T>& b, int s, int64_t n, int64_t begin, int64_t end,
                             const acc_t<T>* share) {
  const Size in = b.readers[s].in;
  T* const image = b.dscores.data[s] + n * in.H * in.W * b.C;
  if (in == b.out) {
    for (int64_t i = begin; i < end; ++i) share_row(b, s, n * in.H + i, image + i * in.W * b.C);
    return;
  }
  gather_rows(share, share + b.out.H * b.out.W * b.C + kLanes, b.readers[s], b.C, begin, end, image);
}

}  // namespace

template <class T>
void merge_scores_backward(Cpu, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores, const T* logits,
                           Size logits_size, int64_t N, int64_t C, Size out, acc_t<T>* weights, uint8_t* winner,
                           Maps<T> dscores, T* dlogits) {
  using Acc = acc_t<T>;
  Backward<T> b{mode,    C,        out,
                dmerged, dweights, scores,
                logits,  {},       MapTaps<Acc>(mode == Merge::attention ? logits_size : out, out),
                {},      weights,  winner,
                dscores, dlogits};
  for (int s = 0; s < scores.S; ++s) {
    b.taps.emplace_back(scores.size[s], out);
    b.readers.emplace_back(scores.size[s], out);
  }
  const auto over_merged = [&](int64_t begin, int64_t end) {
    if (mode == Merge::attention) logits_rows(b, begin, end);
    if (mode == Merge::max) winner_rows(b, begin, end);
  };
  const int64_t elements = out.W * C;
  const auto resized = [&](int s) { return scores.size[s] != out; };
  if (N >= at::get_num_threads()) {
    at::parallel_for(0, N, 1, [&](int64_t begin, int64_t end) {
      std::vector<Acc> share(out.H * elements + kLanes);
      for (int64_t n = begin; n < end; ++n) {
        over_merged(n * out.H, (n + 1) * out.H);
        for (int s = 0; s < scores.S; ++s) {
          if (resized(s)) share_rows(b, s, n * out.H, n * out.H, (n + 1) * out.H, share.data());
          score_rows(b, s, n, 0, scores.size[s].H, share.data());
        }
      }
    });
    return;
  }
  at::parallel_for(0, N * out.H, rows_per_task(elements), over_merged);
  std::vector<Acc> share(out.H * elements + kLanes);
  for (int64_t n = 0; n < N; ++n)
    for (int s = 0; s < scores.S; ++s) {
      if (resized(s))
        at::parallel_for(n * out.H, (n + 1) * out.H, rows_per_task(elements),
                         [&](int64_t begin, int64_t end) { share_rows(b, s, n * out.H, begin, end, share.data()); });
      at::parallel_for(0, scores.size[s].H, rows_per_task(scores.size[s].W * C),
                       [&](int64_t begin, int64_t end) { score_rows(b, s, n, begin, end, share.data()); });
    }
}

#define INSTANTIATE(T)                                                                                           \
  template void merge_scores_backward<T>(Cpu, Merge, const T*, const T*, Maps<const T>, const T*, Size, int64_t, \
                                         int64_t, Size, acc_t<T>*, uint8_t*, Maps<T>, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

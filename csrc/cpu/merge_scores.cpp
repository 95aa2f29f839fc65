// merge_scores on the CPU. One task owns rows of the merged map: it resamples the row of every coarse map into cache,
// takes the softmax over scales for the whole row, and writes the merged row in one pass. Bytes: each coarse map once,
// the merged map once, the weights only where they are asked for.
#include <ATen/Parallel.h>

#include "softmax.h"

namespace repro {

namespace {

template <class T>
REPRO_CLONES void merge_rows(Merge mode, const Maps<const T>& scores, const std::vector<MapTaps<acc_t<T>>>& taps,
                             const T* logits, const MapTaps<acc_t<T>>& logit_taps, int64_t C, int64_t begin,
                             int64_t end, T* merged, T* weights) {
  using Acc = acc_t<T>;
  const int S = scores.S;
  const Size out = logit_taps.out;
  std::vector<Resampled<T>> maps;
  for (int s = 0; s < S; ++s) maps.emplace_back(scores.data[s], taps[s], C);
  AttentionRow<T> attention(logits, logit_taps, S);
  std::vector<Acc> planes(S * out.W);
  const Acc average = average_weight<Acc>(S);
  for (int64_t r = begin; r < end; ++r) {
    const Acc* resampled[kMaxScales];
    for (int s = 0; s < S; ++s) resampled[s] = maps[s].row(r / out.H, r % out.H);
    T* const to = merged + r * out.W * C;
    if (mode == Merge::attention) {
      attention.write(r / out.H, r % out.H, planes.data());
      if (weights != nullptr)
        for (int s = 0; s < S; ++s)
          for (int64_t p = 0; p < out.W; ++p) store(weights + (r * out.W + p) * S + s, planes[s * out.W + p]);
    }
    const Acc* const w = planes.data();
    with_scales(S, [&](auto scales) REPRO_LAMBDA {
      const int count = scales;
      const Acc* row[kRoom<decltype(scales)>];
      for (int s = 0; s < count; ++s) row[s] = resampled[s];
      if (mode == Merge::attention) {
        for_positions<Acc>(out.W, C, [&](int64_t p, int64_t e, auto lanes) REPRO_LAMBDA {
          auto total = lanes;
          for (int s = 0; s < count; ++s) {
            get(lanes, row[s] + e);
            total += w[s * out.W + p] * lanes;
          }
          put(to + e, total);
        });
      } else if (mode == Merge::average) {
        for_elements<Acc>(out.W * C, [&](int64_t e, auto lanes) REPRO_LAMBDA {
          auto total = lanes;
          for (int s = 0; s < count; ++s) {
            get(lanes, row[s] + e);
            total += average * lanes;
          }
          put(to + e, total);
        });
      } else {
        for_elements<Acc>(out.W * C, [&](int64_t e, auto lanes) REPRO_LAMBDA {
          auto best = lanes;
          get(best, row[0] + e);
          for (int s = 1; s < count; ++s) {
            get(lanes, row[s] + e);
            best = s == 1 ? (best > lanes ? best : lanes) : (lanes > best ? lanes : best);  // as takes_over
          }
          put(to + e, best);
        });
      }
    });
  }
}

}  // namespace

template <class T>
void merge_scores(Cpu, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights) {
  using Acc = acc_t<T>;
  std::vector<MapTaps<Acc>> taps;
  for (int s = 0; s < scores.S; ++s) taps.emplace_back(scores.size[s], out);
  const MapTaps<Acc> logit_taps(mode == Merge::attention ? logits_size : out, out);
  at::parallel_for(0, N * out.H, rows_per_task(out.W * C), [&](int64_t begin, int64_t end) {
    merge_rows(mode, scores, taps, logits, logit_taps, C, begin, end, merged, weights);
  });
}

#define INSTANTIATE(T) \
  template void merge_scores<T>(Cpu, Merge, Maps<const T>, const T*, Size, int64_t, int64_t, Size, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

// merge_scores and its gradients on the CPU. Forward: one task owns rows of the merged map; each coarse map is read
// where it is sampled and nothing is materialised. Backward: one pass over the output positions (dlogits, or the
// maxima's winners), then one gather per score map.
#include <ATen/Parallel.h>

#include "merge_rules.h"
#include "tables.h"

namespace repro {

namespace {

template <class Acc>
struct MapTaps {
  std::vector<Tap<Acc>> rows;
  std::vector<Tap<Acc>> columns;

  MapTaps(Size in, Size out) : rows(taps<Acc>(Axis(in.H, out.H))), columns(taps<Acc>(Axis(in.W, out.W))) {}
};

template <class Acc, class T>
std::vector<MapTaps<Acc>> all_taps(const Maps<T>& maps, Size out) {
  std::vector<MapTaps<Acc>> tables;
  for (int s = 0; s < maps.S; ++s) tables.emplace_back(maps.size[s], out);
  return tables;
}

}  // namespace

template <class T>
void merge_scores(Cpu, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N, int64_t C,
                  Size out, T* merged, T* weights) {
  using Acc = acc_t<T>;
  const int S = scores.S;
  const auto tables = all_taps<Acc>(scores, out);
  const MapTaps<Acc> logit_taps(mode == Merge::attention ? logits_size : out, out);
  at::parallel_for(0, N * out.H, rows_per_task(out.W * C), [&](int64_t begin, int64_t end) {
    std::vector<Acc> value(C);
    Acc w[kMaxScales];
    std::fill(w, w + S, average_weight<Acc>(S));
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / out.H;
      const int64_t o = r % out.H;
      for (int64_t p = 0; p < out.W; ++p) {
        const int64_t position = r * out.W + p;
        if (mode == Merge::attention) {
          const T* image = logits + n * logits_size.H * logits_size.W * S;
          for (int s = 0; s < S; ++s)
            w[s] = sample(image, logits_size.W, S, logit_taps.rows[o], logit_taps.columns[p], s);
          softmax(w, S);
          for (int s = 0; s < S; ++s) store(weights + position * S + s, w[s]);
        }
        std::fill(value.begin(), value.end(), Acc(0));
        for (int s = 0; s < S; ++s) {
          const Size size = scores.size[s];
          const T* image = scores.data[s] + n * size.H * size.W * C;
          const Tap<Acc> ty = tables[s].rows[o];
          const Tap<Acc> tx = tables[s].columns[p];
          for (int64_t c = 0; c < C; ++c) {
            const Acc score = sample(image, size.W, C, ty, tx, c);
            if (mode != Merge::max) {
              value[c] += w[s] * score;
            } else if (takes_over(s, score, value[c])) {
              value[c] = score;
            }
          }
        }
        for (int64_t c = 0; c < C; ++c) store(merged + position * C + c, value[c]);
      }
    }
  });
}

template <class T>
void merge_scores_backward(Cpu, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores, const T* weights,
                           int64_t N, int64_t C, Size out, uint8_t* winner, Maps<T> dscores, T* dlogits) {
  using Acc = acc_t<T>;
  const int S = scores.S;
  const auto tables = all_taps<Acc>(scores, out);

  if (mode == Merge::max || dlogits != nullptr) {
    at::parallel_for(0, N * out.H, rows_per_task(out.W * C), [&](int64_t begin, int64_t end) {
      std::vector<Acc> best(C);
      Acc w[kMaxScales];
      Acc g[kMaxScales];
      for (int64_t r = begin; r < end; ++r) {
        const int64_t n = r / out.H;
        const int64_t o = r % out.H;
        for (int64_t p = 0; p < out.W; ++p) {
          const int64_t position = r * out.W + p;
          for (int s = 0; s < S; ++s) {
            const Size size = scores.size[s];
            const T* image = scores.data[s] + n * size.H * size.W * C;
            const Tap<Acc> ty = tables[s].rows[o];
            const Tap<Acc> tx = tables[s].columns[p];
            Acc dot = dweights == nullptr ? Acc(0) : load(dweights[position * S + s]);
            for (int64_t c = 0; c < C; ++c) {
              const Acc score = sample(image, size.W, C, ty, tx, c);
              if (mode != Merge::max) {
                dot += load(dmerged[position * C + c]) * score;
              } else if (takes_over(s, score, best[c])) {
                best[c] = score;
                winner[position * C + c] = static_cast<uint8_t>(s);
              }
            }
            g[s] = dot;
          }
          if (mode != Merge::max) {
            for (int s = 0; s < S; ++s) w[s] = load(weights[position * S + s]);
            for (int s = 0; s < S; ++s) store(dlogits + position * S + s, softmax_backward(w, g, S, s));
          }
        }
      }
    });
  }

  for (int s = 0; s < S; ++s) {
    const Size in = dscores.size[s];
    const auto rows = readers<Acc>(Axis(in.H, out.H));
    const auto columns = readers<Acc>(Axis(in.W, out.W));
    at::parallel_for(0, N * in.H, rows_per_task(in.W * C), [&](int64_t begin, int64_t end) {
      std::vector<Acc> sum(C);
      for (int64_t r = begin; r < end; ++r) {
        const int64_t first = r / in.H * out.H * out.W;  // output position (0, 0) of this image
        for (int64_t j = 0; j < in.W; ++j) {
          std::fill(sum.begin(), sum.end(), Acc(0));
          for_each_reader(rows[r % in.H], columns[j], out.W, [&](int64_t position, Acc weight) {
            const T* dy = dmerged + (first + position) * C;
            if (mode == Merge::max) {
              const uint8_t* from = winner + (first + position) * C;
              for (int64_t c = 0; c < C; ++c) sum[c] += from[c] == s ? weight * load(dy[c]) : Acc(0);
            } else {
              const Acc w =
                  mode == Merge::attention ? load(weights[(first + position) * S + s]) : average_weight<Acc>(S);
              for (int64_t c = 0; c < C; ++c) sum[c] += weight * w * load(dy[c]);
            }
          });
          for (int64_t c = 0; c < C; ++c) store(dscores.data[s] + (r * in.W + j) * C + c, sum[c]);
        }
      }
    });
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void merge_scores<T>(Cpu, Merge, Maps<const T>, const T*, Size, int64_t, int64_t, Size, T*, T*);         \
  template void merge_scores_backward<T>(Cpu, Merge, const T*, const T*, Maps<const T>, const T*, int64_t, int64_t, \
                                         Size, uint8_t*, Maps<T>, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)

}  // namespace repro

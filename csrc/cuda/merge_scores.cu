// merge_scores and its gradients on CUDA. Forward: one thread owns one element of the merged map, the threads of one
// position repeating its softmax over S in registers; thread c = 0 writes the weights. Backward: one thread per
// position (dlogits) or per element (the maxima's winners), then one gather per score map. Bytes: each coarse map once
// (cached), the merged map once; nothing resampled is ever stored. No atomics.
#include "gather.cuh"
#include "launch.cuh"

namespace repro {

template <class T>
__device__ acc_t<T> score_at(const Maps<const T>& scores, int s, Size out, int64_t C, int64_t n, int64_t o, int64_t p,
                             int64_t c) {
  using Acc = acc_t<T>;
  const Size in = scores.size[s];
  const T* image = scores.data[s] + n * in.H * in.W * C;
  return sample(image, in.W, C, Axis(in.H, out.H).template tap<Acc>(o), Axis(in.W, out.W).template tap<Acc>(p), c);
}

template <class T>
struct MergeElement {
  Merge mode;
  Maps<const T> scores;
  const T* logits;  // (N, logits_size.H, logits_size.W, S)
  Size logits_size;
  int64_t C;
  Size out;
  T* merged;   // (N, out.H, out.W, C)
  T* weights;  // (N, out.H, out.W, S)

  __device__ void operator()(int64_t index) const {
    using Acc = acc_t<T>;
    const int S = scores.S;
    const auto [n, o, p, c] = place_of(index, out, C);
    const int64_t position = index / C;
    Acc w[kMaxScales];
    for (int s = 0; s < S; ++s) w[s] = average_weight<Acc>(S);
    if (mode == Merge::attention) {
      const Tap<Acc> ty = Axis(logits_size.H, out.H).template tap<Acc>(o);
      const Tap<Acc> tx = Axis(logits_size.W, out.W).template tap<Acc>(p);
      const T* image = logits + n * logits_size.H * logits_size.W * S;
      for (int s = 0; s < S; ++s)
        w[s] = sample(image, logits_size.W, static_cast<int64_t>(S), ty, tx, static_cast<int64_t>(s));
      softmax(w, S);
      if (c == 0)
        for (int s = 0; s < S; ++s) store(weights + position * S + s, w[s]);
    }
    Acc value = 0;
    for (int s = 0; s < S; ++s) {
      const Acc score = score_at(scores, s, out, C, n, o, p, c);
      if (mode != Merge::max) {
        value += w[s] * score;
      } else if (takes_over(s, score, value)) {
        value = score;
      }
    }
    store(merged + index, value);
  }
};

template <class T>
struct WinnerElement {
  Maps<const T> scores;
  int64_t C;
  Size out;
  uint8_t* winner;  // (N, out.H, out.W, C)

  __device__ void operator()(int64_t index) const {
    const auto [n, o, p, c] = place_of(index, out, C);
    acc_t<T> best = 0;
    for (int s = 0; s < scores.S; ++s) {
      const acc_t<T> score = score_at(scores, s, out, C, n, o, p, c);
      if (takes_over(s, score, best)) {
        best = score;
        winner[index] = static_cast<uint8_t>(s);
      }
    }
  }
};

template <class T>
struct LogitsBackwardElement {
  const T* dmerged;   // (N, out.H, out.W, C)
  const T* dweights;  // (N, out.H, out.W, S) or null
  Maps<const T> scores;
  const T* weights;  // (N, out.H, out.W, S)
  int64_t C;
  Size out;
  T* dlogits;  // (N, out.H, out.W, S)

  __device__ void operator()(int64_t position) const {
    using Acc = acc_t<T>;
    const int S = scores.S;
    const auto [n, o, p, _] = place_of(position, out, 1);
    Acc w[kMaxScales];
    Acc g[kMaxScales];
    for (int s = 0; s < S; ++s) {
      w[s] = load(weights[position * S + s]);
      g[s] = dweights == nullptr ? Acc(0) : load(dweights[position * S + s]);
      for (int64_t c = 0; c < C; ++c) g[s] += load(dmerged[position * C + c]) * score_at(scores, s, out, C, n, o, p, c);
    }
    for (int s = 0; s < S; ++s) store(dlogits + position * S + s, softmax_backward(w, g, S, s));
  }
};

template <class T>
struct ScoreBackwardElement {
  Merge mode;
  int s;
  int S;
  const T* dmerged;       // (N, out.H, out.W, C)
  const T* weights;       // (N, out.H, out.W, S)
  const uint8_t* winner;  // (N, out.H, out.W, C)
  Axis rows;
  Axis columns;
  int64_t C;
  T* dscore;  // (N, rows.n_in, columns.n_in, C)

  __device__ void operator()(int64_t index) const {
    using Acc = acc_t<T>;
    const Place at_input = place_of(index, {rows.n_in, columns.n_in}, C);
    const int64_t c = at_input.c;
    const int64_t first = at_input.n * rows.n_out * columns.n_out;
    const auto term = [=, this](int64_t position) {
      const int64_t at = (first + position) * C + c;
      if (mode == Merge::max) return winner[at] == s ? load(dmerged[at]) : Acc(0);
      return (mode == Merge::attention ? load(weights[(first + position) * S + s]) : average_weight<Acc>(S)) *
             load(dmerged[at]);
    };
    store(dscore + index, gather<Acc>(rows, columns, at_input.row, at_input.column, term));
  }
};

template <class T>
void merge_scores(Cuda device, Merge mode, Maps<const T> scores, const T* logits, Size logits_size, int64_t N,
                  int64_t C, Size out, T* merged, T* weights) {
  for_each(device, N * out.H * out.W * C, MergeElement<T>{mode, scores, logits, logits_size, C, out, merged, weights});
}

template <class T>
void merge_scores_backward(Cuda device, Merge mode, const T* dmerged, const T* dweights, Maps<const T> scores,
                           const T* weights, int64_t N, int64_t C, Size out, uint8_t* winner, Maps<T> dscores,
                           T* dlogits) {
  const int64_t positions = N * out.H * out.W;
  if (mode == Merge::max) for_each(device, positions * C, WinnerElement<T>{scores, C, out, winner});
  if (dlogits != nullptr)
    for_each(device, positions, LogitsBackwardElement<T>{dmerged, dweights, scores, weights, C, out, dlogits});
  for (int s = 0; s < scores.S; ++s) {
    const Size in = dscores.size[s];
    for_each(device, N * in.H * in.W * C,
             ScoreBackwardElement<T>{mode, s, scores.S, dmerged, weights, winner, Axis(in.H, out.H), Axis(in.W, out.W),
                                     C, dscores.data[s]});
  }
}

#define INSTANTIATE(T)                                                                                               \
  template void merge_scores<T>(Cuda, Merge, Maps<const T>, const T*, Size, int64_t, int64_t, Size, T*, T*);         \
  template void merge_scores_backward<T>(Cuda, Merge, const T*, const T*, Maps<const T>, const T*, int64_t, int64_t, \
                                         Size, uint8_t*, Maps<T>, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)

}  // namespace repro

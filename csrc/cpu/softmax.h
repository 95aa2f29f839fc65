// The softmax over scales of one row, vectorised over its positions.
#pragma once

#include "rows.h"

namespace repro {

// The attention weights of rows: planes of W positions, one per scale.
template <class T>
class AttentionRow {
 public:
  using Acc = acc_t<T>;

  AttentionRow(const T* logits, const MapTaps<Acc>& taps, int S) : logits_(logits, taps, S), W_(taps.out.W), S_(S) {}

  // Weight s of position p of row o of image n into planes[s * W + p].
  REPRO_INLINE void write(int64_t n, int64_t o, Acc* planes) {
    const Acc* row = logits_.row(n, o);
    const int S = S_;
    const int64_t W = W_;
    for (int s = 0; s < S; ++s)
      for (int64_t p = 0; p < W; ++p) planes[s * W + p] = row[p * S + s];
    for_elements<Acc>(W, [&](int64_t p, auto lanes) REPRO_LAMBDA {
      auto highest = lanes;
      auto sum = lanes;
      get(highest, planes + p);
      for (int s = 1; s < S; ++s) {
        get(lanes, planes + s * W + p);
        highest = lanes > highest ? lanes : highest;
      }
      for (int s = 0; s < S; ++s) {
        get(lanes, planes + s * W + p);
        lanes -= highest;
        exponentiate(lanes);
        put(planes + s * W + p, lanes);
        sum += lanes;
      }
      for (int s = 0; s < S; ++s) {
        get(lanes, planes + s * W + p);
        lanes /= sum;
        put(planes + s * W + p, lanes);
      }
    });
  }

 private:
  Resampled<T> logits_;
  int64_t W_;
  int S_;
};

}  // namespace repro

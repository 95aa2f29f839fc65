// Sums over the channels of positions: what the gradients of the domain transform's weights are made of.
#pragma once

#include <algorithm>
#include <vector>

#include "recursion.h"

namespace repro {

// The sums over the channels of each position of a row, gathered block of channels by block of channels.
template <class Acc>
class Dots {
 public:
  Dots(int64_t positions, int64_t C)
      : C_(C), products_((positions + kLanes) * std::max<int64_t>(C, kLanes)), sums_(positions + kLanes) {
    for (int i = 0; i < kLanes; ++i) tail_[i] = C % kLanes == 0 || i >= kLanes - C % kLanes ? -1 : 0;
  }

  // The products of one position's block of channels; `more` adds them to what the position has.
  template <int V>
  REPRO_INLINE void add(AtPosition at, const int64_t (&offsets)[V], const Lanes<Acc> (&a)[V], const Lanes<Acc> (&b)[V],
                        bool more) {
    Acc* const to = products_.data() + at.p * kLanes;
    Lanes<Acc> sum{};
    if (more || offsets[0] > 0) get(sum, to);
#pragma GCC unroll 4
    for (int v = 0; v + 1 < V; ++v) sum += a[v] * b[v];
    const Lanes<Acc> last = a[V - 1] * b[V - 1];
    sum += offsets[V - 1] + kLanes == C_ ? (tail_ ? last : Lanes<Acc>{}) : last;
    put(to, sum);
  }
  template <class At, class Value, int V>
  REPRO_INLINE void add(At at, const int64_t (&offsets)[V], const Value (&a)[V], const Value (&b)[V], bool more) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Acc* const to = products_.data() + at.e + offsets[v];
      Value sum{};
      if (more) get(sum, to);
      sum += a[v] * b[v];
      put(to, sum);
    }
  }

  REPRO_INLINE const Acc* sums(int64_t positions) {
    if (C_ >= kLanes) {
      sum_lanes(products_.data(), positions, sums_.data());
      return sums_.data();
    }
    const Acc* product = products_.data();
    for (int64_t p = 0; p < positions; ++p) {
      sums_[p] = *product++;
      for (int64_t c = 1; c < C_; ++c) sums_[p] += *product++;
    }
    return sums_.data();
  }

 private:
  int64_t C_;
  Index<Lanes<Acc>> tail_;  // the lanes of a position's last vector that no other vector has
  std::vector<Acc> products_;
  std::vector<Acc> sums_;
};

}  // namespace repro

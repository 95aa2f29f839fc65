// Vectors of eight, and loops over positions and their channels: what the CPU kernels' inner loops are made of.
#pragma once

#include <type_traits>

#include "shared/merge_rules.h"

// A function so marked is compiled for AVX2 too, and the loader takes the best that the processor has. All
// versions give the same bits: nothing is contracted (-ffp-contract=off) and sums have a written order. Not under a
// sanitizer, whose runtime is not up yet when the loader asks.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define REPRO_CLONES __attribute__((target_clones("default", "arch=x86-64-v3")))
// For AVX-512 too: worth its code where much is computed on few bytes.
#define REPRO_WIDE_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define REPRO_CLONES
#define REPRO_WIDE_CLONES
#endif
// What a clone calls must be inlined into it to be compiled as it is.
#define REPRO_INLINE inline __attribute__((always_inline))
#define REPRO_LAMBDA __attribute__((always_inline))

namespace repro {

constexpr int kLanes = 8;

template <class Acc>
struct LanesOf {
  typedef Acc type __attribute__((vector_size(kLanes * sizeof(Acc))));
};
template <class Acc>
using Lanes = typename LanesOf<Acc>::type;

// Integers beside V, which is a Lanes<Acc> or an Acc: what comparing gives, and indices are kept in.
template <class V>
struct IndexOf {
  using type = decltype(V{} > V{});
};
template <>
struct IndexOf<float> {
  using type = int;
};
template <>
struct IndexOf<double> {
  using type = int64_t;
};
template <class V>
using Index = typename IndexOf<V>::type;

REPRO_INLINE void get(Lanes<float>& v, const float* p) { memcpy(&v, p, sizeof v); }
REPRO_INLINE void get(Lanes<double>& v, const double* p) { memcpy(&v, p, sizeof v); }
template <class T>
REPRO_INLINE void get(Lanes<float>& v, const T* p) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = load(p[i]);
  memcpy(&v, lanes, sizeof v);
}
template <class T>
REPRO_INLINE void get(acc_t<T>& v, const T* p) {
  v = load(*p);
}
REPRO_INLINE void put(float* p, const Lanes<float>& v) { memcpy(p, &v, sizeof v); }
REPRO_INLINE void put(double* p, const Lanes<double>& v) { memcpy(p, &v, sizeof v); }
template <class T>
REPRO_INLINE void put(T* p, const Lanes<float>& v) {
  for (int i = 0; i < kLanes; ++i) store(p + i, v[i]);
}
template <class T>
REPRO_INLINE void put(T* p, const acc_t<T>& v) {
  store(p, v);
}

// Asks for the line of memory that holds an element, which may lie outside the array, where no pointer may go: addresses
// are numbers here.
template <class T>
REPRO_INLINE void prefetch(const T* from, int64_t ahead) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<intptr_t>(from) + ahead * int64_t(sizeof(T))));
}

// The same of a run of elements that is read soon: what does not follow what was read before within a page, the
// processor does not guess.
template <class T>
REPRO_INLINE void prefetch(const T* from, int64_t ahead, int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t e = 0; e < elements; e += kLine) prefetch(from, ahead + e);
  prefetch(from, ahead + elements - 1);  // a run begins anywhere in a line, and may end in one line more
}

// e^x of every lane, with the same bits as lane by lane.
REPRO_INLINE void exponentiate(Lanes<float>& x) { x = exponential_of<Lanes<float>, Index<Lanes<float>>>(x); }
REPRO_INLINE void exponentiate(Lanes<double>& x) {
  for (int i = 0; i < kLanes; ++i) x[i] = exponential(x[i]);
}
template <class Acc>
REPRO_INLINE void exponentiate(Acc& x) {
  x = exponential(x);
}

// Puts f(x) for every x, sixteen at a time: AVX-512's width, of which the compiler makes several vectors where registers
// are narrower. `count` is a multiple of kWide.
constexpr int64_t kWide = 16;
template <class F>
REPRO_INLINE void for_wide(float* elements, int64_t count, const F& f) {
  typedef float Wide __attribute__((vector_size(kWide * sizeof(float))));
  for (int64_t e = 0; e < count; e += kWide) {
    Wide x;
    memcpy(&x, elements + e, sizeof x);
    x = f(x);
    memcpy(elements + e, &x, sizeof x);
  }
}

// e^x of every element, with the same bits as one by one. `count` is a multiple of kWide.
REPRO_INLINE void exponentiate_all(float* elements, int64_t count) {
  for_wide(elements, count, [](const auto& x) REPRO_LAMBDA {
    using Wide = std::decay_t<decltype(x)>;
    return exponential_of<Wide, Index<Wide>>(x);
  });
}
REPRO_INLINE void exponentiate_all(double* elements, int64_t count) {
  for (int64_t e = 0; e < count; ++e) elements[e] = exponential(elements[e]);
}

// Calls f with the number of scales: as a constant, so that loops over it unroll and what they fill (kRoom<...>
// elements) stays in registers, where it is one of the usual.
template <class S>
constexpr int kRoom = kMaxScales;
template <int S>
constexpr int kRoom<std::integral_constant<int, S>> = S;
template <class F>
REPRO_INLINE void with_scales(int S, const F& f) {
  if (S == 1) return f(std::integral_constant<int, 1>{});
  if (S == 2) return f(std::integral_constant<int, 2>{});
  if (S == 3) return f(std::integral_constant<int, 3>{});
  f(S);
}

// Calls body(p, e, lanes) for the W * C elements e = p*C + c of a row, in order of p: eight channels at once (lanes is
// a Lanes<Acc>) wherever eight fit into the row, running over into the next position, which is written after; one by
// one (lanes is an Acc) at the row's end. So a body may write element e from row elements e alone and never leaves the
// row.
template <class Acc, class Body>
REPRO_INLINE void for_positions(int64_t W, int64_t C, const Body& body) {
  const int64_t packed = (C + kLanes - 1) / kLanes * kLanes;
  int64_t p = 0;
  for (; p < W && p * C + packed <= W * C; ++p)
    for (int64_t c = 0; c < packed; c += kLanes) body(p, p * C + c, Lanes<Acc>{});
  for (; p < W; ++p)
    for (int64_t c = 0; c < C; ++c) body(p, p * C + c, Acc{});
}

// Calls body(e, lanes) for the elements of a row, eight at once and the rest one by one.
template <class Acc, class Body>
REPRO_INLINE void for_elements(int64_t count, const Body& body) {
  int64_t e = 0;
  for (; e + kLanes <= count; e += kLanes) body(e, Lanes<Acc>{});
  for (; e < count; ++e) body(e, Acc{});
}

// The reduction of every position's eight lanes, eight positions at a time: lanes 0+1, 2+3, ... first, then the pairs'.
// `partial` holds kLanes elements per position; it and `to` have room for whole eights of positions.
template <class Acc, class Op>
REPRO_INLINE void reduce_lanes(const Acc* partial, int64_t positions, Acc* to, const Op& op) {
  const auto neighbours = [&](const Acc* at) REPRO_LAMBDA {
    Lanes<Acc> a, b;
    get(a, at);
    get(b, at + kLanes);
    return op(__builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14),
              __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15));
  };
  const auto pairs = [&](const Lanes<Acc>& a, const Lanes<Acc>& b) REPRO_LAMBDA {
    return op(__builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13),
              __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15));
  };
  for (int64_t p = 0; p < positions; p += kLanes) {
    const Acc* const at = partial + p * kLanes;
    const Lanes<Acc> a = pairs(neighbours(at), neighbours(at + 2 * kLanes));
    const Lanes<Acc> b = pairs(neighbours(at + 4 * kLanes), neighbours(at + 6 * kLanes));
    const Lanes<Acc> result = op(__builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11),
                                 __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15));
    put(to + p, result);
  }
}

template <class Acc>
REPRO_INLINE void sum_lanes(const Acc* partial, int64_t positions, Acc* to) {
  reduce_lanes(partial, positions, to, [](const Lanes<Acc>& a, const Lanes<Acc>& b) REPRO_LAMBDA { return a + b; });
}
template <class Acc>
REPRO_INLINE void max_lanes(const Acc* partial, int64_t positions, Acc* to) {
  reduce_lanes(partial, positions, to,
               [](const Lanes<Acc>& a, const Lanes<Acc>& b) REPRO_LAMBDA { return b > a ? b : a; });
}

// The channels of one position, eight at once. Where eight do not divide C the last vector reads some channels again,
// or for C < 8 channels of the next position; `keep(value, otherwise)` then puts `otherwise` in their lanes.
template <class Acc>
class Channels {
 public:
  explicit Channels(int64_t C) : C_(C), whole_(C / kLanes * kLanes) {
    for (int i = 0; i < kLanes; ++i) tail_[i] = C < kLanes ? i < C : i >= kLanes - (C - whole_);
    tail_ = tail_ != 0;
  }

  // Calls body(c, keep) for vectors from channel c on, or rest(c) for single channels where the `room` elements from
  // the position to its row's end hold no vector.
  template <class Body, class Rest>
  REPRO_INLINE void each(int64_t room, const Body& body, const Rest& rest) const {
    for (int64_t c = 0; c < whole_; c += kLanes)
      body(c, [](const Lanes<Acc>& value, const Lanes<Acc>&) REPRO_LAMBDA { return value; });
    if (whole_ == C_) return;
    if (room < kLanes) {
      for (int64_t c = 0; c < C_; ++c) rest(c);
      return;
    }
    body(C_ < kLanes ? 0 : C_ - kLanes,
         [&](const Lanes<Acc>& value, const Lanes<Acc>& otherwise) REPRO_LAMBDA { return tail_ ? value : otherwise; });
  }

 private:
  int64_t C_;
  int64_t whole_;
  Index<Lanes<Acc>> tail_;
};

}  // namespace repro

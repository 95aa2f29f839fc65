// What the domain transform's passes are made of: lines of positions, each with C channels, taken eight channels at
// once. A line's weight w[p] is that of the link between the positions p - 1 and p.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "shared/domain_transform.h"

namespace repro {

// The height and width of an image's map, and of its upper left part that is filtered.
struct Extent {
  Size map;
  Size valid;

  Extent(Size size, const int64_t* valid_size, int64_t n)
      : map(size), valid(valid_size == nullptr ? size : Size{valid_size[2 * n], valid_size[2 * n + 1]}) {}
};

// exact_exponential of every lane.
REPRO_INLINE Lanes<float> exact_exponential(const Lanes<float>& x) {
  using Wide = Lanes<double>;
  return __builtin_convertvector((wide_exponential_of<Wide, Index<Wide>>(__builtin_convertvector(x, Wide))),
                                 Lanes<float>);
}
REPRO_INLINE Lanes<double> exact_exponential(Lanes<double> x) {
  for (int i = 0; i < kLanes; ++i) x[i] = exact_exponential(x[i]);
  return x;
}

// Columns that a task filters at once: as many as a core's cache holds, by eights since their sums are taken so.
inline int64_t columns_at_once(int64_t elements_per_column, int64_t bytes) {
  constexpr int64_t kCache = 768 << 10;
  const int64_t columns = std::max<int64_t>(1, kCache / std::max<int64_t>(1, elements_per_column * bytes));
  return columns < kLanes ? columns : columns / kLanes * kLanes;
}

// Calls body(lanes, offsets) for the channels of a position in blocks of 1 to 3 vectors (for C < 8: of channels), whose
// number is a constant: body keeps one value for each in registers. `lanes` is a Lanes<Acc> (an Acc), offsets[v] the
// first channel of vector v. Where eight do not divide C, the last two vectors overlap: a body loads all vectors of a
// position before it stores one.
template <class Acc, class Body>
REPRO_INLINE void for_blocks(int64_t C, const Body& body) {
  const auto blocks = [&](auto lanes, int64_t width) REPRO_LAMBDA {
    const int64_t units = (C + width - 1) / width;
    const int64_t count = (units + 2) / 3;
    for (int64_t b = 0; b < count; ++b) {
      const int64_t first = units * b / count;
      const int64_t V = units * (b + 1) / count - first;
      const auto call = [&](auto constant) REPRO_LAMBDA {
        int64_t offsets[constant()];
        for (int v = 0; v < constant(); ++v) offsets[v] = std::min((first + v) * width, C - width);
        body(lanes, offsets);
      };
      if (V == 1) call(std::integral_constant<int, 1>{});
      if (V == 2) call(std::integral_constant<int, 2>{});
      if (V == 3) call(std::integral_constant<int, 3>{});
    }
  };
  if (C >= kLanes)
    blocks(Lanes<Acc>{}, kLanes);
  else
    blocks(Acc{}, 1);
}

// Calls rows(r, count) with count a constant, 2 as long as two rows are left: a recursion waits for its own last
// result, and two run side by side in the time of one.
template <class Body>
REPRO_INLINE void for_pairs(int64_t begin, int64_t end, const Body& body) {
  int64_t r = begin;
  for (; r + 1 < end; r += 2) body(r, std::integral_constant<int, 2>{});
  if (r < end) body(r, std::integral_constant<int, 1>{});
}

// How far ahead a pass asks for what it reads: rows of a block of columns from memory and, on the way back, from the
// core's cache; positions on the way along a row.
constexpr int64_t kRowsAhead = 12;
constexpr int64_t kRowsAheadInCache = 2;
constexpr int64_t kPositionsAhead = 48;
template <class T, int V>
REPRO_INLINE void prefetch_ahead(const T* from, int64_t C, const int64_t (&offsets)[V]) {
#pragma GCC unroll 4
  for (int v = 0; v < V; v += 2) prefetch(from, kPositionsAhead * C + offsets[v]);
}

// Where a body stands: at a position, or for C < 8 anywhere in a row.
struct AtPosition {
  int64_t p;
  int64_t e;  // its first channel's element
};
struct AtElement {
  int64_t e;
};

// Calls body(at, offsets, weights, lanes) for the positions of R rows of links, each with its weights, R of them: as
// for_blocks does at a position, or for C < 8 over eight elements at once, whose positions differ (a weight is a
// Lanes<Acc> then), and the rest one by one. Row r's links are at w + r * stride. `room` holds the elements of R rows
// and R vectors more.
template <class Acc, class Rows, class Body>
REPRO_INLINE void for_weighted(const Acc* w, int64_t stride, int64_t positions, int64_t C, Acc* room, Rows rows,
                               const Body& body) {
  constexpr int R = rows();
  if (C >= kLanes)
    return for_blocks<Acc>(C, [&](auto lanes, const auto& offsets) REPRO_LAMBDA {
      for (int64_t p = 0; p < positions; ++p) {
        Acc weights[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) weights[r] = w[r * stride + p];
        body(AtPosition{p, p * C}, offsets, weights, lanes);
      }
    });
  const int64_t one = positions * C + kLanes;
  for (int r = 0; r < R; ++r)
    for (int64_t p = 0; p < positions; ++p) put(room + r * one + p * C, Lanes<Acc>{} + w[r * stride + p]);
  const int64_t none[1] = {0};
  for_elements<Acc>(positions * C, [&](int64_t e, auto lanes) REPRO_LAMBDA {
    decltype(lanes) weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) get(weights[r], room + r * one + e);
    body(AtElement{e}, none, weights, lanes);
  });
}

// The vectors of one position, loaded or stored together.
template <class Value, int V, class From>
REPRO_INLINE void get_all(Value (&values)[V], const From* from, const int64_t (&offsets)[V]) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    values[v] = Value{};  // of 16-bit storage lane by lane is loaded
    get(values[v], from + offsets[v]);
  }
}
template <class Value, int V, class To>
REPRO_INLINE void put_all(To* to, const int64_t (&offsets)[V], const Value (&values)[V]) {
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) put(to + offsets[v], values[v]);
}
// One iteration's rows and columns, as the forward and the backward pass run them (domain_transform.cpp).
//   x, y  one image, dense NHWC; they may be the same
//   w     (H, W) of the map, weights of the iteration
template <class T>
void make_weights(const T* edge, const Extent& extent, const Filter& filter, acc_t<T>* weights);
template <class T>
void filter_rows(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* y);
template <class Acc>
void filter_columns(const Acc* x, const Acc* w, const Extent& extent, int64_t C, Acc* y);
// What lies outside the valid part.
template <class From, class To>
void copy_outside(const From* from, const Extent& extent, int64_t C, To* to);
// A whole map of 16-bit storage from its float32.
template <class T>
void round_map(const acc_t<T>* from, int64_t count, T* to);

}  // namespace repro

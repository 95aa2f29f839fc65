// What the domain transform's passes are made of: lines of positions, each with C channels, taken eight channels at
// once. A line's weight w[p] is that of the link between the positions p - 1 and p.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace repro {

// The height and width of an image's map, and of its upper left part that is filtered.
struct Extent {
  Size map;
  Size valid;

  Extent(Size size, const int64_t* valid_size, int64_t n)
      : map(size), valid(valid_size == nullptr ? size : Size{valid_size[2 * n], valid_size[2 * n + 1]}) {}
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns that a task filters at once: as many as leave `lines` rows of them in a core's cache.
inline int64_t columns_at_once(int64_t elements_per_column, int64_t bytes) {
  constexpr int64_t kCache = 512 << 10;
  return std::max<int64_t>(1, kCache / std::max<int64_t>(1, elements_per_column * bytes));
}

// Calls body(lanes, offsets) for the channels of a position in blocks of 1 to 4 vectors (for C < 8: of channels), whose
// number is a constant: body keeps one value for each in registers. `lanes` is a Lanes<Acc> (an Acc), offsets[v] the
// first channel of vector v. Where eight do not divide C, the last two vectors overlap: a body loads all vectors of a
// position before it stores one.
template <class Acc, class Body>
REPRO_INLINE void for_blocks(int64_t C, const Body& body) {
  const auto blocks = [&](auto lanes, int64_t width) REPRO_LAMBDA {
    const int64_t units = (C + width - 1) / width;
    const int64_t count = (units + 3) / 4;
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
      if (V == 4) call(std::integral_constant<int, 4>{});
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

// The weights of a row's positions, C times each; `to` has room for one vector too many.
template <class Acc>
REPRO_INLINE void spread(const Acc* w, int64_t positions, int64_t C, Acc* to) {
  for (int64_t p = 0; p < positions; ++p, to += C)
    for (int64_t c = 0; c < C; c += kLanes) put(to + c, Lanes<Acc>{} + w[p]);
}

// One iteration's rows and columns, as the forward and the backward pass run them (domain_transform.cpp).
//   x, y, map  one image, dense NHWC
//   w          (H, W) of the map, weights of the iteration
template <class T>
void make_weights(const T* edge, const Extent& extent, const Filter& filter, acc_t<T>* weights);
template <class T>
void filter_rows(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* y);
template <class Acc>
void filter_columns(const Acc* w, const Extent& extent, int64_t C, Acc* map);
// What lies outside the valid part.
template <class From, class To>
void copy_outside(const From* from, const Extent& extent, int64_t C, To* to);
// A whole map of 16-bit storage from its float32.
template <class T>
void round_map(const acc_t<T>* from, int64_t count, T* to);

}  // namespace repro

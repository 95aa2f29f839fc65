// Interp row by row: tables of its taps, made once per call, and the map and its adjoint as separate passes over
// columns and rows. Caffe's order of rounding: the two columns first, then the two rows.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "lanes.h"

namespace repro {

// Rows of `elements` each that make a task worth its thread.
inline int64_t rows_per_task(int64_t elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, elements)); }

template <class Acc>
std::vector<Tap<Acc>> taps(const Axis& axis) {
  std::vector<Tap<Acc>> table;
  table.reserve(axis.n_out);
  for (int64_t o = 0; o < axis.n_out; ++o) table.push_back(axis.tap<Acc>(o));
  return table;
}

// The outputs begin, begin + 1, ... that read one input with a weight, and the weights.
template <class Acc>
struct Readers {
  int64_t begin;
  std::vector<Acc> weights;
};

template <class Acc>
std::vector<Readers<Acc>> readers(const Axis& axis) {
  std::vector<Readers<Acc>> table(axis.n_in);
  for (int64_t i = 0; i < axis.n_in; ++i) {
    int64_t begin = axis.begin(i);
    int64_t end = axis.end(i);
    while (begin < end && axis.weight<Acc>(begin, i) == 0) ++begin;
    while (begin < end && axis.weight<Acc>(end - 1, i) == 0) --end;
    table[i].begin = begin;
    for (int64_t o = begin; o < end; ++o) table[i].weights.push_back(axis.weight<Acc>(o, i));
  }
  return table;
}

// The taps of a map of size `in` enlarged or reduced to `out`.
template <class Acc>
struct MapTaps {
  Size in;
  Size out;
  std::vector<Tap<Acc>> rows;
  std::vector<Tap<Acc>> columns;

  MapTaps(Size in_, Size out_)
      : in(in_), out(out_), rows(taps<Acc>(Axis(in_.H, out_.H))), columns(taps<Acc>(Axis(in_.W, out_.W))) {}
};

// A row's elements in the accumulator's type, in a buffer with room for one vector too many.
template <class T>
REPRO_INLINE void load_row(const T* from, int64_t count, std::vector<acc_t<T>>& to) {
  using Acc = acc_t<T>;
  Acc* const first = to.data();
  for_elements<Acc>(count, [&](int64_t e, auto lanes) REPRO_LAMBDA {
    get(lanes, from + e);
    put(first + e, lanes);
  });
}

// One dense NHWC map as its resampled rows. The last two source rows stay resampled in columns, since neighbouring
// output rows share them.
template <class T>
class Resampled {
 public:
  using Acc = acc_t<T>;

  Resampled(const T* map, const MapTaps<Acc>& taps, int64_t C)
      : map_(map),
        taps_(taps),
        C_(C),
        same_rows_(taps.in.H == taps.out.H),
        same_columns_(taps.in.W == taps.out.W),
        source_(same_columns_ ? 0 : taps.in.W * C + kLanes) {
    for (auto& row : columns_) row.resize(taps.out.W * C + kLanes);
    result_.resize(taps.out.W * C + kLanes);
  }

  // Row o of image n, out.W * C elements; valid until the next call.
  REPRO_INLINE const Acc* row(int64_t n, int64_t o) {
    if (same_rows_) return in_columns(n * taps_.in.H + o);
    write(n, o, result_.data());
    return result_.data();
  }

  // The same into `to`.
  template <class D>
  REPRO_INLINE void write(int64_t n, int64_t o, D* to) {
    const Tap<Acc> ty = taps_.rows[o];
    const Acc* const top = in_columns(n * taps_.in.H + ty.lo);
    const Acc* const bottom = same_rows_ ? top : in_columns(n * taps_.in.H + ty.hi);
    const int64_t count = taps_.out.W * C_;
    if (same_rows_) {
      for_elements<Acc>(count, [&](int64_t e, auto lanes) REPRO_LAMBDA {
        get(lanes, top + e);
        put(to + e, lanes);
      });
    } else {
      for_elements<Acc>(count, [&](int64_t e, auto lanes) REPRO_LAMBDA {
        auto below = lanes;
        get(lanes, top + e);
        get(below, bottom + e);
        lanes = ty.w_lo * lanes + ty.w_hi * below;
        put(to + e, lanes);
      });
    }
  }

 private:
  // Source row r of all images, resampled to out.W columns.
  REPRO_INLINE const Acc* in_columns(int64_t r) {
    const T* from = map_ + r * taps_.in.W * C_;
    if constexpr (std::is_same_v<T, Acc>)
      if (same_columns_) {
        prefetch(from, taps_.in.W * C_, taps_.in.W * C_);
        return from;
      }
    std::vector<Acc>& row = columns_[r & 1];
    if (held_[r & 1] == r) return row.data();
    held_[r & 1] = r;
    prefetch(from, taps_.in.W * C_, taps_.in.W * C_);
    if (same_columns_) {
      load_row(from, taps_.in.W * C_, row);
      return row.data();
    }
    load_row(from, taps_.in.W * C_, source_);
    // Local copies: for all that the compiler knows, storing a vector may change a member.
    const Acc* const source = source_.data();
    const int64_t C = C_;
    Acc* to = row.data();
    for (const Tap<Acc>& tx : taps_.columns) {
      const Acc* const left = source + tx.lo * C;
      const Acc* const right = source + tx.hi * C;
      const Acc w_lo = tx.w_lo;
      const Acc w_hi = tx.w_hi;
      for (int64_t c = 0; c < C; c += kLanes) {  // runs over into the next position, which is written after
        Lanes<Acc> a, b;
        get(a, left + c);
        get(b, right + c);
        a = w_lo * a + w_hi * b;
        put(to + c, a);
      }
      to += C;
    }
    return row.data();
  }

  const T* map_;
  const MapTaps<Acc>& taps_;
  int64_t C_;
  bool same_rows_;
  bool same_columns_;
  std::vector<Acc> source_;
  std::vector<Acc> columns_[2];
  int64_t held_[2] = {-1, -1};
  std::vector<Acc> result_;
};

// The adjoint for one map of size `in`: its readers among the positions of `out`.
template <class Acc>
struct MapReaders {
  Size in;
  Size out;
  std::vector<Readers<Acc>> rows;
  std::vector<Readers<Acc>> columns;

  MapReaders(Size in_, Size out_)
      : in(in_), out(out_), rows(readers<Acc>(Axis(in_.H, out_.H))), columns(readers<Acc>(Axis(in_.W, out_.W))) {}
};

}  // namespace repro

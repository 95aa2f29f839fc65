// The permutohedral lattice of N features on the CPU, built once and then filtered with as often as wanted:
//   splat   values(v) = sum over v's features p, in their order, of weight * x(p)
//   blur    along each of D + 1 axes: values(v) += (values(lower neighbour) + values(upper neighbour)) / 2
//   slice   y(p) = sum over the D + 1 vertices of p's simplex of weight * values(v)      (by the caller, with corners())
// Every sum has one owner and Caffe's order, so that neither the number of threads nor the numbering of the vertices
// changes a bit. Vertices are numbered from 1 in the order in which features meet them, which keeps neighbours near in
// memory; row 0 of the values is 0 and stands for a vertex that no feature has. The vertices are shared out among owners,
// who splat in the order of the features: a feature's row is read for all of its vertices that the owner has, and
// neighbouring pixels mostly share theirs.
// Caffe: src/caffe/util/permutohedral.cpp (its SSE version). Bytes kept: 20 (D + 1) a feature, 8 (D + 1) a vertex.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "lanes.h"
#include "shared/huge_pages.h"

namespace repro {

// Memory of torch's allocator, as it was found.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) : memory_(c10::GetCPUAllocator()->allocate(static_cast<size_t>(count) * sizeof(T))) {
    ask_for_huge_pages(memory_.get(), static_cast<size_t>(count) * sizeof(T));
  }

  T* get() const { return static_cast<T*>(memory_.get()); }
  T& operator[](int64_t i) const { return get()[i]; }

 private:
  c10::DataPtr memory_;
};

// Calls f(k, width) for the vectors k, k + 1, ... of a row of `count`, up to three at a time: the width is a constant,
// so that what is summed stays in registers.
template <class F>
REPRO_INLINE void for_vectors(int64_t count, const F& f) {
  int64_t k = 0;
  for (; k + 3 <= count; k += 3) f(k, std::integral_constant<int, 3>{});
  if (k + 2 == count) f(k, std::integral_constant<int, 2>{});
  if (k + 1 == count) f(k, std::integral_constant<int, 1>{});
}

template <int D>
class Permutohedral {
 public:
  static constexpr int kCorners = D + 1;  // of a simplex

  // One vertex of a feature's simplex, with its weight in the slice.
  struct Corner {
    int32_t vertex;
    float weight;
  };

  // `features` holds D planes of N features each, with room for kLanes more in the end, divided by their standard
  // deviations. N * kCorners < 2^31.
  Permutohedral(const float* features, int64_t N);

  int64_t vertices() const { return vertices_; }
  const Corner* corners(int64_t p) const { return corners_.get() + p * kCorners; }

  // Splats and blurs rows of `count` values, V being float or a vector of floats.
  //   x        N rows
  //   values   vertices() + 1 rows, and `other` as many: scratch. Returns the one that holds the result.
  template <class V>
  const V* filter(const V* x, int64_t count, V* values, V* other) const;

 private:
  // The weight of a feature at a vertex.
  struct Share {
    int32_t feature;
    int32_t vertex;
    float weight;
  };
  // Vertices [first_vertex, the next owner's), and shares_ likewise.
  struct Owner {
    int64_t first_vertex;
    int64_t first_share;
  };

  int64_t vertices_;
  Buffer<Corner> corners_;      // N * kCorners
  Buffer<Share> shares_;        // N * kCorners, by owner, features ascending
  std::vector<Owner> owners_;   // and one more behind the last
  Buffer<int32_t> neighbours_;  // kCorners times vertices_ + 1 pairs (lower, upper)
};

}  // namespace repro

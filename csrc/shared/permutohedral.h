// The geometry of the permutohedral lattice, the only copy, for host and device: in which simplex a feature lies, its
// barycentric weights there, and which vertices neighbour each other.
//
// A feature of D dimensions is scaled by 1/std times LatticeScale and lifted onto the plane of D + 1 coordinates whose
// sum is 0. The vertices of the lattice there have integer coordinates, all of them congruent modulo D + 1; the simplex
// around a point has one vertex of every remainder 0..D.
// Adams, Baek, Davis: "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010, pages 4-5
// and 10. Caffe: src/caffe/util/permutohedral.cpp, whose roundings these are (its SSE version's: a tie rounds to even).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "shared/interp_geometry.h"

namespace repro {

// One vertex: D coordinates divided by D + 1, rounded down, kKeyBits<D> bits each, above the common remainder in the
// lowest kRemainderBits. (The last coordinate follows from the sum.)
using LatticeKey = uint64_t;
constexpr LatticeKey kNoVertex = ~LatticeKey{0};
constexpr int kRemainderBits = 3;
template <int D>
constexpr int kKeyBits = 60 / D;
// Beyond this they do not fit into a key, or into Caffe's 16 bits.
template <int D>
constexpr int64_t kLatticeReach = kKeyBits<D> < 16 ? 1 << (kKeyBits<D> - 1) : 32768 / (D + 1);

template <int D>
REPRO_HD LatticeKey key_unit(int i) {
  return LatticeKey{1} << (kRemainderBits + kKeyBits<D> * i);
}

// What every dimension is multiplied with after the division by its standard deviation, so that the filter's own
// standard deviation is 1. (Caffe rounds the two factors to float32 at these places.)
template <int D>
struct LatticeScale {
  float of[D];

  LatticeScale() {
    const auto width = static_cast<float>(std::sqrt(2.0 / 3.0) * (D + 1));
    for (int i = 0; i < D; ++i)
      of[i] = static_cast<float>(1.0 / std::sqrt(static_cast<double>((i + 2) * (i + 1))) * width);
  }
};

// The greatest coordinate, in units of D + 1, of a lattice point near a feature whose dimensions are at most `largest`.
template <int D>
double lattice_reach(const double (&largest)[D]) {
  const LatticeScale<D> scale;
  double sum = 0;
  double reach = 0;
  for (int j = D; j > 0; --j) {
    const double part = largest[j - 1] * scale.of[j - 1];
    reach = std::fmax(reach, sum + j * part);
    sum += part;
  }
  return std::fmax(reach, sum) / (D + 1) + 3;  // rounding, the simplex's other vertices, their neighbours
}

// The simplex of a feature. V is float or a vector of floats, I the integers beside it.
//   base    D + 1 coordinates of the vertex with remainder 0, divided by D + 1
//   rank    the place of every coordinate in the descending order of their distances from it
//   weight  barycentric, of the vertex with remainder 0, 1, ..., D
template <int D, class V, class I>
REPRO_HD void find_simplex(const V (&feature)[D], const LatticeScale<D>& scale, I (&base)[D + 1], I (&rank)[D + 1],
                           V (&weight)[D + 1]) {
  constexpr float kSide = D + 1;
  constexpr float kShare = 1.0f / kSide;
  const V round = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, kept in the low bits
  const I zero{};
  const I one = zero + 1;
  const I side = zero + (D + 1);
  I round_bits;
  memcpy(&round_bits, &round, sizeof round_bits);

  V lifted[D + 1];
  V sum{};
  for (int j = D; j > 0; --j) {
    const V part = feature[j - 1] * scale.of[j - 1];
    lifted[j] = sum - static_cast<float>(j) * part;
    sum = sum + part;
  }
  lifted[0] = sum;

  V nearest[D + 1];  // the closest point whose coordinates are multiples of D + 1; it may lie off the plane
  I off = zero;
  for (int i = 0; i <= D; ++i) {
    const V shifted = lifted[i] * kShare + round;
    nearest[i] = (shifted - round) * kSide;
    memcpy(&base[i], &shifted, sizeof base[i]);
    base[i] = base[i] - round_bits;
    off = off + base[i];
    rank[i] = zero;
  }
  for (int i = 0; i < D; ++i)
    for (int j = i + 1; j <= D; ++j) {
      const auto less = lifted[i] - nearest[i] < lifted[j] - nearest[j];
      rank[i] = rank[i] + (less ? one : zero);
      rank[j] = rank[j] + (less ? zero : one);
    }
  V distance[D + 1];
  for (int i = 0; i <= D; ++i) {  // back onto the plane
    rank[i] = rank[i] + off;
    const I step = rank[i] < zero ? one : (rank[i] >= side ? zero - one : zero);
    rank[i] = rank[i] + step * side;
    base[i] = base[i] + step;
    const V add = step > zero ? V{} + kSide : (step < zero ? V{} - kSide : V{});
    distance[i] = (lifted[i] - (nearest[i] + add)) * kShare;
  }
  V sorted[D + 1];  // by rank
  for (int r = 0; r <= D; ++r) {
    sorted[r] = V{};
    for (int i = 0; i <= D; ++i) sorted[r] = rank[i] == zero + r ? distance[i] : sorted[r];
  }
  weight[0] = sorted[D] + (1.0f - sorted[0]);
  for (int r = 1; r <= D; ++r) weight[r] = sorted[D - r] - sorted[D - r + 1];
}

// The keys of a simplex's vertices in the order of their weights.
template <int D>
REPRO_HD void simplex_keys(const int32_t (&base)[D + 1], const int32_t (&rank)[D + 1], LatticeKey (&key)[D + 1]) {
  LatticeKey unit[D + 1];  // of the coordinate that has a rank
  key[0] = 0;
  for (int i = 0; i <= D; ++i) {
    const LatticeKey own = i < D ? key_unit<D>(i) : 0;
    for (int r = 0; r <= D; ++r) unit[r] = rank[i] == r ? own : (i == 0 ? 0 : unit[r]);
    if (i < D) key[0] += own * static_cast<LatticeKey>(base[i] + (1 << (kKeyBits<D> - 1)));
  }
  for (int r = 1; r <= D; ++r) key[r] = key[r - 1] - unit[D - r + 1] + 1;
}

// The neighbour of a vertex along an axis 0..D, of the two the one with coordinates less by 1 (on the axis itself
// greater by D). The vertex is then the other neighbour of that one.
template <int D>
REPRO_HD LatticeKey lower_neighbour(LatticeKey key, int axis) {
  LatticeKey all = 0;
  for (int i = 0; i < D; ++i) all += key_unit<D>(i);
  const LatticeKey own = axis < D ? key_unit<D>(axis) : 0;
  const bool wraps = (key & ((1 << kRemainderBits) - 1)) == 0;
  return wraps ? key + D - all + own : key - 1 + own;
}

REPRO_HD uint64_t lattice_hash(LatticeKey key) {
  key *= 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio; the high bits mix best
  return key ^ key >> 32;
}

}  // namespace repro

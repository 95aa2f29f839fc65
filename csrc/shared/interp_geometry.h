// The sampling rule of Caffe's Interp layer, corner to corner: the only copy, for host and device, forward and
// backward.
//
//   ratio = (n_in - 1) / (n_out - 1), or 0 where n_out == 1        source(o) = o * ratio
//   lo = floor(source)      hi = min(lo + 1, n_in - 1)             w_hi = source - lo      w_lo = 1 - w_hi
//
// Caffe: src/caffe/util/interp.cpp, caffe_cpu_interp2. Ratio and source position are float32 there even in the float64
// program, so they are here; only the two weights take the accumulator's type. Both pixels count, also with weight 0,
// by which an infinity becomes NaN; but an axis that keeps its length is copied.
// Deviates: Caffe copies where both axes keep theirs. It shows in NaN, infinity and the sign of 0.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define REPRO_HD __host__ __device__ __forceinline__
#else
#define REPRO_HD inline
#endif

namespace repro {

// Height and width of a map, pixels.
struct Size {
  int64_t H;
  int64_t W;

  REPRO_HD bool operator==(const Size& other) const { return H == other.H && W == other.W; }
};

template <class Acc>
struct Tap {
  int64_t lo;
  int64_t hi;  // negative where the axis is copied
  Acc w_lo;
  Acc w_hi;
};

struct Axis {
  int64_t n_in;
  int64_t n_out;
  float ratio;

  REPRO_HD Axis(int64_t n_in_, int64_t n_out_)
      : n_in(n_in_),
        n_out(n_out_),
        ratio(n_out_ > 1 ? static_cast<float>(n_in_ - 1) / static_cast<float>(n_out_ - 1) : 0.0f) {}

  REPRO_HD int64_t lo(int64_t o) const {
    const int64_t i = static_cast<int64_t>(static_cast<float>(o) * ratio);
    return i < n_in ? i : n_in - 1;  // rounding may pass the end only on axes beyond 2^24
  }

  template <class Acc>
  REPRO_HD Tap<Acc> tap(int64_t o) const {
    if (n_in == n_out) return {o, -1, Acc(1), Acc(0)};
    const float source = static_cast<float>(o) * ratio;
    const int64_t i = lo(o);
    const Acc w_hi = static_cast<Acc>(source - static_cast<float>(i));
    return {i, i + 1 < n_in ? i + 1 : i, Acc(1) - w_hi, w_hi};
  }

  // The smallest output whose lower source pixel is i or beyond; n_out if there is none. The map is monotone.
  REPRO_HD int64_t first_output(int64_t i) const {
    if (i <= 0) return 0;
    if (ratio == 0.0f || i >= n_in) return n_out;
    int64_t o = static_cast<int64_t>(static_cast<float>(i) / ratio);
    if (o > n_out) o = n_out;
    while (o > 0 && lo(o - 1) >= i) --o;
    while (o < n_out && lo(o) < i) ++o;
    return o;
  }

  // The outputs that read input i are [begin(i), end(i)): those with lo == i - 1 or lo == i.
  REPRO_HD int64_t begin(int64_t i) const { return first_output(i - 1); }
  REPRO_HD int64_t end(int64_t i) const { return first_output(i + 1); }

  // The weight with which output o reads input i; 0 where it does not.
  template <class Acc>
  REPRO_HD Acc weight(int64_t o, int64_t i) const {
    const Tap<Acc> t = tap<Acc>(o);
    return (t.lo == i ? t.w_lo : Acc(0)) + (t.hi == i ? t.w_hi : Acc(0));
  }
};

}  // namespace repro

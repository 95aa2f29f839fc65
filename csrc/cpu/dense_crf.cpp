// Mean-field inference on the CPU, image after image. The probabilities are kept as rows of whole vectors, one a pixel;
// an iteration filters them with both lattices, then slices both, adds the scores and takes the softmax, eight pixels
// at a time: what is between exists in registers and in a block of 8 x C floats. Bytes besides the lattices: the
// probabilities once, and two rows of C floats a vertex.
#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "permutohedral.h"
#include "shared/permutohedral.h"

namespace repro {

namespace {

using V = Lanes<float>;

// The positions, or the positions and colours, of an image's pixels as features.
template <int D, class I>
Buffer<float> features_of(const I* image, Size size, float xy_std, float rgb_std) {
  const int64_t pixels = size.H * size.W;
  Buffer<float> features(D * pixels + kLanes);
  std::fill(features.get() + D * pixels, features.get() + D * pixels + kLanes, 0.0f);
  at::parallel_for(0, size.H, std::max<int64_t>(1, 16384 / size.W), [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y)
      for (int64_t x = 0; x < size.W; ++x) {
        float* const feature = features.get() + y * size.W + x;
        feature[0] = static_cast<float>(x) / xy_std;
        feature[pixels] = static_cast<float>(y) / xy_std;
        for (int i = 2; i < D; ++i)
          feature[i * pixels] = static_cast<float>(image[(y * size.W + x) * 3 + i - 2]) / rgb_std;
      }
  });
  return features;
}

// A pairwise term: the lattice, and for every pixel the weight of the term divided by the sum of the pixel's row.
template <int D>
struct Term {
  Permutohedral<D> lattice;
  Buffer<float> share;
  Buffer<V> values;  // two times vertices + 1 rows
  const V* filtered = nullptr;

  Term(const float* features, int64_t pixels, float weight, int64_t row)
      : lattice(features, pixels), share(pixels), values(2 * row * (lattice.vertices() + 1)) {
    std::fill(share.get(), share.get() + pixels, 1.0f);
    auto* const scratch = reinterpret_cast<float*>(values.get());
    const float* const sums = lattice.filter(share.get(), 1, scratch, scratch + lattice.vertices() + 1);
    at::parallel_for(0, pixels, 16384, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        float sum = 0;
        for (int r = 0; r <= D; ++r) sum += lattice.corners(p)[r].weight * sums[lattice.corners(p)[r].vertex];
        share[p] = weight * (1.0f / (sum + 1e-20f));
      }
    });
  }

  void filter(const V* q, int64_t row) {
    filtered = lattice.filter(q, row, values.get(), values.get() + row * (lattice.vertices() + 1));
  }

  // Adds the term to `width` vectors of a pixel's scores.
  template <class Width>
  REPRO_INLINE void add(int64_t p, int64_t row, int64_t k, Width width, V* scores) const {
    V sum[Width::value] = {};
    const auto* const corners = lattice.corners(p);
    for (int r = 0; r <= D; ++r) {
      const V* const value = filtered + corners[r].vertex * row + k;
      for (int i = 0; i < width.value; ++i) sum[i] += corners[r].weight * value[i];
    }
    for (int i = 0; i < width.value; ++i) scores[i] += share[p] * sum[i];
  }
};

REPRO_INLINE void transpose(V (&v)[kLanes]) {
  V t[kLanes];
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    t[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = i; j < i + 2; ++j) {
      v[j] = __builtin_shufflevector(t[j], t[j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      v[j + 2] = __builtin_shufflevector(t[j], t[j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = __builtin_shufflevector(v[j], v[j + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[j + 4] = __builtin_shufflevector(v[j], v[j + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) v[i] = t[i];
}

// The softmax of eight pixels' scores, in place: kLanes rows of `row` vectors, of which C elements count and the rest
// become 0. Caffe sums over the classes in their order: so pixels are the lanes in between.
REPRO_INLINE void softmax(V* scores, int64_t row, int64_t C, V* columns) {
  for (int64_t k = 0; k < row; ++k) {
    V square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = scores[i * row + k];
    transpose(square);
    for (int i = 0; i < kLanes; ++i) columns[k * kLanes + i] = square[i];
  }
  V largest = columns[0];
  for (int64_t c = 1; c < C; ++c) largest = columns[c] > largest ? columns[c] : largest;
  for (int64_t c = 0; c < C; ++c) columns[c] = largest - columns[c];
  // An even number of classes; there is room for eights.
  for_wide(reinterpret_cast<float*>(columns), (C + 1) / 2 * kWide,
           [](const auto& x) REPRO_LAMBDA { return crf_exponential(x); });
  V sum{};
  for (int64_t c = 0; c < C; ++c) sum += columns[c];
  for (int64_t c = 0; c < C; ++c) columns[c] /= sum;
  for (int64_t c = C; c < row * kLanes; ++c) columns[c] = V{};
  for (int64_t k = 0; k < row; ++k) {
    V square[kLanes];
    for (int i = 0; i < kLanes; ++i) square[i] = columns[k * kLanes + i];
    transpose(square);
    for (int i = 0; i < kLanes; ++i) scores[i * row + k] = square[i];
  }
}

// q = softmax(log_prob + the terms that there are) for pixels [first, last): into rows of whole vectors, or with
// `dense` into rows of C floats.
REPRO_WIDE_CLONES void update(const float* log_prob, const Term<2>* positions, const Term<5>* colours, int64_t C,
                              int64_t first, int64_t last, V* q, float* dense) {
  const int64_t row = (C + kLanes - 1) / kLanes;
  const Buffer<V> scores(kLanes * row);
  const Buffer<V> columns(kLanes * row);
  const Buffer<float> end(kLanes * row);
  for (int64_t p0 = first; p0 < last; p0 += kLanes) {
    const int64_t pixels = std::min<int64_t>(kLanes, last - p0);
    for (int64_t i = 0; i < pixels; ++i) {
      // Whole vectors: beyond the classes lies the next pixel, at which nobody looks, and behind the last one nothing.
      const float* from = log_prob + (p0 + i) * C;
      if ((p0 + i) * C + row * kLanes > last * C) {
        std::copy_n(from, C, end.get());
        from = end.get();
      }
      for_vectors(row, [&](int64_t k, auto width) REPRO_LAMBDA {
        V own[width.value];
        for (int v = 0; v < width.value; ++v) get(own[v], from + (k + v) * kLanes);
        if (positions != nullptr) positions->add(p0 + i, row, k, width, own);
        if (colours != nullptr) colours->add(p0 + i, row, k, width, own);
        // One by one: a copy of all would read what was just written in wider pieces, and wait until it is in the cache.
        for (int v = 0; v < width.value; ++v) scores[i * row + k + v] = own[v];
      });
    }
    softmax(scores.get(), row, C, columns.get());
    if (dense != nullptr)
      for (int64_t i = 0; i < pixels; ++i) memcpy(dense + (p0 + i) * C, scores.get() + i * row, C * sizeof(float));
    else
      std::copy(scores.get(), scores.get() + pixels * row, q + p0 * row);
  }
}

}  // namespace

template <class I>
void dense_crf(Cpu, const float* log_prob, const I* image, Size size, int64_t N, int64_t C, const DenseCrf& crf,
               void* /*scratch*/, float* probability) {
  const int64_t pixels = size.H * size.W;
  const int64_t row = (C + kLanes - 1) / kLanes;
  const Buffer<V> q(crf.iterations > 0 ? pixels * row : 0);
  // The same for every image of a size.
  std::unique_ptr<Term<2>> positions;
  if (crf.iterations > 0 && crf.pos_w > 0 && N > 0)
    positions =
        std::make_unique<Term<2>>(features_of<2>(image, size, crf.pos_xy_std, 1.0f).get(), pixels, crf.pos_w, row);
  for (int64_t n = 0; n < N; ++n) {
    std::unique_ptr<Term<5>> colours;
    if (crf.iterations > 0 && crf.bi_w > 0)
      colours = std::make_unique<Term<5>>(
          features_of<5>(image + n * pixels * 3, size, crf.bi_xy_std, crf.bi_rgb_std).get(), pixels, crf.bi_w, row);
    for (int64_t iteration = 0; iteration <= crf.iterations; ++iteration) {
      if (iteration > 0 && positions != nullptr) positions->filter(q.get(), row);
      if (iteration > 0 && colours != nullptr) colours->filter(q.get(), row);
      float* const dense = iteration == crf.iterations ? probability + n * pixels * C : nullptr;
      at::parallel_for(0, pixels, std::max<int64_t>(kLanes, 8192 / row), [&](int64_t begin, int64_t end) {
        update(log_prob + n * pixels * C, iteration > 0 ? positions.get() : nullptr,
               iteration > 0 ? colours.get() : nullptr, C, begin, end, q.get(), dense);
      });
    }
  }
}

#define INSTANTIATE(I) \
  template void dense_crf<I>(Cpu, const float*, const I*, Size, int64_t, int64_t, const DenseCrf&, void*, float*);
INSTANTIATE(uint8_t)
INSTANTIATE(float)

}  // namespace repro

// The domain transform on the CPU, image by image, in place in the result. One visit of a row filters it from left to
// right and back: a task owns rows. One visit of a block of columns filters it from top to bottom and back: a task owns
// blocks, as wide as its cache holds. The weights of all iterations are made once, for all channels. Bytes: in each
// iteration the map twice read and twice written. Every element is computed in Caffe's order, whoever computes it.

#include <ATen/Parallel.h>

#include "recursion.h"
#include "rows.h"

namespace repro {

namespace {

template <class T, class W>
REPRO_INLINE void filter_row(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* y, W rows) {
  using Acc = acc_t<T>;
  constexpr int R = rows();
  const int64_t stride = extent.map.W;
  const int64_t width = extent.valid.W;
  for_blocks<Acc>(C, [&](auto lanes, const auto& offsets) REPRO_LAMBDA {
    using Value = decltype(lanes);
    constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
    Value last[R][V];
    const auto step = [&](const auto* from, int64_t p, int64_t link, bool there) REPRO_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        if (there) prefetch_ahead(from + e, C, offsets);
        const Acc weight = w[r * stride + link];
        Value value[V];
        get_all(value, from + e, offsets);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) last[r][v] = value[v] + weight * (last[r][v] - value[v]);
        put_all(y + e, offsets, last[r]);
      }
    };
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      get_all(last[r], x + r * stride * C, offsets);
      put_all(y + r * stride * C, offsets, last[r]);
    }
    for (int64_t p = 1; p < width; ++p) step(x, p, p, true);
    for (int64_t p = width - 2; p >= 0; --p) step(y, p, p + 1, false);
  });
}

template <class T>
REPRO_CLONES void rows_task(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, int64_t begin, int64_t end,
                            acc_t<T>* y) {
  for_pairs(begin, end, [&](int64_t r, auto rows) REPRO_LAMBDA {
    const int64_t e = r * extent.map.W * C;
    filter_row(x + e, w + r * extent.map.W, extent, C, y + e, rows);
  });
}

template <class Acc>
REPRO_CLONES void columns_task(const Acc* x, const Acc* w, const Extent& extent, int64_t C, int64_t begin, int64_t end,
                               Acc* y) {
  const int64_t stride = extent.map.W * C;
  std::vector<Acc> room(2 * ((end - begin) * C + kLanes));
  // Rows h, h + way, ...: what lies between two of them stays in registers.
  const auto step = [&](const Acc* from, int64_t h, int64_t way, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    from += h * stride + begin * C;
    Acc* const to = y + h * stride + begin * C;
    const int64_t link = way > 0 ? h : h + 1;
    for_weighted<Acc>(w + link * extent.map.W + begin, way * extent.map.W, end - begin, C, room.data(), rows,
                      [&](auto at, const auto& offsets, const auto& weights, auto lanes) REPRO_LAMBDA {
                        constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
                        decltype(lanes) value[V], last[V];
                        get_all(last, to - way * stride + at.e, offsets);
#pragma GCC unroll 4
                        for (int r = 0; r < R; ++r) {
                          get_all(value, from + r * way * stride + at.e, offsets);
#pragma GCC unroll 4
                          for (int v = 0; v < V; ++v) last[v] = value[v] + weights[r] * (last[v] - value[v]);
                          put_all(to + r * way * stride + at.e, offsets, last);
                        }
                      });
  };
  if (x != y) std::copy_n(x + begin * C, (end - begin) * C, y + begin * C);
  const int64_t bottom = extent.valid.H - 1;
  for_pairs(1, bottom + 1, [&](int64_t h, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    for (int r = 0; r < R; ++r) {
      const int64_t ahead = std::min(h + r + kRowsAhead, bottom);
      prefetch(x, ahead * stride + begin * C, (end - begin) * C);
      prefetch(w, ahead * extent.map.W + begin, end - begin);
    }
    step(x, h, 1, rows);
  });
  for_pairs(1, bottom + 1, [&](int64_t h, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    for (int r = 0; r < R; ++r)
      prefetch(y, std::max<int64_t>(bottom - h - r - kRowsAheadInCache, 0) * stride + begin * C, (end - begin) * C);
    step(y, bottom - h, -1, rows);
  });
}

template <class T>
REPRO_WIDE_CLONES void weights_task(const T* edge, const EdgeWeight<acc_t<T>>& weight, int64_t count,
                                    acc_t<T>* weights) {
  for_elements<acc_t<T>>(count, [&](int64_t e, auto lanes) REPRO_LAMBDA {
    get(lanes, edge + e);
    lanes = weight.clip(exact_exponential(weight.distance(lanes)));
    put(weights + e, lanes);
  });
}

template <class From, class To>
REPRO_CLONES void copy_elements(const From* from, int64_t count, To* to) {
  for_elements<acc_t<From>>(count, [&](int64_t e, auto lanes) REPRO_LAMBDA {
    get(lanes, from + e);
    put(to + e, lanes);
  });
}

}  // namespace

template <class T>
void make_weights(const T* edge, const Extent& extent, const Filter& filter, acc_t<T>* weights) {
  std::vector<EdgeWeight<acc_t<T>>> of;
  for (int64_t i = 0; i < filter.num_iter; ++i) of.emplace_back(filter, i);
  const int64_t positions = extent.map.H * extent.map.W;
  at::parallel_for(0, filter.num_iter * extent.valid.H, rows_per_task(8 * extent.valid.W),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) {
                       const int64_t i = r / extent.valid.H;
                       const int64_t first = r % extent.valid.H * extent.map.W;
                       weights_task(edge + first, of[i], extent.valid.W, weights + i * positions + first);
                     }
                   });
}

template <class T>
void filter_rows(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* y) {
  if (extent.valid.W == 0) return;
  at::parallel_for(0, extent.valid.H, rows_per_task(extent.valid.W * C),
                   [&](int64_t begin, int64_t end) { rows_task(x, w, extent, C, begin, end, y); });
}

template <class Acc>
void filter_columns(const Acc* x, const Acc* w, const Extent& extent, int64_t C, Acc* y) {
  if (extent.valid.H == 0) return;
  const int64_t wide = columns_at_once(extent.valid.H * C, sizeof(Acc));
  at::parallel_for(0, extent.valid.W, wide, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += wide)
      columns_task(x, w, extent, C, first, std::min(first + wide, end), y);
  });
}

template <class From, class To>
void copy_outside(const From* from, const Extent& extent, int64_t C, To* to) {
  if (extent.valid == extent.map) return;
  const int64_t stride = extent.map.W * C;
  at::parallel_for(0, extent.map.H, rows_per_task(stride), [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      const int64_t kept = h < extent.valid.H ? extent.valid.W * C : 0;
      copy_elements(from + h * stride + kept, stride - kept, to + h * stride + kept);
    }
  });
}

template <class T>
void round_map(const acc_t<T>* from, int64_t count, T* to) {
  at::parallel_for(0, count, rows_per_task(1),
                   [&](int64_t begin, int64_t end) { copy_elements(from + begin, end - begin, to + begin); });
}

template <class T>
void domain_transform(Cpu, const T* x, const T* edge, const int64_t* valid_size, Size size, int64_t N, int64_t C,
                      const Filter& filter, acc_t<T>* weights, acc_t<T>* map, T* y) {
  using Acc = acc_t<T>;
  const int64_t positions = size.H * size.W;
  for (int64_t n = 0; n < N; ++n, x += positions * C, edge += positions, y += positions * C) {
    const Extent extent(size, valid_size, n);
    Acc* to = map;
    if constexpr (std::is_same_v<T, Acc>) to = y;
    make_weights(edge, extent, filter, weights);
    copy_outside(x, extent, C, to);
    for (int64_t i = 0; i < filter.num_iter; ++i) {
      const Acc* const w = weights + i * positions;
      if (i == 0)
        filter_rows(x, w, extent, C, to);
      else
        filter_rows<Acc>(to, w, extent, C, to);
      filter_columns(to, w, extent, C, to);
    }
    if constexpr (!std::is_same_v<T, Acc>) round_map(to, positions * C, y);
  }
}

#define INSTANTIATE(T)                                                                                              \
  template void make_weights<T>(const T*, const Extent&, const Filter&, acc_t<T>*);                                 \
  template void filter_rows<T>(const T*, const acc_t<T>*, const Extent&, int64_t, acc_t<T>*);                       \
  template void copy_outside<T, acc_t<T>>(const T*, const Extent&, int64_t, acc_t<T>*);                             \
  template void round_map<T>(const acc_t<T>*, int64_t, T*);                                                         \
  template void domain_transform<T>(Cpu, const T*, const T*, const int64_t*, Size, int64_t, int64_t, const Filter&, \
                                    acc_t<T>*, acc_t<T>*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)
template void filter_columns<float>(const float*, const float*, const Extent&, int64_t, float*);
template void filter_columns<double>(const double*, const double*, const Extent&, int64_t, double*);

}  // namespace repro

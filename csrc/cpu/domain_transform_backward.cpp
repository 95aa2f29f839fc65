// The gradients of the domain transform on the CPU, image by image. The iterations run again up to the last one's
// rows; then, from the last iteration to the first, a task owns blocks of columns, then rows: it runs a line there and
// back once more, keeps what each step added (before the weight), and goes back over the gradient. Memory beyond the
// result: 2 K - 2 maps of one image in the accumulator's type, for 16-bit storage one more, and K + 2 planes; a thread
// holds two blocks of columns or four rows. Bytes: in each iteration about ten readings or writings of a map. Every
// element is summed in one order, whoever sums it.
#include <ATen/Parallel.h>

#include "dots.h"
#include "recursion.h"
#include "rows.h"

namespace repro {

namespace {

// What a task holds of a block of columns, made once.
template <class Acc>
struct Block {
  std::vector<Acc> room;  // for_weighted's
  std::vector<Acc> line;
  std::vector<Acc> there;  // what the steps down and up added, before the weight
  std::vector<Acc> again;
  std::vector<Acc> sums;  // the gradients of the weights
  Dots<Acc> dots[2];

  Block(int64_t columns, int64_t height, int64_t C)
      : room(2 * (columns * C + kLanes)),
        line(columns * C + kLanes),
        there(height * columns * C + kLanes),
        again(height * columns * C + kLanes),
        sums(height * columns),
        dots{{columns, C}, {columns, C}} {}
};

// Columns [begin, end): from the gradient after the iteration's columns, `from`, that before them, and the weights'.
//   map      before the columns
//   dweight  (H, W), written in the valid part
template <class Acc, class From>
REPRO_INLINE void columns_backward(const Acc* map, const Acc* w, const From* from, const Extent& extent, int64_t C,
                                   int64_t begin, int64_t end, Block<Acc>& block, Acc* gradient, Acc* dweight) {
  const int64_t positions = end - begin;
  const int64_t elements = positions * C;
  const int64_t stride = extent.map.W * C;
  const int64_t height = extent.valid.H;
  const auto row = [&](auto* of, int64_t h) REPRO_LAMBDA { return of + h * stride + begin * C; };
  Acc* const current = block.line.data();
  Acc* const there = block.there.data();
  Acc* const again = block.again.data();
  // The links that begin with `link` and go on by `way`, one for each of `rows`.
  const auto at_links = [&](int64_t link, int64_t way, auto rows, const auto& body) REPRO_LAMBDA {
    for_weighted<Acc>(w + link * extent.map.W + begin, way * extent.map.W, positions, C, block.room.data(), rows, body);
  };

  for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
    get(value, row(map, 0) + e);
    put(again + e, value);
  });
  for_pairs(1, height, [&](int64_t h, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    for (int r = 0; r < R; ++r) {
      const int64_t ahead = std::min(h + r + kRowsAhead, height - 1);
      prefetch(row(map, ahead), 0, elements);
      prefetch(w, ahead * extent.map.W + begin, positions);
    }
    at_links(h, 1, rows, [&](auto at, const auto& offsets, const auto& weights, auto lanes) REPRO_LAMBDA {
      constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
      decltype(lanes) value[V], last[V];
      get_all(last, again + (h - 1) * elements + at.e, offsets);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        get_all(value, row(map, h + r) + at.e, offsets);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) last[v] -= value[v];
        put_all(there + (h + r) * elements + at.e, offsets, last);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) last[v] = value[v] + weights[r] * last[v];
        put_all(again + (h + r) * elements + at.e, offsets, last);
      }
    });
  });
  std::copy_n(again + (height - 1) * elements, elements, current);
  for_pairs(1, height, [&](int64_t up, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    const int64_t h = height - 1 - up;
    at_links(h + 1, -1, rows, [&](auto at, const auto& offsets, const auto& weights, auto lanes) REPRO_LAMBDA {
      constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
      decltype(lanes) value[V], last[V];
      get_all(last, current + at.e, offsets);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        Acc* const filtered = again + (h - r) * elements + at.e;
        get_all(value, filtered, offsets);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) last[v] -= value[v];
        put_all(filtered, offsets, last);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) last[v] = value[v] + weights[r] * last[v];
      }
      put_all(current + at.e, offsets, last);
    });
  });

  // Caffe: a step's gradient goes on to the position that it came from, and what is left stays.
  const auto back = [&](int64_t link, int64_t way, auto rows, const auto& added, const auto& next,
                        const auto& to) REPRO_LAMBDA {
    constexpr int R = rows();
    at_links(link, way, rows, [&](auto at, const auto& offsets, const auto& weights, auto lanes) REPRO_LAMBDA {
      constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
      decltype(lanes) value[V], step[V], other[V];
      get_all(value, current + at.e, offsets);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        get_all(step, added(r) + at.e, offsets);
        get_all(other, next(r) + at.e, offsets);
        block.dots[r].add(at, offsets, value, step, false);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          other[v] = other[v] + weights[r] * value[v];
          value[v] = (Acc(1) - weights[r]) * value[v];
        }
        put_all(to(r) + at.e, offsets, value);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) value[v] = other[v];
      }
      put_all(current + at.e, offsets, value);
    });
  };
  for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
    get(value, row(from, 0) + e);
    put(current + e, value);
  });
  for_pairs(0, height - 1, [&](int64_t h, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    for (int r = 0; r < R; ++r) prefetch(row(from, std::min(h + r + kRowsAhead, height - 1)), 0, elements);
    const auto kept = [&](int r) REPRO_LAMBDA { return again + (h + r) * elements; };
    back(h + 1, 1, rows, kept, [&](int r) REPRO_LAMBDA { return row(from, h + r + 1); }, kept);
    for (int r = 0; r < R; ++r) {
      const Acc* const sums = block.dots[r].sums(positions);
      for (int64_t p = 0; p < positions; ++p) block.sums[(h + r + 1) * positions + p] = sums[p];
    }
  });
  for_pairs(0, height - 1, [&](int64_t up, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    const int64_t h = height - 1 - up;
    back(
        h, -1, rows, [&](int r) REPRO_LAMBDA { return there + (h - r) * elements; },
        [&](int r) REPRO_LAMBDA { return again + (h - r - 1) * elements; },
        [&](int r) REPRO_LAMBDA { return row(gradient, h - r); });
    for (int r = 0; r < R; ++r) {
      const Acc* const sums = block.dots[r].sums(positions);
      for (int64_t p = 0; p < positions; ++p) block.sums[(h - r) * positions + p] += sums[p];
    }
  });
  std::copy_n(current, elements, row(gradient, 0));
  std::fill_n(block.sums.begin(), positions, Acc(0));
  for (int64_t h = 0; h < height; ++h)
    for (int64_t p = 0; p < positions; ++p) dweight[h * extent.map.W + begin + p] = block.sums[h * positions + p];
}

// Columns [begin, end) in blocks of `wide`.
template <class Acc, class From>
REPRO_CLONES void columns_task(const Acc* map, const Acc* w, const From* from, const Extent& extent, int64_t C,
                               int64_t wide, int64_t begin, int64_t end, Acc* gradient, Acc* dweight) {
  Block<Acc> block(wide, extent.valid.H, C);
  for (int64_t first = begin; first < end; first += wide)
    columns_backward(map, w, from, extent, C, first, std::min(first + wide, end), block, gradient, dweight);
}

// As above for R rows. `x` is the map before them; `gradient` is updated in place; `dots` take the weights' gradients.
//   there, again  R rows: what the steps to the right and to the left added, before the weight
template <class T, class W>
REPRO_INLINE void row_backward(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* gradient,
                               acc_t<T>* there, acc_t<T>* again, Dots<acc_t<T>>* dots, W rows) {
  using Acc = acc_t<T>;
  constexpr int R = rows();
  const int64_t stride = extent.map.W;
  const int64_t width = extent.valid.W;
  for_blocks<Acc>(C, [&](auto lanes, const auto& offsets) REPRO_LAMBDA {
    using Value = decltype(lanes);
    constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
    Value current[R][V] = {};
    const auto filter = [&](const auto* from, int64_t p, int64_t link, Acc* added, bool keeps) REPRO_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        const Acc weight = w[r * stride + link];
        Value value[V];
        if (keeps) prefetch_ahead(from + e, C, offsets);
        get_all(value, from + e, offsets);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) current[r][v] -= value[v];
        put_all(added + e, offsets, current[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) current[r][v] = value[v] + weight * current[r][v];
        if (keeps) put_all(again + e, offsets, current[r]);
      }
    };
    const auto back = [&](const Acc* added, int64_t p, int64_t next, int64_t link, bool more) REPRO_LAMBDA {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        const Acc weight = w[r * stride + link];
        Value step[V], other[V];
        if (!more) prefetch_ahead(gradient + e, C, offsets);
        get_all(step, added + e, offsets);
        get_all(other, gradient + (r * stride + next) * C, offsets);
        dots[r].add(AtPosition{link, link * C}, offsets, current[r], step, more);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          other[v] = other[v] + weight * current[r][v];
          current[r][v] = (Acc(1) - weight) * current[r][v];
        }
        put_all(gradient + e, offsets, current[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) current[r][v] = other[v];
      }
    };
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      get_all(current[r], x + r * stride * C, offsets);
      put_all(again + r * stride * C, offsets, current[r]);
    }
    for (int64_t p = 1; p < width; ++p) filter(x, p, p, there, true);
    for (int64_t p = width - 2; p >= 0; --p) filter(again, p, p + 1, again, false);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) get_all(current[r], gradient + r * stride * C, offsets);
    for (int64_t p = 0; p + 1 < width; ++p) back(again, p, p + 1, p + 1, false);
    for (int64_t p = width - 1; p >= 1; --p) back(there, p, p - 1, p, true);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) put_all(gradient + r * stride * C, offsets, current[r]);
  });
}

// Rows [begin, end): columns_task's, and what the edge map's gradient gains by this iteration.
template <class T>
REPRO_CLONES void rows_task(const T* x, const acc_t<T>* w, const EdgeWeight<acc_t<T>>& weight, const Extent& extent,
                            int64_t C, int64_t begin, int64_t end, bool first, acc_t<T>* gradient,
                            const acc_t<T>* dweight, acc_t<T>* dedge) {
  using Acc = acc_t<T>;
  const int64_t stride = extent.map.W;
  const int64_t width = extent.valid.W;
  std::vector<Acc> there(2 * stride * C);
  std::vector<Acc> again(2 * stride * C);
  Dots<Acc> dots[2] = {{width, C}, {width, C}};
  for_pairs(begin, end, [&](int64_t row, auto rows) REPRO_LAMBDA {
    constexpr int R = rows();
    const int64_t at = row * stride;
    row_backward(x + at * C, w + at, extent, C, gradient + at * C, there.data(), again.data(), dots, rows);
    for (int r = 0; r < R; ++r) {
      const Acc* const sums = dots[r].sums(width);
      for (int64_t i = at + r * stride, p = 0; p < width; ++i, ++p) {
        const Acc gained = weight.backward(w[i], dweight[i] + sums[p]);
        dedge[i] = first ? gained : dedge[i] + gained;
      }
    }
  });
}

}  // namespace

template <class T>
void domain_transform_backward(Cpu, const T* dy, const T* x, const T* edge, const int64_t* valid_size, Size size,
                               int64_t N, int64_t C, const Filter& filter, acc_t<T>* weights, acc_t<T>* const* maps,
                               acc_t<T>* dmap, acc_t<T>* sums, T* dx, T* dedge) {
  using Acc = acc_t<T>;
  const int64_t positions = size.H * size.W;
  const int64_t elements = positions * C;
  const int64_t last = filter.num_iter - 1;
  Acc* const dweight = sums;
  Acc* const gathered = sums + positions;  // dedge
  for (int64_t n = 0; n < N; ++n) {
    const Extent extent(size, valid_size, n);
    const T* const image = x + n * elements;
    const T* const upstream = dy + n * elements;
    Acc* gradient = dmap;
    if constexpr (std::is_same_v<T, Acc>) gradient = dx + n * elements;
    make_weights(edge + n * positions, extent, filter, weights);
    copy_outside(upstream, extent, C, gradient);
    std::fill(gathered, gathered + positions, Acc(0));
    // The map before an iteration's columns, and after them; the last one's, which is read before the gradient is
    // written over it, stays where that goes.
    const auto before_columns = [&](int64_t i) { return i == last ? gradient : maps[2 * i]; };
    const auto after = [&](int64_t i) { return maps[2 * i + 1]; };
    for (int64_t i = 0; i <= last; ++i) {
      const Acc* const w = weights + i * positions;
      if (i == 0)
        filter_rows(image, w, extent, C, before_columns(i));
      else
        filter_rows<Acc>(after(i - 1), w, extent, C, before_columns(i));
      if (i < last) filter_columns(before_columns(i), w, extent, C, after(i));
    }
    for (int64_t i = last; i >= 0; --i) {
      const Acc* const w = weights + i * positions;
      const EdgeWeight<Acc> weight(filter, i);
      const auto columns = [&](const auto* from) {
        const int64_t wide = columns_at_once(2 * extent.valid.H * C, sizeof(Acc));
        at::parallel_for(0, extent.valid.W, wide, [&](int64_t begin, int64_t end) {
          columns_task(before_columns(i), w, from, extent, C, wide, begin, end, gradient, dweight);
        });
      };
      const auto rows = [&](const auto* from) {
        at::parallel_for(0, extent.valid.H, rows_per_task(extent.valid.W * C), [&](int64_t begin, int64_t end) {
          rows_task(from, w, weight, extent, C, begin, end, i == last, gradient, dweight, gathered);
        });
      };
      if (extent.valid.H == 0 || extent.valid.W == 0) continue;
      i == last ? columns(upstream) : columns(gradient);
      i == 0 ? rows(image) : rows(after(i - 1));
    }
    round_map(gathered, positions, dedge + n * positions);
    if constexpr (!std::is_same_v<T, Acc>) round_map(gradient, elements, dx + n * elements);
  }
}

#define INSTANTIATE(T)                                                                                         \
  template void domain_transform_backward<T>(Cpu, const T*, const T*, const T*, const int64_t*, Size, int64_t, \
                                             int64_t, const Filter&, acc_t<T>*, acc_t<T>* const*, acc_t<T>*,   \
                                             acc_t<T>*, T*, T*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

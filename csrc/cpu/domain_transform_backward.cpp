// The gradients of the domain transform on the CPU, image by image. The iterations run again up to the last one's
// rows; then, from the last iteration to the first, a task owns blocks of columns, then rows: it runs a line there and
// back once more, keeps what each step added (before the weight), and goes back over the gradient. Memory: a map for
// every iteration but 16-bit storage's own two, and three planes; per thread two blocks of columns or two rows. Bytes:
// in each iteration about eleven readings or writings of a map. Every element is summed in one order, whoever sums it.
#include <ATen/Parallel.h>

#include "recursion.h"
#include "rows.h"
#include "shared/domain_transform.h"

namespace repro {

namespace {

// Lines of one position's channels: their product, summed over the channels of every position.
template <class Acc>
class Dots {
 public:
  Dots(int64_t positions, int64_t C)
      : channels_(C), C_(C), partial_((positions + kLanes) * kLanes), sums_(positions + kLanes) {}

  // The sums over the C channels of the first `positions` positions; both lines have room for one vector too many.
  REPRO_INLINE const Acc* of(const Acc* a, const Acc* b, int64_t positions) {
    for (int64_t p = 0; p < positions; ++p) {
      Lanes<Acc> sum{};
      channels_.each(
          kLanes,
          [&](int64_t c, const auto& keep) REPRO_LAMBDA {
            Lanes<Acc> x, y;
            get(x, a + p * C_ + c);
            get(y, b + p * C_ + c);
            sum += keep(x * y, Lanes<Acc>{});
          },
          [](int64_t) REPRO_LAMBDA {});
      put(partial_.data() + p * kLanes, sum);
    }
    sum_lanes(partial_.data(), positions, sums_.data());
    return sums_.data();
  }

 private:
  Channels<Acc> channels_;
  int64_t C_;
  std::vector<Acc> partial_;
  std::vector<Acc> sums_;
};

// Columns [begin, end): from the gradient after the iteration's columns, `from`, that before them, and the weights'.
//   map      before the columns
//   dweight  (H, W), written in the valid part
template <class Acc, class From>
REPRO_CLONES void columns_task(const Acc* map, const Acc* w, const From* from, const Extent& extent, int64_t C,
                               int64_t begin, int64_t end, Acc* gradient, Acc* dweight) {
  const int64_t positions = end - begin;
  const int64_t elements = positions * C;
  const int64_t stride = extent.map.W * C;
  const int64_t height = extent.valid.H;
  const auto row = [&](auto* of, int64_t h) REPRO_LAMBDA { return of + h * stride + begin * C; };
  std::vector<Acc> spread_weights(elements + kLanes);
  std::vector<Acc> line(elements + kLanes);
  std::vector<Acc> down(height * elements + kLanes);  // what the steps down and up added, before the weight
  std::vector<Acc> up(height * elements + kLanes);
  Dots<Acc> dots(positions, C);
  Acc* const weights = spread_weights.data();
  Acc* const current = line.data();
  const auto link = [&](int64_t h) REPRO_LAMBDA { spread(w + h * extent.map.W + begin, positions, C, weights); };

  for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
    get(value, row(map, 0) + e);
    put(current + e, value);
    put(up.data() + e, value);
  });
  for (int64_t h = 1; h < height; ++h) {
    link(h);
    const Acc* const at = row(map, h);
    Acc* const added = down.data() + h * elements;
    Acc* const filtered = up.data() + h * elements;
    for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
      auto last = value;
      auto weight = value;
      get(value, at + e);
      get(last, current + e);
      get(weight, weights + e);
      last -= value;
      put(added + e, last);
      value = value + weight * last;
      put(current + e, value);
      put(filtered + e, value);
    });
  }
  for (int64_t h = height - 2; h >= 0; --h) {
    link(h + 1);
    Acc* const filtered = up.data() + h * elements;
    for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
      auto last = value;
      auto weight = value;
      get(value, filtered + e);
      get(last, current + e);
      get(weight, weights + e);
      last -= value;
      put(filtered + e, last);
      value = value + weight * last;
      put(current + e, value);
    });
  }

  // Caffe: a step's gradient goes on to the position that it came from, and what is left stays.
  const auto back = [&](const auto* next, Acc* to) REPRO_LAMBDA {
    for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
      auto other = value;
      auto weight = value;
      get(value, current + e);
      get(other, next + e);
      get(weight, weights + e);
      other = other + weight * value;
      value = (Acc(1) - weight) * value;
      put(current + e, other);
      put(to + e, value);
    });
  };
  for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
    get(value, row(from, 0) + e);
    put(current + e, value);
  });
  for (int64_t h = 0; h + 1 < height; ++h) {
    const Acc* const sums = dots.of(current, up.data() + h * elements, positions);
    for (int64_t p = 0; p < positions; ++p) dweight[(h + 1) * extent.map.W + begin + p] = sums[p];
    link(h + 1);
    back(row(from, h + 1), row(gradient, h));
  }
  for (int64_t h = height - 1; h >= 1; --h) {
    const Acc* const sums = dots.of(current, down.data() + h * elements, positions);
    for (int64_t p = 0; p < positions; ++p) dweight[h * extent.map.W + begin + p] += sums[p];
    link(h);
    back(row(gradient, h - 1), row(gradient, h));
  }
  for_elements<Acc>(elements, [&](int64_t e, auto value) REPRO_LAMBDA {
    get(value, current + e);
    put(row(gradient, 0) + e, value);
  });
  for (int64_t p = 0; p < positions; ++p) dweight[begin + p] = 0;
}

// The sums over a position's channels that a row gathers, block of channels by block of channels.
template <class Acc>
struct RowSums {
  std::vector<Acc> partial;  // kLanes of every position
  std::vector<Acc> sums;
  Index<Lanes<Acc>> tail;  // the lanes of a position's last vector that no other vector has
};

// As above for the rows [r, r + R) of the map. `x` is the map before them; gradient and dweight are updated in place.
template <class T, class W>
REPRO_INLINE void row_backward(const T* x, const acc_t<T>* w, const Extent& extent, int64_t C, acc_t<T>* gradient,
                               acc_t<T>* right, acc_t<T>* left, RowSums<acc_t<T>>& sums, W rows) {
  using Acc = acc_t<T>;
  constexpr int R = rows();
  const int64_t stride = extent.map.W;
  const int64_t width = extent.valid.W;
  Acc* const partial = sums.partial.data();
  const auto tail = sums.tail;
  std::fill(sums.partial.begin(), sums.partial.end(), Acc(0));
  for_blocks<Acc>(C, [&](auto lanes, const auto& offsets) REPRO_LAMBDA {
    using Value = decltype(lanes);
    constexpr int V = std::extent_v<std::remove_reference_t<decltype(offsets)>>;
    const bool last_block = offsets[V - 1] + static_cast<int64_t>(sizeof(Value) / sizeof(Acc)) == C;
    Value current[R][V];
    const auto load_all = [&](Value(&value)[V], const auto* from, int64_t e) REPRO_LAMBDA {
      for (int v = 0; v < V; ++v) get(value[v], from + e + offsets[v]);
    };
    const auto store_all = [&](Acc* to, int64_t e, const Value(&value)[V]) REPRO_LAMBDA {
      for (int v = 0; v < V; ++v) put(to + e + offsets[v], value[v]);
    };
    const auto add_dot = [&](const Value(&a)[V], const Value(&b)[V], int64_t r, int64_t p) REPRO_LAMBDA {
      Acc* const at = partial + (r * width + p) * kLanes;
      Value sum;
      get(sum, at);
      for (int v = 0; v < V; ++v) {
        Value product = a[v] * b[v];
        if constexpr (!std::is_same_v<Value, Acc>)
          if (v == V - 1 && last_block) product = tail ? product : Value{};
        sum += product;
      }
      put(at, sum);
    };
    // There and back again: `right` and `left` take what each step added, before the weight.
    for (int r = 0; r < R; ++r) {
      load_all(current[r], x, r * stride * C);
      store_all(left, r * stride * C, current[r]);
    }
    for (int64_t p = 1; p < width; ++p)
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        const Acc weight = w[r * stride + p];
        Value value[V];
        load_all(value, x, e);
        for (int v = 0; v < V; ++v) current[r][v] -= value[v];
        store_all(right, e, current[r]);
        for (int v = 0; v < V; ++v) current[r][v] = value[v] + weight * current[r][v];
        store_all(left, e, current[r]);
      }
    for (int64_t p = width - 2; p >= 0; --p)
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        const Acc weight = w[r * stride + p + 1];
        Value value[V];
        load_all(value, left, e);
        for (int v = 0; v < V; ++v) current[r][v] -= value[v];
        store_all(left, e, current[r]);
        for (int v = 0; v < V; ++v) current[r][v] = value[v] + weight * current[r][v];
      }
    // Caffe: a step's gradient goes on to the position that it came from, and what is left stays.
    const auto back = [&](const Acc* added, int64_t p, int64_t next, int64_t link) REPRO_LAMBDA {
      for (int r = 0; r < R; ++r) {
        const int64_t e = (r * stride + p) * C;
        const Acc weight = w[r * stride + link];
        Value step[V], other[V];
        load_all(step, added, e);
        add_dot(current[r], step, r, link);
        load_all(other, gradient, (r * stride + next) * C);
        for (int v = 0; v < V; ++v) {
          other[v] = other[v] + weight * current[r][v];
          current[r][v] = (Acc(1) - weight) * current[r][v];
        }
        store_all(gradient, e, current[r]);
        for (int v = 0; v < V; ++v) current[r][v] = other[v];
      }
    };
    for (int r = 0; r < R; ++r) load_all(current[r], gradient, r * stride * C);
    for (int64_t p = 0; p + 1 < width; ++p) back(left, p, p + 1, p + 1);
    for (int64_t p = width - 1; p >= 1; --p) back(right, p, p - 1, p);
    for (int r = 0; r < R; ++r) store_all(gradient, r * stride * C, current[r]);
  });
  if (C < kLanes)
    for (int64_t k = 0; k < R * width; ++k) sums.sums[k] = partial[k * kLanes];
  else
    sum_lanes(partial, R * width, sums.sums.data());
}

// Rows [begin, end): columns_task's, and what the edge map's gradient gains by this iteration.
template <class T>
REPRO_CLONES void rows_task(const T* x, const acc_t<T>* w, const EdgeWeight<acc_t<T>>& weight, const Extent& extent,
                            int64_t C, int64_t begin, int64_t end, bool first, acc_t<T>* gradient,
                            const acc_t<T>* dweight, acc_t<T>* dedge) {
  using Acc = acc_t<T>;
  const int64_t stride = extent.map.W;
  const int64_t width = extent.valid.W;
  std::vector<Acc> right(2 * stride * C);
  std::vector<Acc> left(2 * stride * C);
  RowSums<Acc> sums{std::vector<Acc>((2 * width + kLanes) * kLanes), std::vector<Acc>(2 * width + kLanes), {}};
  for (int i = 0; i < kLanes; ++i) sums.tail[i] = C % kLanes == 0 || i >= kLanes - C % kLanes ? -1 : 0;
  for_pairs(begin, end, [&](int64_t r, auto rows) REPRO_LAMBDA {
    const int64_t at = r * stride;
    row_backward(x + at * C, w + at, extent, C, gradient + at * C, right.data(), left.data(), sums, rows);
    for (int64_t k = 0; k < rows(); ++k)
      for (int64_t p = 0; p < width; ++p) {
        const int64_t i = at + k * stride + p;
        const Acc gained = weight.backward(w[i], dweight[i] + sums.sums[k * width + p]);
        dedge[i] = first ? gained : dedge[i] + gained;
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
    // The map before iteration i is maps[i - 1], that before its columns maps[last].
    const auto rows_of = [&](int64_t i, Acc* to) {
      if (i == 0)
        filter_rows(image, weights, extent, C, to);
      else
        filter_rows<Acc>(maps[i - 1], weights + i * positions, extent, C, to);
    };
    for (int64_t i = 0; i < last; ++i) {
      rows_of(i, maps[i]);
      filter_columns(weights + i * positions, extent, C, maps[i]);
    }
    for (int64_t i = last; i >= 0; --i) {
      const Acc* const w = weights + i * positions;
      const EdgeWeight<Acc> weight(filter, i);
      rows_of(i, maps[last]);
      const auto columns = [&](const auto* from) {
        const int64_t wide = columns_at_once(2 * extent.valid.H * C, sizeof(Acc));
        at::parallel_for(0, ceil_div(extent.valid.W, wide), 1, [&](int64_t begin, int64_t end) {
          for (int64_t b = begin; b < end; ++b)
            columns_task(maps[last], w, from, extent, C, b * wide, std::min((b + 1) * wide, extent.valid.W), gradient,
                         dweight);
        });
      };
      const auto rows = [&](const auto* from) {
        at::parallel_for(0, extent.valid.H, rows_per_task(extent.valid.W * C), [&](int64_t begin, int64_t end) {
          rows_task(from, w, weight, extent, C, begin, end, i == last, gradient, dweight, gathered);
        });
      };
      if (extent.valid.H == 0 || extent.valid.W == 0) continue;
      i == last ? columns(upstream) : columns(gradient);
      i == 0 ? rows(image) : rows(maps[i - 1]);
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

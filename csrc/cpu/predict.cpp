// Interp and argmax on the CPU. One task owns rows of labels. Every row of the map is resampled in columns once, as
// planes of one class each; then the output rows between two such rows are done together, 32 pixels at a time, class by
// class in registers. Bytes: the map once, the labels once; the enlarged scores exist nowhere.
#include <ATen/Parallel.h>

#include <limits>

#include "rows.h"

namespace repro {

namespace {

constexpr int kBlock = 32;  // pixels whose best score and label are kept in registers

// The columns of the crop: which pixels each column of the map begins, and their weights.
template <class Acc>
struct Columns {
  std::vector<int64_t> begin;  // pixels begin[j] .. begin[j + 1] have column j on their left
  std::vector<Acc> w_lo;
  std::vector<Acc> w_hi;
  int64_t padded;  // pixels in a plane's row: whole blocks, and a vector more
  bool copied;

  Columns(const Axis& axis, int64_t width)
      : begin(axis.n_in + 1), padded((width + kBlock - 1) / kBlock * kBlock + kLanes), copied(axis.n_in == axis.n_out) {
    for (int64_t j = 0; j <= axis.n_in; ++j) begin[j] = std::min(axis.first_output(j), width);
    w_lo.resize(padded);
    w_hi.resize(padded);
    for (int64_t p = 0; p < width; ++p) {
      const Tap<Acc> tap = axis.tap<Acc>(p);
      w_lo[p] = tap.w_lo;
      w_hi[p] = tap.w_hi;
    }
  }
};

// One row of the map, resampled in columns, as C planes.
template <class T>
REPRO_INLINE void fill_planes(const T* from, int64_t W, int64_t C, const Columns<acc_t<T>>& columns, acc_t<T>* planes) {
  using Acc = acc_t<T>;
  for (int64_t c = 0; c < C; ++c) {
    Acc* const plane = planes + c * columns.padded;
    if (columns.copied) {
      for (int64_t p = 0; p < columns.begin[W]; ++p) plane[p] = load(from[p * C + c]);
      continue;
    }
    for (int64_t j = 0; j < W; ++j) {
      const Acc left = load(from[j * C + c]);
      const Acc right = load(from[std::min(j + 1, W - 1) * C + c]);
      for (int64_t p = columns.begin[j]; p < columns.begin[j + 1]; p += kLanes) {  // may run over, written after
        Lanes<Acc> lo, hi;
        get(lo, columns.w_lo.data() + p);
        get(hi, columns.w_hi.data() + p);
        lo = lo * left + hi * right;
        put(plane + p, lo);
      }
    }
  }
}

// Whether a row's scores of the first class hold NaN or infinity.
template <class Acc>
REPRO_INLINE bool holds_no_number(const Acc* plane, int64_t padded) {
  Lanes<Acc> sum{};
  for (int64_t p = 0; p < padded; p += kLanes) {
    Lanes<Acc> value;
    get(value, plane + p);
    sum += value - value;
  }
  bool found = false;
  for (int i = 0; i < kLanes; ++i) found |= sum[i] != 0;
  return found;
}

template <class T, class L>
REPRO_CLONES void predict_rows(const T* x, const Axis& rows, const Columns<acc_t<T>>& columns, int64_t W, int64_t C,
                               Size crop, int64_t begin, int64_t end, L* labels, acc_t<T>* probability) {
  using Acc = acc_t<T>;
  constexpr int kVectors = kBlock / kLanes;
  const Lanes<Acc> lowest = Lanes<Acc>{} - std::numeric_limits<Acc>::infinity();
  const bool copied = rows.n_in == rows.n_out;
  const std::vector<Acc> zeros(copied ? C * columns.padded : 0);
  std::vector<Acc> planes[2];
  for (auto& plane : planes) plane.resize(C * columns.padded);
  int64_t held[2] = {-1, -1};
  bool odd[2] = {false, false};  // as holds_no_number says
  const auto planes_of = [&](int64_t r) REPRO_LAMBDA {
    if (held[r & 1] != r) {
      held[r & 1] = r;
      fill_planes(x + r * W * C, W, C, columns, planes[r & 1].data());
      odd[r & 1] = holds_no_number(planes[r & 1].data(), columns.padded);
    }
    return planes[r & 1].data();
  };
  for (int64_t r = begin; r < end;) {
    const int64_t n = r / crop.H;
    const int64_t lo = rows.lo(r % crop.H);
    const int64_t together =
        std::min({end, (n + 1) * crop.H, n * crop.H + std::max(rows.first_output(lo + 1), r % crop.H + 1)});
    const Acc* const top = planes_of(n * rows.n_in + lo);
    // On a copied axis the row of weight 0 is taken to be 0.
    const Acc* const bottom = copied ? zeros.data() : planes_of(n * rows.n_in + std::min(lo + 1, rows.n_in - 1));
    const bool unordered = odd[0] | odd[1];
    for (int64_t x0 = 0; x0 < crop.W; x0 += kBlock)
      for (int64_t row = r; row < together; ++row) {
        const Tap<Acc> ty = rows.tap<Acc>(row - n * crop.H);
        const auto score = [&](int64_t c, int v, Lanes<Acc>& to) REPRO_LAMBDA {
          Lanes<Acc> below;
          get(to, top + c * columns.padded + x0 + v * kLanes);
          get(below, bottom + c * columns.padded + x0 + v * kLanes);
          to = ty.w_lo * to + ty.w_hi * below;
        };
        Lanes<Acc> best[kVectors];
        Index<Lanes<Acc>> label[kVectors] = {};
        for (int v = 0; v < kVectors; ++v) score(0, v, best[v]);
        if (unordered)  // NaN is no best score: nothing would be greater
          for (int v = 0; v < kVectors; ++v) best[v] = best[v] > lowest ? best[v] : lowest;
        for (int64_t c = 1; c < C; ++c)
          for (int v = 0; v < kVectors; ++v) {
            Lanes<Acc> value;
            score(c, v, value);
            const auto better = value > best[v];
            best[v] = better ? value : best[v];
            label[v] = better ? Index<Lanes<Acc>>{} + static_cast<int>(c) : label[v];
          }
        const int64_t pixels = std::min<int64_t>(kBlock, crop.W - x0);
        for (int64_t p = 0; p < pixels; ++p)
          labels[row * crop.W + x0 + p] = static_cast<L>(label[p / kLanes][p % kLanes]);
        if (probability == nullptr) continue;
        Lanes<Acc> sum[kVectors] = {};
        for (int64_t c = 0; c < C; ++c)
          for (int v = 0; v < kVectors; ++v) {
            Lanes<Acc> value;
            score(c, v, value);
            value -= best[v];
            exponentiate(value);
            sum[v] += value;
          }
        for (int64_t p = 0; p < pixels; ++p) probability[row * crop.W + x0 + p] = Acc(1) / sum[p / kLanes][p % kLanes];
      }
    r = together;
  }
}

}  // namespace

template <class T, class L>
void predict(Cpu, const T* x, Size in, int64_t N, int64_t C, Size out, Size crop, L* labels, acc_t<T>* probability) {
  const Axis rows(in.H, out.H);
  const Columns<acc_t<T>> columns(Axis(in.W, out.W), crop.W);
  at::parallel_for(0, N * crop.H, rows_per_task(crop.W * C), [&](int64_t begin, int64_t end) {
    predict_rows(x, rows, columns, in.W, C, crop, begin, end, labels, probability);
  });
}

#define INSTANTIATE(T)                                                                                       \
  template void predict<T, uint8_t>(Cpu, const T*, Size, int64_t, int64_t, Size, Size, uint8_t*, acc_t<T>*); \
  template void predict<T, int16_t>(Cpu, const T*, Size, int64_t, int64_t, Size, Size, int16_t*, acc_t<T>*);
INSTANTIATE(float)
INSTANTIATE(double)
INSTANTIATE(bfloat16)
INSTANTIATE(float16)

}  // namespace repro

// Building the lattice: every task finds the simplices of a run of features, eight at once, and numbers their vertices
// for itself; the tasks' vertices are then joined in order, so that all are numbered as one task would have.
#include "permutohedral.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "shared/permutohedral.h"

namespace repro {

namespace {

constexpr int64_t kFewest = 4096;  // features or vertices that make a task worth its thread

// Numbers keys from 0 in the order in which they first come.
class KeyNumbers {
 public:
  KeyNumbers() : slots_(1024, Slot{kNoVertex, 0}) {}

  int32_t size() const { return static_cast<int32_t>(keys_.size()); }
  LatticeKey key(int32_t number) const { return keys_[number]; }

  // The key's number, or -1.
  int32_t find(LatticeKey key) const {
    const Slot& slot = slots_[slot_of(key)];
    return slot.key == key ? slot.number : -1;
  }

  int32_t add(LatticeKey key) {
    Slot& slot = slots_[slot_of(key)];
    if (slot.key == key) return slot.number;
    slot = {key, size()};
    keys_.push_back(key);
    if (2 * keys_.size() > slots_.size()) grow();
    return size() - 1;
  }

 private:
  struct Slot {
    LatticeKey key;
    int32_t number;
  };

  uint64_t slot_of(LatticeKey key) const {
    const uint64_t mask = slots_.size() - 1;
    uint64_t at = lattice_hash(key) & mask;
    while (slots_[at].key != key && slots_[at].key != kNoVertex) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    slots_.assign(2 * slots_.size(), Slot{kNoVertex, 0});
    for (int32_t number = 0; number < size(); ++number) slots_[slot_of(keys_[number])] = {keys_[number], number};
  }

  std::vector<Slot> slots_;  // a power of two of them, at most half of them taken
  std::vector<LatticeKey> keys_;
};

// The keys and barycentric weights of eight features at once.
template <int D>
struct Simplices {
  LatticeKey key[kLanes][D + 1];
  float weight[kLanes][D + 1];
};

template <int D>
REPRO_INLINE void find_simplices(const float* features, int64_t N, int64_t p, const LatticeScale<D>& scale,
                                 Simplices<D>& found) {
  using I = Index<Lanes<float>>;
  Lanes<float> feature[D], weight[D + 1];
  I base[D + 1], rank[D + 1];
  for (int i = 0; i < D; ++i) get(feature[i], features + i * N + p);
  find_simplex<D, Lanes<float>, I>(feature, scale, base, rank, weight);
  for (int lane = 0; lane < kLanes; ++lane) {
    int32_t own_base[D + 1], own_rank[D + 1];
    for (int i = 0; i <= D; ++i) {
      own_base[i] = base[i][lane];
      own_rank[i] = rank[i][lane];
      found.weight[lane][i] = weight[i][lane];
    }
    simplex_keys<D>(own_base, own_rank, found.key[lane]);
  }
}

// What one task found of its run of features.
struct Run {
  int64_t first;
  int64_t last;
  KeyNumbers numbers;
  std::vector<int32_t> shares;  // of every number
  std::vector<int32_t> vertex;  // of every number, in the whole lattice
  std::vector<int64_t> next;  // of every owner: first how many shares the run has for it, then where the next one goes
};

// Writes the corners of a run with the run's own numbers.
template <int D, class Corner>
REPRO_CLONES void number_run(const float* features, int64_t N, Run& run, Corner* corners) {
  const LatticeScale<D> scale;
  Simplices<D> found;
  LatticeKey last_key[D + 1];
  int32_t last_number[D + 1];
  for (auto& key : last_key) key = kNoVertex;
  for (int64_t p = run.first; p < run.last; p += kLanes) {
    find_simplices<D>(features, N, p, scale, found);
    const int64_t features_left = std::min<int64_t>(kLanes, run.last - p);
    for (int64_t lane = 0; lane < features_left; ++lane)
      for (int r = 0; r <= D; ++r) {
        if (found.key[lane][r] != last_key[r]) {  // neighbouring pixels often share their simplex
          last_key[r] = found.key[lane][r];
          last_number[r] = run.numbers.add(last_key[r]);
          run.shares.resize(run.numbers.size());
        }
        ++run.shares[last_number[r]];
        corners[(p + lane) * (D + 1) + r] = {last_number[r], found.weight[lane][r]};
      }
  }
}

template <int D, class V, class Share>
REPRO_CLONES void splat(const Share* begin, const Share* end, const V* x, int64_t count, V* values) {
  for_vectors(count, [&](int64_t k, auto width) REPRO_LAMBDA {
    for (const Share* share = begin; share < end; ++share) {
      const V* const from = x + share->feature * count + k;
      V* const to = values + share->vertex * count + k;
      V sum[width.value];
      for (int i = 0; i < width.value; ++i) sum[i] = to[i] + share->weight * from[i];
      for (int i = 0; i < width.value; ++i) to[i] = sum[i];
    }
  });
}

template <class V>
REPRO_CLONES void blur(const int32_t* neighbours, const V* values, int64_t count, int64_t first, int64_t last,
                       V* blurred) {
  for (int64_t v = first; v < last; ++v) {
    const V* const lower = values + neighbours[2 * v] * count;
    const V* const upper = values + neighbours[2 * v + 1] * count;
    for_vectors(count, [&](int64_t k, auto width) REPRO_LAMBDA {
      for (int i = 0; i < width.value; ++i)
        blurred[v * count + k + i] = values[v * count + k + i] + 0.5f * (lower[k + i] + upper[k + i]);
    });
  }
}

}  // namespace

template <int D>
Permutohedral<D>::Permutohedral(const float* features, int64_t N) : corners_(N * kCorners), shares_(N * kCorners) {
  const int64_t tasks = std::clamp<int64_t>(N / kFewest, 1, at::get_num_threads());
  std::vector<Run> runs(tasks);
  for (int64_t t = 0; t < tasks; ++t) {
    runs[t].first = N * t / tasks;
    runs[t].last = N * (t + 1) / tasks;
  }
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) number_run<D>(features, N, runs[t], corners_.get());
  });

  KeyNumbers numbers = std::move(runs[0].numbers);
  runs[0].numbers = {};
  std::vector<int32_t> shares = runs[0].shares;
  for (Run& run : runs) {
    const bool is_first = &run == runs.data();
    run.vertex.resize(run.shares.size());
    for (size_t n = 0; n < run.vertex.size(); ++n) {
      run.vertex[n] = is_first ? static_cast<int32_t>(n) : numbers.add(run.numbers.key(static_cast<int32_t>(n)));
      shares.resize(numbers.size());
      if (!is_first) shares[run.vertex[n]] += run.shares[n];
    }
  }
  if (N % 4 != 0) {  // Caffe fills up its last four features with zeros and adds their vertices, through which blurs go
    const std::vector<float> zeros(D * kLanes);
    Simplices<D> found;
    find_simplices<D>(zeros.data(), kLanes, 0, LatticeScale<D>(), found);
    for (const LatticeKey key : found.key[0]) numbers.add(key);
    shares.resize(numbers.size());
  }

  // Owners, as many as tasks, with about the same number of shares each.
  vertices_ = numbers.size();
  std::vector<int32_t> owner_of(vertices_ + 1);
  int64_t shared = 0;
  for (int64_t v = 1; v <= vertices_; ++v) {
    owner_of[v] = static_cast<int32_t>(std::min(shared * tasks / (N * kCorners), tasks - 1));
    shared += shares[v - 1];
  }
  for (Run& run : runs) {
    run.next.resize(tasks);
    for (size_t n = 0; n < run.vertex.size(); ++n) run.next[owner_of[++run.vertex[n]]] += run.shares[n];
  }
  int64_t first_vertex = 1;
  int64_t first_share = 0;
  for (int64_t o = 0; o < tasks; ++o) {
    owners_.push_back({first_vertex, first_share});
    while (first_vertex <= vertices_ && owner_of[first_vertex] == o) ++first_vertex;
    for (Run& run : runs) first_share += std::exchange(run.next[o], first_share);
  }
  owners_.push_back({first_vertex, first_share});

  const auto alpha = static_cast<float>(1.0f / (1.0f + std::pow(2.0f, -static_cast<float>(D))));
  at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t c = runs[t].first * kCorners; c < runs[t].last * kCorners; ++c) {
        Corner& corner = corners_[c];
        const int32_t vertex = runs[t].vertex[corner.vertex];
        shares_[runs[t].next[owner_of[vertex]]++] = {static_cast<int32_t>(c / kCorners), vertex, corner.weight};
        corner = {vertex, corner.weight * alpha};
      }
  });

  neighbours_ = Buffer<int32_t>(kCorners * (vertices_ + 1) * 2);
  at::parallel_for(0, kCorners * (vertices_ + 1), kFewest, [&](int64_t begin, int64_t end) {
    std::fill(neighbours_.get() + 2 * begin, neighbours_.get() + 2 * end, 0);
  });
  at::parallel_for(0, kCorners * vertices_, kFewest, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const auto axis = static_cast<int>(n / vertices_);
      const auto v = static_cast<int32_t>(n % vertices_);
      const int32_t lower = numbers.find(lower_neighbour<D>(numbers.key(v), axis));
      if (lower < 0) continue;
      int32_t* const pairs = neighbours_.get() + axis * (vertices_ + 1) * 2;
      pairs[2 * (v + 1)] = lower + 1;
      pairs[2 * (lower + 1) + 1] = v + 1;
    }
  });
}

template <int D>
template <class V>
const V* Permutohedral<D>::filter(const V* x, int64_t count, V* values, V* other) const {
  std::fill(values, values + count, V{});
  std::fill(other, other + count, V{});
  const int64_t grain = std::max<int64_t>(1, kFewest / count);
  at::parallel_for(0, static_cast<int64_t>(owners_.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    std::fill(values + owners_[begin].first_vertex * count, values + owners_[end].first_vertex * count, V{});
    splat<D>(shares_.get() + owners_[begin].first_share, shares_.get() + owners_[end].first_share, x, count, values);
  });
  for (int axis = 0; axis <= D; ++axis) {
    const int32_t* const neighbours = neighbours_.get() + axis * (vertices_ + 1) * 2;
    at::parallel_for(1, vertices_ + 1, grain,
                     [&](int64_t first, int64_t last) { blur(neighbours, values, count, first, last, other); });
    std::swap(values, other);
  }
  return values;
}

#define INSTANTIATE(D)                                                                                              \
  template class Permutohedral<D>;                                                                                  \
  template const float* Permutohedral<D>::filter(const float*, int64_t, float*, float*) const;                      \
  template const Lanes<float>* Permutohedral<D>::filter(const Lanes<float>*, int64_t, Lanes<float>*, Lanes<float>*) \
      const;
INSTANTIATE(2)
INSTANTIATE(5)

}  // namespace repro

// The permutohedral lattice of an image's pixels on CUDA, built in memory of the caller's and then filtered with. A hash
// table of the vertices is filled with atomic compare-and-swap of integer keys. The vertices' numbers depend on which
// thread comes first, but no result does: each vertex's pixels are sorted before anything is summed, and every sum has
// one owner and the CPU kernel's (Caffe's) order. No atomics on floats.
#pragma once

#include <algorithm>

#include "cuda/launch.cuh"
#include "cuda/tile.cuh"
#include "shared/permutohedral.h"

namespace repro {

struct LatticeCorner {
  int32_t vertex;
  float weight;
};
struct LatticeShare {
  int32_t pixel;
  float weight;
};

// The arrays of a lattice. Vertices count from 1; row 0 of `values` is 0 and stands for a vertex that no pixel has.
template <int D>
struct Lattice {
  int64_t pixels;
  int64_t most;  // vertices that there may be: those of every pixel, and of Caffe's filling
  uint64_t slots;
  float xy_std;
  float rgb_std;

  LatticeKey* table;       // slots
  int32_t* numbers;        // slots: of the vertex in a slot
  LatticeKey* keys;        // most + 1: of a vertex
  LatticeCorner* corners;  // pixels * (D + 1)
  LatticeShare* shares;    // pixels * (D + 1): of vertex v from begin[v] on, counts[v] of them
  int32_t* begin;          // most + 1
  int32_t* counts;         // most + 1; [0] counts the vertices
  int32_t* filled;         // most + 1; [0] counts the shares that have a place
  int32_t* neighbours;     // D + 1 times most + 1 pairs (lower, upper)
  float* share;            // pixels: the term's weight divided by the sum of the pixel's row
  float* values;           // most + 1 rows
  float* other;            // as many: scratch
};

// Hands out pieces of the caller's memory, of which only the size is asked for where it is null.
class Carver {
 public:
  explicit Carver(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  void take(T*& array, int64_t count) {
    array = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

template <int D>
Lattice<D> carve_lattice(Carver& from, int64_t pixels, int64_t C, float xy_std, float rgb_std) {
  Lattice<D> lattice{};
  lattice.pixels = pixels;
  lattice.most = (pixels + 1) * (D + 1);
  lattice.slots = 1;
  while (lattice.slots < 2 * static_cast<uint64_t>(lattice.most)) lattice.slots *= 2;
  lattice.xy_std = xy_std;
  lattice.rgb_std = rgb_std;
  const auto slots = static_cast<int64_t>(lattice.slots);
  from.take(lattice.table, slots);
  from.take(lattice.numbers, slots);
  from.take(lattice.keys, lattice.most + 1);
  from.take(lattice.corners, pixels * (D + 1));
  from.take(lattice.shares, pixels * (D + 1));
  from.take(lattice.begin, lattice.most + 1);
  from.take(lattice.counts, lattice.most + 1);
  from.take(lattice.filled, lattice.most + 1);
  from.take(lattice.neighbours, (lattice.most + 1) * (D + 1) * 2);
  from.take(lattice.share, pixels);
  from.take(lattice.values, (lattice.most + 1) * C);
  from.take(lattice.other, (lattice.most + 1) * C);
  return lattice;
}

// The elements of a grid's thread: its own, then every one as many further on as the grid has threads.
__device__ int64_t first_element() { return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; }
__device__ int64_t element_step() { return static_cast<int64_t>(gridDim.x) * kThreads; }

template <class... Parameters, class... Arguments>
void launch_over(Cuda device, int64_t elements, void (*kernel)(Parameters...), const Arguments&... arguments) {
  launch(device, std::min(ceil_div(elements, kThreads), kMostBlocks), kThreads, kernel, arguments...);
}

template <int D>
__global__ void __launch_bounds__(kThreads) clear_kernel(Lattice<D> lattice) {
  const int64_t step = element_step();
  for (int64_t i = first_element(); i < static_cast<int64_t>(lattice.slots); i += step) lattice.table[i] = kNoVertex;
  for (int64_t i = first_element(); i <= lattice.most; i += step) lattice.counts[i] = lattice.filled[i] = 0;
  for (int64_t i = first_element(); i < (lattice.most + 1) * (D + 1) * 2; i += step) lattice.neighbours[i] = 0;
}

// The slot that holds the key, or would.
template <int D>
__device__ uint64_t add_vertex(const Lattice<D>& lattice, LatticeKey key) {
  uint64_t slot = lattice_hash(key) & (lattice.slots - 1);
  for (;; slot = (slot + 1) & (lattice.slots - 1)) {
    const auto before = static_cast<LatticeKey>(atomicCAS(reinterpret_cast<unsigned long long*>(lattice.table) + slot,
                                                          static_cast<unsigned long long>(kNoVertex),
                                                          static_cast<unsigned long long>(key)));
    if (before == key) return slot;
    if (before != kNoVertex) continue;
    const int32_t number = atomicAdd(lattice.counts, 1) + 1;
    lattice.numbers[slot] = number;
    lattice.keys[number] = key;
    return slot;
  }
}

// A thread owns a pixel: finds its simplex and adds the vertices. The corners hold slots until count_shares_kernel.
// Caffe fills up its last four pixels with features of 0 and adds their vertices, through which blurs go.
template <int D, class I>
__global__ void __launch_bounds__(kThreads)
    add_vertices_kernel(Lattice<D> lattice, const I* image, int64_t W, LatticeScale<D> scale) {
  const int64_t features = lattice.pixels + (lattice.pixels % 4 != 0);
  const int64_t step = element_step();
  for (int64_t p = first_element(); p < features; p += step) {
    float feature[D] = {};
    if (p < lattice.pixels) {
      feature[0] = static_cast<float>(p % W) / lattice.xy_std;
      feature[1] = static_cast<float>(p / W) / lattice.xy_std;
      for (int i = 2; i < D; ++i) feature[i] = static_cast<float>(image[p * 3 + i - 2]) / lattice.rgb_std;
    }
    int32_t base[D + 1];
    int32_t rank[D + 1];
    float weight[D + 1];
    LatticeKey key[D + 1];
    find_simplex<D, float, int32_t>(feature, scale, base, rank, weight);
    simplex_keys<D>(base, rank, key);
    for (int r = 0; r <= D; ++r) {
      const uint64_t slot = add_vertex(lattice, key[r]);
      if (p < lattice.pixels) lattice.corners[p * (D + 1) + r] = {static_cast<int32_t>(slot), weight[r]};
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads) count_shares_kernel(Lattice<D> lattice) {
  const int64_t step = element_step();
  for (int64_t i = first_element(); i < lattice.pixels * (D + 1); i += step) {
    const int32_t vertex = lattice.numbers[lattice.corners[i].vertex];
    lattice.corners[i].vertex = vertex;
    atomicAdd(lattice.counts + vertex, 1);
  }
}

// A thread owns a vertex: takes the place of its shares, and finds its lower neighbours, whose upper one it is.
template <int D>
__global__ void __launch_bounds__(kThreads) connect_kernel(Lattice<D> lattice) {
  const int64_t step = element_step();
  for (int64_t v = first_element() + 1; v <= lattice.counts[0]; v += step) {
    lattice.begin[v] = atomicAdd(lattice.filled, lattice.counts[v]);
    for (int axis = 0; axis <= D; ++axis) {
      const LatticeKey key = lower_neighbour<D>(lattice.keys[v], axis);
      uint64_t slot = lattice_hash(key) & (lattice.slots - 1);
      while (lattice.table[slot] != key && lattice.table[slot] != kNoVertex) slot = (slot + 1) & (lattice.slots - 1);
      if (lattice.table[slot] != key) continue;
      const int64_t pairs = axis * (lattice.most + 1) * 2;
      lattice.neighbours[pairs + 2 * v] = lattice.numbers[slot];
      lattice.neighbours[pairs + 2 * lattice.numbers[slot] + 1] = static_cast<int32_t>(v);
    }
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads) place_shares_kernel(Lattice<D> lattice, float alpha) {
  const int64_t step = element_step();
  for (int64_t i = first_element(); i < lattice.pixels * (D + 1); i += step) {
    const LatticeCorner corner = lattice.corners[i];
    const int32_t place = lattice.begin[corner.vertex] + atomicAdd(lattice.filled + corner.vertex, 1);
    lattice.shares[place] = {static_cast<int32_t>(i / (D + 1)), corner.weight};
    lattice.corners[i].weight = corner.weight * alpha;
  }
}

// A block owns a vertex and sorts its shares by pixel: a bitonic network whose comparators all point upwards, so that it
// sorts any number as if greater ones followed.
template <int D>
__global__ void __launch_bounds__(kThreads) sort_shares_kernel(Lattice<D> lattice) {
  for (int64_t v = blockIdx.x + 1; v <= lattice.counts[0]; v += gridDim.x) {
    LatticeShare* const shares = lattice.shares + lattice.begin[v];
    const int32_t count = lattice.counts[v];
    for (int32_t run = 2; run / 2 < count; run *= 2)
      for (int32_t distance = run / 2; distance > 0; distance /= 2) {
        const int32_t partners = distance == run / 2 ? run - 1 : distance;  // the first step mirrors a run's halves
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count; i += kThreads) {
          const int32_t j = i ^ partners;
          if (j <= i || j >= count) continue;
          const LatticeShare low = shares[i];
          const LatticeShare high = shares[j];
          if (low.pixel < high.pixel) continue;
          shares[i] = high;
          shares[j] = low;
        }
        __syncthreads();
      }
  }
}

// A thread owns a channel of a vertex. `x` null stands for ones.
template <int D>
__global__ void __launch_bounds__(kThreads) splat_kernel(Lattice<D> lattice, const float* x, int64_t C) {
  const int64_t step = element_step();
  for (int64_t i = first_element(); i < (lattice.counts[0] + 1) * C; i += step) {
    const int64_t v = i / C;
    const int32_t begin = v == 0 ? 0 : lattice.begin[v];
    const int32_t end = v == 0 ? 0 : begin + lattice.counts[v];
    float sum = 0;
    for (int32_t s = begin; s < end; ++s) {
      const LatticeShare share = lattice.shares[s];
      sum += share.weight * (x == nullptr ? 1.0f : x[share.pixel * C + i % C]);
    }
    lattice.values[i] = sum;
  }
}

// A thread owns a channel of a vertex.
template <int D>
__global__ void __launch_bounds__(kThreads)
    blur_kernel(Lattice<D> lattice, int axis, const float* values, float* blurred, int64_t C) {
  const int32_t* const pairs = lattice.neighbours + axis * (lattice.most + 1) * 2;
  const int64_t step = element_step();
  for (int64_t i = first_element(); i < (lattice.counts[0] + 1) * C; i += step) {
    const int64_t v = i / C;
    const int64_t c = i % C;
    blurred[i] = values[i] + 0.5f * (values[pairs[2 * v] * C + c] + values[pairs[2 * v + 1] * C + c]);
  }
}

// A thread owns a pixel.
template <int D>
__global__ void __launch_bounds__(kThreads) share_kernel(Lattice<D> lattice, const float* sums, float weight) {
  const int64_t step = element_step();
  for (int64_t p = first_element(); p < lattice.pixels; p += step) {
    float sum = 0;
    for (int r = 0; r <= D; ++r) {
      const LatticeCorner corner = lattice.corners[p * (D + 1) + r];
      sum += corner.weight * sums[corner.vertex];
    }
    lattice.share[p] = weight * (1.0f / (sum + 1e-20f));
  }
}

// Splats rows of C values of every pixel and blurs them. Returns which of lattice.values and lattice.other holds them.
template <int D>
const float* filter(Cuda device, const Lattice<D>& lattice, const float* x, int64_t C) {
  launch_over(device, lattice.most * C, splat_kernel<D>, lattice, x, C);
  float* values = lattice.values;
  float* other = lattice.other;
  for (int axis = 0; axis <= D; ++axis) {
    launch_over(device, lattice.most * C, blur_kernel<D>, lattice, axis, static_cast<const float*>(values), other, C);
    std::swap(values, other);
  }
  return values;
}

template <int D, class I>
void build(Cuda device, const Lattice<D>& lattice, const I* image, int64_t W, float weight) {
  const int64_t corners = lattice.pixels * (D + 1);
  const auto alpha = static_cast<float>(1.0f / (1.0f + std::pow(2.0f, -static_cast<float>(D))));
  launch_over(device, static_cast<int64_t>(lattice.slots), clear_kernel<D>, lattice);
  launch_over(device, lattice.pixels + 1, add_vertices_kernel<D, I>, lattice, image, W, LatticeScale<D>());
  launch_over(device, corners, count_shares_kernel<D>, lattice);
  launch_over(device, lattice.most, connect_kernel<D>, lattice);
  launch_over(device, corners, place_shares_kernel<D>, lattice, alpha);
  launch(device, std::min(lattice.most, kMostBlocks), kThreads, sort_shares_kernel<D>, lattice);
  const float* const sums = filter(device, lattice, nullptr, 1);
  launch_over(device, lattice.pixels, share_kernel<D>, lattice, sums, weight);
}

}  // namespace repro

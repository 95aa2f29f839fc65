// Launching: one thread per element of the result, in a grid-stride loop with 64-bit indices.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "merge_rules.h"

namespace repro {

constexpr int kThreads = 256;

// Runs `element(i)` for every i in [0, count).
template <class Element>
__global__ void for_each_kernel(int64_t count, Element element) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) element(i);
}

template <class Element>
void for_each(Cuda device, int64_t count, const Element& element) {
  if (count == 0) return;
  const int64_t blocks = std::min<int64_t>((count + kThreads - 1) / kThreads, 1 << 20);
  for_each_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(device.stream)>>>(count, element);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string("repro CUDA kernel: launch failed; got ") + cudaGetErrorString(error));
}

// The sum over the output positions that read input pixel (i, j): visit(o * W_out + p) * row weight * column weight.
template <class Acc, class Visit>
__device__ Acc gather(const Axis& rows, const Axis& columns, int64_t i, int64_t j, const Visit& visit) {
  Acc sum = 0;
  const int64_t o_end = rows.end(i);
  const int64_t p_begin = columns.begin(j);
  const int64_t p_end = columns.end(j);
  for (int64_t o = rows.begin(i); o < o_end; ++o) {
    const Acc w_row = rows.weight<Acc>(o, i);
    for (int64_t p = p_begin; p < p_end; ++p) sum += w_row * columns.weight<Acc>(p, j) * visit(o * columns.n_out + p);
  }
  return sum;
}

}  // namespace repro

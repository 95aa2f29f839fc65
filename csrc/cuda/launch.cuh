// Launching: one thread per element of the result, in a grid-stride loop with 64-bit indices.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops.h"

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
  for_each_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(device.stream)>>>(count,
                                                                                                            element);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("repro CUDA kernel: launch failed; got ") + cudaGetErrorString(error));
}

}  // namespace repro

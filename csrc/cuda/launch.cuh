// Launching: asynchronous on the given stream, without allocation or synchronisation, so that CUDA graphs can capture
// it.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace repro {

// Blocks at most of a kernel whose threads go on with later elements, each with those that many further on as the grid
// has threads.
constexpr int64_t kMostBlocks = 4096;

// Blocks from which on a kernel keeps the device busy: 8 of 128 threads for each of 128 multiprocessors.
constexpr int64_t kEnoughBlocks = 1024;

// Runs `kernel(arguments...)` in `blocks` blocks of `threads` threads; nothing where blocks is 0.
template <class... Parameters, class... Arguments>
void launch(Cuda device, int64_t blocks, int threads, void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > INT_MAX)
    throw std::runtime_error("repro CUDA kernel: a grid must have at most 2147483647 blocks; got " +
                             std::to_string(blocks) + "; split the batch");
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0,
           static_cast<cudaStream_t>(device.stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("repro CUDA kernel: must launch; got ") + cudaGetErrorString(error) +
                             "; run with CUDA_LAUNCH_BLOCKING=1 to find an earlier failure");
}

}  // namespace repro

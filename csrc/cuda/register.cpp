// The operators' CUDA implementations: the only CUDA source that needs torch's headers.
#include "torch/register.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace repro {
namespace {

// The tensors' device made current, and its current stream.
struct OnCuda {
  static constexpr bool kReadable = false;
  c10::cuda::CUDAGuard guard;
  Cuda device;

  explicit OnCuda(at::Device of) : guard(of), device{c10::cuda::getCurrentCUDAStream(of.index()).stream()} {}
};

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, CUDA, m) { repro::register_ops<repro::OnCuda>(m); }

// The operators' CUDA implementations: the only CUDA source that needs torch's headers.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../wrappers.h"

namespace repro {
namespace {

// The tensors' device made current, and its current stream.
struct OnDevice {
  c10::cuda::CUDAGuard guard;
  Cuda device;

  explicit OnDevice(const Tensor& tensor)
      : guard(tensor.device()), device{c10::cuda::getCurrentCUDAStream(tensor.device().index()).stream()} {}
};

Tensor interp_cuda(const Tensor& x, at::IntArrayRef size) { return interp_op(OnDevice(x).device, x, size); }

Tensor interp_backward_cuda(const Tensor& dy, at::IntArrayRef size) {
  return interp_backward_op(OnDevice(dy).device, dy, size);
}

std::tuple<Tensor, Tensor> merge_scores_cuda(at::TensorList scores, const std::optional<Tensor>& logits,
                                             c10::string_view mode, at::IntArrayRef size) {
  return merge_scores_op(OnDevice(scores[0]).device, scores, logits, mode, size);
}

std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_cuda(const Tensor& dmerged,
                                                                   const std::optional<Tensor>& dweights,
                                                                   at::TensorList scores, const Tensor& weights,
                                                                   c10::string_view mode) {
  return merge_scores_backward_op(OnDevice(dmerged).device, dmerged, dweights, scores, weights, mode);
}

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, CUDA, m) {
  m.impl("interp", repro::interp_cuda);
  m.impl("interp_backward", repro::interp_backward_cuda);
  m.impl("merge_scores", repro::merge_scores_cuda);
  m.impl("merge_scores_backward", repro::merge_scores_backward_cuda);
}

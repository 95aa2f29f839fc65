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

// Of the op's tensors one that decides on the device; there is one, or the dispatcher would not have come here.
const Tensor& any_of(at::TensorList scores, const std::optional<Tensor>& logits) {
  return scores.empty() ? *logits : scores[0];
}

Tensor interp_cuda(const Tensor& x, at::IntArrayRef size) { return interp_op(OnDevice(x).device, x, size); }

Tensor interp_backward_cuda(const Tensor& dy, at::IntArrayRef size) {
  return interp_backward_op(OnDevice(dy).device, dy, size);
}

std::tuple<Tensor, Tensor> merge_scores_cuda(at::TensorList scores, const std::optional<Tensor>& logits,
                                             c10::string_view mode, at::IntArrayRef size, bool return_weights) {
  return merge_scores_op(OnDevice(any_of(scores, logits)).device, scores, logits, mode, size, return_weights);
}

std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_cuda(const Tensor& dmerged,
                                                                   const std::optional<Tensor>& dweights,
                                                                   at::TensorList scores,
                                                                   const std::optional<Tensor>& logits,
                                                                   c10::string_view mode) {
  return merge_scores_backward_op(OnDevice(dmerged).device, dmerged, dweights, scores, logits, mode);
}

std::tuple<Tensor, Tensor> predict_cuda(at::TensorList scores, const std::optional<Tensor>& logits,
                                        c10::string_view mode, at::IntArrayRef size, at::IntArrayRef crop,
                                        bool probability) {
  return predict_op(OnDevice(any_of(scores, logits)).device, scores, logits, mode, size, crop, probability);
}

std::tuple<Tensor, Tensor, Tensor> segmentation_loss_cuda(const Tensor& scores, const Tensor& labels, int64_t shrink,
                                                          int64_t ignore_label, bool gradient) {
  return segmentation_loss_op(OnDevice(scores).device, scores, labels, shrink, ignore_label, gradient);
}

std::tuple<Tensor, Tensor> confusion_matrix_cuda(const Tensor& prediction, const Tensor& label, int64_t num_classes,
                                                 int64_t ignore_label) {
  return confusion_matrix_op(OnDevice(label).device, prediction, label, num_classes, ignore_label);
}

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, CUDA, m) {
  m.impl("interp", repro::interp_cuda);
  m.impl("interp_backward", repro::interp_backward_cuda);
  m.impl("merge_scores", repro::merge_scores_cuda);
  m.impl("merge_scores_backward", repro::merge_scores_backward_cuda);
  m.impl("predict", repro::predict_cuda);
  m.impl("segmentation_loss", repro::segmentation_loss_cuda);
  m.impl("confusion_matrix", repro::confusion_matrix_cuda);
}

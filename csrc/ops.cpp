// The operators' schemas and their CPU implementations. Fake kernels and autograd are in repro/ops/.
#include <Python.h>
#include <torch/library.h>

#include "wrappers.h"

TORCH_LIBRARY(repro, m) {
  m.def("interp(Tensor x, SymInt[] size) -> Tensor");
  m.def("interp_backward(Tensor dy, SymInt[] size) -> Tensor");
  m.def(
      "merge_scores(Tensor[] scores, Tensor? logits, str mode, SymInt[] size, bool return_weights) -> (Tensor merged, "
      "Tensor weights)");
  m.def(
      "merge_scores_backward(Tensor dmerged, Tensor? dweights, Tensor[] scores, Tensor? logits, str mode) -> (Tensor[] "
      "dscores, Tensor dlogits)");
  m.def(
      "predict(Tensor[] scores, Tensor? logits, str mode, SymInt[] size, SymInt[] crop, bool probability) -> (Tensor "
      "labels, Tensor probability)");
  m.def(
      "segmentation_loss(Tensor scores, Tensor labels, SymInt shrink, SymInt ignore_label, bool gradient) -> (Tensor "
      "loss, Tensor dscores, Tensor divisor)");
  m.def(
      "confusion_matrix(Tensor prediction, Tensor label, SymInt num_classes, SymInt ignore_label) -> (Tensor counts, "
      "Tensor outside)");
}

namespace repro {
namespace {

Tensor interp_cpu(const Tensor& x, at::IntArrayRef size) { return interp_op(Cpu{}, x, size); }

Tensor interp_backward_cpu(const Tensor& dy, at::IntArrayRef size) { return interp_backward_op(Cpu{}, dy, size); }

std::tuple<Tensor, Tensor> merge_scores_cpu(at::TensorList scores, const std::optional<Tensor>& logits,
                                            c10::string_view mode, at::IntArrayRef size, bool return_weights) {
  return merge_scores_op(Cpu{}, scores, logits, mode, size, return_weights);
}

std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_cpu(const Tensor& dmerged,
                                                                  const std::optional<Tensor>& dweights,
                                                                  at::TensorList scores,
                                                                  const std::optional<Tensor>& logits,
                                                                  c10::string_view mode) {
  return merge_scores_backward_op(Cpu{}, dmerged, dweights, scores, logits, mode);
}

std::tuple<Tensor, Tensor> predict_cpu(at::TensorList scores, const std::optional<Tensor>& logits,
                                       c10::string_view mode, at::IntArrayRef size, at::IntArrayRef crop,
                                       bool probability) {
  return predict_op(Cpu{}, scores, logits, mode, size, crop, probability);
}

std::tuple<Tensor, Tensor, Tensor> segmentation_loss_cpu(const Tensor& scores, const Tensor& labels, int64_t shrink,
                                                         int64_t ignore_label, bool gradient) {
  return segmentation_loss_op(Cpu{}, scores, labels, shrink, ignore_label, gradient);
}

std::tuple<Tensor, Tensor> confusion_matrix_cpu(const Tensor& prediction, const Tensor& label, int64_t num_classes,
                                                int64_t ignore_label) {
  return confusion_matrix_op(Cpu{}, prediction, label, num_classes, ignore_label);
}

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, CPU, m) {
  m.impl("interp", repro::interp_cpu);
  m.impl("interp_backward", repro::interp_backward_cpu);
  m.impl("merge_scores", repro::merge_scores_cpu);
  m.impl("merge_scores_backward", repro::merge_scores_backward_cpu);
  m.impl("predict", repro::predict_cpu);
  m.impl("segmentation_loss", repro::segmentation_loss_cpu);
  m.impl("confusion_matrix", repro::confusion_matrix_cpu);
}

// An empty Python module: importing repro._C loads the library, which registers the operators above.
extern "C" PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

// The operators' schemas and their CPU implementations. Fake kernels and autograd are in repro/ops/.
#include <Python.h>
#include <torch/library.h>

#include "wrappers.h"

TORCH_LIBRARY(repro, m) {
  m.def("interp(Tensor x, SymInt[] size) -> Tensor");
  m.def("interp_backward(Tensor dy, SymInt[] size) -> Tensor");
  m.def("merge_scores(Tensor[] scores, Tensor? logits, str mode, SymInt[] size) -> (Tensor merged, Tensor weights)");
  m.def(
      "merge_scores_backward(Tensor dmerged, Tensor? dweights, Tensor[] scores, Tensor weights, str mode) -> (Tensor[] "
      "dscores, Tensor dlogits)");
}

namespace repro {
namespace {

Tensor interp_cpu(const Tensor& x, at::IntArrayRef size) { return interp_op(Cpu{}, x, size); }

Tensor interp_backward_cpu(const Tensor& dy, at::IntArrayRef size) { return interp_backward_op(Cpu{}, dy, size); }

std::tuple<Tensor, Tensor> merge_scores_cpu(at::TensorList scores, const std::optional<Tensor>& logits,
                                            c10::string_view mode, at::IntArrayRef size) {
  return merge_scores_op(Cpu{}, scores, logits, mode, size);
}

std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_cpu(const Tensor& dmerged,
                                                                  const std::optional<Tensor>& dweights,
                                                                  at::TensorList scores, const Tensor& weights,
                                                                  c10::string_view mode) {
  return merge_scores_backward_op(Cpu{}, dmerged, dweights, scores, weights, mode);
}

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, CPU, m) {
  m.impl("interp", repro::interp_cpu);
  m.impl("interp_backward", repro::interp_backward_cpu);
  m.impl("merge_scores", repro::merge_scores_cpu);
  m.impl("merge_scores_backward", repro::merge_scores_backward_cpu);
}

// An empty Python module: importing repro._C loads the library, which registers the operators above.
extern "C" PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

// The operators' schemas. Their implementations are registered in cpu/ and cuda/, their derivatives in torch/, their
// fake kernels in repro/ops/.
#include <Python.h>
#include <torch/library.h>

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
      "loss, Tensor dscores, Tensor valid)");
  m.def(
      "confusion_matrix(Tensor prediction, Tensor label, SymInt num_classes, SymInt ignore_label) -> (Tensor counts, "
      "Tensor outside)");
  m.def(
      "dense_crf(Tensor log_prob, Tensor image, SymInt iterations, float pos_w, float pos_xy_std, float bi_w, float "
      "bi_xy_std, float bi_rgb_std) -> Tensor");
  m.def(
      "domain_transform(Tensor x, Tensor edge, int num_iter, float spatial_sigma, float range_sigma, float min_weight, "
      "Tensor? valid_size) -> Tensor");
  m.def(
      "domain_transform_backward(Tensor dy, Tensor x, Tensor edge, int num_iter, float spatial_sigma, float "
      "range_sigma, "
      "float min_weight, Tensor? valid_size) -> (Tensor dx, Tensor dedge)");
}

// An empty Python module: importing repro._C loads the library, which registers the operators above.
extern "C" PyObject* PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}

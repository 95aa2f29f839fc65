// The confusion matrix, from tensors to kernels.
#pragma once

#include <limits>
#include <tuple>
#include <type_traits>

#include "torch/checks.h"

namespace repro {

// Returns (num_classes, num_classes) counts, row = label, and the number of pixels outside the classes.
template <class On>
std::tuple<Tensor, Tensor> confusion_matrix_op(const Tensor& prediction, const Tensor& label, int64_t num_classes,
                                               int64_t ignore_label) {
  constexpr const char* op = "confusion_matrix";
  const On on(check_one_device(op, prediction, label));
  TORCH_CHECK_VALUE(prediction.sizes() == label.sizes(), op, ": prediction must have the shape of label ",
                    label.sizes(), "; got ", prediction.sizes(), "; cut to the image's size");
  TORCH_CHECK_VALUE(num_classes >= 1 && num_classes <= std::numeric_limits<int16_t>::max(), op,
                    ": num_classes must be 1 to 32767; got ", num_classes, "; correct it");
  Tensor from = check_labels(op, "prediction", prediction);
  Tensor to = check_labels(op, "label", label);
  if (from.scalar_type() != to.scalar_type()) {
    from = from.to(at::kLong);
    to = to.to(at::kLong);
  }
  const Tensor counts = at::empty({num_classes, num_classes}, label.options().dtype(at::kLong));
  const Tensor outside = at::empty({}, counts.options());
  dispatch_labels(to, [&](const auto* pixels) {
    using L = std::remove_cvref_t<decltype(*pixels)>;
    confusion_matrix(on.device, from.const_data_ptr<L>(), pixels, to.numel(), num_classes, ignore_label,
                     counts.mutable_data_ptr<int64_t>(), outside.mutable_data_ptr<int64_t>());
  });
  return {counts, outside};
}

}  // namespace repro

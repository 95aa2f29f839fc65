// The softmax loss, from tensors to kernels.
#pragma once

#include <tuple>

#include "torch/interp.h"

namespace repro {

// Returns the loss, the gradient of the scores (0 images unless asked for) and the number of valid positions.
template <class On>
std::tuple<Tensor, Tensor, Tensor> segmentation_loss_op(const Tensor& scores, const Tensor& labels, int64_t shrink,
                                                        int64_t ignore_label, bool gradient) {
  constexpr const char* op = "segmentation_loss";
  const On on(check_one_device(op, scores, labels));
  check_map(op, "scores", scores);
  TORCH_CHECK_VALUE(labels.dim() == 3 && labels.size(0) == scores.size(0) && labels.size(1) > 0 && labels.size(2) > 0,
                    op, ": labels must have shape (N=", scores.size(0), ", H, W); got shape ", labels.sizes(),
                    "; one label map per image");
  TORCH_CHECK_VALUE(shrink >= 1 && (labels.size(1) - 1) % shrink == 0 && (labels.size(2) - 1) % shrink == 0, op,
                    ": height - 1 and width - 1 of the labels must be multiples of ", shrink, "; got shape ",
                    labels.sizes(), "; choose a crop_size of the form ", shrink, "k+1");
  TORCH_CHECK_VALUE(scores.size(1) >= 1, op, ": scores must have at least one class; got shape ", scores.sizes(),
                    "; check the channels");
  const int64_t N = scores.size(0);
  const int64_t C = scores.size(1);
  const Size image{labels.size(1), labels.size(2)};
  const Size grid{(image.H - 1) / shrink + 1, (image.W - 1) / shrink + 1};
  const Tensor dense_scores = dense(scores);
  const Tensor dense_labels = check_labels(op, "labels", labels);
  const Tensor counts = at::empty({counts_of_loss(on.device)}, scores.options().dtype(at::kLong));
  const Tensor loss = at::empty({}, scores.options().dtype(at::kDouble));
  const Tensor terms = at::empty({N, grid.H}, loss.options());
  Tensor dscores = empty_map(gradient ? N : 0, C, grid, scores.options());
  dispatch_labels(dense_labels, [&](const auto* label) {
    auto* const count = counts.mutable_data_ptr<int64_t>();
    count_labels(on.device, label, image, N, C, shrink, ignore_label, count);
    if constexpr (On::kReadable)  // asking a GPU would wait for it: there the loss is NaN
      TORCH_CHECK_VALUE(count[1] == 0, op, ": labels must be 0..", C - 1, " or ", ignore_label,
                        "; got another; check the number of classes");
    REPRO_DISPATCH(scores, op, [&] {
      segmentation_loss(on.device, in_pointer<scalar_t>(dense_scores), size_of(scores), label, image, N, C, shrink,
                        ignore_label, count, terms.mutable_data_ptr<double>(), loss.mutable_data_ptr<double>(),
                        gradient ? out_pointer<scalar_t>(dscores) : nullptr);
    });
  });
  if (gradient && size_of(scores) != grid) dscores = interp_backward_op<On>(dscores, scores.sizes().slice(2));
  return {loss, dscores, counts[0]};
}

}  // namespace repro

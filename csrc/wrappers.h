// From tensors to kernels: checks, allocation and dtype dispatch, written once for both devices (Device is Cpu or Cuda,
// see ops.h). Results are dense channels_last whatever the inputs' strides.
#pragma once

#include <cmath>
#include <limits>
#include <tuple>

#include "checks.h"

namespace repro {

template <class Device>
Tensor interp_op(const Device& device, const Tensor& x, at::IntArrayRef size) {
  check_map("interp", "x", x);
  const Size out = check_size("interp", size);
  const Tensor from = dense(x);
  const Tensor y = empty_map(x.size(0), x.size(1), out, x.options());
  REPRO_DISPATCH(x, "interp", [&] {
    interp(device, in_pointer<scalar_t>(from), size_of(x), x.size(0), x.size(1), out, out_pointer<scalar_t>(y));
  });
  return y;
}

template <class Device>
Tensor interp_backward_op(const Device& device, const Tensor& dy, at::IntArrayRef size) {
  check_map("interp_backward", "dy", dy);
  const Size in = check_size("interp_backward", size);
  const Tensor from = dense(dy);
  const Tensor dx = empty_map(dy.size(0), dy.size(1), in, dy.options());
  REPRO_DISPATCH(dy, "interp_backward", [&] {
    interp_backward(device, in_pointer<scalar_t>(from), size_of(dy), dy.size(0), dy.size(1), in,
                    out_pointer<scalar_t>(dx));
  });
  return dx;
}

// Score maps and logits that fit together, dense.
struct MergeInputs {
  std::vector<Tensor> scores;
  Tensor logits;  // undefined unless the mode is attention
  Merge mode;
  int64_t N;
  int64_t C;
  int64_t S;

  MergeInputs(const char* op, at::TensorList scores_, const std::optional<Tensor>& logits_, c10::string_view mode_)
      : scores(check_scores(op, scores_)),
        mode(check_mode(op, std::string(mode_))),
        N(scores[0].size(0)),
        C(scores[0].size(1)),
        S(static_cast<int64_t>(scores.size())) {
    logits = check_logits(op, logits_, mode, scores[0], S);
  }

  at::TensorOptions options() const { return scores[0].options(); }
  bool attends() const { return mode == Merge::attention; }
  Size logits_size(Size otherwise) const { return attends() ? size_of(logits) : otherwise; }
};

// The merged map, and the weights where they are wanted (null otherwise).
template <class Device>
void merge_into(const Device& device, const MergeInputs& inputs, Size out, const Tensor& merged,
                const Tensor& weights) {
  REPRO_DISPATCH(merged, "merge_scores", [&] {
    merge_scores(device, inputs.mode, in_maps<scalar_t>(inputs.scores), in_pointer<scalar_t>(inputs.logits),
                 inputs.logits_size(out), inputs.N, inputs.C, out, out_pointer<scalar_t>(merged),
                 out_pointer<scalar_t>(weights));
  });
}

// Returns the merged map and the weights (0 channels unless the mode is attention and they are asked for).
template <class Device>
std::tuple<Tensor, Tensor> merge_scores_op(const Device& device, at::TensorList scores,
                                           const std::optional<Tensor>& logits, c10::string_view mode,
                                           at::IntArrayRef size, bool return_weights) {
  const MergeInputs inputs("merge_scores", scores, logits, mode);
  const Size out = check_size("merge_scores", size);
  const Tensor merged = empty_map(inputs.N, inputs.C, out, inputs.options());
  const bool written = inputs.attends() && return_weights;
  const Tensor weights = empty_map(inputs.N, written ? inputs.S : 0, out, inputs.options());
  merge_into(device, inputs, out, merged, written ? weights : Tensor());
  return {merged, weights};
}

// Returns the gradients of the S score maps and of the logits (0 channels unless attention), each of its map's size.
template <class Device>
std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_op(const Device& device, const Tensor& dmerged,
                                                                 const std::optional<Tensor>& dweights,
                                                                 at::TensorList scores,
                                                                 const std::optional<Tensor>& logits,
                                                                 c10::string_view mode) {
  constexpr const char* op = "merge_scores_backward";
  const MergeInputs inputs(op, scores, logits, mode);
  check_like(op, "dmerged", dmerged, inputs.scores[0], "scores[0]");
  TORCH_CHECK_VALUE(dmerged.size(0) == inputs.N && dmerged.size(1) == inputs.C, op,
                    ": dmerged must have shape (N=", inputs.N, ", C=", inputs.C, ", H, W); got shape ", dmerged.sizes(),
                    "; pass the gradient of merged");
  const Size out = size_of(dmerged);
  const int64_t channels = inputs.attends() ? inputs.S : 0;
  Tensor dense_dweights;
  if (dweights.has_value() && inputs.attends()) {
    check_like(op, "dweights", *dweights, dmerged, "dmerged");
    const std::vector<int64_t> expected{inputs.N, channels, out.H, out.W};
    TORCH_CHECK_VALUE(dweights->sizes() == at::IntArrayRef(expected), op, ": dweights must have shape ",
                      at::IntArrayRef(expected), "; got ", dweights->sizes(), "; pass the gradient of weights");
    dense_dweights = dense(*dweights);
  }
  const Tensor dense_dmerged = dense(dmerged);
  std::vector<Tensor> dscores;
  for (const Tensor& map : inputs.scores)
    dscores.push_back(empty_map(inputs.N, inputs.C, size_of(map), inputs.options()));
  Tensor dlogits = empty_map(inputs.N, channels, out, inputs.options());
  const auto scratch_type = inputs.options().dtype(wide(dmerged));
  const Tensor weights = empty_map(inputs.N, channels, out, scratch_type);
  const bool maximum = inputs.mode == Merge::max;
  const Tensor winner = empty_map(inputs.N, maximum ? inputs.C : 0, out, inputs.options().dtype(at::kByte));
  REPRO_DISPATCH(dmerged, op, [&] {
    using Acc = acc_t<typename Storage<scalar_t>::type>;
    merge_scores_backward(device, inputs.mode, in_pointer<scalar_t>(dense_dmerged),
                          in_pointer<scalar_t>(dense_dweights), in_maps<scalar_t>(inputs.scores),
                          in_pointer<scalar_t>(inputs.logits), inputs.logits_size(out), inputs.N, inputs.C, out,
                          weights.mutable_data_ptr<Acc>(), winner.mutable_data_ptr<uint8_t>(),
                          out_maps<scalar_t>(dscores), out_pointer<scalar_t>(dlogits));
  });
  if (inputs.attends() && (inputs.logits.size(2) != out.H || inputs.logits.size(3) != out.W))
    dlogits = interp_backward_op(device, dlogits, inputs.logits.sizes().slice(2));
  return {dscores, dlogits};
}

// Returns the labels (uint8, or int16 beyond 256 classes) and their probability (0 images unless asked for).
template <class Device>
std::tuple<Tensor, Tensor> predict_op(const Device& device, at::TensorList scores, const std::optional<Tensor>& logits,
                                      c10::string_view mode, at::IntArrayRef size, at::IntArrayRef crop_size,
                                      bool probability) {
  constexpr const char* op = "predict";
  const MergeInputs inputs(op, scores, logits, mode);
  const Size out = check_size(op, size);
  const Size crop = check_size(op, crop_size, "crop");
  TORCH_CHECK_VALUE(crop.H <= out.H && crop.W <= out.W, op, ": crop must lie within size ", size, "; got ", crop_size,
                    "; enlarge size or cut less");
  TORCH_CHECK_VALUE(inputs.C >= 1 && inputs.C <= std::numeric_limits<int16_t>::max(), op,
                    ": scores must have 1 to 32767 classes; got ", inputs.C, "; check the channels");
  const Size finest = size_of(inputs.scores[0]);
  const Tensor merged = empty_map(inputs.N, inputs.C, finest, inputs.options());
  merge_into(device, inputs, finest, merged, Tensor());
  const Tensor labels =
      at::empty({inputs.N, crop.H, crop.W}, inputs.options().dtype(inputs.C <= 256 ? at::kByte : at::kShort));
  const Tensor confidence =
      at::empty({probability ? inputs.N : 0, crop.H, crop.W}, inputs.options().dtype(wide(merged)));
  REPRO_DISPATCH(merged, op, [&] {
    using Acc = acc_t<typename Storage<scalar_t>::type>;
    Acc* const confidence_pointer = probability ? confidence.mutable_data_ptr<Acc>() : nullptr;
    if (inputs.C <= 256)
      predict(device, in_pointer<scalar_t>(merged), finest, inputs.N, inputs.C, out, crop,
              labels.mutable_data_ptr<uint8_t>(), confidence_pointer);
    else
      predict(device, in_pointer<scalar_t>(merged), finest, inputs.N, inputs.C, out, crop,
              labels.mutable_data_ptr<int16_t>(), confidence_pointer);
  });
  return {labels, confidence};
}

// Returns the loss, the gradient of the scores (0 images unless asked for) and what that is still to be divided by.
template <class Device>
std::tuple<Tensor, Tensor, Tensor> segmentation_loss_op(const Device& device, const Tensor& scores,
                                                        const Tensor& labels, int64_t shrink, int64_t ignore_label,
                                                        bool gradient) {
  constexpr const char* op = "segmentation_loss";
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
  const Tensor dense_labels = check_labels(op, "labels", labels, scores.device());
  const Tensor loss = at::empty({}, scores.options().dtype(at::kDouble));
  const Tensor normaliser = at::empty_like(loss);
  const Tensor terms = at::empty({N, grid.H}, scores.options().dtype(at::kDouble));
  const Tensor counts = at::empty({N, grid.H}, scores.options().dtype(at::kLong));
  Tensor dscores = empty_map(gradient ? N : 0, C, grid, scores.options());
  REPRO_DISPATCH(scores, op, [&] {
    dispatch_labels(dense_labels, [&](const auto* label) {
      segmentation_loss(device, in_pointer<scalar_t>(dense_scores), size_of(scores), label, image, N, C, shrink,
                        ignore_label, terms.mutable_data_ptr<double>(), counts.mutable_data_ptr<int64_t>(),
                        loss.mutable_data_ptr<double>(), normaliser.mutable_data_ptr<double>(),
                        gradient ? out_pointer<scalar_t>(dscores) : nullptr);
    });
  });
  if constexpr (std::is_same_v<Device, Cpu>)  // asking a GPU would wait for it: there the loss is NaN
    TORCH_CHECK_VALUE(!std::isnan(*normaliser.const_data_ptr<double>()), op, ": labels must be 0..", C - 1, " or ",
                      ignore_label, "; got another; check the number of classes");
  if (gradient && (scores.size(2) != grid.H || scores.size(3) != grid.W))
    dscores = interp_backward_op(device, dscores, scores.sizes().slice(2));
  if constexpr (std::is_same_v<Device, Cpu>) normaliser.fill_(1.0);
  return {loss, dscores, normaliser};
}

// Returns (num_classes, num_classes) counts, row = label, and the number of pixels outside the classes.
template <class Device>
std::tuple<Tensor, Tensor> confusion_matrix_op(const Device& device, const Tensor& prediction, const Tensor& label,
                                               int64_t num_classes, int64_t ignore_label) {
  constexpr const char* op = "confusion_matrix";
  TORCH_CHECK_VALUE(prediction.sizes() == label.sizes(), op, ": prediction must have the shape of label ",
                    label.sizes(), "; got ", prediction.sizes(), "; cut to the image's size");
  TORCH_CHECK_VALUE(num_classes >= 1 && num_classes <= std::numeric_limits<int16_t>::max(), op,
                    ": num_classes must be 1 to 32767; got ", num_classes, "; correct it");
  Tensor from = check_labels(op, "prediction", prediction, label.device());
  Tensor to = check_labels(op, "label", label, label.device());
  if (from.scalar_type() != to.scalar_type()) {
    from = from.to(at::kLong);
    to = to.to(at::kLong);
  }
  const Tensor counts = at::zeros({num_classes, num_classes}, label.options().dtype(at::kLong));
  const Tensor outside = at::zeros({}, counts.options());
  dispatch_labels(to, [&](const auto* pixels) {
    using L = std::remove_cvref_t<decltype(*pixels)>;
    confusion_matrix(device, from.const_data_ptr<L>(), pixels, to.numel(), num_classes, ignore_label,
                     counts.mutable_data_ptr<int64_t>(), outside.mutable_data_ptr<int64_t>());
  });
  return {counts, outside};
}

}  // namespace repro

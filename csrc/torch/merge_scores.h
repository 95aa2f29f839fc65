// merge_scores and its gradients, from tensors to kernels.
#pragma once

#include <tuple>

#include "torch/interp.h"

namespace repro {

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
void merge_into(Device device, const MergeInputs& inputs, Size out, const Tensor& merged, const Tensor& weights) {
  REPRO_DISPATCH(merged, "merge_scores", [&] {
    merge_scores(device, inputs.mode, in_maps<scalar_t>(inputs.scores), in_pointer<scalar_t>(inputs.logits),
                 inputs.logits_size(out), inputs.N, inputs.C, out, out_pointer<scalar_t>(merged),
                 out_pointer<scalar_t>(weights));
  });
}

// Returns the merged map and the weights (0 channels unless the mode is attention and they are asked for).
template <class On>
std::tuple<Tensor, Tensor> merge_scores_op(at::TensorList scores, const std::optional<Tensor>& logits,
                                           c10::string_view mode, at::IntArrayRef size, bool return_weights) {
  constexpr const char* op = "merge_scores";
  const On on(check_one_device(op, scores, logits));
  const MergeInputs inputs(op, scores, logits, mode);
  const Size out = check_size(op, size);
  const Tensor merged = empty_map(inputs.N, inputs.C, out, inputs.options());
  const bool written = inputs.attends() && return_weights;
  const Tensor weights = empty_map(inputs.N, written ? inputs.S : 0, out, inputs.options());
  merge_into(on.device, inputs, out, merged, written ? weights : Tensor());
  return {merged, weights};
}

// Returns the gradients of the S score maps and of the logits (0 channels unless attention), each of its map's size.
template <class On>
std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_op(const Tensor& dmerged,
                                                                 const std::optional<Tensor>& dweights,
                                                                 at::TensorList scores,
                                                                 const std::optional<Tensor>& logits,
                                                                 c10::string_view mode) {
  constexpr const char* op = "merge_scores_backward";
  const On on(check_one_device(op, dmerged, dweights, scores, logits));
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
    merge_scores_backward(on.device, inputs.mode, in_pointer<scalar_t>(dense_dmerged),
                          in_pointer<scalar_t>(dense_dweights), in_maps<scalar_t>(inputs.scores),
                          in_pointer<scalar_t>(inputs.logits), inputs.logits_size(out), inputs.N, inputs.C, out,
                          weights.mutable_data_ptr<Acc>(), winner.mutable_data_ptr<uint8_t>(),
                          out_maps<scalar_t>(dscores), out_pointer<scalar_t>(dlogits));
  });
  if (inputs.attends() && size_of(inputs.logits) != out)
    dlogits = interp_backward_op<On>(dlogits, inputs.logits.sizes().slice(2));
  return {dscores, dlogits};
}

}  // namespace repro

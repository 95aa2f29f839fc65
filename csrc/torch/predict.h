// predict, from tensors to kernels: the merge at the finest size, then labels of the enlarged map.
#pragma once

#include <limits>
#include <tuple>

#include "torch/merge_scores.h"

namespace repro {

// Returns the labels (uint8, or int16 beyond 256 classes) and their probability (0 images unless asked for).
template <class On>
std::tuple<Tensor, Tensor> predict_op(at::TensorList scores, const std::optional<Tensor>& logits, c10::string_view mode,
                                      at::IntArrayRef size, at::IntArrayRef crop_size, bool probability) {
  constexpr const char* op = "predict";
  const On on(check_one_device(op, scores, logits));
  const MergeInputs inputs(op, scores, logits, mode);
  const Size out = check_size(op, size);
  const Size crop = check_size(op, crop_size, "crop");
  TORCH_CHECK_VALUE(crop.H <= out.H && crop.W <= out.W, op, ": crop must lie within size ", size, "; got ", crop_size,
                    "; enlarge size or cut less");
  TORCH_CHECK_VALUE(inputs.C >= 1 && inputs.C <= std::numeric_limits<int16_t>::max(), op,
                    ": scores must have 1 to 32767 classes; got ", inputs.C, "; check the channels");
  const Size finest = size_of(inputs.scores[0]);
  const Tensor merged = empty_map(inputs.N, inputs.C, finest, inputs.options());
  merge_into(on.device, inputs, finest, merged, Tensor());
  const Tensor labels =
      empty({inputs.N, crop.H, crop.W}, inputs.options().dtype(inputs.C <= 256 ? at::kByte : at::kShort));
  const Tensor confidence = empty({probability ? inputs.N : 0, crop.H, crop.W}, inputs.options().dtype(wide(merged)));
  REPRO_DISPATCH(merged, op, [&] {
    using Acc = acc_t<typename Storage<scalar_t>::type>;
    Acc* const confidence_pointer = probability ? confidence.mutable_data_ptr<Acc>() : nullptr;
    if (inputs.C <= 256)
      predict(on.device, in_pointer<scalar_t>(merged), finest, inputs.N, inputs.C, out, crop,
              labels.mutable_data_ptr<uint8_t>(), confidence_pointer);
    else
      predict(on.device, in_pointer<scalar_t>(merged), finest, inputs.N, inputs.C, out, crop,
              labels.mutable_data_ptr<int16_t>(), confidence_pointer);
  });
  return {labels, confidence};
}

}  // namespace repro

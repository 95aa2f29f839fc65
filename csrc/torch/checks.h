// What the operators check of their tensors. Every message says where, what must hold, what was got and what to do.
#pragma once

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <string>
#include <type_traits>
#include <vector>

#include "torch/dispatch.h"

namespace repro {

// The one device of an op's tensors (each a Tensor, a TensorList or an optional Tensor); there is at least one.
// Checked first: the dispatcher asks the CUDA kernel as soon as one of them is on a GPU.
template <class... Arguments>
at::Device check_one_device(const char* op, const Arguments&... arguments) {
  std::vector<at::Device> devices;
  const auto see = [&](const Tensor& tensor) {
    if (std::find(devices.begin(), devices.end(), tensor.device()) == devices.end()) devices.push_back(tensor.device());
  };
  const auto see_all = [&](const auto& argument) {
    using Argument = std::remove_cvref_t<decltype(argument)>;
    if constexpr (std::is_same_v<Argument, Tensor>)
      see(argument);
    else if constexpr (std::is_same_v<Argument, at::TensorList>)
      std::for_each(argument.begin(), argument.end(), see);
    else if (argument.has_value())
      see(*argument);
  };
  (see_all(arguments), ...);
  TORCH_CHECK_VALUE(devices.size() == 1, op, ": all tensors must be on one device; got ", c10::Join(", ", devices),
                    "; move them with .to()");
  return devices[0];
}

constexpr int64_t kLongestSide = 1 << 24;  // pixels

inline void check_map(const char* op, const std::string& name, const Tensor& map) {
  TORCH_CHECK_VALUE(map.dim() == 4, op, ": ", name, " must have 4 dimensions (N, C, H, W); got shape ", map.sizes(),
                    "; add or drop dimensions");
  const auto dtype = map.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf, op,
                    ": ", name, " must be float32, float64, bfloat16 or float16; got ", dtype,
                    "; convert it with .to(dtype)");
  TORCH_CHECK_VALUE(map.size(2) > 0 && map.size(3) > 0, op, ": ", name,
                    " must have at least one row and one column; got shape ", map.sizes(), "; only N and C may be 0");
}

inline Size check_size(const char* op, at::IntArrayRef size, const char* name = "size") {
  TORCH_CHECK_VALUE(size.size() == 2 && size[0] > 0 && size[1] > 0, op, ": ", name,
                    " must be (height, width), both at least 1; got ", size, "; give two positive ints");
  TORCH_CHECK_VALUE(size[0] <= kLongestSide && size[1] <= kLongestSide, op, ": ", name, " must be at most ",
                    kLongestSide, " a side; got ", size, "; Caffe's float32 positions are not exact beyond");
  return {size[0], size[1]};
}

inline void check_like(const char* op, const std::string& name, const Tensor& map, const Tensor& first,
                       const char* first_name) {
  check_map(op, name, map);
  TORCH_CHECK_VALUE(map.scalar_type() == first.scalar_type(), op, ": ", name, " must have the dtype of ", first_name,
                    " (", first.scalar_type(), "); got ", map.scalar_type(), "; convert it with .to(dtype)");
}

inline Merge check_mode(const char* op, const std::string& mode) {
  if (mode == "attention") return Merge::attention;
  if (mode == "average") return Merge::average;
  TORCH_CHECK_VALUE(mode == "max", op, ": mode must be \"attention\", \"average\" or \"max\"; got \"", mode,
                    "\"; choose one of the three");
  return Merge::max;
}

// The score maps, checked against each other and made dense.
inline std::vector<Tensor> check_scores(const char* op, at::TensorList scores) {
  TORCH_CHECK_VALUE(!scores.empty() && scores.size() <= kMaxScales, op, ": scores must hold 1 to ", kMaxScales,
                    " maps; got ", scores.size(), "; merge fewer scales");
  check_map(op, "scores[0]", scores[0]);
  std::vector<Tensor> maps;
  for (size_t s = 0; s < scores.size(); ++s) {
    const std::string name = "scores[" + std::to_string(s) + "]";
    check_like(op, name, scores[s], scores[0], "scores[0]");
    TORCH_CHECK_VALUE(scores[s].size(0) == scores[0].size(0) && scores[s].size(1) == scores[0].size(1), op, ": ", name,
                      " must have N=", scores[0].size(0), " and C=", scores[0].size(1), " as scores[0]; got shape ",
                      scores[s].sizes(), "; score every scale with one network");
    maps.push_back(dense(scores[s]));
  }
  return maps;
}

// The logits, checked against the mode and the score maps and made dense; undefined unless the mode is attention.
inline Tensor check_logits(const char* op, const std::optional<Tensor>& logits, Merge mode, const Tensor& first,
                           int64_t S) {
  TORCH_CHECK_VALUE(logits.has_value() == (mode == Merge::attention), op,
                    ": logits must be given for mode \"attention\" and for no other; got ",
                    logits.has_value() ? "logits" : "none", " for mode \"",
                    mode == Merge::attention ? "attention"
                    : mode == Merge::average ? "average"
                                             : "max",
                    "\"; pass or drop logits");
  if (mode != Merge::attention) return {};
  check_like(op, "logits", *logits, first, "scores[0]");
  TORCH_CHECK_VALUE(logits->size(0) == first.size(0) && logits->size(1) == S, op,
                    ": logits must have shape (N=", first.size(0), ", S=", S, ", H, W); got shape ", logits->sizes(),
                    "; one logit per scale");
  return dense(*logits);
}

// The labels of N images, dense, as uint8 or int64: whatever else of integers they are becomes int64.
inline Tensor check_labels(const char* op, const char* name, const Tensor& labels) {
  TORCH_CHECK_VALUE(at::isIntegralType(labels.scalar_type(), /*includeBool=*/false), op, ": ", name,
                    " must be integers; got ", labels.scalar_type(), "; convert it with .to(torch.int64)");
  return labels.scalar_type() == at::kByte ? labels.contiguous() : labels.to(at::kLong).contiguous();
}

}  // namespace repro

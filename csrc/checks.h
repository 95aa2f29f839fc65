// What the operators check of their tensors, and the passage from tensors to the kernels' pointers.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <string>
#include <vector>

#include "ops.h"

namespace repro {

using at::Tensor;

static_assert(sizeof(bfloat16) == sizeof(c10::BFloat16) && sizeof(float16) == sizeof(c10::Half));

inline Size size_of(const Tensor& map) { return {map.size(2), map.size(3)}; }

constexpr int64_t kLongestSide = 1 << 24;  // pixels

// What the kernels sum in, and return what is a sum in.
inline at::ScalarType wide(const Tensor& map) { return map.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

inline Tensor dense(const Tensor& map) { return map.contiguous(at::MemoryFormat::ChannelsLast); }

inline Tensor empty_map(int64_t N, int64_t C, Size size, const at::TensorOptions& options) {
  return at::empty({N, C, size.H, size.W}, options.memory_format(at::MemoryFormat::ChannelsLast));
}

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
  TORCH_CHECK_VALUE(map.scalar_type() == first.scalar_type() && map.device() == first.device(), op, ": ", name,
                    " must have the dtype and device of ", first_name, " (", first.scalar_type(), ", ", first.device(),
                    "); got ", map.scalar_type(), ", ", map.device(), "; convert it with .to()");
}

inline Merge check_mode(const char* op, const std::string& mode) {
  if (mode == "attention") return Merge::attention;
  if (mode == "average") return Merge::average;
  TORCH_CHECK_VALUE(mode == "max", op, ": mode must be \"attention\", \"average\" or \"max\"; got \"", mode,
                    "\"; choose one of the three");
  return Merge::max;
}

template <class T>
struct Storage {
  using type = T;
};
template <>
struct Storage<c10::BFloat16> {
  using type = bfloat16;
};
template <>
struct Storage<c10::Half> {
  using type = float16;
};

template <class T>
const typename Storage<T>::type* in_pointer(const Tensor& map) {
  return map.defined() ? reinterpret_cast<const typename Storage<T>::type*>(map.const_data_ptr<T>()) : nullptr;
}
template <class T>
typename Storage<T>::type* out_pointer(const Tensor& map) {
  return map.defined() ? reinterpret_cast<typename Storage<T>::type*>(map.mutable_data_ptr<T>()) : nullptr;
}

#define REPRO_DISPATCH(tensor, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), name, __VA_ARGS__)

template <class T>
Maps<const typename Storage<T>::type> in_maps(const std::vector<Tensor>& maps) {
  Maps<const typename Storage<T>::type> result{};
  result.S = static_cast<int>(maps.size());
  for (int s = 0; s < result.S; ++s) {
    result.data[s] = in_pointer<T>(maps[s]);
    result.size[s] = size_of(maps[s]);
  }
  return result;
}

template <class T>
Maps<typename Storage<T>::type> out_maps(const std::vector<Tensor>& maps) {
  Maps<typename Storage<T>::type> result{};
  result.S = static_cast<int>(maps.size());
  for (int s = 0; s < result.S; ++s) {
    result.data[s] = out_pointer<T>(maps[s]);
    result.size[s] = size_of(maps[s]);
  }
  return result;
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
inline Tensor check_labels(const char* op, const char* name, const Tensor& labels, at::Device device) {
  TORCH_CHECK_VALUE(at::isIntegralType(labels.scalar_type(), /*includeBool=*/false), op, ": ", name,
                    " must be integers; got ", labels.scalar_type(), "; convert it with .to(torch.int64)");
  TORCH_CHECK_VALUE(labels.device() == device, op, ": ", name, " must be on ", device, "; got ", labels.device(),
                    "; move it with .to()");
  return labels.scalar_type() == at::kByte ? labels.contiguous() : labels.to(at::kLong).contiguous();
}

// Calls f with the pointer of labels that check_labels returned, of its element type.
template <class F>
void dispatch_labels(const Tensor& labels, const F& f) {
  if (labels.scalar_type() == at::kByte)
    f(labels.const_data_ptr<uint8_t>());
  else
    f(labels.const_data_ptr<int64_t>());
}

}  // namespace repro

// From tensors to kernels: checks, allocation and dtype dispatch, written once for both devices (Device is Cpu or Cuda,
// see ops.h). Results are dense channels_last whatever the inputs' strides.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/BFloat16.h>

#include <limits>
#include <tuple>
#include <vector>

#include "ops.h"

namespace repro {

using at::Tensor;

static_assert(sizeof(bfloat16) == sizeof(c10::BFloat16), "bfloat16 storage must be 16 bits");

inline Size size_of(const Tensor& map) { return {map.size(2), map.size(3)}; }

inline Tensor dense(const Tensor& map) { return map.contiguous(at::MemoryFormat::ChannelsLast); }

inline Tensor empty_map(int64_t N, int64_t C, Size size, const at::TensorOptions& options) {
  return at::empty({N, C, size.H, size.W}, options.memory_format(at::MemoryFormat::ChannelsLast));
}

inline void check_map(const char* op, const std::string& name, const Tensor& map) {
  TORCH_CHECK_VALUE(map.dim() == 4, op, ": ", name, " must have 4 dimensions (N, C, H, W); got shape ", map.sizes(),
                    "; add or drop dimensions");
  const auto dtype = map.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16, op, ": ", name,
                    " must be float32, float64 or bfloat16; got ", dtype, "; convert it with .to(dtype)");
  TORCH_CHECK_VALUE(map.size(2) > 0 && map.size(3) > 0, op, ": ", name,
                    " must have at least one row and one column; got shape ", map.sizes(), "; only N and C may be 0");
}

inline Size check_size(const char* op, at::IntArrayRef size) {
  TORCH_CHECK_VALUE(size.size() == 2 && size[0] > 0 && size[1] > 0, op,
                    ": size must be (height, width), both at least 1; got ", size, "; give two positive ints");
  return {size[0], size[1]};
}

inline void check_like(const char* op, const std::string& name, const Tensor& map, const Tensor& first,
                       const char* first_name) {
  check_map(op, name, map);
  TORCH_CHECK_VALUE(map.scalar_type() == first.scalar_type() && map.device() == first.device(), op, ": ", name,
                    " must have the dtype and device of ", first_name, " (", first.scalar_type(), ", ", first.device(),
                    "); got ", map.scalar_type(), ", ", map.device(), "; convert it with .to()");
}

inline Merge check_mode(const std::string& mode) {
  if (mode == "attention") return Merge::attention;
  if (mode == "average") return Merge::average;
  TORCH_CHECK_VALUE(mode == "max", "merge_scores: mode must be \"attention\", \"average\" or \"max\"; got \"", mode,
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

template <class T>
const typename Storage<T>::type* in_pointer(const Tensor& map) {
  return reinterpret_cast<const typename Storage<T>::type*>(map.const_data_ptr<T>());
}
template <class T>
typename Storage<T>::type* out_pointer(const Tensor& map) {
  return map.defined() ? reinterpret_cast<typename Storage<T>::type*>(map.mutable_data_ptr<T>()) : nullptr;
}

#define REPRO_DISPATCH(tensor, name, ...) \
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, tensor.scalar_type(), name, __VA_ARGS__)

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

template <class Device>
std::tuple<Tensor, Tensor> merge_scores_op(const Device& device, at::TensorList scores,
                                           const std::optional<Tensor>& logits, c10::string_view mode_name,
                                           at::IntArrayRef size) {
  const std::vector<Tensor> maps = check_scores("merge_scores", scores);
  const Merge mode = check_mode(std::string(mode_name));
  const Size out = check_size("merge_scores", size);
  const int64_t N = maps[0].size(0);
  const int64_t C = maps[0].size(1);
  const int64_t S = static_cast<int64_t>(maps.size());
  TORCH_CHECK_VALUE(logits.has_value() == (mode == Merge::attention),
                    "merge_scores: logits must be given for mode \"attention\" and for no other; got ",
                    logits.has_value() ? "logits" : "none", " for mode \"", std::string(mode_name),
                    "\"; pass or drop logits");
  Tensor dense_logits;
  if (mode == Merge::attention) {
    check_like("merge_scores", "logits", *logits, maps[0], "scores[0]");
    TORCH_CHECK_VALUE(logits->size(0) == N && logits->size(1) == S, "merge_scores: logits must have shape (N=", N,
                      ", S=", S, ", H, W); got shape ", logits->sizes(), "; one logit per scale");
    dense_logits = dense(*logits);
  }
  const Tensor merged = empty_map(N, C, out, maps[0].options());
  const Tensor weights = empty_map(N, mode == Merge::attention ? S : 0, out, maps[0].options());
  REPRO_DISPATCH(maps[0], "merge_scores", [&] {
    merge_scores(device, mode, in_maps<scalar_t>(maps),
                 mode == Merge::attention ? in_pointer<scalar_t>(dense_logits) : nullptr,
                 mode == Merge::attention ? size_of(dense_logits) : out, N, C, out, out_pointer<scalar_t>(merged),
                 out_pointer<scalar_t>(weights));
  });
  return {merged, weights};
}

// Returns the S score gradients, each of its map's size, and the gradient of the logits as resampled to the output's
// size (0 channels unless attention).
template <class Device>
std::tuple<std::vector<Tensor>, Tensor> merge_scores_backward_op(const Device& device, const Tensor& dmerged,
                                                                 const std::optional<Tensor>& dweights,
                                                                 at::TensorList scores, const Tensor& weights,
                                                                 c10::string_view mode_name) {
  const char* op = "merge_scores_backward";
  const std::vector<Tensor> maps = check_scores(op, scores);
  const Merge mode = check_mode(std::string(mode_name));
  check_like(op, "dmerged", dmerged, maps[0], "scores[0]");
  check_like(op, "weights", weights, maps[0], "scores[0]");
  const int64_t N = maps[0].size(0);
  const int64_t C = maps[0].size(1);
  const int64_t channels = mode == Merge::attention ? static_cast<int64_t>(maps.size()) : 0;
  const Size out = size_of(dmerged);
  TORCH_CHECK_VALUE(dmerged.size(0) == N && dmerged.size(1) == C, op, ": dmerged must have shape (N=", N, ", C=", C,
                    ", H, W); got shape ", dmerged.sizes(), "; pass the gradient of merged");
  const std::vector<int64_t> weights_shape{N, channels, out.H, out.W};
  TORCH_CHECK_VALUE(weights.sizes() == at::IntArrayRef(weights_shape), op, ": weights must have shape ",
                    at::IntArrayRef(weights_shape), "; got ", weights.sizes(), "; pass what merge_scores returned");
  Tensor dense_dweights;
  if (dweights.has_value() && mode == Merge::attention) {
    check_like(op, "dweights", *dweights, weights, "weights");
    TORCH_CHECK_VALUE(dweights->sizes() == weights.sizes(), op, ": dweights must have the shape of weights ",
                      weights.sizes(), "; got ", dweights->sizes(), "; pass the gradient of weights");
    dense_dweights = dense(*dweights);
  }
  const Tensor dense_dmerged = dense(dmerged);
  const Tensor dense_weights = dense(weights);
  std::vector<Tensor> dscores;
  for (const Tensor& map : maps) dscores.push_back(empty_map(N, C, size_of(map), map.options()));
  const Tensor dlogits = empty_map(N, channels, out, maps[0].options());
  const Tensor winner = mode == Merge::max ? empty_map(N, C, out, maps[0].options().dtype(at::kByte)) : Tensor();
  REPRO_DISPATCH(maps[0], "merge_scores_backward", [&] {
    using T = typename Storage<scalar_t>::type;
    Maps<T> outputs{};
    outputs.S = static_cast<int>(dscores.size());
    for (int s = 0; s < outputs.S; ++s) {
      outputs.data[s] = out_pointer<scalar_t>(dscores[s]);
      outputs.size[s] = size_of(dscores[s]);
    }
    merge_scores_backward(device, mode, in_pointer<scalar_t>(dense_dmerged),
                          dense_dweights.defined() ? in_pointer<scalar_t>(dense_dweights) : nullptr,
                          in_maps<scalar_t>(maps), in_pointer<scalar_t>(dense_weights), N, C, out,
                          winner.defined() ? winner.mutable_data_ptr<uint8_t>() : nullptr, outputs,
                          mode == Merge::attention ? out_pointer<scalar_t>(dlogits) : nullptr);
  });
  return {dscores, dlogits};
}

}  // namespace repro

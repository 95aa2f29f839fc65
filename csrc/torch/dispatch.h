// The passage from tensors to the kernels' pointers: the device, the element type, dense layout, new results.
#pragma once

#include <ATen/ATen.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <vector>

#include "ops.h"
#include "shared/huge_pages.h"

namespace repro {

using at::Tensor;

// Where an op's kernels run, made from the device of its tensors. The wrappers are templates over it (On): OnCpu, or
// cuda/register.cpp's OnCuda, which makes the device current while it lives.
struct OnCpu {
  static constexpr bool kReadable = true;  // whether a result may be looked at without waiting for the device
  Cpu device;

  explicit OnCpu(at::Device) {}
};

static_assert(sizeof(bfloat16) == sizeof(c10::BFloat16) && sizeof(float16) == sizeof(c10::Half));

inline Size size_of(const Tensor& map) { return {map.size(2), map.size(3)}; }

// What the kernels sum in, and return what is a sum in.
inline at::ScalarType wide(const Tensor& map) { return map.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// A new result, or scratch.
inline Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  Tensor made = at::empty(sizes, options);
  if (made.device().is_cpu()) ask_for_huge_pages(made.mutable_data_ptr(), made.nbytes());
  return made;
}

inline Tensor empty_map(int64_t N, int64_t C, Size size, const at::TensorOptions& options) {
  return empty({N, C, size.H, size.W}, options.memory_format(at::MemoryFormat::ChannelsLast));
}

inline Tensor dense(const Tensor& map) {
  if (map.is_contiguous(at::MemoryFormat::ChannelsLast)) return map;
  return empty_map(map.size(0), map.size(1), size_of(map), map.options()).copy_(map);
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

// Calls f with the pointer of labels that check_labels returned, of its element type.
template <class F>
void dispatch_labels(const Tensor& labels, const F& f) {
  if (labels.scalar_type() == at::kByte)
    f(labels.const_data_ptr<uint8_t>());
  else
    f(labels.const_data_ptr<int64_t>());
}

}  // namespace repro

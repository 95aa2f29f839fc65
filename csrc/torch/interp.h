// Interp and its adjoint, from tensors to kernels.
#pragma once

#include "torch/checks.h"

namespace repro {

template <class On>
Tensor interp_op(const Tensor& x, at::IntArrayRef size) {
  constexpr const char* op = "interp";
  const On on(x.device());
  check_map(op, "x", x);
  const Size out = check_size(op, size);
  const Tensor from = dense(x);
  const Tensor y = empty_map(x.size(0), x.size(1), out, x.options());
  REPRO_DISPATCH(x, op, [&] {
    interp(on.device, in_pointer<scalar_t>(from), size_of(x), x.size(0), x.size(1), out, out_pointer<scalar_t>(y));
  });
  return y;
}

template <class On>
Tensor interp_backward_op(const Tensor& dy, at::IntArrayRef size) {
  constexpr const char* op = "interp_backward";
  const On on(dy.device());
  check_map(op, "dy", dy);
  const Size in = check_size(op, size);
  const Tensor from = dense(dy);
  const Tensor dx = empty_map(dy.size(0), dy.size(1), in, dy.options());
  REPRO_DISPATCH(dy, op, [&] {
    interp_backward(on.device, in_pointer<scalar_t>(from), size_of(dy), dy.size(0), dy.size(1), in,
                    out_pointer<scalar_t>(dx));
  });
  return dx;
}

}  // namespace repro

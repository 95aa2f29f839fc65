// The domain transform and its gradients, from tensors to kernels.
#pragma once

#include <cmath>
#include <tuple>

#include "torch/checks.h"

namespace repro {

// What both ops check, dense.
struct FilterInputs {
  Tensor x;
  Tensor edge;
  Tensor valid_size;  // undefined for the whole map
  Filter filter;
  Size size;
  int64_t N;
  int64_t C;

  FilterInputs(const char* op, bool readable, const Tensor& x_, const Tensor& edge_, int64_t num_iter,
               double spatial_sigma, double range_sigma, double min_weight, const std::optional<Tensor>& valid)
      : filter{num_iter, static_cast<float>(spatial_sigma), static_cast<float>(range_sigma),
               static_cast<float>(min_weight)} {
    check_map(op, "x", x_);
    size = size_of(x_);
    N = x_.size(0);
    C = x_.size(1);
    check_like(op, "edge", edge_, x_, "x");
    const std::vector<int64_t> expected{N, 1, size.H, size.W};
    TORCH_CHECK_VALUE(edge_.sizes() == at::IntArrayRef(expected), op, ": edge must have shape ",
                      at::IntArrayRef(expected), "; got ", edge_.sizes(), "; give one edge map of x's size per image");
    TORCH_CHECK_VALUE(num_iter >= 1, op, ": num_iter must be at least 1; got ", num_iter, "; use 3 as Caffe's nets do");
    check_sigma(op, "spatial_sigma", spatial_sigma, filter.spatial_sigma, "pixels");
    check_sigma(op, "range_sigma", range_sigma, filter.range_sigma, "units of edge");
    TORCH_CHECK_VALUE(filter.min_weight >= 0 && filter.min_weight < 1, op,
                      ": min_weight must be 0 or more and below 1; got ", min_weight, "; use 0 for no least weight");
    if (valid.has_value()) valid_size = check_valid_size(op, *valid, readable);
    x = dense(x_);
    edge = dense(edge_);
  }

  const int64_t* valid_pointer() const { return valid_size.defined() ? valid_size.const_data_ptr<int64_t>() : nullptr; }

 private:
  static void check_sigma(const char* op, const char* name, double given, float kept, const char* unit) {
    TORCH_CHECK_VALUE(kept > 0 && std::isfinite(kept), op, ": ", name, " must be positive and finite in float32; got ",
                      given, "; give a standard deviation in ", unit);
  }

  Tensor check_valid_size(const char* op, const Tensor& valid, bool readable) const {
    TORCH_CHECK_VALUE(valid.scalar_type() == at::kLong && valid.dim() == 2 && valid.size(0) == N && valid.size(1) == 2,
                      op, ": valid_size must be int64 of shape (N=", N, ", 2); got ", valid.scalar_type(), " of shape ",
                      valid.sizes(), "; give each image's height and width");
    const Tensor sizes = valid.contiguous();
    if (!readable) return sizes;  // asking a GPU would wait for it: there the result is NaN
    const auto* const side = sizes.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < N; ++n)
      TORCH_CHECK_VALUE(side[2 * n] >= 0 && side[2 * n] <= size.H && side[2 * n + 1] >= 0 && side[2 * n + 1] <= size.W,
                        op, ": valid_size must lie within the map of ", size.H, " x ", size.W, "; got ", side[2 * n],
                        " x ", side[2 * n + 1], " for image ", n, "; give the image's own height and width");
    return sizes;
  }
};

// Scratch of the accumulator's type, `planes` of them.
inline Tensor empty_planes(int64_t planes, Size size, const Tensor& like) {
  return empty({planes, size.H, size.W}, like.options().dtype(wide(like)));
}

template <class On>
Tensor domain_transform_op(const Tensor& x, const Tensor& edge, int64_t num_iter, double spatial_sigma,
                           double range_sigma, double min_weight, const std::optional<Tensor>& valid_size) {
  constexpr const char* op = "domain_transform";
  const On on(check_one_device(op, x, edge, valid_size));
  const FilterInputs inputs(op, On::kReadable, x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size);
  const int64_t images = images_at_once(on.device, inputs.N);
  const Tensor y = empty_map(inputs.N, inputs.C, inputs.size, x.options());
  const Tensor weights = empty_planes(num_iter * images, inputs.size, x);
  const bool narrow = wide(x) != x.scalar_type();
  const Tensor map = empty_planes(narrow ? images * inputs.C : 0, inputs.size, x);
  REPRO_DISPATCH(x, op, [&] {
    using Acc = acc_t<typename Storage<scalar_t>::type>;
    domain_transform(on.device, in_pointer<scalar_t>(inputs.x), in_pointer<scalar_t>(inputs.edge),
                     inputs.valid_pointer(), inputs.size, inputs.N, inputs.C, inputs.filter,
                     weights.mutable_data_ptr<Acc>(), map.mutable_data_ptr<Acc>(), out_pointer<scalar_t>(y));
  });
  return y;
}

template <class On>
std::tuple<Tensor, Tensor> domain_transform_backward_op(const Tensor& dy, const Tensor& x, const Tensor& edge,
                                                        int64_t num_iter, double spatial_sigma, double range_sigma,
                                                        double min_weight, const std::optional<Tensor>& valid_size) {
  constexpr const char* op = "domain_transform_backward";
  const On on(check_one_device(op, dy, x, edge, valid_size));
  const FilterInputs inputs(op, On::kReadable, x, edge, num_iter, spatial_sigma, range_sigma, min_weight, valid_size);
  check_like(op, "dy", dy, x, "x");
  TORCH_CHECK_VALUE(dy.sizes() == x.sizes(), op, ": dy must have the shape of x, ", x.sizes(), "; got ", dy.sizes(),
                    "; pass the gradient of y");
  const int64_t images = images_at_once(on.device, inputs.N);
  const Tensor dx = empty_map(inputs.N, inputs.C, inputs.size, x.options());
  const Tensor dedge = empty_map(inputs.N, 1, inputs.size, x.options());
  const Tensor dense_dy = dense(dy);
  const Tensor weights = empty_planes(num_iter * images, inputs.size, x);
  const Tensor sums = empty_planes(2 * images, inputs.size, x);
  const bool narrow = wide(x) != x.scalar_type();
  const Tensor dmap = empty_planes(narrow ? images * inputs.C : 0, inputs.size, x);
  std::vector<Tensor> maps;
  for (int64_t i = 0; i < maps_of_backward(on.device, num_iter); ++i)
    maps.push_back(empty_planes(images * inputs.C, inputs.size, x));
  REPRO_DISPATCH(x, op, [&] {
    using Acc = acc_t<typename Storage<scalar_t>::type>;
    std::vector<Acc*> pointers;
    for (const Tensor& map : maps) pointers.push_back(map.mutable_data_ptr<Acc>());
    domain_transform_backward(on.device, in_pointer<scalar_t>(dense_dy), in_pointer<scalar_t>(inputs.x),
                              in_pointer<scalar_t>(inputs.edge), inputs.valid_pointer(), inputs.size, inputs.N,
                              inputs.C, inputs.filter, weights.mutable_data_ptr<Acc>(), pointers.data(),
                              dmap.mutable_data_ptr<Acc>(), sums.mutable_data_ptr<Acc>(), out_pointer<scalar_t>(dx),
                              out_pointer<scalar_t>(dedge));
  });
  return {dx, dedge};
}

}  // namespace repro

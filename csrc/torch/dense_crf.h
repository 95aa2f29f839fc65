// dense_crf, from tensors to kernels.
#pragma once

#include <cmath>
#include <limits>

#include "shared/permutohedral.h"
#include "torch/checks.h"

namespace repro {

inline bool all_finite(const Tensor& map) {
  if (map.numel() == 0) return true;
  const auto [smallest, largest] = at::aminmax(map);  // NaN where one is NaN
  return std::isfinite(smallest.item<double>()) && std::isfinite(largest.item<double>());
}

// A weight, at least 0, or a standard deviation, above 0; both as float32, which Caffe keeps them in.
inline float check_crf_number(const char* name, double value, bool may_be_zero) {
  const auto number = static_cast<float>(value);
  TORCH_CHECK_VALUE(std::isfinite(number) && (may_be_zero ? number >= 0 : number > 0), "dense_crf: ", name, " must be ",
                    may_be_zero ? "at least 0" : "greater than 0", " and finite; got ", value, "; correct it");
  return number;
}

// Refuses features that lie too far apart for the lattice's integer coordinates.
template <int D>
void check_crf_reach(const char* names, const double (&largest)[D]) {
  const double reach = lattice_reach<D>(largest);
  TORCH_CHECK_VALUE(reach < kLatticeReach<D>, "dense_crf: ", names, " must span at most ", kLatticeReach<D>,
                    " lattice cells from 0; got ", static_cast<int64_t>(std::fmin(reach, 1e18)), "; enlarge it");
}

// Returns the probabilities (N, C, H, W).
template <class On>
Tensor dense_crf_op(const Tensor& log_prob, const Tensor& image, int64_t iterations, double pos_w, double pos_xy_std,
                    double bi_w, double bi_xy_std, double bi_rgb_std) {
  constexpr const char* op = "dense_crf";
  const On on(check_one_device(op, log_prob, image));
  check_map(op, "log_prob", log_prob);
  const auto dtype = log_prob.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, op, ": log_prob must be float32 or float64; got ",
                    dtype, "; convert it with .to(torch.float32)");
  TORCH_CHECK_VALUE(log_prob.size(1) >= 1 && log_prob.size(1) <= kMostCrfClasses, op, ": log_prob must have 1 to ",
                    kMostCrfClasses, " classes; got shape ", log_prob.sizes(), "; check the channels");
  TORCH_CHECK_VALUE(image.scalar_type() == at::kByte || image.scalar_type() == at::kFloat, op,
                    ": image must be uint8 or float32; got ", image.scalar_type(),
                    "; convert it with .to(torch.float32)");
  const int64_t N = log_prob.size(0);
  const int64_t C = log_prob.size(1);
  const Size size = size_of(log_prob);
  TORCH_CHECK_VALUE(image.dim() == 4 && image.size(0) == N && image.size(1) == 3 && size_of(image) == size, op,
                    ": image must have shape (N=", N, ", 3, H=", size.H, ", W=", size.W, ") as log_prob; got ",
                    image.sizes(), "; resize log_prob to the image");
  TORCH_CHECK_VALUE(size.H <= kMostCrfPixels / size.W, op, ": an image must have at most ", kMostCrfPixels,
                    " pixels; got ", size.H, " x ", size.W, "; cut it into tiles");
  TORCH_CHECK_VALUE(iterations >= 0, op, ": iterations must be at least 0; got ", iterations, "; correct it");
  const DenseCrf crf{iterations,
                     check_crf_number("pos_w", pos_w, true),
                     check_crf_number("pos_xy_std", pos_xy_std, false),
                     check_crf_number("bi_w", bi_w, true),
                     check_crf_number("bi_xy_std", bi_xy_std, false),
                     check_crf_number("bi_rgb_std", bi_rgb_std, false)};
  const Tensor scores = dense(log_prob.to(at::kFloat));
  TORCH_CHECK_VALUE(all_finite(scores), op,
                    ": log_prob must be finite in float32; got infinity or NaN; clamp probabilities before the log");
  double brightest = 255;
  if (image.scalar_type() == at::kFloat && image.numel() > 0) {
    TORCH_CHECK_VALUE(all_finite(image), op, ": image must be finite; got infinity or NaN; check how it was read");
    brightest = image.abs().max().item<double>();
  }
  const auto x = static_cast<double>(size.W - 1);
  const auto y = static_cast<double>(size.H - 1);
  check_crf_reach<2>("positions / pos_xy_std", {x / crf.pos_xy_std, y / crf.pos_xy_std});
  const double colour = brightest / crf.bi_rgb_std;
  check_crf_reach<5>("positions / bi_xy_std and colours / bi_rgb_std",
                     {x / crf.bi_xy_std, y / crf.bi_xy_std, colour, colour, colour});
  const Tensor pixels = dense(image);
  const Tensor probability = empty_map(N, C, size, scores.options());
  const Tensor scratch = at::empty({dense_crf_scratch(on.device, size, C)}, scores.options().dtype(at::kByte));
  const auto run = [&](const auto* colours) {
    dense_crf(on.device, scores.const_data_ptr<float>(), colours, size, N, C, crf, scratch.mutable_data_ptr(),
              probability.mutable_data_ptr<float>());
  };
  if (image.scalar_type() == at::kByte)
    run(pixels.const_data_ptr<uint8_t>());
  else
    run(pixels.const_data_ptr<float>());
  return probability;
}

}  // namespace repro

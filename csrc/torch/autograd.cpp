// The operators' derivatives, for every device: what stands between the dispatcher and the kernels where a tensor is
// differentiated. Forward mode, torch.func and vmap are refused: they would answer with zeros, obscurely or not at all.
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace repro {
namespace {

using at::Tensor;
using c10::SymIntArrayRef;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

template <class Signature>
auto find(const char* op) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(op, "").typed<Signature>();
}

// Whether a derivative with respect to the tensor is wanted; asked of every tensor that an op is differentiable in.
bool differentiated(const char* op, const Tensor& tensor) {
  TORCH_CHECK(!tensor._fw_grad(/*level=*/0).defined(), op,
              ": must be differentiated in reverse mode; got a tangent of forward mode; use repro.ops.reference");
  const bool wanted = at::GradMode::is_enabled() && tensor.requires_grad();
  TORCH_CHECK(!(wanted && tensor.key_set().has(c10::DispatchKey::FuncTorchGradWrapper)), op,
              ": must be differentiated by torch.autograd; got a tensor of torch.func; use torch.autograd.grad or "
              "repro.ops.reference");
  return wanted;
}
bool differentiated(const char* op, at::TensorList tensors, const MaybeTensor& another) {
  bool any = another.has_value() && differentiated(op, *another);
  for (const Tensor& tensor : tensors) any |= differentiated(op, tensor);
  return any;
}

Tensor call_interp(const Tensor& x, SymIntArrayRef size) {
  static const auto op = find<Tensor(const Tensor&, SymIntArrayRef)>("repro::interp");
  return op.call(x, size);
}

Tensor call_interp_backward(const Tensor& dy, SymIntArrayRef size) {
  static const auto op = find<Tensor(const Tensor&, SymIntArrayRef)>("repro::interp_backward");
  return op.call(dy, size);
}

// Interp or its adjoint: each is linear, and the other one's derivative.
template <auto call, auto call_adjoint>
struct Linear : Function<Linear<call, call_adjoint>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, SymIntArrayRef size) {
    const at::AutoDispatchBelowADInplaceOrView below;
    Tensor y = call(x, size);
    ctx->saved_data["H"] = x.sym_size(2);
    ctx->saved_data["W"] = x.sym_size(3);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    const std::vector<c10::SymInt> size{ctx->saved_data["H"].toSymInt(), ctx->saved_data["W"].toSymInt()};
    return {call_adjoint(dy[0], size), Tensor()};
  }
};

Tensor interp(const Tensor& x, SymIntArrayRef size) {
  if (differentiated("interp", x)) return Linear<call_interp, call_interp_backward>::apply(x, size);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_interp(x, size);
}

Tensor interp_backward(const Tensor& dy, SymIntArrayRef size) {
  if (differentiated("interp_backward", dy)) return Linear<call_interp_backward, call_interp>::apply(dy, size);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_interp_backward(dy, size);
}

using Merged = std::tuple<Tensor, Tensor>;
using MergedGradients = std::tuple<std::vector<Tensor>, Tensor>;

Merged call_merge_scores(at::TensorList scores, const MaybeTensor& logits, std::string_view mode, SymIntArrayRef size,
                         bool return_weights) {
  static const auto op =
      find<Merged(at::TensorList, const MaybeTensor&, std::string_view, SymIntArrayRef, bool)>("repro::merge_scores");
  return op.call(scores, logits, mode, size, return_weights);
}

MergedGradients call_merge_scores_backward(const Tensor& dmerged, const MaybeTensor& dweights, at::TensorList scores,
                                           const MaybeTensor& logits, std::string_view mode) {
  static const auto op =
      find<MergedGradients(const Tensor&, const MaybeTensor&, at::TensorList, const MaybeTensor&, std::string_view)>(
          "repro::merge_scores_backward");
  return op.call(dmerged, dweights, scores, logits, mode);
}

struct MergeScores : Function<MergeScores> {
  static variable_list forward(AutogradContext* ctx, at::TensorList scores, const MaybeTensor& logits,
                               std::string_view mode, SymIntArrayRef size, bool return_weights) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [merged, weights] = call_merge_scores(scores, logits, mode, size, return_weights);
    variable_list inputs = scores.vec();
    if (logits.has_value()) inputs.push_back(*logits);
    ctx->save_for_backward(std::move(inputs));
    ctx->set_materialize_grads(false);
    ctx->saved_data["mode"] = std::string(mode);
    ctx->saved_data["attends"] = logits.has_value();
    ctx->saved_data["H"] = merged.sym_size(2);
    ctx->saved_data["W"] = merged.sym_size(3);
    return {merged, weights};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    variable_list scores = ctx->get_saved_variables();
    MaybeTensor logits;
    MaybeTensor dweights;
    if (ctx->saved_data["attends"].toBool()) {
      logits = scores.back();
      scores.pop_back();
      if (gradients[1].defined() && gradients[1].sym_size(1) > 0) dweights = gradients[1];
    }
    Tensor dmerged = gradients[0];
    if (!dmerged.defined()) {
      const std::vector<c10::SymInt> shape{scores[0].sym_size(0), scores[0].sym_size(1),
                                           ctx->saved_data["H"].toSymInt(), ctx->saved_data["W"].toSymInt()};
      dmerged = at::zeros_symint(shape, scores[0].options());
    }
    auto [results, dlogits] =
        call_merge_scores_backward(dmerged, dweights, scores, logits, ctx->saved_data["mode"].toStringView());
    results.push_back(logits.has_value() ? dlogits : Tensor());
    results.resize(results.size() + 3);  // mode, size, return_weights
    return results;
  }
};

Merged merge_scores(at::TensorList scores, const MaybeTensor& logits, std::string_view mode, SymIntArrayRef size,
                    bool return_weights) {
  if (differentiated("merge_scores", scores, logits)) {
    const variable_list results = MergeScores::apply(scores, logits, mode, size, return_weights);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_merge_scores(scores, logits, mode, size, return_weights);
}

struct MergeScoresBackward : Function<MergeScoresBackward> {
  static variable_list forward(AutogradContext*, const Tensor& dmerged, const MaybeTensor& dweights,
                               at::TensorList scores, const MaybeTensor& logits, std::string_view mode) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [results, dlogits] = call_merge_scores_backward(dmerged, dweights, scores, logits, mode);
    results.push_back(dlogits);
    return results;
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "merge_scores_backward: must not be differentiated; got a request for a second derivative; use "
                "repro.ops.reference.merge_scores");
  }
};

MergedGradients merge_scores_backward(const Tensor& dmerged, const MaybeTensor& dweights, at::TensorList scores,
                                      const MaybeTensor& logits, std::string_view mode) {
  constexpr const char* op = "merge_scores_backward";
  const bool upstream = differentiated(op, dmerged) | (dweights.has_value() && differentiated(op, *dweights));
  if (differentiated(op, scores, logits) || upstream) {
    variable_list results = MergeScoresBackward::apply(dmerged, dweights, scores, logits, mode);
    const Tensor dlogits = results.back();
    results.pop_back();
    return {results, dlogits};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_merge_scores_backward(dmerged, dweights, scores, logits, mode);
}

using Loss = std::tuple<Tensor, Tensor, Tensor>;

Loss call_segmentation_loss(const Tensor& scores, const Tensor& labels, c10::SymInt shrink, c10::SymInt ignore_label,
                            bool gradient) {
  static const auto op =
      find<Loss(const Tensor&, const Tensor&, c10::SymInt, c10::SymInt, bool)>("repro::segmentation_loss");
  return op.call(scores, labels, std::move(shrink), std::move(ignore_label), gradient);
}

// dscores * scale, rounded once, as a function of the scores: so that a second derivative is an error and not a silent
// zero.
struct Scaled : Function<Scaled> {
  static Tensor forward(AutogradContext*, const Tensor& /*scores*/, const Tensor& dscores, const Tensor& scale) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto wide = dscores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    return dscores.to(wide).mul(scale.to(wide)).to(dscores.scalar_type());
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "segmentation_loss: must be differentiated once; got a request for a second derivative; use "
                "repro.ops.reference.segmentation_loss");
  }
};

struct SegmentationLoss : Function<SegmentationLoss> {
  static variable_list forward(AutogradContext* ctx, const Tensor& scores, const Tensor& labels, c10::SymInt shrink,
                               c10::SymInt ignore_label) {
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, dscores, valid] =
        call_segmentation_loss(scores, labels, std::move(shrink), std::move(ignore_label), /*gradient=*/true);
    ctx->mark_non_differentiable({dscores, valid});
    ctx->save_for_backward({scores, dscores});
    ctx->set_materialize_grads(false);
    return {loss, dscores, valid};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& gradients) {
    const Tensor& dloss = gradients[0];
    if (!dloss.defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    const variable_list saved = ctx->get_saved_variables();
    // A tracer's tensor holds no number, and a GPU would have to be waited for.
    const bool readable = dloss.is_cpu() && !at::isTensorSubclassLike(dloss);
    const bool finished = readable && !at::GradMode::is_enabled() && dloss.item<double>() == 1;
    return {finished ? saved[1] : Scaled::apply(saved[0], saved[1], dloss), Tensor(), Tensor(), Tensor()};
  }
};

Loss segmentation_loss(const Tensor& scores, const Tensor& labels, c10::SymInt shrink, c10::SymInt ignore_label,
                       bool gradient) {
  if (differentiated("segmentation_loss", scores) && gradient) {
    const variable_list results = SegmentationLoss::apply(scores, labels, std::move(shrink), std::move(ignore_label));
    return {results[0], results[1], results[2]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_segmentation_loss(scores, labels, std::move(shrink), std::move(ignore_label), gradient);
}

// The domain transform's numbers, as they come and as they are kept.
struct FilterNumbers {
  int64_t num_iter;
  double spatial_sigma;
  double range_sigma;
  double min_weight;
};

using FilterGradients = std::tuple<Tensor, Tensor>;

Tensor call_domain_transform(const Tensor& x, const Tensor& edge, const FilterNumbers& f, const MaybeTensor& valid) {
  static const auto op =
      find<Tensor(const Tensor&, const Tensor&, int64_t, double, double, double, const MaybeTensor&)>(
          "repro::domain_transform");
  return op.call(x, edge, f.num_iter, f.spatial_sigma, f.range_sigma, f.min_weight, valid);
}

FilterGradients call_domain_transform_backward(const Tensor& dy, const Tensor& x, const Tensor& edge,
                                               const FilterNumbers& f, const MaybeTensor& valid) {
  static const auto op = find<FilterGradients(const Tensor&, const Tensor&, const Tensor&, int64_t, double, double,
                                              double, const MaybeTensor&)>("repro::domain_transform_backward");
  return op.call(dy, x, edge, f.num_iter, f.spatial_sigma, f.range_sigma, f.min_weight, valid);
}

struct DomainTransform : Function<DomainTransform> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& edge, const FilterNumbers& numbers,
                        const MaybeTensor& valid) {
    const at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, edge, valid.value_or(Tensor())});
    ctx->saved_data["num_iter"] = numbers.num_iter;
    ctx->saved_data["spatial_sigma"] = numbers.spatial_sigma;
    ctx->saved_data["range_sigma"] = numbers.range_sigma;
    ctx->saved_data["min_weight"] = numbers.min_weight;
    return call_domain_transform(x, edge, numbers, valid);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& dy) {
    const variable_list saved = ctx->get_saved_variables();
    const FilterNumbers numbers{ctx->saved_data["num_iter"].toInt(), ctx->saved_data["spatial_sigma"].toDouble(),
                                ctx->saved_data["range_sigma"].toDouble(), ctx->saved_data["min_weight"].toDouble()};
    const MaybeTensor valid = saved[2].defined() ? MaybeTensor(saved[2]) : MaybeTensor();
    const auto [dx, dedge] = call_domain_transform_backward(dy[0], saved[0], saved[1], numbers, valid);
    return {dx, dedge, Tensor(), Tensor()};
  }
};

Tensor domain_transform(const Tensor& x, const Tensor& edge, int64_t num_iter, double spatial_sigma, double range_sigma,
                        double min_weight, const MaybeTensor& valid_size) {
  const FilterNumbers numbers{num_iter, spatial_sigma, range_sigma, min_weight};
  if (differentiated("domain_transform", x) | differentiated("domain_transform", edge))
    return DomainTransform::apply(x, edge, numbers, valid_size);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_domain_transform(x, edge, numbers, valid_size);
}

struct DomainTransformBackward : Function<DomainTransformBackward> {
  static variable_list forward(AutogradContext*, const Tensor& dy, const Tensor& x, const Tensor& edge,
                               const FilterNumbers& numbers, const MaybeTensor& valid) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto [dx, dedge] = call_domain_transform_backward(dy, x, edge, numbers, valid);
    return {dx, dedge};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK(false,
                "domain_transform_backward: must not be differentiated; got a request for a second derivative; use "
                "repro.ops.reference.domain_transform");
  }
};

FilterGradients domain_transform_backward(const Tensor& dy, const Tensor& x, const Tensor& edge, int64_t num_iter,
                                          double spatial_sigma, double range_sigma, double min_weight,
                                          const MaybeTensor& valid_size) {
  constexpr const char* op = "domain_transform_backward";
  const FilterNumbers numbers{num_iter, spatial_sigma, range_sigma, min_weight};
  if (differentiated(op, dy) | differentiated(op, x) | differentiated(op, edge)) {
    const variable_list results = DomainTransformBackward::apply(dy, x, edge, numbers, valid_size);
    return {results[0], results[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return call_domain_transform_backward(dy, x, edge, numbers, valid_size);
}

void refuse_vmap(const c10::OperatorHandle& op, torch::jit::Stack*) {
  const std::string& name = op.schema().name();
  TORCH_CHECK(false, name.substr(name.rfind(':') + 1),
              ": must not run under vmap; got a batched tensor; put its dimension into N");
}

}  // namespace
}  // namespace repro

TORCH_LIBRARY_IMPL(repro, Autograd, m) {
  m.impl("interp", repro::interp);
  m.impl("interp_backward", repro::interp_backward);
  m.impl("merge_scores", repro::merge_scores);
  m.impl("merge_scores_backward", repro::merge_scores_backward);
  m.impl("segmentation_loss", repro::segmentation_loss);
  m.impl("domain_transform", repro::domain_transform);
  m.impl("domain_transform_backward", repro::domain_transform_backward);
}

TORCH_LIBRARY_IMPL(repro, FuncTorchBatched, m) {
  for (const char* op :
       {"interp", "interp_backward", "merge_scores", "merge_scores_backward", "predict", "segmentation_loss",
        "confusion_matrix", "dense_crf", "domain_transform", "domain_transform_backward"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&repro::refuse_vmap>());
}

// Takes the operators of CPU tensors to the CUDA side: csrc/cuda/register.cpp's checks, allocations and launches, of
// kernels that launch.cuh makes the host run. Every call runs twice, the threads and blocks of the second time in
// reverse order, and fails unless both give the same bits. New tensors are full of NaN (of integers: the largest), so
// that what no kernel writes is seen.
#include <ATen/Context.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

#include <cstring>
#include <vector>

#include "cuda/launch.cuh"

namespace emulated {
namespace {

int64_t launches_of_last = 0;

struct Filled {
  const bool before = at::globalContext().deterministicAlgorithms();
  const bool warned = at::globalContext().deterministicAlgorithmsWarnOnly();

  Filled() { at::globalContext().setDeterministicAlgorithms(true, false); }
  ~Filled() { at::globalContext().setDeterministicAlgorithms(before, warned); }
};

// Runs the CUDA kernel on the arguments; returns its results.
torch::jit::Stack run(const c10::OperatorHandle& op, torch::jit::Stack arguments, bool backwards) {
  reversed = backwards;
  const int64_t before = launches;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CUDA), &arguments);
  launches_of_last = launches - before;
  return arguments;
}

std::vector<at::Tensor> tensors(const torch::jit::Stack& results) {
  std::vector<at::Tensor> all;
  for (const c10::IValue& result : results) {
    if (result.isTensor()) all.push_back(result.toTensor());
    if (result.isTensorList())
      for (const at::Tensor& tensor : result.toTensorVector()) all.push_back(tensor);
  }
  return all;
}

// An operator's kernel for CPU tensors.
void run_twice(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Filled filled;
  const torch::jit::Stack arguments = torch::jit::pop(*stack, op.schema().arguments().size());
  const torch::jit::Stack results = run(op, arguments, false);
  const int64_t launched = launches_of_last;
  const std::vector<at::Tensor> forward = tensors(results);
  const std::vector<at::Tensor> backward = tensors(run(op, arguments, true));
  TORCH_CHECK(launches_of_last == launched, op.operator_name(), ": another number of launches");
  for (size_t i = 0; i < forward.size(); ++i) {
    TORCH_CHECK(forward[i].is_non_overlapping_and_dense(), op.operator_name(), ": result ", i, " has gaps");
    if (forward[i].numel() == 0) continue;
    TORCH_CHECK(std::memcmp(forward[i].const_data_ptr(), backward[i].const_data_ptr(), forward[i].nbytes()) == 0,
                op.operator_name(), ": result ", i, " depends on the order of threads");
  }
  for (const c10::IValue& result : results) stack->push_back(result);
}

}  // namespace
}  // namespace emulated

TORCH_LIBRARY_IMPL(repro, CPU, m) {
  for (const char* op :
       {"interp", "interp_backward", "merge_scores", "merge_scores_backward", "predict", "segmentation_loss",
        "confusion_matrix", "domain_transform", "domain_transform_backward", "dense_crf"})
    m.impl(op, torch::CppFunction::makeFromBoxedFunction<&emulated::run_twice>());
}

// What tests ask: how many launches the last call of an operator took.
TORCH_LIBRARY(repro_emulated, m) {
  m.def("launches() -> int", [] { return emulated::launches_of_last; });
}

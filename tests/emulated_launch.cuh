// Stands in for csrc/cuda/launch.cuh where no GPU is: the CUDA kernels' own element functions, run one after the other
// by the host's compiler.
#pragma once

#include "ops.h"

namespace repro {

template <class Element>
void for_each(Cuda, int64_t count, const Element& element) {
  for (int64_t i = 0; i < count; ++i) element(i);
}

}  // namespace repro

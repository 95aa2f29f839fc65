// The confusion matrix on the CPU: every task counts into a matrix of its own, then adds it to the result. Bytes: both
// label maps once.
#include <ATen/Parallel.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "ops.h"

namespace repro {

template <class L>
void confusion_matrix(Cpu, const L* prediction, const L* label, int64_t pixels, int64_t num_classes,
                      int64_t ignore_label, int64_t* counts, int64_t* outside) {
  std::fill_n(counts, num_classes * num_classes, 0);
  *outside = 0;
  std::mutex adding;
  at::parallel_for(0, pixels, 65536, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> own(num_classes * num_classes);
    int64_t own_outside = 0;
    const auto classes = static_cast<uint64_t>(num_classes);
    for (int64_t i = begin; i < end; ++i) {
      const auto to = static_cast<int64_t>(label[i]);
      const auto from = static_cast<int64_t>(prediction[i]);
      if (to == ignore_label) continue;
      if (static_cast<uint64_t>(to) < classes && static_cast<uint64_t>(from) < classes)
        ++own[to * num_classes + from];
      else
        ++own_outside;
    }
    const std::lock_guard<std::mutex> guard(adding);
    for (size_t k = 0; k < own.size(); ++k) counts[k] += own[k];
    *outside += own_outside;
  });
}

#define INSTANTIATE(L) \
  template void confusion_matrix<L>(Cpu, const L*, const L*, int64_t, int64_t, int64_t, int64_t*, int64_t*);
INSTANTIATE(uint8_t)
INSTANTIATE(int64_t)

}  // namespace repro

// Memory that is fresh comes page by page, at a fault each: for maps of many MB at 4 KiB a page that takes longer than
// to write them, and the pages' addresses do not fit into the processor's tables. Linux gives pages of 2 MiB where it
// is asked to.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace repro {

constexpr size_t kLeastForHugePages = size_t{4} << 20;  // bytes, as NumPy has it

// Asks for huge pages under memory of the host that nothing was written to yet. Where there are none nothing changes.
inline void ask_for_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] size_t bytes) {
#ifdef __linux__
  if (bytes < kLeastForHugePages) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace repro

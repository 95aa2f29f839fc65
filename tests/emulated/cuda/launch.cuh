// Stands in for csrc/cuda/launch.cuh where no GPU is: the host runs the CUDA kernels themselves, block after block,
// every thread of a block as a fiber that runs until it must wait for others. A kernel that lacks a barrier reads what
// is not there yet, since a fiber never runs beside another; a barrier that some threads do not reach ends the program.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "ops.h"

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  unsigned x;
};
inline Index threadIdx, blockIdx, gridDim;

namespace emulated {

inline bool reversed = false;  // the order in which the threads of a block, and the blocks, run
inline int64_t launches = 0;   // since the library was loaded

enum class State { ready, at_warp, at_block, done };

// One thread of a block, and of every later block: its function never returns.
struct Fiber {
  static constexpr size_t kStack = 256 << 10;
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t context;  // where it begins
  jmp_buf at;          // where it waits
  bool begun = false;
  State state;
  char exchanged[8];  // what it offers to the other lanes of its warp
};

inline std::vector<Fiber> fibers;
inline jmp_buf scheduler;
inline const std::function<void()>* body;

inline Fiber& self() { return fibers[threadIdx.x]; }

inline void wait(State state) {
  Fiber& fiber = self();
  fiber.state = state;
  if (_setjmp(fiber.at) == 0) _longjmp(scheduler, 1);
}

inline void live() {
  for (;;) {
    (*body)();
    wait(State::done);
  }
}

// Runs the thread until it waits. (swapcontext would ask the kernel for the signal mask each time.)
inline void run_thread() {
  Fiber& fiber = self();
  if (_setjmp(scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = Fiber::kStack;
  makecontext(&fiber.context, live, 0);
  setcontext(&fiber.context);
}

// Whether threads [begin, end) all wait at `state` (the done ones aside, where they may be); then they go on.
inline bool release(size_t begin, size_t end, State state, bool done_may_be) {
  bool waiting = false;
  for (size_t t = begin; t < end; ++t) {
    if (fibers[t].state == State::done && done_may_be) continue;
    if (fibers[t].state != state) return false;
    waiting = true;
  }
  for (size_t t = begin; t < end; ++t)
    if (fibers[t].state == state) fibers[t].state = State::ready;
  return waiting;
}

inline void run_block(unsigned threads) {
  if (threads % 32 != 0) {
    std::fprintf(stderr, "a block must be of whole warps; got %u threads\n", threads);
    std::abort();
  }
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  for (unsigned t = 0; t < threads; ++t) fibers[t].state = State::ready;
  for (bool going = true; going;) {
    for (unsigned k = 0; k < threads; ++k) {
      threadIdx.x = reversed ? threads - 1 - k : k;
      if (self().state == State::ready) run_thread();
    }
    going = false;
    for (unsigned warp = 0; warp < threads; warp += 32) going |= release(warp, warp + 32, State::at_warp, false);
    if (!going) going = release(0, threads, State::at_block, true);
  }
  for (unsigned t = 0; t < threads; ++t)
    if (fibers[t].state != State::done) {
      std::fprintf(stderr, "block %u: thread %u waits for threads that never come\n", blockIdx.x, t);
      std::abort();
    }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(emulated::State::at_block); }

inline void __threadfence() {}  // one thread at a time sees everything

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
  static_assert(sizeof(Value) <= 8);
  std::memcpy(emulated::self().exchanged, &value, sizeof value);
  emulated::wait(emulated::State::at_warp);
  std::memcpy(&value, emulated::fibers[threadIdx.x ^ static_cast<unsigned>(mask)].exchanged, sizeof value);
  emulated::wait(emulated::State::at_warp);  // all have read before one offers its next value
  return value;
}

// Which lanes of the warp offer the same value, a bit for each.
template <class Value>
unsigned __match_any_sync(unsigned, Value value) {
  static_assert(sizeof(Value) <= 8);
  std::memcpy(emulated::self().exchanged, &value, sizeof value);
  emulated::wait(emulated::State::at_warp);
  unsigned same = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    Value other;
    std::memcpy(&other, emulated::fibers[threadIdx.x / 32 * 32 + lane].exchanged, sizeof other);
    same |= static_cast<unsigned>(other == value) << lane;
  }
  emulated::wait(emulated::State::at_warp);
  return same;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <class Value>
Value atomicAdd(Value* to, Value value) {
  const Value before = *to;
  *to += value;
  return before;
}

template <class Value>
Value atomicCAS(Value* at, Value expected, Value value) {
  const Value before = *at;
  if (before == expected) *at = value;
  return before;
}

namespace repro {

constexpr int64_t kMostBlocks = 5;    // so that threads do go on
constexpr int64_t kEnoughBlocks = 4;  // so that tiles do have several rows

template <class... Parameters, class... Arguments>
void launch(Cuda, int64_t blocks, int threads, void (*kernel)(Parameters...), const Arguments&... arguments) {
  const std::function<void()> body = [&] { kernel(arguments...); };
  emulated::body = &body;
  emulated::launches += blocks > 0;
  gridDim.x = static_cast<unsigned>(blocks);
  for (unsigned k = 0; k < gridDim.x; ++k) {
    blockIdx.x = emulated::reversed ? gridDim.x - 1 - k : k;
    emulated::run_block(static_cast<unsigned>(threads));
  }
}

}  // namespace repro

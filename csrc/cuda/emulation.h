// CUDA's execution model in plain C++, so that the kernels run, and are tested, without a GPU: a block's
// threads are fibers that take turns at barriers. Slow, deterministic, one block after the other.
//
// Shared memory begins as 0xFF (NaN in every floating type), and copies of cp_async arrive only when they are
// waited for. With tests/support/emulated_checks.cpp, a part of every such build, a launch fails that a GPU
// would refuse, or where it may do anything: accesses that no barrier orders, that are misaligned, or outside
// of shared memory and the tensors of the launch; lanes of a warp that meet at different instructions;
// barriers that cannot be passed. What stays unseen: speed.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
using cudaStream_t = void*;

namespace emulation {

constexpr int kWarp = 32;

struct Copy {
  void* to;
  const void* from;  // null: zeros
  int bytes;
};

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf resume;      // where it goes on; unlike swapcontext, a jump makes no system call
  bool started = false;
  dim3 thread;
  int id = 0;
  bool done = false;
  int block_barriers = 0, barriers = 0;   // passed: of the block, and those of the warp too
  int unwatched = 0;                      // > 0 while it runs the emulator's own code
  std::vector<std::vector<Copy>> groups;  // of cp_async that are committed and not yet waited for
  std::vector<Copy> open;
  const void* at = nullptr;  // the instruction where it waits, or waited last
};

struct Barrier {
  int arrived = 0;
  int generation = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  Fiber* current = nullptr;
  Barrier barrier;
  std::vector<Barrier> warp_barriers;
  std::vector<std::array<uint64_t, kWarp>> slots;  // what the lanes of a warp show each other
  char* shared = nullptr;
  size_t shared_bytes = 0;
  int64_t steps = 0;       // changes by a barrier, a thread that reaches one, or one that ends
  bool abandoned = false;  // after a finding that nothing can follow
  dim3 block_index, block_size, grid_size;
  const std::function<void()>* body = nullptr;
};

inline Block* block = nullptr;
inline int64_t launches = 0;
// Dynamic shared memory of a block, in bytes: what it may have, see pconv_emulate_shared, and what needs no
// allow_shared.
inline int most_shared = 99 << 10;
constexpr size_t kShared = 48 << 10;
constexpr size_t kSharedAlignment = 128;
inline std::set<const void*> allowed_shared;  // kernels that may have more than kShared

// What tests/support/emulated_checks.cpp defines. `code` is the instruction.
// Tells of something wrong, to fail this launch.
void found(const char* what, const void* code = nullptr);
// The findings since the last call, and the first of them in words.
int findings();
const char* first_finding();
// An access that its hooks cannot see in the code.
void watch(const void* memory, int bytes, bool write, const void* code);

// The emulator's own accesses, which are no kernel's.
class Unwatched {
 public:
  Unwatched() : fiber_(*block->current) { ++fiber_.unwatched; }
  ~Unwatched() { --fiber_.unwatched; }

 private:
  Fiber& fiber_;
};

inline void yield() {
  if (!_setjmp(block->current->resume)) _longjmp(block->scheduler, 1);
}

// Runs a fiber until it yields.
__attribute__((noinline)) inline void resume(Fiber& fiber) {
  block->current = &fiber;
  if (!_setjmp(block->scheduler)) {
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }
  block->current = nullptr;
}

// Ends the launch without running another instruction of this thread.
[[noreturn]] inline void abandon() {
  block->abandoned = true;
  for (;;) yield();
}

inline bool in_shared(const void* memory, int bytes) {
  const auto offset = reinterpret_cast<uintptr_t>(memory) - reinterpret_cast<uintptr_t>(block->shared);
  return offset < block->shared_bytes && offset + bytes <= block->shared_bytes;
}

inline void check_aligned(const void* memory, int bytes, const void* code) {
  if (reinterpret_cast<uintptr_t>(memory) % bytes) found("misaligned", code);
}

// For instructions that take shared memory alone, or global memory alone.
inline void check_shared(const void* memory, int bytes, bool shared, const void* code) {
  if (in_shared(memory, bytes) == shared) return;
  found(shared ? "outside of shared memory" : "not in global memory", code);
  abandon();
}

inline int alive(int first, int last) {
  int n = 0;
  for (int i = first; i < last; ++i) n += !block->fibers[i].done;
  return n;
}

// That the lanes of each warp of these threads, `whole` warps or those that have not ended, are at one
// instruction.
inline void check_lanes(int first, int last, bool whole) {
  for (int warp = first; warp < last; warp += kWarp) {
    const Fiber* one = nullptr;
    int met = 0;
    for (int i = warp; i < std::min(warp + kWarp, last); ++i) {
      const Fiber& fiber = block->fibers[i];
      if (fiber.done) continue;
      ++met;
      if (!one) one = &fiber;
      if (fiber.at != one->at) return found("divergence: lanes meet at different instructions", fiber.at);
    }
    if (whole && met < kWarp)
      found("divergence: an instruction of a whole warp without all its lanes", one->at);
  }
}

// Threads that have ended count as arrived, so a waiting thread looks again each time it is resumed.
inline void wait_at(Barrier& barrier, int first, int last, const void* code, bool whole = false) {
  const int generation = barrier.generation;
  block->current->at = code;
  ++barrier.arrived;
  ++block->steps;
  while (barrier.generation == generation) {
    if (barrier.arrived >= alive(first, last)) {
      check_lanes(first, last, whole);
      barrier.arrived = 0;
      ++barrier.generation;
      ++block->steps;
      return;
    }
    yield();
  }
}

inline int lane() {
  return block->current->id % kWarp;
}
inline int warp() {
  return block->current->id / kWarp;
}

inline void wait_for_warp(const void* code, bool whole = false) {
  const int first = warp() * kWarp, last = std::min(first + kWarp, int(block->fibers.size()));
  wait_at(block->warp_barriers[warp()], first, last, code, whole);
}

// Shows `value`, at most 8 bytes, to the warp; `read(of)` sees the values of all lanes.
template <class T, class Read>
auto exchange(T value, const void* code, bool whole, Read read) {
  const Unwatched unwatched;
  static_assert(sizeof(T) <= 8, "");
  auto& slots = block->slots[warp()];
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof(T));
  slots[lane()] = raw;
  wait_for_warp(code, whole);
  auto result = read([&](int other) {
    const int thread = warp() * kWarp + other;
    if (thread >= int(block->fibers.size()) || block->fibers[thread].done)
      found("divergence: a lane reads one that has ended", code);
    T seen;
    std::memcpy(&seen, &slots[other], sizeof(T));
    return seen;
  });
  wait_for_warp(code);
  return result;
}

inline void entry() {
  (*block->body)();
  block->current->done = true;
  ++block->steps;
  for (;;) yield();
}

// Whether the launch goes on.
inline bool run_block(const std::function<void()>& body, dim3 index, dim3 grid, dim3 size, size_t shared) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  constexpr size_t kStack = 256 << 10;
  const int threads = size.x * size.y * size.z;
  Block b;
  b.fibers.resize(threads);
  b.warp_barriers.resize((threads + kWarp - 1) / kWarp);
  b.slots.resize(b.warp_barriers.size());
  std::vector<char> memory(shared + kSharedAlignment, char(0xFF));
  const auto past = reinterpret_cast<uintptr_t>(memory.data()) % kSharedAlignment;
  b.shared = memory.data() + (kSharedAlignment - past), b.shared_bytes = shared;
  b.block_index = index, b.grid_size = grid, b.block_size = size, b.body = &body;
  Block* const before = block;
  block = &b;
  while (int(stacks.size()) < threads) stacks.emplace_back(new char[kStack]);
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    f.id = i;
    f.thread = dim3(i % size.x, i / size.x % size.y, i / (size.x * size.y));
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[i].get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, reinterpret_cast<void (*)()>(entry), 0);
  }
  for (bool running = true; running && !b.abandoned;) {
    running = false;
    const int64_t steps = b.steps;
    for (Fiber& f : b.fibers) {
      if (f.done || b.abandoned) continue;
      running = true;
      resume(f);
    }
    if (running && !b.abandoned && steps == b.steps) {
      found("divergence: no thread passes the barrier where it waits");
      b.abandoned = true;
    }
  }
  block = before;
  return !b.abandoned;
}

template <class Kernel, class... Args>
void launch(Kernel kernel, dim3 grid, dim3 size, size_t shared, Args... args) {
  const auto call = [&] { kernel(args...); };
  const std::function<void()> body = std::ref(call);  // which reads `args` here, on the stack
  ++launches;
  if (size.x * size.y * size.z > 1024 || grid.x > INT32_MAX || std::max(grid.y, grid.z) > 65535 ||
      shared > size_t(most_shared) ||
      (shared > kShared && !allowed_shared.count(reinterpret_cast<const void*>(kernel))))
    return found("more threads, blocks or shared memory than a launch may have");
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x)
        if (!run_block(body, dim3(x, y, z), grid, size, shared)) return;
}

}  // namespace emulation

#define threadIdx (emulation::block->current->thread)
#define blockIdx (emulation::block->block_index)
#define blockDim (emulation::block->block_size)
#define gridDim (emulation::block->grid_size)

// Not inlined, so that the place they return to is the instruction.
#define PCONV_INSTRUCTION __attribute__((noinline)) inline
#define PCONV_CODE __builtin_return_address(0)

PCONV_INSTRUCTION void __syncthreads() {
  const emulation::Unwatched unwatched;
  emulation::wait_at(emulation::block->barrier, 0, int(emulation::block->fibers.size()), PCONV_CODE);
  ++emulation::block->current->block_barriers;
  ++emulation::block->current->barriers;
}
PCONV_INSTRUCTION void __syncwarp(unsigned = ~0u) {
  const emulation::Unwatched unwatched;
  emulation::wait_for_warp(PCONV_CODE);
  ++emulation::block->current->barriers;
}

template <class T>
PCONV_INSTRUCTION T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, PCONV_CODE, false, [&](auto of) { return of(source & 31); });
}
template <class T>
PCONV_INSTRUCTION T __shfl_xor_sync(unsigned, T value, int bits) {
  const int other = emulation::lane() ^ bits;
  return emulation::exchange(value, PCONV_CODE, false, [&](auto of) { return of(other); });
}
template <class T>
PCONV_INSTRUCTION T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = emulation::lane();
  return emulation::exchange(value, PCONV_CODE, false,
                             [&](auto of) { return lane >= delta ? of(lane - delta) : value; });
}
PCONV_INSTRUCTION unsigned __ballot_sync(unsigned, bool predicate) {
  return emulation::exchange(int(predicate), PCONV_CODE, false, [&](auto of) {
    unsigned mask = 0;
    const int first = emulation::warp() * 32, n = int(emulation::block->fibers.size());
    for (int i = 0; i < 32 && first + i < n; ++i)
      if (!emulation::block->fibers[first + i].done && of(i)) mask |= 1u << i;
    return mask;
  });
}
inline int __popc(unsigned v) {
  return __builtin_popcount(v);
}
inline int __popcll(unsigned long long v) {
  return __builtin_popcountll(v);
}

#define PCONV_LAUNCH(kernel, grid, size, shared, stream, ...) \
  emulation::launch(kernel, grid, size, shared, __VA_ARGS__)

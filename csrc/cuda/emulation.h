// CUDA's execution model in plain C++, so that the kernels run, and are tested, without a GPU: a block's
// threads are fibers that take turns at barriers. Slow, deterministic, one block after the other.
//
// Shared memory begins as 0xFF (NaN in every floating type), and copies of cp_async arrive only when they are
// waited for. tests/emulated_races.cpp finds accesses that no barrier orders. What stays unseen: speed, and
// barriers that only some threads of a warp reach.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
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
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 thread;
  int id = 0;
  bool done = false;
  int block_barriers = 0, barriers = 0;   // passed: of the block, and those of the warp too
  int unwatched = 0;                      // > 0 while it runs the emulator's own code
  std::vector<std::vector<Copy>> groups;  // of cp_async that are committed and not yet waited for
  std::vector<Copy> open;
};

struct Barrier {
  int arrived = 0;
  int generation = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  Barrier barrier;
  std::vector<Barrier> warp_barriers;
  std::vector<std::array<uint64_t, kWarp>> slots;  // what the lanes of a warp show each other
  std::vector<char> shared;
  dim3 block_index, block_size, grid_size;
  const std::function<void()>* body = nullptr;
};

inline Block* block = nullptr;
inline int64_t launches = 0;
inline int most_shared =
    99 << 10;          // bytes of a block; pconv_emulate_shared of tests/emulated_races.cpp sets it
inline int races = 0;  // since they were last told

// The emulator's own accesses, which are no kernel's.
class Unwatched {
 public:
  Unwatched() : fiber_(*block->current) { ++fiber_.unwatched; }
  ~Unwatched() { --fiber_.unwatched; }

 private:
  Fiber& fiber_;
};
// Tells the watcher of accesses that it cannot see in the code.
#ifdef PCONV_RACES
void watch(const void* memory, int bytes, bool write);
#else
inline void watch(const void*, int, bool) {}
#endif

inline void yield() {
  swapcontext(&block->current->context, &block->scheduler);
}

inline int alive(int first, int last) {
  int n = 0;
  for (int i = first; i < last; ++i) n += !block->fibers[i].done;
  return n;
}

// Threads that have ended count as arrived, so a waiting thread looks again each time it is resumed.
inline void wait_at(Barrier& barrier, int first, int last) {
  const int generation = barrier.generation;
  ++barrier.arrived;
  while (barrier.generation == generation) {
    if (barrier.arrived >= alive(first, last)) {
      barrier.arrived = 0;
      ++barrier.generation;
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

inline void wait_for_warp() {
  const int first = warp() * kWarp, last = std::min(first + kWarp, int(block->fibers.size()));
  wait_at(block->warp_barriers[warp()], first, last);
}

// Shows `value`, at most 8 bytes, to the warp; `read(slots)` sees the values of all lanes.
template <class T, class Read>
auto exchange(T value, Read read) {
  const Unwatched unwatched;
  static_assert(sizeof(T) <= 8, "");
  auto& slots = block->slots[warp()];
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof(T));
  slots[lane()] = raw;
  wait_for_warp();
  auto result = read([&](int other) {
    T seen;
    std::memcpy(&seen, &slots[other], sizeof(T));
    return seen;
  });
  wait_for_warp();
  return result;
}

inline void entry() {
  (*block->body)();
  block->current->done = true;
  for (;;) yield();
}

inline void run_block(const std::function<void()>& body, dim3 index, dim3 grid, dim3 size, size_t shared) {
  static std::vector<std::unique_ptr<char[]>> stacks;
  constexpr size_t kStack = 256 << 10;
  const int threads = size.x * size.y * size.z;
  Block b;
  b.fibers.resize(threads);
  b.warp_barriers.resize((threads + kWarp - 1) / kWarp);
  b.slots.resize(b.warp_barriers.size());
  b.shared.assign(shared + 16, char(0xFF));
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
  for (bool running = true; running;) {
    running = false;
    for (Fiber& f : b.fibers) {
      if (f.done) continue;
      running = true;
      b.current = &f;
      swapcontext(&b.scheduler, &f.context);
      b.current = nullptr;
    }
  }
  block = before;
}

template <class Kernel, class... Args>
void launch(Kernel kernel, dim3 grid, dim3 size, size_t shared, Args... args) {
  const std::function<void()> body = [&] { kernel(args...); };
  ++launches;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) run_block(body, dim3(x, y, z), grid, size, shared);
}

inline void* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(block->shared.data());
  return reinterpret_cast<void*>((address + 15) & ~uintptr_t(15));
}

}  // namespace emulation

#define threadIdx (emulation::block->current->thread)
#define blockIdx (emulation::block->block_index)
#define blockDim (emulation::block->block_size)
#define gridDim (emulation::block->grid_size)

inline void __syncthreads() {
  const emulation::Unwatched unwatched;
  emulation::wait_at(emulation::block->barrier, 0, int(emulation::block->fibers.size()));
  ++emulation::block->current->block_barriers;
  ++emulation::block->current->barriers;
}
inline void __syncwarp(unsigned = ~0u) {
  const emulation::Unwatched unwatched;
  emulation::wait_for_warp();
  ++emulation::block->current->barriers;
}

template <class T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, [&](auto of) { return of(source & 31); });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int bits) {
  const int other = emulation::lane() ^ bits;
  return emulation::exchange(value, [&](auto of) { return of(other); });
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = emulation::lane();
  return emulation::exchange(value, [&](auto of) { return lane >= delta ? of(lane - delta) : value; });
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  return emulation::exchange(int(predicate), [&](auto of) {
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

// Finds races of the emulated CUDA kernels: two threads touch a byte, one of them writes, and no barrier
// orders them. What `-fsanitize=thread` puts at every load and store calls here, and not the sanitizer's
// library.
//
// Two accesses of one launch are ordered if one thread makes both, if threads of one warp passed any barrier
// in between, or threads of one block one of the block; those of different blocks never are.
#include <dlfcn.h>

#include <cstdio>
#include <unordered_map>

#include "emulation.h"

namespace emulation {
namespace {

struct Access {
  const void* code = nullptr;  // null: none
  int thread = 0, block_barriers = 0, barriers = 0;
};

// What happened to a byte in this launch: by the last block that touched it, and by those before.
struct Byte {
  int64_t block = -1;
  bool written_before = false, read_before = false;
  Access write;
  // The last read; the last by another thread of its warp; the last by another warp.
  Access read[3];
};

constexpr uintptr_t kPage = 4096;
constexpr int kShown = 5;
constexpr size_t kHostStack = 64 << 10;  // bytes, more than between a Block and the parameters of its kernel

std::unordered_map<uintptr_t, std::unique_ptr<std::array<Byte, kPage>>> pages;
int64_t pages_of = 0;  // the launch

Byte& byte_at(uintptr_t address) {
  static uintptr_t last = 0;
  static std::array<Byte, kPage>* page = nullptr;
  if (pages_of != launches) {
    pages.clear();
    page = nullptr;
    pages_of = launches;
  }
  if (!page || address / kPage != last) {
    last = address / kPage;
    auto& found = pages[last];
    if (!found) found = std::make_unique<std::array<Byte, kPage>>();
    page = found.get();
  }
  return (*page)[address % kPage];
}

bool within(uintptr_t address, const void* first, size_t size) {
  return address - reinterpret_cast<uintptr_t>(first) < size;
}

bool same_warp(const Access& a, const Access& b) {
  return a.thread / kWarp == b.thread / kWarp;
}

bool ordered(const Access& before, const Access& now) {
  if (!before.code || before.thread == now.thread) return true;
  return same_warp(before, now) ? before.barriers < now.barriers : before.block_barriers < now.block_barriers;
}

void show(const char* what, uintptr_t address, const Access* before, const Access& now) {
  if (++races > kShown) return;
  Dl_info info{};
  dladdr(now.code, &info);
  const auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
  const auto place = [&](const Access& a) {
    return (unsigned long)(reinterpret_cast<uintptr_t>(a.code) - base);
  };
  fprintf(stderr, "race: %s at %lx, block (%u, %u): thread %d at +0x%lx", what, (unsigned long)address,
          block->block_index.x, block->block_index.y, now.thread, place(now));
  if (before) fprintf(stderr, ", thread %d before at +0x%lx", before->thread, place(*before));
  fprintf(stderr, "\n");
}

void note_read(Byte& byte, const Access& now) {
  Access* read = byte.read;
  if (read[0].code && read[0].thread != now.thread) (same_warp(read[0], now) ? read[1] : read[2]) = read[0];
  read[0] = now;
}

void touch(uintptr_t address, const Access& now, bool write) {
  Byte& byte = byte_at(address);
  const dim3 at = block->block_index, grid = block->grid_size;
  const int64_t here = (int64_t(at.z) * grid.y + at.y) * grid.x + at.x;
  if (byte.block != here && within(address, block->shared.data(), block->shared.size())) byte = Byte();
  if (byte.block != here) {
    byte.written_before |= byte.write.code != nullptr;
    byte.read_before |= byte.read[0].code != nullptr;
    byte.block = here;
    byte.write = byte.read[0] = byte.read[1] = byte.read[2] = Access();
  }
  if (byte.written_before) show("another block has written this", address, nullptr, now);
  if (write && byte.read_before) show("another block has read what is written", address, nullptr, now);
  if (!ordered(byte.write, now))
    show(write ? "write after write" : "read after write", address, &byte.write, now);
  if (!write) return note_read(byte, now);
  for (const Access& read : byte.read)
    if (!ordered(read, now)) show("write after read", address, &read, now);
  byte.write = now;
}

void access(const void* memory, int bytes, bool write, const void* code) {
  const Fiber& fiber = *block->current;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  // Local variables; the emulator's own, and above them on the host's stack the kernel's parameters.
  if (within(address, fiber.context.uc_stack.ss_sp, fiber.context.uc_stack.ss_size) ||
      within(address, block, kHostStack) ||
      within(address, block->fibers.data(), block->fibers.size() * sizeof(Fiber)))
    return;
  // One finding an access.
  const int found = races;
  for (int i = 0; i < bytes && races == found; ++i)
    touch(address + i, {code, fiber.id, fiber.block_barriers, fiber.barriers}, write);
}

void access_in_code(const void* memory, int bytes, bool write, const void* code) {
  if (block && block->current && !block->current->unwatched) access(memory, bytes, write, code);
}

}  // namespace

void watch(const void* memory, int bytes, bool write) {
  access(memory, bytes, write, __builtin_return_address(0));
}

}  // namespace emulation

// Shared memory of a block: tile sizes follow from it.
extern "C" __attribute__((visibility("default"))) void pconv_emulate_shared(int bytes) {
  emulation::most_shared = bytes;
}

#define HOOK(name, bytes, write)                                                  \
  extern "C" void __tsan_##name(void* memory) {                                   \
    emulation::access_in_code(memory, bytes, write, __builtin_return_address(0)); \
  }
HOOK(read1, 1, false)
HOOK(read2, 2, false)
HOOK(read4, 4, false)
HOOK(read8, 8, false)
HOOK(read16, 16, false)
HOOK(write1, 1, true)
HOOK(write2, 2, true)
HOOK(write4, 4, true)
HOOK(write8, 8, true)
HOOK(write16, 16, true)
HOOK(unaligned_read2, 2, false)
HOOK(unaligned_read4, 4, false)
HOOK(unaligned_read8, 8, false)
HOOK(unaligned_read16, 16, false)
HOOK(unaligned_write2, 2, true)
HOOK(unaligned_write4, 4, true)
HOOK(unaligned_write8, 8, true)
HOOK(unaligned_write16, 16, true)
extern "C" void __tsan_read_range(void* memory, long bytes) {
  emulation::access_in_code(memory, int(bytes), false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(void* memory, long bytes) {
  emulation::access_in_code(memory, int(bytes), true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}

// Checks every load and store of the emulated CUDA kernels. What `-fsanitize=thread,alignment` puts there
// calls here, and not the sanitizers' libraries.
//
// A race: two threads touch a byte, one of them writes, and no barrier orders them. Two accesses of one
// launch are ordered if one thread makes both, if threads of one warp passed any barrier in between, or
// threads of one block one of the block; those of different blocks never are.
//
// Outside: neither in shared memory, nor in a tensor of the launch, nor a variable of the thread. Tensors are
// known where pconv_emulate_tensors was told them; gaps between the elements of one count as its own.
#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <string>
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

struct Span {
  uintptr_t first, end;
};

std::vector<Span> tensors;  // by their beginning, each end the largest until there
bool tensors_known = false;

int n_findings = 0;
std::string first;

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

unsigned long place(const void* code) {
  Dl_info info{};
  dladdr(code, &info);
  return (unsigned long)(reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase));
}

void tell(const std::string& what) {
  if (n_findings++ == 0) first = what;
  if (n_findings <= kShown) fprintf(stderr, "%s\n", what.c_str());
}

// "WHAT, block (X, Y), thread T at +0xCODE": an address in the library, for addr2line.
std::string described(const char* what, const void* code) {
  if (!block || !block->current) return what;
  char text[200];
  snprintf(text, sizeof text, "%s, block (%u, %u, %u), thread %d at +0x%lx", what, block->block_index.x,
           block->block_index.y, block->block_index.z, block->current->id, place(code));
  return text;
}

void tell_race(const char* what, const Access* before, const Access& now) {
  std::string text = described((std::string("race: ") + what).c_str(), now.code);
  if (before) {
    char more[80];
    snprintf(more, sizeof more, ", thread %d before at +0x%lx", before->thread, place(before->code));
    text += more;
  }
  tell(text);
}

// Whether the library itself has this, such as a table of constants.
bool in_library(uintptr_t address) {
  static const std::vector<Span> segments = [] {
    std::vector<Span> found;
    const auto add = [](dl_phdr_info* info, size_t, void* to) {
      std::vector<Span> spans;
      bool ours = false;
      const auto here = reinterpret_cast<uintptr_t>(&tensors);
      for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        const uintptr_t begin = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        spans.push_back({begin, begin + info->dlpi_phdr[i].p_memsz});
        ours |= begin <= here && here < spans.back().end;
      }
      if (ours) *static_cast<std::vector<Span>*>(to) = spans;
      return int(ours);
    };
    dl_iterate_phdr(add, &found);
    return found;
  }();
  for (const Span& s : segments)
    if (s.first <= address && address < s.end) return true;
  return false;
}

bool in_tensors(uintptr_t address, int bytes) {
  const auto after = std::upper_bound(tensors.begin(), tensors.end(), address,
                                      [](uintptr_t a, const Span& s) { return a < s.first; });
  return after != tensors.begin() && address + bytes <= (after - 1)->end;
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
  if (byte.block != here && within(address, block->shared, block->shared_bytes)) byte = Byte();
  if (byte.block != here) {
    byte.written_before |= byte.write.code != nullptr;
    byte.read_before |= byte.read[0].code != nullptr;
    byte.block = here;
    byte.write = byte.read[0] = byte.read[1] = byte.read[2] = Access();
  }
  if (byte.written_before) tell_race("another block has written this", nullptr, now);
  if (write && byte.read_before) tell_race("another block has read what is written", nullptr, now);
  if (!ordered(byte.write, now))
    tell_race(write ? "write after write" : "read after write", &byte.write, now);
  if (!write) return note_read(byte, now);
  for (const Access& read : byte.read)
    if (!ordered(read, now)) tell_race("write after read", &read, now);
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
  if (tensors_known && bytes && !in_shared(memory, bytes) && !in_tensors(address, bytes) &&
      !in_library(address)) {
    tell(described(write ? "outside: a write" : "outside: a read", code));
    abandon();
  }
  // One finding an access.
  const int before = n_findings;
  for (int i = 0; i < bytes && n_findings == before; ++i)
    touch(address + i, {code, fiber.id, fiber.block_barriers, fiber.barriers}, write);
}

void access_in_code(const void* memory, int bytes, bool write, const void* code) {
  if (block && block->current && !block->current->unwatched) access(memory, bytes, write, code);
}

}  // namespace

void watch(const void* memory, int bytes, bool write, const void* code) {
  access(memory, bytes, write, code);
}

void found(const char* what, const void* code) {
  tell(described(what, code));
}

int findings() {
  const int n = n_findings;
  n_findings = 0;
  return n;
}

const char* first_finding() {
  return first.c_str();
}

}  // namespace emulation

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Shared memory that a block may have, in bytes: tile sizes follow from it.
EXPORTED void pconv_emulate_shared(int bytes) {
  emulation::most_shared = bytes;
}

// What the following launches may touch: `n` pairs of addresses, the first byte and the one after the last.
// Any, if n is negative.
EXPORTED void pconv_emulate_tensors(int n, const int64_t* pairs) {
  auto& tensors = emulation::tensors;
  tensors.clear();
  emulation::tensors_known = n >= 0;
  for (int i = 0; i < n; ++i) tensors.push_back({uintptr_t(pairs[2 * i]), uintptr_t(pairs[2 * i + 1])});
  std::sort(tensors.begin(), tensors.end(), [](auto& a, auto& b) { return a.first < b.first; });
  for (int i = 1; i < n; ++i) tensors[i].end = std::max(tensors[i].end, tensors[i - 1].end);
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

// Of -fsanitize=alignment: {file, line, column}, the type, the alignment's logarithm, what was done.
struct Mismatch {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char alignment, kind;
};
extern "C" void __ubsan_handle_type_mismatch_v1(Mismatch* mismatch, void*) {
  if (!emulation::block || !emulation::block->current) return;
  const char* slash = strrchr(mismatch->file, '/');
  const std::string place =
      std::string(slash ? slash + 1 : mismatch->file) + ":" + std::to_string(mismatch->line);
  emulation::found(("misaligned: " + place).c_str(), __builtin_return_address(0));
}

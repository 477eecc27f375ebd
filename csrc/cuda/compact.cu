// compact of kernels/triton/rows.py: sorts the entries of each segment by state, those of each filled up to a
// multiple of PAD.
//
// entry_ints [INTS, S, Q] -> ints [INTS, S, capacity] and the same of the int64 words; fillers have pixel -1
// and no bits. limits [S, 3]: where each class ends. Entries of a class keep their order.
//
// Where a block's entries go follows from the counts of all blocks before it. Few of them are summed by every
// block; many by a kernel of its own, which would otherwise be work that grows with the square of their
// number.
#include "arguments.h"
#include "windows.h"

#ifdef PCONV_EMULATE
inline int __reduce_add_sync(unsigned all, int value) {
  for (int bit = 16; bit > 0; bit /= 2) value += __shfl_xor_sync(all, value, bit);
  return value;
}
#endif

namespace pconv {
namespace {

constexpr int kClasses = 3, kMaxInts = 3;
constexpr int kMaxThreads = 1024, kMaxWarps = kMaxThreads / 32;
constexpr int kManyBlocks = 1024;  // from here on the counts are summed beforehand
constexpr int kScanItems = 4;      // counts that a thread of the scan takes at once

struct Compact {
  const int8_t* entry_state;
  const int* entry_ints;
  const int64_t* entry_words;
  int* counts;  // [S, 3, n_blocks]; scan_kernel makes of each where the block's entries go
  int* ints;
  int64_t* words;
  int* limits;
  int q, n_blocks, capacity, n_ints, n_words, pad, block;
  int total, all_capacity;  // entries of all segments, before and after
};

__device__ inline int warp_id() {
  return threadIdx.x / 32;
}
__device__ inline int lane_id() {
  return threadIdx.x % 32;
}

// Fills up a class of `size` entries from `start` on; returns where the next one starts. `write`: whether
// this block is to store that.
__device__ inline int close_class(const Compact& f, int c, int start, int size, bool write) {
  const int end = start + (size + f.pad - 1) / f.pad * f.pad, base = blockIdx.y * f.capacity;
  if (!write) return end;
  for (int i = start + size + threadIdx.x; i < end; i += blockDim.x) {
    for (int a = 0; a < f.n_ints; ++a) f.ints[a * f.all_capacity + base + i] = a == 0 ? -1 : 0;
    for (int a = 0; a < f.n_words; ++a) f.words[a * f.all_capacity + base + i] = 0;
  }
  if (threadIdx.x == 0) f.limits[blockIdx.y * kClasses + c] = end;
  return end;
}

// Sum over the warp, of all its values and of those that come before a thread's.
struct Scan {
  int sum, before;
};
__device__ inline Scan scan_warp(int value) {
  int upto = value;
  for (int delta = 1; delta < 32; delta *= 2) {
    const int other = __shfl_up_sync(kAll, upto, delta);
    if (lane_id() >= delta) upto += other;
  }
  return {__shfl_sync(kAll, upto, 31), upto - value};
}

// The same over the block. `totals` [warps] is shared memory.
__device__ inline Scan scan_block(int value, int* totals) {
  const Scan warp = scan_warp(value);
  if (lane_id() == 0) totals[warp_id()] = warp.sum;
  __syncthreads();
  const Scan warps = scan_warp(lane_id() < int(blockDim.x) / 32 ? totals[lane_id()] : 0);
  const int before = __shfl_sync(kAll, warps.before, warp_id());
  __syncthreads();
  return {warps.sum, before + warp.before};
}

// One block for each segment. Replaces counts by the places of the blocks' first entries, from the segment's
// start.
__global__ void __launch_bounds__(kMaxThreads, 1) scan_kernel(const Compact f) {
  PCONV_SHARED(memory);
  int* totals = reinterpret_cast<int*>(memory);
  int start = 0;
  for (int c = 0; c < kClasses; ++c) {
    int* counts = f.counts + (blockIdx.y * kClasses + c) * f.n_blocks;
    int place = start;
    for (int i = 0; i < f.n_blocks; i += blockDim.x * kScanItems) {
      const int first = i + threadIdx.x * kScanItems;
      int value[kScanItems], sum = 0;
#pragma unroll
      for (int k = 0; k < kScanItems; ++k) sum += value[k] = first + k < f.n_blocks ? counts[first + k] : 0;
      const Scan scan = scan_block(sum, totals);
      int at = place + scan.before;
#pragma unroll
      for (int k = 0; k < kScanItems; ++k) {
        if (first + k < f.n_blocks) counts[first + k] = at;
        at += value[k];
      }
      place += scan.sum;
    }
    start = close_class(f, c, start, place - start, true);
  }
}

// Where this block's entries of each class go, from the counts of all blocks. `shared` [2 *
// classes][kMaxWarps].
__device__ inline void sum_counts(const Compact& f, int* shared, int* place) {
  int size[kClasses] = {0, 0, 0}, before[kClasses] = {0, 0, 0};
  const int* counts = f.counts + blockIdx.y * kClasses * f.n_blocks;
  for (int i = threadIdx.x; i < f.n_blocks; i += blockDim.x) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      const int count = counts[c * f.n_blocks + i];
      size[c] += count;
      before[c] += i < int(blockIdx.x) ? count : 0;
    }
  }
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    const int sum = __reduce_add_sync(kAll, size[c]), ahead = __reduce_add_sync(kAll, before[c]);
    if (lane_id() == 0) {
      shared[2 * c * kMaxWarps + warp_id()] = sum;
      shared[(2 * c + 1) * kMaxWarps + warp_id()] = ahead;
    }
  }
  __syncthreads();
  int start = 0;
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    const bool used = lane_id() < int(blockDim.x) / 32;
    const int sum = __reduce_add_sync(kAll, used ? shared[2 * c * kMaxWarps + lane_id()] : 0);
    place[c] = start + __reduce_add_sync(kAll, used ? shared[(2 * c + 1) * kMaxWarps + lane_id()] : 0);
    start = close_class(f, c, start, sum, blockIdx.x == 0);
  }
}

// A thread for each entry.
template <bool SCANNED>
__global__ void __launch_bounds__(kMaxThreads, 1) compact_kernel(const Compact f) {
  PCONV_SHARED(memory);
  int* mine = reinterpret_cast<int*>(memory);  // [class][kMaxWarps]: entries of each warp
  const int e = blockIdx.y * f.q + blockIdx.x * blockDim.x + threadIdx.x;
  const int state = f.entry_state[e];
  int value[kMaxInts];  // loaded before the barriers, which would hold them up
#pragma unroll
  for (int a = 0; a < kMaxInts; ++a) value[a] = a < f.n_ints ? f.entry_ints[a * f.total + e] : 0;
  const int64_t word = f.entry_words[e];
  int rank = 0;
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    const unsigned same = __ballot_sync(kAll, state == c);
    if (state == c) rank = __popc(same & ((1u << lane_id()) - 1));
    if (lane_id() == 0) mine[c * kMaxWarps + warp_id()] = __popc(same);
  }
  int place[kClasses];
  if (SCANNED) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c)
      place[c] = f.counts[(blockIdx.y * kClasses + c) * f.n_blocks + blockIdx.x];
    __syncthreads();
  } else {
    sum_counts(f, mine + kClasses * kMaxWarps, place);
  }
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    const int ahead = __reduce_add_sync(kAll, lane_id() < warp_id() ? mine[c * kMaxWarps + lane_id()] : 0);
    if (state == c) rank += place[c] + ahead;
  }
  if (state >= kClasses) return;
  const int to = blockIdx.y * f.capacity + rank;
#pragma unroll
  for (int a = 0; a < kMaxInts; ++a)
    if (a < f.n_ints) f.ints[a * f.all_capacity + to] = value[a];
  f.words[to] = word;
  for (int a = 1; a < f.n_words; ++a) f.words[a * f.all_capacity + to] = f.entry_words[a * f.total + e];
}

}  // namespace
}  // namespace pconv

PCONV_ENTRY(compact) {
  using namespace pconv;
  const dim3 grid = args.grid();
  Compact f{};
  f.entry_state = args.tensor<int8_t>("entry_state");
  f.entry_ints = args.tensor<int>("entry_ints");
  f.entry_words = args.tensor<int64_t>("entry_words");
  f.counts = args.tensor<int>("counts");
  f.ints = args.tensor<int>("ints");
  f.words = args.tensor<int64_t>("words");
  f.limits = args.tensor<int>("limits");
  args.integers({{"Q", &f.q}, {"n_blocks", &f.n_blocks}, {"capacity", &f.capacity}, {"INTS", &f.n_ints}});
  args.integers({{"WORDS", &f.n_words}, {"PAD", &f.pad}, {"BLOCK", &f.block}});
  if (!args.complete()) return kInvalidValue;
  f.total = int(grid.y) * f.q, f.all_capacity = int(grid.y) * f.capacity;
  if (f.block > kMaxThreads || f.block % 32 || f.n_ints > kMaxInts) return kInvalidValue;
  constexpr int kShared = 3 * kClasses * kMaxWarps * sizeof(int);
  if (f.n_blocks < kManyBlocks) {
    PCONV_LAUNCH(compact_kernel<false>, grid, dim3(f.block), kShared, stream, f);
    return pconv_launched();
  }
  PCONV_LAUNCH(scan_kernel, dim3(1, grid.y), dim3(kMaxThreads), kShared, stream, f);
  PCONV_LAUNCH(compact_kernel<true>, grid, dim3(f.block), kShared, stream, f);
  return pconv_launched();
}

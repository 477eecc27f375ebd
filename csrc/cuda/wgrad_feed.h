// What brings the operands of wgrad.cu into shared memory: the problem, its division into tiles and steps,
// and the copies of the row list's entries and of the rows gathered by them.
#pragma once
#include "arguments.h"
#include "limits.h"
#include "matrix.h"

namespace pconv::wgrad {

constexpr int kStages = 4;

struct alignas(8) Pair {
  float v[2];
};

struct Phase {
  int high, wide, oy, ox;
  int slot;  // first of its slots
  int copy;  // of the gradient
  int kind;  // pixels it takes: 0 plain, 1 mixed, 2 both
};

// As in kernels/triton/wgrad.py, under the same names.
struct Problem {
  const char* x;
  const char* grads;
  const int* ints;
  const int64_t* words;
  const int* limits;
  float* partial;
  int64_t entries, capacity, copy_stride;
  int tap_y, tap_x, splits;
  int channels, pitch, cp, grad_pitch, slots, nx, row_channels, source, window_words, word0, segments, shared;
  int block_c, block_p;  // block_p: splits begin at multiples of it, a multiple of a step
  int phase_count;
  Phase phases[kMostPasses];
  int x_bytes, grad_bytes;  // of one copy, as rows are aligned: 16, 8, 4 or 2, of the gradient 16 or 8
};

// A tile BM x BN. M says how it is multiplied: Half, BFloat16, Tf32 or, in full float32, float.
template <class M, int BM_, int BN_>
struct Tile {
  using Math = M;
  static constexpr int BM = BM_, BN = BN_;
  static constexpr int kItem = sizeof(M);
  static constexpr int K = 64 / kItem;  // pixels of a step
  static constexpr int kWarps = BM * BN >= 128 * 128 ? 8 : 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int WN = BN < 32 ? BN : 32;  // tile of a warp
  static constexpr int WM = BM * BN / (kWarps * WN);
  // Eight elements more than the tile: then neither ldmatrix nor the loads of single floats meet in a bank.
  static constexpr int kPitchX = (BM + 8) * kItem, kPitchG = (BN + 8) * kItem;
  static constexpr int kX = 0, kG = K * kPitchX, kEntries = kG + K * kPitchG;
  static constexpr int kPosition = kEntries + K * 16;  // entries: pixels, corners, words
  static constexpr int kStageBytes = kPosition + 16;
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static constexpr int kBlocks = kWarps == 8 ? 2 : 3;  // of a multiprocessor, which limits registers
};

// What one block computes: BM / block_c slots from `tap` on, channels from `c` on, columns from `n` on.
struct Part {
  Phase phase;
  int tap, c, n, split, segment_lo, segment_hi, to_segment;
};

__device__ inline Part part_of_block(const Problem& p, int bm, int bn) {
  Part part;
  const int taps = bm / p.block_c;
  const int blocks_n = (p.grad_pitch + bn - 1) / bn, blocks_c = (p.cp + p.block_c - 1) / p.block_c;
  int group = blockIdx.x / (blocks_n * blocks_c), i = 0;
  for (;; ++i) {
    const int groups = (p.phases[i].high * p.phases[i].wide + taps - 1) / taps;
    if (group < groups || i + 1 == p.phase_count) break;
    group -= groups;
  }
  part.phase = p.phases[i];
  part.tap = group * taps;
  part.n = blockIdx.x % blocks_n * bn;
  part.c = blockIdx.x / blocks_n % blocks_c * p.block_c;
  part.to_segment = blockIdx.y;
  part.split = p.shared ? blockIdx.y : blockIdx.y / p.segments;
  part.segment_lo = p.shared ? 0 : blockIdx.y % p.segments;
  part.segment_hi = p.shared ? p.segments : part.segment_lo + 1;
  return part;
}

// Walks over the pixels of a block, a step at a time, through all its segments.
class Walk {
 public:
  __device__ Walk(const Problem& p, const Part& part, int step) : p_(p), part_(part), step_(step) {
    segment_ = part.segment_lo - 1;
    at_ = end_ = 0;
    settle();
  }
  __device__ bool done() const { return segment_ >= part_.segment_hi; }
  __device__ int64_t entry() const { return segment_ * p_.capacity + at_; }
  __device__ void next() {
    at_ += step_;
    settle();
  }

 private:
  __device__ void settle() {
    while (at_ >= end_ && ++segment_ < part_.segment_hi) {
      const int mixed_end = p_.limits[segment_ * 3], live_end = p_.limits[segment_ * 3 + 1];
      const int first = part_.phase.kind == 0 ? mixed_end : 0;
      const int last = part_.phase.kind == 1 ? mixed_end : live_end;
      const int blocks = (last - first) / p_.block_p;
      const int each = (blocks + p_.splits - 1) / p_.splits, lo = part_.split * each;
      at_ = first + lo * p_.block_p;
      end_ = first + (lo + each < blocks ? lo + each : blocks) * p_.block_p;
    }
  }

  const Problem& p_;
  const Part& part_;
  int step_, segment_, at_, end_;
};

template <int BYTES>
__device__ __forceinline__ void copy_piece(char* to, const char* from, bool read) {
  if constexpr (BYTES >= 4) {
    copy_async<BYTES>(to, from, read ? BYTES : 0);
  } else {
    *reinterpret_cast<uint16_t*>(to) = read ? *reinterpret_cast<const uint16_t*>(from) : uint16_t(0);
  }
}

// What feeds the pipeline. A thread copies the same columns of every row it copies, so what depends on the
// tap is computed once.
template <class Tile>
class Feed {
 public:
  __device__ Feed(const Problem& p, const Part& part, char* shared)
      : p_(p), shared_(shared), walk_(p, part, Tile::K) {
    const bool one_tap = Tile::BM == p.block_c && p.row_channels == 0;
    same_word_ = p.window_words == 1 || one_tap;
    set_columns_of_x(part);
    const int n =
        part.n + threadIdx.x % (Tile::BN * Tile::kItem / p.grad_bytes) * (p.grad_bytes / Tile::kItem);
    in_grads_ = n < p.grad_pitch;
    grads_ = p.grads + (part.phase.copy * p.copy_stride + n) * Tile::kItem;
    set_entries();
  }

  __device__ int requested() const { return requested_; }

  // Begins to copy the entries of the next step, if there is one, into its place in the ring.
  __device__ void request_entries() {
    if (walk_.done()) return;
    char* const stage = stage_of(requested_++);
    if (copies_entries_)
      copy_async<16>(stage + Tile::kEntries + threadIdx.x * 16, entries_ + walk_.entry() * entry_bytes_, 16);
    if (threadIdx.x == 0) *reinterpret_cast<int64_t*>(stage + Tile::kPosition) = walk_.entry();
    walk_.next();
  }

  // Begins to gather the rows of `step`, whose entries have arrived.
  __device__ void request_rows(int step) {
    char* const stage = stage_of(step);
    switch (p_.x_bytes) {
      case 16:
        request_x<16>(stage);
        break;
      case 8:
        request_x<8>(stage);
        break;
      case 4:
        request_x<4>(stage);
        break;
      default:
        if constexpr (Tile::kItem == 2) request_x<2>(stage);
    }
    p_.grad_bytes == 16 ? request_grads<16>(stage) : request_grads<8>(stage);
  }

  __device__ const char* stage_of(int step) const { return shared_ + step % kStages * Tile::kStageBytes; }
  __device__ char* stage_of(int step) { return shared_ + step % kStages * Tile::kStageBytes; }

 private:
  __device__ void set_columns_of_x(const Part& part) {
    const int m = threadIdx.x % (Tile::BM * Tile::kItem / p_.x_bytes) * (p_.x_bytes / Tile::kItem);
    const int tap = part.tap + m / p_.block_c, c = part.c + m % p_.block_c;
    int jy = part.phase.oy + tap, jx = c, channel = c;
    if (p_.row_channels) {
      jx = c / p_.row_channels, channel = c % p_.row_channels;
    } else {
      jy = part.phase.oy + tap / part.phase.wide, jx = part.phase.ox + tap % part.phase.wide;
    }
    const bool real = tap < part.phase.high * part.phase.wide && jx < p_.nx;
    const int bit = real ? jy * p_.nx + jx : 0;
    const bool read = real && c < (p_.row_channels ? p_.cp : p_.channels);
    word_ = bit / kWordBits;
    shift_ = read ? bit % kWordBits : kWordBits;  // the sign bit is never set
    x_ = p_.x + (int64_t(jy * p_.tap_y + jx * p_.tap_x) * p_.pitch + channel) * Tile::kItem;
  }

  // Each of the first K threads copies 16 bytes of the pixels, of the corners or of the words of a step.
  __device__ void set_entries() {
    const int lane = threadIdx.x;
    const void* from = p_.words + p_.entries * (p_.word0 + word_);
    int first = Tile::K / 2;
    if (lane < Tile::K / 4) {
      from = p_.ints, first = 0;
    } else if (lane < Tile::K / 2) {
      from = p_.ints + p_.entries * (p_.source + 1), first = Tile::K / 4;
    }
    entries_ = static_cast<const char*>(from) + (lane - first) * 16;
    entry_bytes_ = lane < Tile::K / 2 ? sizeof(int) : sizeof(int64_t);
    copies_entries_ = lane < (same_word_ ? Tile::K : Tile::K / 2);
  }

  template <int BYTES>
  __device__ __forceinline__ void request_x(char* stage) {
    constexpr int kPieces = Tile::BM * Tile::kItem / BYTES;
    const int piece = threadIdx.x % kPieces;
    const int* const corners = reinterpret_cast<const int*>(stage + Tile::kEntries) + Tile::K;
    const int64_t* const words = reinterpret_cast<const int64_t*>(corners + Tile::K);
    const int64_t position = *reinterpret_cast<const int64_t*>(stage + Tile::kPosition);
    const int pitch = p_.pitch * Tile::kItem;
#pragma unroll 4
    for (int row = threadIdx.x / kPieces; row < Tile::K; row += Tile::kThreads / kPieces) {
      int64_t word;
      if (same_word_) {
        word = words[row];
      } else {  // the columns of the tile have different ones
        word = p_.words[p_.entries * (p_.word0 + word_) + position + row];
      }
      const bool read = word >> shift_ & 1;
      copy_piece<BYTES>(stage + Tile::kX + row * Tile::kPitchX + piece * BYTES,
                        x_ + int64_t(corners[row]) * pitch, read);
    }
  }

  template <int BYTES>
  __device__ __forceinline__ void request_grads(char* stage) {
    constexpr int kPieces = Tile::BN * Tile::kItem / BYTES;
    const int piece = threadIdx.x % kPieces;
    const int* const pixels = reinterpret_cast<const int*>(stage + Tile::kEntries);
    const int pitch = p_.grad_pitch * Tile::kItem;
#pragma unroll 4
    for (int row = threadIdx.x / kPieces; row < Tile::K; row += Tile::kThreads / kPieces) {
      const int pixel = pixels[row];
      copy_piece<BYTES>(stage + Tile::kG + row * Tile::kPitchG + piece * BYTES,
                        grads_ + int64_t(pixel) * pitch, in_grads_ && pixel >= 0);
    }
  }

  const Problem& p_;
  char* shared_;
  Walk walk_;
  const char *x_, *grads_, *entries_;
  int word_, shift_, entry_bytes_, requested_ = 0;
  bool in_grads_, same_word_, copies_entries_;
};

}  // namespace pconv::wgrad

// What gather.cu's matrix kernel reads: the steps of its K loop, and the rows gathered in each.
#pragma once
#include "arguments.h"
#include "limits.h"
#include "matrix.h"

namespace pconv {
namespace {

struct Phase {
  int kh, kw, oy, ox, slot, branch_lo, branch_hi;
};

// GATHER of kernels/triton/gather.py.
struct Gather {
  int channels, pitch, bk, kp, step_y, step_x, nx, slab, row_channels, n_words;
};

// One tensor to gather from, with PASSES and the steps of kernels/triton/gather.py.
struct Source : Gather {
  const char *x, *weights;
  const int64_t* words;
  const int* corners;
  int tap_y, tap_x, ratios;
  int unit;  // bytes that can be copied at once
  int n_phases;
  Phase phases[kMostPasses];
};

struct Problem {
  Source sources[2];
  const int *ints, *limits;
  const float* ratio;
  Untyped bias;  // no data: none
  char* out;
  int64_t entries, capacity, pixels, copy_stride;
  float unscale;
  int n_sources, n_out, np, plain_phase, stages, wide_stores;
  int n_first_y, n_first_x, first_y[kMostStride], first_x[kMostStride];
};

// What a tile row reads, in shared memory.
struct Row {
  const char* x;
  uint64_t bits;
};

// Indices j with o <= first + j * step < o + k: the first of them, and their number.
struct Range {
  int first, count;
};
__device__ __forceinline__ Range tap_range(int first, int step, int o, int k) {
  const int lo = most((o - first + step - 1) / step, 0), hi = (o + k - 1 - first + step) / step;
  return {lo, most(hi - lo, 0)};
}

// The K steps of the phases up to `end`, one after the other: where each reads.
class Cursor {
 public:
  __device__ Cursor(const Problem& p, const Source& s, int segment, int phase, int end)
      : p_(p), s_(s), segment_(segment), phase_(phase), end_(end) {
    const int row = segment / p.n_first_x, column = segment % p.n_first_x;
    first_y_ = p.first_y[row < p.n_first_y ? row : 0];
    first_x_ = p.first_x[column];
    begin();
    skip_empty();
  }
  __device__ bool done() const { return phase_ >= end_; }
  __device__ int steps() const { return y_.count * x_.count * (s_.kp / s_.bk); }  // of this phase
  __device__ int phase() const { return phase_; }
  __device__ int k() const { return k_; }
  __device__ int bit() const { return (y_.first + jy_) * s_.nx + x_.first + jx_; }
  // In elements.
  __device__ int64_t x_offset() const {
    const int away = ((y_.first + jy_) * s_.tap_y + (x_.first + jx_) * s_.tap_x) * s_.pitch + k_;
    return least(phase_, most(s_.n_phases - 1, 1) - 1) * p_.copy_stride + away;
  }
  __device__ int64_t weight_offset() const { return int64_t(slot_ + jx_ * s_.step_x) * p_.np * s_.kp + k_; }
  __device__ void advance() {
    if ((k_ += s_.bk) < s_.kp) return;
    k_ = 0;
    if (++jx_ < x_.count) return;
    jx_ = 0;
    slot_ += s_.row_channels ? 1 : s_.step_y * s_.phases[phase_].kw;
    if (++jy_ < y_.count) return;
    next_phase();
    skip_empty();
  }
  __device__ void next_phase() {
    ++phase_;
    begin();
  }

 private:
  __device__ void skip_empty() {
    while (!done() && steps() == 0) next_phase();
  }
  __device__ void begin() {
    jy_ = jx_ = k_ = 0;
    if (done()) return;
    const Phase& t = s_.phases[phase_];
    y_ = tap_range(first_y_, s_.step_y, t.oy, t.kh);
    slot_ = t.slot + segment_ * s_.slab;
    if (s_.row_channels) {
      x_ = {0, 1};
      slot_ += y_.first;
    } else {
      x_ = tap_range(first_x_, s_.step_x, t.ox, t.kw);
      slot_ += (first_y_ + y_.first * s_.step_y - t.oy) * t.kw + first_x_ + x_.first * s_.step_x - t.ox;
    }
  }

  const Problem& p_;
  const Source& s_;
  int segment_, phase_, end_, first_y_, first_x_;
  Range y_ = {0, 0}, x_ = {0, 0};
  int jy_, jx_, k_, slot_ = 0;
};

template <int UNIT>
__device__ __forceinline__ void copy_unit(char* to, const char* from, int valid) {
  if constexpr (UNIT >= 4) {
    copy_async<UNIT>(to, from, valid);
  } else {
    *reinterpret_cast<uint16_t*>(to) = valid ? *reinterpret_cast<const uint16_t*>(from) : uint16_t(0);
  }
}

// The part of each row of a tile that a thread copies: the same unit of every few rows.
struct Part {
  int begin;   // byte of the row
  int column;  // of a row of taps
  int valid;   // bytes from `begin` to where the tap's channels, or this unit of a row of taps, end
  int64_t offset;

  __device__ Part(const Source& s, int item, int row_bytes, int unit) {
    begin = int(threadIdx.x) % (row_bytes / unit) * unit;
    const int per_column = s.row_channels * item;
    column = per_column ? begin / per_column : 0;
    valid = per_column ? (column < s.nx ? unit : 0) : s.channels * item - begin;
    offset = per_column ? int64_t(column) * s.tap_x * s.pitch * item + begin % per_column : begin;
  }
};

// Copies BM rows of one step; holes, what is outside and channels beyond the last become zeros and are not
// read. WHOLE: units are all of a pixel's or none, and windows have one word, so that rows look up nothing
// else.
template <int UNIT, int BM, int THREADS, bool WHOLE>
__device__ __forceinline__ void gather_rows(char* tile, const Row* rows, const Source& s, const Cursor& at,
                                            const Part& part, int item, int row_bytes, int64_t entries,
                                            int64_t start) {
  const int units = row_bytes / UNIT, bit = at.bit() + part.column;
  const int valid = least(most(part.valid - at.k() * item, 0), UNIT);
  const int64_t offset = at.x_offset() * item + part.offset;
  const uint64_t read = valid > 0;
  const auto copy = [&](auto bits, int shift) {
#pragma unroll 2
    for (int i = 0; i < BM * units / THREADS; ++i) {
      const int r = int(threadIdx.x) / units + i * (THREADS / units);
      const Row row = rows[r];
      char* to = tile + swizzled(r, part.begin / 16, row_bytes) + part.begin % 16;
      copy_unit<UNIT>(to, row.x + offset, (bits(r, row) >> shift & read) ? (WHOLE ? UNIT : valid) : 0);
    }
  };
  if (!WHOLE && s.n_words > 1 && valid) {
    const int64_t* word = s.words + start + bit / kWordBits * entries;
    copy([&](int r, const Row&) { return uint64_t(word[r]); }, bit % kWordBits);
  } else {
    copy([&](int, const Row& row) { return row.bits; }, bit & 63);
  }
}

}  // namespace
}  // namespace pconv

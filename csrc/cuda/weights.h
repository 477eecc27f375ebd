// What weights.cu computes with: tables of the branches that are folded, and the low-resolution taps of a
// decoder stage.
#pragma once
#include "arguments.h"
#include "limits.h"

namespace pconv {

struct Branch {
  int kh, kw, oy, ox, row, offset;  // row: of scales; offset: in the weights
};
struct Phase {
  int kh, kw, oy, ox, slot, lo, hi;  // lo to hi: branches summed
};

// Everything about the weights but where they are.
struct Folding {
  Branch branches[kMostBranches];
  Phase phases[kMostPasses];
  int n_branches, n_phases, n_out, c_in, stride_out, has_scales, adjoint;
  int64_t slab_stride;
};

// stride_out, slab_stride, NOUT, CIN, BRANCHES and PASSES.
inline void read_folding(Args& args, Folding& f) {
  f.stride_out = args.integer("stride_out"), f.slab_stride = args.wide("slab_stride");
  args.integers({{"NOUT", &f.n_out}, {"CIN", &f.c_in}});
  f.n_branches = args.rows<6>("BRANCHES", f.branches, kMostBranches);
  f.n_phases = args.rows<7>("PASSES", f.phases, kMostPasses);
}

// V_b = scales_b * W_b of branch `k` at tap (y, x) of the common window; 0 outside it and unless `ok`. Reads
// something in any case, so that a loop over taps has its loads in flight together.
template <class T>
__device__ inline float branch_tap(const T* __restrict__ weights, const T* __restrict__ scales,
                                   const Folding& f, const Branch& k, int w_out, int w_in, int y, int x,
                                   bool ok) {
  const int ty = y - k.oy, tx = x - k.ox;
  ok = ok && w_out < f.n_out && w_in < f.c_in && ty >= 0 && ty < k.kh && tx >= 0 && tx < k.kw;
  const int64_t at = int64_t(w_out * f.stride_out + w_in) * (k.kh * k.kw) + (ty * k.kw + tx);
  float w = to_float(weights[k.offset + (ok ? at : 0)]);
  if (f.has_scales) w *= to_float(scales[k.row * f.n_out + (ok ? w_out : 0)]);
  return ok ? w : 0.0f;
}

// What a segment (rows.upcat_windows) makes of the taps of a decoder stage's kernel, in one direction: tap i
// lies on tap (i + parity) / 2 of the low-resolution map; those from `end` on are beyond the last row of an
// odd size.
struct LowAxis {
  int parity, end;
};

__host__ __device__ inline LowAxis low_axis(int type, int k, int cut) {
  // the i-th cut row is cut - i rows above the end: an even number (2h) below the first row outside
  const int p = type < 2 ? type : (1 + cut + type) % 2, last = k / 2 + cut + 2 - type;
  return {(p + k / 2) & 1, type < 2 || last > k ? k : last};
}

struct Range {
  int begin, end;
};

// The taps in [0, k) summed in tap `u` of the folded kernel. Forward: what falls on one low pixel. Adjoint:
// output row 2 y - r + u reads row 2 y - 2 r + u + tap, which is to be one of the copies of y.
__host__ __device__ inline Range folded_taps(int u, int type, int k, int cut, bool adjoint) {
  const LowAxis axis = low_axis(type, k, cut);
  const int begin = adjoint ? k / 2 * 2 - u : 2 * u - axis.parity;
  const int end = begin + (adjoint && type > 0 ? 1 : 2), most = adjoint ? k : axis.end;
  return {begin > 0 ? begin : 0, end < most ? end : most};
}

}  // namespace pconv

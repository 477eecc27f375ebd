// Weights into panels and gradients back out of them: fold (V = a o W), merge, transpose.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "isa.h"
#include "microkernels.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// dst (=|+=) factor o src, `columns` wide.
template <class T>
PCONV_INLINE void put_row(T* dst, const T* src, const T* factor, int64_t columns, bool first) {
  for (int64_t v = 0; v < columns; v += kLanes<T>) {
    const Vec<T> x = load(src + v) * load(factor + v);
    store(dst + v, first ? x : load(dst + v) + x);
  }
}

// Scratch of one packing thread: a transposed block of weights and the scale of its columns.
template <class T>
struct PackScratch {
  std::vector<T> block;
  T factor[kPanel<T>];
  T* sized(int64_t n) {
    if (static_cast<int64_t>(block.size()) < n) block.resize(n);
    return block.data();
  }
};

// Channels at a time whose transposed taps stay in the first cache.
PCONV_INLINE int64_t channel_step(int64_t taps) {
  return std::max<int64_t>(1, 96 / taps);
}

// Where the rows of a pass go: row slot * chunk + channel.
template <class T>
struct PackTarget {
  const Placements& placements;
  T* dst;
  int64_t chunk;
};
template <class T>
static bool any_placed(const std::vector<PackTarget<T>>& targets, size_t branch) {
  for (const PackTarget<T>& t : targets)
    if (!t.placements.of_branch[branch].empty()) return true;
  return false;
}

// B of passes for input channels [c_begin, c_begin + count) of the group: column = output channel.
template <class T>
static void pack_forward(const Problem<T>& p, const std::vector<PackTarget<T>>& targets, const Panel& panel,
                         int64_t c_begin, int64_t count, PackScratch<T>& scratch) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  for (size_t i = p.branches.size(); i-- > 0;) {
    if (!any_placed(targets, i)) continue;
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw, step = channel_step(taps);
    for (int64_t o = 0; o < columns; ++o)
      scratch.factor[o] = o < panel.width ? (b.scale ? b.scale[o0 + o] : T(1)) : T(0);
    T* block = scratch.sized(step * taps * columns);
    if (columns > panel.width) std::fill_n(block, step * taps * columns, T(0));
    for (int64_t c = 0; c < count; c += step) {
      const int64_t cn = std::min(step, count - c);
      // Rows of the weights lie far apart: too many streams for the processor to follow by itself.
      for (int64_t o = 0; o < panel.width && c_begin + c + step < Cg; ++o)
        for (int64_t k = 0; k < step * taps; k += 64 / sizeof(T))
          __builtin_prefetch(b.weight + ((o0 + o) * Cg + c_begin + c + step) * taps + k);
      transpose(b.weight + (o0 * Cg + c_begin + c) * taps, Cg * taps, panel.width, cn * taps, block, columns);
      for (const PackTarget<T>& target : targets)
        for (const Placement& at : target.placements.of_branch[i])
          for (int64_t k = 0; k < cn; ++k)
            put_row(target.dst + (at.slot * target.chunk + c + k) * columns,
                    block + (k * taps + at.tap) * columns, scratch.factor, columns, at.first);
    }
  }
}

// B of passes of the input gradient for output channels [o_begin, o_begin + count) of the group: column =
// input channel, `c0` channels into the group for the panel's first.
template <class T>
static void pack_grad_input(const Problem<T>& p, const std::vector<PackTarget<T>>& targets,
                            const Panel& panel, int64_t c0, int64_t o_begin, int64_t count,
                            PackScratch<T>& scratch) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg();
  for (size_t i = p.branches.size(); i-- > 0;) {
    if (!any_placed(targets, i)) continue;
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw;
    T* block = scratch.sized(taps * columns);
    if (columns > panel.width) std::fill_n(block, taps * columns, T(0));
    for (int64_t o = 0; o < count; ++o) {
      const int64_t channel = panel.group * g.Og() + o_begin + o;
      std::fill_n(scratch.factor, columns, b.scale ? b.scale[channel] : T(1));
      transpose(b.weight + (channel * Cg + c0) * taps, taps, panel.width, taps, block, columns);
      for (const PackTarget<T>& target : targets)
        for (const Placement& at : target.placements.of_branch[i])
          put_row(target.dst + (at.slot * target.chunk + o) * columns, block + at.tap * columns,
                  scratch.factor, columns, at.first);
    }
  }
}

// The dense part of the gradient of `count` windows [kh, kw] of a branch, in the middle of those of all
// merged.
template <class T>
static void add_dense_gradient(const Problem<T>& p, const Branch<T>& b, int64_t first, int64_t count, T* v) {
  const int64_t kh = p.geo.kh, kw = p.geo.kw;
  const T* dense = p.dense_gradient + first * kh * kw + (kh - b.kh) / 2 * kw + (kw - b.kw) / 2;
  if (b.kh == kh && b.kw == kw) {  // one run
    for (int64_t i = 0; i < count * kh * kw; ++i) v[i] += dense[i];
    return;
  }
  for (int64_t i = 0; i < count; ++i, dense += kh * kw)
    for (int64_t y = 0; y < b.kh; ++y, v += b.kw)
      for (int64_t x = 0; x < b.kw; ++x) v[x] += dense[y * kw + x];
}

// dL/dW = a o dL/dV and the panel's part of dL/da = <W, dL/dV>, input channels [c_begin, c_begin + chunk) of
// the group. dL/dV sums what the passes of that source left where the tap was placed: `grads[pass]` is [slots
// * chunk, columns] (null for other sources) in each of `copies` partial sums, `copy_stride` apart. `add`
// adds to an earlier band's.
template <class T>
static void unpack_grad_weight(const Problem<T>& p, const std::vector<Pass>& passes, size_t branch,
                               const Panel& panel, int64_t c_begin, int64_t chunk,
                               const std::vector<const T*>& grads, int64_t copies, int64_t copy_stride,
                               PackScratch<T>& scratch, bool add, T* grad_weight, double* grad_scale) {
  const Geometry& g = p.geo;
  const Branch<T>& b = p.branches[branch];
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  const int64_t taps = b.kh * b.kw, step = channel_step(taps);
  T* rows = scratch.sized(step * taps * (columns + panel.width));
  T* out = rows + step * taps * columns;
  std::vector<bool> seen(taps);
  bool placed = false;
  for (size_t k = 0; k < passes.size(); ++k)
    placed |= grads[k] && !passes[k].placements.of_branch[branch].empty();
  Vec<T> products[kPanel<T>];  // of weights and gradients, summed over the chunk
  for (int64_t c = 0; c < chunk; c += step) {
    const int64_t cn = std::min(step, chunk - c), n = cn * taps;
    std::fill(seen.begin(), seen.end(), false);
    for (size_t k = 0; k < passes.size(); ++k)
      for (int64_t s = 0; grads[k] && s < copies; ++s)
        for (const Placement& at : passes[k].placements.of_branch[branch]) {
          for (int64_t i = 0; i < cn; ++i) {
            const T* src = grads[k] + s * copy_stride + (at.slot * chunk + c + i) * columns;
            T* row = rows + (i * taps + at.tap) * columns;
            for (int64_t v = 0; v < columns; v += kLanes<T>)
              store(row + v, seen[at.tap] ? load(row + v) + load(src + v) : load(src + v));
          }
          seen[at.tap] = true;
        }
    for (int64_t t = 0; placed && t < taps; ++t)  // a tap that no window of the image can use
      for (int64_t i = 0; i < cn && !seen[t]; ++i)
        std::fill_n(rows + (i * taps + t) * columns, columns, T(0));
    if (placed)
      transpose(rows, columns, n, panel.width, out, n);
    else
      std::fill_n(out, n * panel.width, T(0));
    for (int64_t o = 0; o < panel.width; ++o) {
      const int64_t at = ((o0 + o) * Cg + c_begin + c) * taps;
      T* v = out + o * n;
      if (p.dense_gradient && !add) add_dense_gradient(p, b, ((o0 + o) * Cg + c_begin + c), cn, v);
      if (grad_scale) {
        const T* w = b.weight + at;
        Vec<T> sum{}, last_w{}, last_v{};
        int64_t i = 0;
        for (; i + kLanes<T> <= n; i += kLanes<T>) sum += load(w + i) * load(v + i);
        memcpy(&last_w, w + i, (n - i) * sizeof(T));
        memcpy(&last_v, v + i, (n - i) * sizeof(T));
        sum += last_w * last_v;
        products[o] = c == 0 ? sum : products[o] + sum;
      }
      if (grad_weight) {
        const T a = b.scale ? b.scale[o0 + o] : T(1);
        for (int64_t i = 0; i < n; ++i) grad_weight[at + i] = add ? grad_weight[at + i] + a * v[i] : a * v[i];
      }
    }
  }
  for (int64_t o = 0; grad_scale && o < panel.width; ++o) {
    double sum = 0;
    for (int64_t l = 0; l < kLanes<T>; ++l) sum += products[o][l];
    grad_scale[o] += sum;
  }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// On the smallest maps the weights outweigh everything, and packing them costs more than using them once:
// here
//   out = m' o (sum_i r_i a_i o <W_i, window_i> + bias)
// is taken as dot products of gathered windows with the weights as they lie, branch by branch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kDotPixels = 16;

// out[i][j] = <a[i], b[j]>, n entries each.
template <class T>
static __attribute__((noinline)) void dot_4x4(const T* const* a, const T* const* b, int64_t n, T (*out)[4]) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc[4][4] = {};
  int64_t k = 0;
  for (; k + L <= n; k += L) {
    Vec<T> bv[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) bv[j] = load(b[j] + k);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vec<T> av = load(a[i] + k);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      T sum = 0;
      for (int64_t l = 0; l < L; ++l) sum += acc[i][j][l];
      for (int64_t t = k; t < n; ++t) sum += a[i][t] * b[j][t];
      out[i][j] = sum;
    }
}

// Windows of one branch in the order of its weights, [groups][pixels][Cg * taps].
template <class T>
static void gather_windows(const Problem<T>& p, const Branch<T>& b, const Band& band,
                           const std::vector<FeatureBand<T>>& features, T* dst) {
  const Geometry& g = p.geo;
  const int64_t taps = b.kh * b.kw, length = g.Cg() * taps, pixels = g.pixels();
  const int64_t top = (g.kh - b.kh) / 2, left = (g.kw - b.kw) / 2;
  parallel(pixels, [&](int64_t pixel, int64_t) {
    const int64_t n = pixel / (g.Ho * g.Wo), oh = pixel / g.Wo % g.Ho, ow = pixel % g.Wo;
    for (const FeatureBand<T>& source : features) {
      const Geometry& v = source.view.g;
      const T* window = source.window(n, oh, ow) + (top * v.dh * v.Wp + left * v.dw) * v.C;
      for (int64_t group = 0; group < g.groups; ++group)
        for (int64_t i = 0; i < b.kh; ++i)
          transpose(window + i * v.dh * v.Wp * v.C + group * v.Cg(), v.dw * v.C, b.kw, v.Cg(),
                    dst + (group * pixels + pixel) * length + source.view.channel * taps + i * b.kw, taps);
    }
  });
}

template <class T>
static void forward_dots(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  const int64_t pixels = g.pixels();
  const std::vector<View> views = make_views(p);
  std::vector<int64_t> chunk;
  for (const View& view : views) chunk.push_back(view.g.C);
  Band band;
  for (int64_t n = 0; n < g.N; ++n) band.push_back({n, 0, g.Ho});
  int64_t window_size = 0;
  for (const Branch<T>& b : p.branches) window_size = std::max(window_size, pixels * g.C * b.kh * b.kw);
  const Buffer feature_memory = allocate(features_size<T>(views, band) * sizeof(T));
  const Buffer memory = allocate((window_size + pixels * g.O) * sizeof(T));
  T *windows = as<T>(memory), *results = windows + window_size;  // results [pixels, O]
  const std::vector<FeatureBand<T>> features = make_features(p, views, band, chunk, as<T>(feature_memory));
  for (const FeatureBand<T>& source : features) load_features(p, source, true);

  std::vector<Ratios<T>> ratios;
  for (int64_t n = 0; n < g.N; ++n) {
    const Counts<T> counts(p, n);
    for (int64_t i = 0; i < g.Ho * g.Wo; ++i) ratios.emplace_back(p, counts.of, i);
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel)
    for (int64_t o = 0; o < g.O; ++o)
      results[pixel * g.O + o] = ratios[pixel].state != kDead && bias ? bias[o] : T(0);
  for (size_t i = 0; i < p.branches.size(); ++i) {
    const Branch<T>& b = p.branches[i];
    const int64_t length = g.Cg() * b.kh * b.kw, blocks = (g.Og() + 3) / 4;
    gather_windows(p, b, band, features, windows);
    parallel(g.groups * blocks, [&](int64_t task, int64_t) {
      const int64_t group = task / blocks, first = group * g.Og() + task % blocks * 4;
      const int64_t outs = std::min<int64_t>(4, (group + 1) * g.Og() - first);
      const T *rows[4], *weights[4];  // the last one again where there are fewer than four
      T products[4][4];
      for (int64_t j = 0; j < 4; ++j) weights[j] = b.weight + (first + std::min(j, outs - 1)) * length;
      for (int64_t pixel = 0; pixel < pixels; pixel += 4) {
        const int64_t count = std::min<int64_t>(4, pixels - pixel);
        for (int64_t k = 0; k < 4; ++k)
          rows[k] = windows + (group * pixels + pixel + std::min(k, count - 1)) * length;
        dot_4x4(rows, weights, length, products);
        for (int64_t k = 0; k < count; ++k)
          for (int64_t j = 0; ratios[pixel + k].state != kDead && j < outs; ++j)
            results[(pixel + k) * g.O + first + j] +=
                ratios[pixel + k].r[i] * (b.scale ? b.scale[first + j] : T(1)) * products[k][j];
      }
    });
  }
  std::vector<T> scratch;
  for (const Slice& s : band)
    write_panel(p.dtype, results + s.n * g.Ho * g.Wo * g.O, g.O, g.O, out, g.O, g.Ho, g.Wo, s, 0, scratch);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

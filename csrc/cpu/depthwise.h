// Depthwise convolution: every channel has one kernel of its own, so that nothing is multiplied as a matrix.
// Each output is K x K products in registers, and what costs is moving data. Vectors are filled along what
// lies next to each other in memory: columns of planes (depthwise_planes.h), channels of maps that are
// channels-last (depthwise_last.h). Either way, a block of results that follow each other in the other
// direction shares what it loads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kDepthwiseBytes = 256 << 10;  // of a band's padded copy: it stays in the second cache

// Results at once and vectors of each, for a kernel of K taps in their direction.
template <int K>
constexpr int kDepthwiseRows = PCONV_VECTOR_BYTES == 64 && K > 4 ? 8 : 4;
template <int K>
constexpr int kDepthwiseVectors = PCONV_VECTOR_BYTES == 64 ? (K > 4 ? 2 : 4) : (K > 4 ? 1 : 2);

template <class T>
static bool is_depthwise(const Problem<T>& p) {
  const Geometry& g = p.geo;
  const bool simple = g.Cg() == 1 && g.Og() == 1 && p.branches.size() == 1 && p.sources.size() == 1 &&
                      !p.sources[0].up && !p.branches[0].scale && g.dh == 1 && g.dw == 1;
  const bool sizes = g.kh == g.kw && (g.kh == 3 || g.kh == 5 || g.kh == 7) && g.sh == g.sw && g.sh <= 2;
  // No window lies in the padding as a whole.
  return simple && sizes && g.pt < g.kh && g.pl < g.kw && g.Hp - g.pt - g.H < g.kh &&
         g.Wp - g.pl - g.W < g.kw && g.pixels() > 0;
}

// Calls f(K, S) with kernel and stride as constants.
template <class F>
PCONV_INLINE void with_window(const Geometry& g, const F& f) {
  const auto with_kernel = [&](auto stride) {
    if (g.kh == 3) return f(std::integral_constant<int, 3>{}, stride);
    if (g.kh == 5) return f(std::integral_constant<int, 5>{}, stride);
    f(std::integral_constant<int, 7>{}, stride);
  };
  if (g.sh == 1) return with_kernel(std::integral_constant<int, 1>{});
  with_kernel(std::integral_constant<int, 2>{});
}

// acc[r] += sum over k of in[S r + k] w[k], entries of `in` being NV vectors, `step` apart.
template <int K, int S, int R, int NV, class T>
PCONV_INLINE void add_products(const T* in, int64_t step, const Vec<T> (&w)[K], Vec<T> (&acc)[R][NV]) {
#pragma GCC unroll 24
  for (int q = 0; q < S * (R - 1) + K; ++q) {
    Vec<T> x[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) x[v] = load(in + q * step + v * kLanes<T>);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      if (q >= S * r && q < S * r + K)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += x[v] * w[q - S * r];
  }
}

// acc[k] += sum over r of in[S r + k] g[r], R entries of g being `step_g` apart.
template <int K, int S, int R, class T>
PCONV_INLINE void add_gradients(const T* in, int64_t step, const T* gradient, int64_t step_g,
                                Vec<T> (&acc)[K]) {
  Vec<T> g[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) g[r] = load(gradient + r * step_g);
#pragma GCC unroll 24
  for (int q = 0; q < S * (R - 1) + K; ++q) {
    const Vec<T> x = load(in + q * step);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      if (q >= S * r && q < S * r + K) acc[q - S * r] += x * g[r];
  }
}

PCONV_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// The factor of every window, 0 where it is dead: [Nm, Ho, stride], behind each row zeros.
template <class T>
struct Factors {
  int64_t stride;
  std::vector<T> data;

  explicit Factors(const Problem<T>& p)
      : stride(round_up(p.geo.Wo, kLanes<T>)), data(p.windows->Nm * p.geo.Ho * stride) {
    const Geometry& g = p.geo;
    const T whole = static_cast<T>(p.windows->whole[0]);
    parallel(p.windows->Nm * g.Ho, [&](int64_t row, int64_t) {
      const int32_t* count = p.windows->counts(0, g, row / g.Ho) + row % g.Ho * g.Wo;
      for (int64_t x = 0; x < g.Wo; ++x) data[row * stride + x] = ratio_of(whole, count[x]);
    });
  }
  const T* row(const Problem<T>& p, int64_t n, int64_t y) const {
    return data.data() + ((p.windows->Nm == 1 ? 0 : n) * p.geo.Ho + y) * stride;
  }
};

// Rows of results [0, H), at a time so many that a padded copy of them has few enough bytes.
struct RowBands {
  int64_t height, rows;
  // `row_bytes` of a row of the copy, `step` of them for each row of results, `block` results at once.
  RowBands(int64_t height, int64_t row_bytes, int64_t step, int64_t block) : height(height) {
    rows = std::max<int64_t>(1, kDepthwiseBytes / (row_bytes * step) / block) * block;
  }
  int64_t count() const { return (height + rows - 1) / rows; }
  int64_t begin(int64_t i) const { return i * rows; }
  int64_t end(int64_t i) const { return std::min(height, (i + 1) * rows); }
};

// Adds up what the parts of a batch have summed, [parts][C][taps + 1]: of each tap, then the live gradient.
template <class T>
static void write_sums(const std::vector<double>& sums, int64_t parts, int64_t C, int64_t taps,
                       T* grad_weight, T* grad_sum) {
  for (int64_t c = 0; c < C; ++c)
    for (int64_t t = 0; t <= taps; ++t) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[(part * C + c) * (taps + 1) + t];
      if (t < taps && grad_weight) grad_weight[c * taps + t] = static_cast<T>(sum);
      if (t == taps && grad_sum) grad_sum[c] = static_cast<T>(sum);
    }
}

// Of the gradient of an input, the rows (or columns) that meet the same taps: first, first + S, ... Each is a
// sum over `taps` taps, the last of the kernel first, and the sum of the first begins at gradient `at`.
struct Parity {
  int64_t first, count, taps, last, at;

  Parity(int64_t phase, int64_t size, int64_t padding, int64_t kernel, int64_t S)
      : first(((phase - padding) % S + S) % S),
        count(first < size ? (size - first + S - 1) / S : 0),
        taps((kernel - phase + S - 1) / S),
        last(phase + (taps - 1) * S),
        at((first + padding - phase) / S - (taps - 1)) {}
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// Depthwise convolution of planes: columns fill the vectors, and a block of rows shares what it loads.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "depthwise.h"
#include "isa.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kLeastDepthwise = 1 << 14;  // results of a task, below which dealing it out would cost

// Masked rows of one plane with their padding, those of windows with a stride of 2 with even columns before
// odd ones, so that neighbours are read in either case. Vectors of results may be read behind a row.
template <class T>
struct PlaneCopy {
  int64_t part, stride;  // entries of one parity, of a row

  explicit PlaneCopy(const Problem<T>& p)
      : part(round_up(round_up(p.geo.Wo, kLanes<T>) + p.geo.kw, kLanes<T>)), stride(p.geo.sw * part) {}
  int64_t column(const Geometry& g, int64_t j) const { return j % g.sw * part + j / g.sw; }

  // Padded rows [first, first + rows); `line` holds a row.
  void load(const Problem<T>& p, int64_t n, int64_t c, int64_t first, int64_t rows, T* line, T* dst) const {
    const Geometry& g = p.geo;
    const Source& s = p.sources[0];
    const int64_t width = std::min(g.W, stride - g.pl);
    for (int64_t i = 0; i < rows; ++i, dst += stride) {
      const int64_t h = first + i - g.pt;
      if (h < 0 || h >= g.H) {
        std::fill_n(dst, stride, T(0));
        continue;
      }
      T *row = g.sw == 1 ? dst : line, *inner = row + g.pl;
      std::fill_n(row, g.pl, T(0));
      std::fill(inner + width, row + stride, T(0));
      widen(p.dtype, s.data, ((n * g.C + c) * g.H + h) * g.W, width, inner);
      if (const uint8_t* mask = mask_row(s, n, c, h))
        for (int64_t w = 0; w < width; ++w) inner[w] = mask[w] ? inner[w] : T(0);
      for (int64_t k = 0; g.sw == 2 && k < part; ++k) {
        dst[k] = line[2 * k];
        dst[part + k] = line[2 * k + 1];
      }
    }
  }
};

// Row y of channel o of the gradient where its window is live, behind it zeros up to whole vectors.
template <class T>
static void load_live_gradient(const Problem<T>& p, const Gradient& grad, int64_t n, int64_t o, int64_t y,
                               const T* factor, T* dst) {
  const Geometry& g = p.geo;
  if (!grad.channels_last)
    widen(p.dtype, grad.data, ((n * g.O + o) * g.Ho + y) * g.Wo, g.Wo, dst);
  else
    for (int64_t x = 0; x < g.Wo; ++x)
      widen(p.dtype, grad.data, ((n * g.Ho + y) * g.Wo + x) * g.O + o, 1, dst + x);
  for (int64_t x = 0; x < g.Wo; ++x) dst[x] = factor[x] > T(0) ? dst[x] : T(0);
  std::fill(dst + g.Wo, dst + round_up(g.Wo, kLanes<T>), T(0));
}

// Sums of a block of rows, out[r][x] = sum over columns and k of in[S r + k][x + column] w[column][k].
template <int K, int S, class T>
static void sum_rows(const T* in, int64_t stride, const int64_t* columns, int64_t n_columns, const T* w,
                     int64_t width, T* out, int64_t out_stride) {
  constexpr int R = kDepthwiseRows<K>;
  const auto sum = [&](int64_t x, auto vectors) {
    constexpr int NV = vectors;
    Vec<T> acc[R][NV] = {};
    for (int64_t j = 0; j < n_columns; ++j) {
      Vec<T> tap[K];
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) tap[k] = Vec<T>{} + w[j * K + k];
      add_products<K, S>(in + columns[j] + x, stride, tap, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) store(out + r * out_stride + x + v * kLanes<T>, acc[r][v]);
  };
  constexpr int64_t L = kLanes<T>, NV = kDepthwiseVectors<K>;
  int64_t x = 0;
  for (; width - x > (NV - 1) * L; x += NV * L) sum(x, std::integral_constant<int, NV>{});
  for (; x < width; x += L) sum(x, std::integral_constant<int, 1>{});
}

// Runs body(n, c, band, thread) for every plane of N images and C channels, in tasks that are worth it.
template <class F>
static void for_planes(int64_t N, int64_t C, int64_t bands, int64_t results, const F& body) {
  const int64_t at_once = bands > 1 ? 1 : std::max<int64_t>(1, kLeastDepthwise / results);
  const int64_t total = N * C * bands;
  parallel((total + at_once - 1) / at_once, [&](int64_t task, int64_t thread) {
    for (int64_t i = task * at_once; i < std::min(total, (task + 1) * at_once); ++i)
      body(i / bands / C, i / bands % C, i % bands, thread);
  });
}

template <int K, int S, class T>
static void forward_planes(const Problem<T>& p, const T* bias, Target out) {
  constexpr int R = kDepthwiseRows<K>;
  const Geometry& g = p.geo;
  const Factors<T> factors(p);
  const PlaneCopy<T> copy(p);
  const RowBands bands(g.Ho, copy.stride * sizeof(T), S, R);
  const int64_t copy_rows = S * (std::min(bands.rows, round_up(g.Ho, R)) - 1) + K;
  const int64_t own_size = (copy_rows + 1) * copy.stride + R * factors.stride;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  int64_t columns[K];
  for (int64_t j = 0; j < K; ++j) columns[j] = copy.column(g, j);
  for_planes(g.N, g.C, bands.count(), g.Ho * g.Wo, [&](int64_t n, int64_t c, int64_t band, int64_t thread) {
    T* const features = as<T>(own) + thread * own_size;
    T *const line = features + copy_rows * copy.stride, *const sums = line + copy.stride;
    T w[K * K];
    for (int64_t i = 0; i < K * K; ++i) w[i % K * K + i / K] = p.branches[0].weight[c * K * K + i];
    const T b = bias ? bias[c] : T(0);
    const int64_t begin = bands.begin(band), end = bands.end(band);
    copy.load(p, n, c, S * begin, S * (round_up(end - begin, R) - 1) + K, line, features);
    for (int64_t y = begin; y < end; y += R) {
      sum_rows<K, S>(features + S * (y - begin) * copy.stride, copy.stride, columns, K, w, g.Wo, sums,
                     factors.stride);
      for (int64_t r = 0; r < std::min<int64_t>(R, end - y); ++r) {
        T* const row = sums + r * factors.stride;
        const T* const factor = factors.row(p, n, y + r);
        const int64_t at = ((n * g.O + c) * g.Ho + y + r) * g.Wo;
        T* const to = is_wide(p.dtype) ? static_cast<T*>(out.data) + at : row;
        for (int64_t x = 0; x < g.Wo; ++x) to[x] = factor[x] > T(0) ? row[x] * factor[x] + b : T(0);
        if (!is_wide(p.dtype)) narrow(p.dtype, row, g.Wo, out.data, at);
      }
    }
  });
}

// Rows of the gradient with zeros around it, from (top, left) on, for a stride that makes S parities of rows
// and columns of the input.
template <int K, int S, class T>
class GradInputPlanes {
 public:
  GradInputPlanes(const Problem<T>& p, const Gradient& grad, const Target& out)
      : p_(p), grad_(grad), out_(out), factors_(p) {
    const Geometry& g = p.geo;
    for (int64_t phase = 0; phase < S; ++phase) {
      rows_.emplace_back(phase, g.H, g.pt, K, S);
      cols_.emplace_back(phase, g.W, g.pl, K, S);
      top_ = std::min(top_, rows_.back().at), left_ = std::min(left_, cols_.back().at);
      bottom_ = std::max(bottom_, rows_.back().at + rows_.back().taps);
      width_ = std::max(width_, cols_.back().count);
    }
    width_ = round_up(width_, kLanes<T>);
    stride_ = round_up(std::max(width_ + 2 * K, g.Wo - left_ + kLanes<T>), kLanes<T>);
  }

  void run() {
    const Geometry& g = p_.geo;
    const int64_t height = (g.H + S - 1) / S;
    const RowBands bands(height, stride_ * sizeof(T), 1, kMost);
    const int64_t copy_rows = std::min(bands.rows, round_up(height, kMost)) + bottom_ - top_;
    const int64_t own_size = copy_rows * stride_ + S * kMost * width_ + S * width_;
    const Buffer own = allocate(thread_count() * own_size * sizeof(T));
    for_planes(g.N, g.C, bands.count(), g.H * g.W, [&](int64_t n, int64_t c, int64_t band, int64_t thread) {
      T* const gradient = as<T>(own) + thread * own_size;
      T* const sums = gradient + copy_rows * stride_;
      const int64_t begin = bands.begin(band), end = bands.end(band);
      load(n, c, begin + top_, round_up(end - begin, kMost) + bottom_ - top_, gradient);
      for (const Parity& rows : rows_)
        if (rows.taps == K / S)
          finish<K / S>(n, c, rows, begin, std::min(end, rows.count), gradient, sums);
        else
          finish<(K + S - 1) / S>(n, c, rows, begin, std::min(end, rows.count), gradient, sums);
    });
  }

 private:
  static constexpr int kMost = kDepthwiseRows<K>;

  void load(int64_t n, int64_t c, int64_t first, int64_t rows, T* dst) const {
    const Geometry& g = p_.geo;
    for (int64_t y = first; y < first + rows; ++y, dst += stride_) {
      std::fill_n(dst, stride_, T(0));
      if (y < 0 || y >= g.Ho) continue;
      const T* const factor = factors_.row(p_, n, y);
      T* const row = dst - left_;
      load_live_gradient(p_, grad_, n, c, y, factor, row);
      for (int64_t x = 0; x < g.Wo; ++x) row[x] *= factor[x];
    }
  }
  // Positions [begin, end) of a parity of rows, which have `KR` taps.
  template <int KR>
  void finish(int64_t n, int64_t c, const Parity& rows, int64_t begin, int64_t end, const T* gradient,
              T* sums) const {
    constexpr int R = kDepthwiseRows<KR>;
    const Geometry& g = p_.geo;
    const T* const weight = p_.branches[0].weight + c * K * K;
    T w[S][K * KR];
    int64_t columns[S][K];
    for (int64_t b = 0; b < S; ++b)
      for (int64_t j = 0; j < cols_[b].taps; ++j) {
        columns[b][j] = cols_[b].at - left_ + j;
        for (int64_t k = 0; k < KR; ++k)
          w[b][j * KR + k] = weight[(rows.last - k * S) * K + cols_[b].last - j * S];
      }
    const Source& s = p_.sources[0];
    T* const line = sums + S * kMost * width_;
    for (int64_t m = begin; m < end; m += R) {
      for (int64_t b = 0; b < S; ++b)
        sum_rows<KR, 1>(gradient + (m - begin + rows.at - top_) * stride_, stride_, columns[b], cols_[b].taps,
                        w[b], cols_[b].count, sums + b * kMost * width_, width_);
      for (int64_t r = 0; r < std::min<int64_t>(R, end - m); ++r) {
        const int64_t h = rows.first + (m + r) * S, at = ((n * g.C + c) * g.H + h) * g.W;
        T* row = sums + r * width_;
        if (S == 2) {
          const T *even = sums + (cols_[0].first ? kMost * width_ : 0) + r * width_,
                  *odd = sums + (cols_[0].first ? 0 : kMost * width_) + r * width_;
          row = line;
          for (int64_t k = 0; k < width_; ++k) {
            line[2 * k] = even[k];
            line[2 * k + 1] = odd[k];
          }
        }
        T* const to = is_wide(p_.dtype) ? static_cast<T*>(out_.data) + at : row;
        if (const uint8_t* mask = mask_row(s, n, c, h))
          for (int64_t x = 0; x < g.W; ++x) to[x] = mask[x] ? row[x] : T(0);
        else if (to != row)
          memcpy(to, row, g.W * sizeof(T));
        if (!is_wide(p_.dtype)) narrow(p_.dtype, row, g.W, out_.data, at);
      }
    }
  }

  const Problem<T>& p_;
  const Gradient& grad_;
  const Target& out_;
  const Factors<T> factors_;
  std::vector<Parity> rows_, cols_;
  int64_t top_ = 0, left_ = 0, bottom_ = 0, width_ = 0, stride_ = 0;
};

// Sums over all images of one plane after another: of each tap, then the live gradient.
template <int K, int S, class T>
static void grad_weight_planes(const Problem<T>& p, const Gradient& grad, T* grad_weight, T* grad_sum) {
  constexpr int R = kDepthwiseRows<K>;
  constexpr int64_t L = kLanes<T>;
  const Geometry& g = p.geo;
  const Factors<T> factors(p);
  const PlaneCopy<T> copy(p);
  const RowBands bands(g.Ho, copy.stride * sizeof(T), S, R);
  const int64_t rows = std::min(bands.rows, round_up(g.Ho, R)), copy_rows = S * (rows - 1) + K;
  const int64_t own_size = (copy_rows + 1) * copy.stride + rows * factors.stride;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  // Parts of the batch are a matter of its size alone, so that the sums do not depend on the threads.
  const int64_t parts = std::min<int64_t>(g.N, std::max<int64_t>(1, 64 / g.C));
  std::vector<std::array<double, K * K + 1>> sums(parts * g.C);
  parallel(parts * g.C, [&](int64_t i, int64_t thread) {
    T* const features = as<T>(own) + thread * own_size;
    T *const line = features + copy_rows * copy.stride, *const gradient = line + copy.stride;
    const int64_t part = i / g.C, c = i % g.C;
    double totals[K * K + 1][L] = {};
    for (int64_t n = part * g.N / parts; n < (part + 1) * g.N / parts; ++n)
      for (int64_t band = 0; band < bands.count(); ++band) {
        const int64_t begin = bands.begin(band), end = bands.end(band), high = round_up(end - begin, R);
        Vec<T> live{};
        for (int64_t y = 0; y < high; ++y) {
          T* const row = gradient + y * factors.stride;
          if (begin + y >= end) {
            std::fill_n(row, factors.stride, T(0));
            continue;
          }
          const T* const factor = factors.row(p, n, begin + y);
          load_live_gradient(p, grad, n, c, begin + y, factor, row);
          for (int64_t x = 0; x < factors.stride; x += L) {
            live += load(row + x);
            store(row + x, load(row + x) * load(factor + x));
          }
        }
        for (int64_t l = 0; l < L; ++l) totals[K * K][l] += live[l];
        if (!grad_weight) continue;
        copy.load(p, n, c, S * begin, S * (high - 1) + K, line, features);
        for (int64_t j = 0; j < K; ++j) {
          Vec<T> acc[K] = {};
          for (int64_t y = 0; y < high; y += R)
            for (int64_t x = 0; x < factors.stride; x += L)
              add_gradients<K, S, R>(features + S * y * copy.stride + copy.column(g, j) + x, copy.stride,
                                     gradient + y * factors.stride + x, factors.stride, acc);
          for (int64_t k = 0; k < K; ++k)
            for (int64_t l = 0; l < L; ++l) totals[k * K + j][l] += acc[k][l];
        }
      }
    for (int64_t t = 0; t <= K * K; ++t)
      for (int64_t l = 0; l < L; ++l) sums[i][t] += totals[t][l];
  });
  for (int64_t c = 0; c < g.C; ++c)
    for (int64_t t = 0; t <= K * K; ++t) {
      double sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += sums[part * g.C + c][t];
      if (t < K * K && grad_weight) grad_weight[c * K * K + t] = static_cast<T>(sum);
      if (t == K * K && grad_sum) grad_sum[c] = static_cast<T>(sum);
    }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

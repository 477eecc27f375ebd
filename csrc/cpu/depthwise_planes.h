// Depthwise convolution of planes: columns fill the vectors, and a block of rows shares what it loads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "depthwise.h"
#include "isa.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kLeastDepthwise = 1 << 14;  // results of a task, below which dealing it out would cost

template <class T>
PCONV_INLINE Vec<T> select(Vec<T> x, const T* bits) {
  using Bits = typename VecOf<T>::bits;
  return (Vec<T>)((Bits)x & (Bits)load(bits));
}

// Masks as vectors select by them: all bits of valid entries, none behind a row. [planes, H, stride], or one
// row where everything is valid.
template <class T>
struct MaskBits {
  int64_t stride;
  std::vector<T> data;
  const Source& source;

  explicit MaskBits(const Problem<T>& p) : stride(round_up(p.geo.W, kLanes<T>)), source(p.sources[0]) {
    const Geometry& g = p.geo;
    const int64_t planes = (source.mask_stride_n ? g.N : 1) * (source.mask_per_channel ? g.C : 1);
    const int64_t rows = source.mask ? planes * g.H : 1;
    data.resize(rows * stride);
    parallel((rows + kRowsAtOnce - 1) / kRowsAtOnce, [&](int64_t task, int64_t) {
      for (int64_t i = task * kRowsAtOnce; i < std::min(rows, (task + 1) * kRowsAtOnce); ++i) {
        for (int64_t w = 0; w < g.W; ++w) {
          memset(&data[i * stride + w], !source.mask || source.mask[i * g.W + w] ? -1 : 0, sizeof(T));
        }
      }
    });
  }
  const T* row(const Geometry& g, int64_t n, int64_t c, int64_t h) const {
    if (!source.mask) return data.data();
    const int64_t plane =
        source.mask_per_channel ? (source.mask_stride_n ? n : 0) * g.C + c : (source.mask_stride_n ? n : 0);
    return data.data() + (plane * g.H + h) * stride;
  }

 private:
  static constexpr int64_t kRowsAtOnce = 64;
};

// Entries [at, at + count) of `total` that are stored, as they are or widened into `flat`, so that a vector
// can be read from any of them.
template <class T>
static const T* readable(DType dtype, const void* data, int64_t at, int64_t count, int64_t total, T* flat) {
  if (is_wide(dtype) && at + count + kLanes<T> <= total) return static_cast<const T*>(data) + at;
  widen(dtype, data, at, count, flat);
  return flat;
}

// Masked rows of one plane with their padding, those of windows with a stride of 2 with even columns before
// odd ones, so that neighbours are read in either case. Vectors of results may be read behind a row.
template <class T>
struct PlaneCopy {
  int64_t part, stride;  // entries of one parity, of a row

  explicit PlaneCopy(const Problem<T>& p)
      : part(round_up(std::max(round_up(p.geo.Wo, kLanes<T>) + p.geo.kw,
                               (p.geo.pl + round_up(p.geo.W, kLanes<T>) + p.geo.sw - 1) / p.geo.sw),
                      kLanes<T>)),
        stride(p.geo.sw * part) {}
  int64_t column(const Geometry& g, int64_t j) const { return j % g.sw * part + j / g.sw; }

  // Padded rows [first, first + rows); `line` holds a row, `flat` the stored rows.
  void fill(const Problem<T>& p, const MaskBits<T>& masks, int64_t n, int64_t c, int64_t first, int64_t rows,
            T* line, T* flat, T* dst) const {
    const Geometry& g = p.geo;
    const int64_t begin = std::clamp<int64_t>(first - g.pt, 0, g.H),
                  end = std::clamp<int64_t>(first + rows - g.pt, begin, g.H);
    const T* from = readable(p.dtype, p.sources[0].data, ((n * g.C + c) * g.H + begin) * g.W,
                             (end - begin) * g.W, g.N * g.C * g.H * g.W, flat);
    for (int64_t h = first - g.pt; h < first + rows - g.pt; ++h, dst += stride) {
      if (h < begin || h >= end) {
        std::fill_n(dst, stride, T(0));
        continue;
      }
      const T* const bits = masks.row(g, n, c, h);
      T *const row = g.sw == 1 ? dst : line, *const inner = row + g.pl;
      std::fill_n(row, g.pl, T(0));
      for (int64_t w = 0; w < g.W; w += kLanes<T>) store(inner + w, select(load(from + w), bits + w));
      std::fill(inner + masks.stride, row + stride, T(0));
      from += g.W;
      for (int64_t k = 0; g.sw == 2 && k < part; ++k) {
        dst[k] = line[2 * k];
        dst[part + k] = line[2 * k + 1];
      }
    }
  }
};

// Rows [begin, end) of channel o of the gradient where windows are live, each with zeros up to whole
// vectors; `flat` holds the stored rows.
template <class T>
static void load_live_gradient(const Problem<T>& p, const Gradient& grad, const Factors<T>& factors,
                               int64_t n, int64_t o, int64_t begin, int64_t end, T* flat, T* dst,
                               int64_t stride) {
  const Geometry& g = p.geo;
  const T* from = flat;
  if (!grad.channels_last)
    from = readable(p.dtype, grad.data, ((n * g.O + o) * g.Ho + begin) * g.Wo, (end - begin) * g.Wo,
                    g.N * g.O * g.Ho * g.Wo, flat);
  else
    for (int64_t i = 0; i < (end - begin) * g.Wo; ++i)
      widen(p.dtype, grad.data, ((n * g.Ho + begin) * g.Wo + i) * g.O + o, 1, flat + i);
  for (int64_t y = begin; y < end; ++y, from += g.Wo, dst += stride) {
    const T* const factor = factors.row(p, n, y);
    for (int64_t x = 0; x < g.Wo; x += kLanes<T>)
      store(dst + x, load(factor + x) > Vec<T>{} ? load(from + x) : Vec<T>{});
  }
}

// Where rows of results are put together: in the plane itself if no vector of them reaches beyond its row.
template <class T>
static bool rows_are_vectors(DType dtype, int64_t width) {
  return is_wide(dtype) && width % kLanes<T> == 0;
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
  const MaskBits<T> masks(p);
  const PlaneCopy<T> copy(p);
  const RowBands bands(g.Ho, copy.stride * sizeof(T), S, R);
  const int64_t copy_rows = S * (std::min(bands.rows, round_up(g.Ho, R)) - 1) + K;
  const int64_t flat_size = std::max(copy_rows * g.W, R * g.Wo) + kLanes<T>;
  const int64_t own_size = (copy_rows + 1) * copy.stride + R * factors.stride + flat_size;
  const bool direct = rows_are_vectors<T>(p.dtype, g.Wo);
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  int64_t columns[K];
  for (int64_t j = 0; j < K; ++j) columns[j] = copy.column(g, j);
  for_planes(g.N, g.C, bands.count(), g.Ho * g.Wo, [&](int64_t n, int64_t c, int64_t band, int64_t thread) {
    T* const features = as<T>(own) + thread * own_size;
    T *const line = features + copy_rows * copy.stride, *const sums = line + copy.stride;
    T* const flat = sums + R * factors.stride;
    T w[K * K];
    for (int64_t i = 0; i < K * K; ++i) w[i % K * K + i / K] = p.branches[0].weight[c * K * K + i];
    const T b = bias ? bias[c] : T(0);
    const int64_t begin = bands.begin(band), end = bands.end(band);
    copy.fill(p, masks, n, c, S * begin, S * (round_up(end - begin, R) - 1) + K, line, flat, features);
    for (int64_t y = begin; y < end; y += R) {
      sum_rows<K, S>(features + S * (y - begin) * copy.stride, copy.stride, columns, K, w, g.Wo, sums,
                     factors.stride);
      const int64_t rows = std::min<int64_t>(R, end - y), at = ((n * g.O + c) * g.Ho + y) * g.Wo;
      T* to = direct ? static_cast<T*>(out.data) + at : flat;
      for (int64_t r = 0; r < rows; ++r, to += g.Wo) {
        const T *const row = sums + r * factors.stride, *const factor = factors.row(p, n, y + r);
        for (int64_t x = 0; x < g.Wo; x += kLanes<T>) {
          const Vec<T> f = load(factor + x);
          store(to + x, f > Vec<T>{} ? f * load(row + x) + b : Vec<T>{});
        }
      }
      if (!direct) narrow(p.dtype, flat, rows * g.Wo, out.data, at);
    }
  });
}

// Rows of the gradient with zeros around it, from (top, left) on, for a stride that makes S parities of rows
// and columns of the input.
template <int K, int S, class T>
class GradInputPlanes {
 public:
  GradInputPlanes(const Problem<T>& p, const Gradient& grad, const Target& out)
      : p_(p), grad_(grad), out_(out), factors_(p), masks_(p) {
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
    const int64_t flat_size = std::max(copy_rows * g.Wo, kMost * g.W) + S * width_;
    const int64_t own_size = copy_rows * stride_ + S * kMost * width_ + S * width_ + flat_size;
    const Buffer own = allocate(thread_count() * own_size * sizeof(T));
    for_planes(g.N, g.C, bands.count(), g.H * g.W, [&](int64_t n, int64_t c, int64_t band, int64_t thread) {
      T* const gradient = as<T>(own) + thread * own_size;
      T* const sums = gradient + copy_rows * stride_;
      const int64_t begin = bands.begin(band), end = bands.end(band);
      T* const flat = sums + (S * kMost + S) * width_;
      load_scaled(n, c, begin + top_, round_up(end - begin, kMost) + bottom_ - top_, flat, gradient);
      for (const Parity& rows : rows_)
        if (rows.taps == K / S)
          finish<K / S>(n, c, rows, begin, std::min(end, rows.count), gradient, sums, flat);
        else
          finish<(K + S - 1) / S>(n, c, rows, begin, std::min(end, rows.count), gradient, sums, flat);
    });
  }

 private:
  static constexpr int kMost = kDepthwiseRows<K>;

  void load_scaled(int64_t n, int64_t c, int64_t first, int64_t rows, T* flat, T* dst) const {
    const Geometry& g = p_.geo;
    const int64_t begin = std::clamp<int64_t>(first, 0, g.Ho),
                  end = std::clamp<int64_t>(first + rows, begin, g.Ho);
    std::fill_n(dst, (begin - first) * stride_, T(0));
    T* row = dst + (begin - first) * stride_;
    load_live_gradient(p_, grad_, factors_, n, c, begin, end, flat, row - left_, stride_);
    for (int64_t y = begin; y < end; ++y, row += stride_) {
      const T* const factor = factors_.row(p_, n, y);
      std::fill_n(row, -left_, T(0));
      for (int64_t x = 0; x < factors_.stride; x += kLanes<T>)
        store(row - left_ + x, load(row - left_ + x) * load(factor + x));
      std::fill(row - left_ + factors_.stride, row + stride_, T(0));
    }
    std::fill(row, dst + rows * stride_, T(0));
  }
  // Positions [begin, end) of a parity of rows, which have `KR` taps.
  template <int KR>
  void finish(int64_t n, int64_t c, const Parity& rows, int64_t begin, int64_t end, const T* gradient,
              T* sums, T* flat) const {
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
    T* const line = sums + S * kMost * width_;
    const bool direct = rows_are_vectors<T>(p_.dtype, g.W);
    for (int64_t m = begin; m < end; m += R) {
      for (int64_t b = 0; b < S; ++b)
        sum_rows<KR, 1>(gradient + (m - begin + rows.at - top_) * stride_, stride_, columns[b], cols_[b].taps,
                        w[b], cols_[b].count, sums + b * kMost * width_, width_);
      const int64_t block = std::min<int64_t>(R, end - m), plane = (n * g.C + c) * g.H;
      for (int64_t r = 0; r < block; ++r) {
        const int64_t h = rows.first + (m + r) * S, at = (plane + h) * g.W;
        const T *row = sums + r * width_, *const bits = masks_.row(g, n, c, h);
        if (S == 2) {
          const T *even = sums + (cols_[0].first ? kMost * width_ : 0) + r * width_,
                  *odd = sums + (cols_[0].first ? 0 : kMost * width_) + r * width_;
          row = line;
          for (int64_t k = 0; k < width_; ++k) {
            line[2 * k] = even[k];
            line[2 * k + 1] = odd[k];
          }
        }
        T* const to = direct ? static_cast<T*>(out_.data) + at : flat + (S == 1 ? r * g.W : 0);
        for (int64_t x = 0; x < g.W; x += kLanes<T>) store(to + x, select(load(row + x), bits + x));
        if (S == 2 && !direct) narrow(p_.dtype, flat, g.W, out_.data, at);
      }
      if (S == 1 && !direct) narrow(p_.dtype, flat, block * g.W, out_.data, (plane + m) * g.W);
    }
  }

  const Problem<T>& p_;
  const Gradient& grad_;
  const Target& out_;
  const Factors<T> factors_;
  const MaskBits<T> masks_;
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
  const MaskBits<T> masks(p);
  const PlaneCopy<T> copy(p);
  const RowBands bands(g.Ho, copy.stride * sizeof(T), S, R);
  const int64_t rows = std::min(bands.rows, round_up(g.Ho, R)), copy_rows = S * (rows - 1) + K;
  const int64_t flat_size = std::max(copy_rows * g.W, rows * g.Wo) + L;
  const int64_t own_size = (copy_rows + 1) * copy.stride + rows * factors.stride + flat_size;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  // Parts of the batch are a matter of its size alone, so that the sums do not depend on the threads.
  const int64_t parts = std::min<int64_t>(g.N, std::max<int64_t>(1, 64 / g.C));
  std::vector<double> sums(parts * g.C * (K * K + 1));
  parallel(parts * g.C, [&](int64_t i, int64_t thread) {
    T* const features = as<T>(own) + thread * own_size;
    T *const line = features + copy_rows * copy.stride, *const gradient = line + copy.stride;
    T* const flat = gradient + rows * factors.stride;
    const int64_t part = i / g.C, c = i % g.C;
    double totals[K * K + 1][L] = {};
    for (int64_t n = part * g.N / parts; n < (part + 1) * g.N / parts; ++n)
      for (int64_t band = 0; band < bands.count(); ++band) {
        const int64_t begin = bands.begin(band), end = bands.end(band), high = round_up(end - begin, R);
        load_live_gradient(p, grad, factors, n, c, begin, end, flat, gradient, factors.stride);
        std::fill(gradient + (end - begin) * factors.stride, gradient + high * factors.stride, T(0));
        Vec<T> live{};
        const T* const factor = factors.row(p, n, begin);
        for (int64_t i = 0; i < (end - begin) * factors.stride; i += L) {
          live += load(gradient + i);
          store(gradient + i, load(gradient + i) * load(factor + i));
        }
        for (int64_t l = 0; l < L; ++l) totals[K * K][l] += live[l];
        if (!grad_weight) continue;
        copy.fill(p, masks, n, c, S * begin, S * (high - 1) + K, line, flat, features);
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
      for (int64_t l = 0; l < L; ++l) sums[i * (K * K + 1) + t] += totals[t][l];
  });
  write_sums(sums, parts, g.C, K * K, grad_weight, grad_sum);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

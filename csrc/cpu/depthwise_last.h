// Depthwise convolution of channels-last maps: channels fill the vectors, and a block of pixels of a row
// shares what it loads.
#pragma once
#include <algorithm>
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

// Channels of one task: up to four vectors, so that a pixel is whole lines of the cache.
template <class T>
struct ChannelGroup {
  static constexpr int64_t L = kLanes<T>;
  int64_t first, width, vectors;
  ChannelGroup(int64_t i, int64_t C)
      : first(i * 4 * L), width(std::min(4 * L, C - first)), vectors((width + L - 1) / L) {}
  static int64_t count(int64_t C) { return (C + 4 * L - 1) / (4 * L); }

  // Weights as [vectors][K * K][L], with zeros for channels that are not there.
  void pack(const T* weight, int64_t taps, T* dst) const {
    std::fill_n(dst, vectors * taps * L, T(0));
    for (int64_t c = 0; c < width; ++c)
      for (int64_t t = 0; t < taps; ++t) dst[(c / L * taps + t) * L + c % L] = weight[(first + c) * taps + t];
  }
};

// Rows of pixels of a group of channels with zeros around them, [vectors][rows][width][L].
template <class T>
struct PixelCopy {
  int64_t rows, width;
  T* data;

  T* at(int64_t vector, int64_t row, int64_t column) const {
    return data + ((vector * rows + row) * width + column) * kLanes<T>;
  }
  void clear(int64_t vectors, int64_t row, int64_t begin, int64_t end) const {
    for (int64_t v = 0; v < vectors && begin < end; ++v)
      std::fill_n(at(v, row, begin), (end - begin) * kLanes<T>, T(0));
  }
  // A pixel's channels; `pixel` holds them for a moment.
  void put(DType dtype, const void* src, int64_t offset, const ChannelGroup<T>& group, int64_t row,
           int64_t column, T* pixel) const {
    constexpr int64_t L = kLanes<T>;
    const T* from = pixel;
    if (is_wide(dtype) && group.width == group.vectors * L)
      from = static_cast<const T*>(src) + offset;
    else
      widen(dtype, src, offset, group.width, pixel);
    for (int64_t v = 0; v < group.vectors; ++v) store(at(v, row, column), load(from + v * L));
  }
};

// Padded rows [first, first + copy.rows) of the masked features.
template <class T>
static void load_pixels(const Problem<T>& p, int64_t n, int64_t first, const ChannelGroup<T>& group,
                        const PixelCopy<T>& copy) {
  const Geometry& g = p.geo;
  const Source& s = p.sources[0];
  T pixel[4 * kLanes<T>] = {};
  const int64_t width = std::min(g.W, copy.width - g.pl);
  for (int64_t i = 0; i < copy.rows; ++i) {
    const int64_t h = first + i - g.pt;
    if (h < 0 || h >= g.H) {
      copy.clear(group.vectors, i, 0, copy.width);
      continue;
    }
    copy.clear(group.vectors, i, 0, g.pl);
    copy.clear(group.vectors, i, g.pl + width, copy.width);
    const uint8_t* mask = mask_row(s, n, 0, h);
    for (int64_t w = 0; w < width; ++w) {
      if (mask && !s.mask_per_channel && !mask[w])
        copy.clear(group.vectors, i, g.pl + w, g.pl + w + 1);
      else
        copy.put(p.dtype, s.data, ((n * g.H + h) * g.W + w) * g.C + group.first, group, i, g.pl + w, pixel);
    }
    for (int64_t c = 0; mask && s.mask_per_channel && c < group.width; ++c) {
      const uint8_t* const channel = mask_row(s, n, group.first + c, h);
      T* const to = copy.at(c / kLanes<T>, i, g.pl) + c % kLanes<T>;
      for (int64_t w = 0; w < width; ++w)
        if (!channel[w]) to[w * kLanes<T>] = T(0);
    }
  }
}

// Rows [first, first + copy.rows) of the gradient from column `left` on, zero where windows are dead; times
// their factors if `scaled`.
template <class T>
static void load_pixel_gradients(const Problem<T>& p, const Gradient& grad, const Factors<T>& factors,
                                 int64_t n, int64_t first, int64_t left, bool scaled,
                                 const ChannelGroup<T>& group, const PixelCopy<T>& copy) {
  const Geometry& g = p.geo;
  constexpr int64_t L = kLanes<T>;
  T pixel[4 * L] = {};
  for (int64_t i = 0; i < copy.rows; ++i) {
    const int64_t y = first + i;
    if (y < 0 || y >= g.Ho) {
      copy.clear(group.vectors, i, 0, copy.width);
      continue;
    }
    copy.clear(group.vectors, i, 0, -left);
    copy.clear(group.vectors, i, g.Wo - left, copy.width);
    const T* const factor = factors.row(p, n, y);
    for (int64_t x = 0; x < g.Wo; ++x) {
      if (!(factor[x] > T(0))) {
        copy.clear(group.vectors, i, x - left, x - left + 1);
        continue;
      }
      if (grad.channels_last) {
        copy.put(p.dtype, grad.data, ((n * g.Ho + y) * g.Wo + x) * g.O + group.first, group, i, x - left,
                 pixel);
      } else {
        for (int64_t c = 0; c < group.width; ++c)
          widen(p.dtype, grad.data, ((n * g.O + group.first + c) * g.Ho + y) * g.Wo + x, 1, pixel + c);
        for (int64_t v = 0; v < group.vectors; ++v) store(copy.at(v, i, x - left), load(pixel + v * L));
      }
      for (int64_t v = 0; scaled && v < group.vectors; ++v) {
        T* const at = copy.at(v, i, x - left);
        store(at, load(at) * factor[x]);
      }
    }
  }
}

// Channels of a pixel into a map of C channels.
template <class T>
PCONV_INLINE void write_pixel(DType dtype, const T* pixel, const ChannelGroup<T>& group, void* dst,
                              int64_t offset) {
  constexpr int64_t L = kLanes<T>;
  if (is_wide(dtype) && group.width == group.vectors * L)
    for (int64_t v = 0; v < group.vectors; ++v)
      store(static_cast<T*>(dst) + offset + v * L, load(pixel + v * L));
  else
    narrow(dtype, pixel, group.width, dst, offset);
}

// Sums of one row of pixels, out[x] = sum over rows i and k of in[i][S x + k] w[i][k]; `out` has pixels of
// four vectors.
template <int K, int S, class T>
static void sum_pixels(const T* in, int64_t stride, int64_t n_rows, const T* w, int64_t width, T* out) {
  constexpr int P = kDepthwiseRows<K>;
  constexpr int64_t L = kLanes<T>;
  for (int64_t x = 0; x < width; x += P) {
    Vec<T> acc[P][1] = {};
    for (int64_t i = 0; i < n_rows; ++i) {
      Vec<T> tap[K];
#pragma GCC unroll 8
      for (int k = 0; k < K; ++k) tap[k] = load(w + (i * K + k) * L);
      add_products<K, S>(in + i * stride + S * x * L, L, tap, acc);
    }
#pragma GCC unroll 8
    for (int r = 0; r < P; ++r) store(out + (x + r) * 4 * L, acc[r][0]);
  }
}

// Runs body(n, group, band, thread).
template <class T, class F>
static void for_groups(int64_t N, int64_t C, int64_t bands, const F& body) {
  const int64_t groups = ChannelGroup<T>::count(C);
  parallel(N * groups * bands, [&](int64_t i, int64_t thread) {
    body(i / bands / groups, ChannelGroup<T>(i / bands % groups, C), i % bands, thread);
  });
}

template <int K, int S, class T>
static void forward_last(const Problem<T>& p, const T* bias, Target out) {
  constexpr int64_t L = kLanes<T>, P = kDepthwiseRows<K>;
  const Geometry& g = p.geo;
  const Factors<T> factors(p);
  const int64_t wide = round_up(g.Wo, P), width = S * (wide - 1) + K;
  const RowBands bands(g.Ho, width * 4 * L * sizeof(T), S, 1);
  const int64_t copy_size = (S * (std::min(bands.rows, g.Ho) - 1) + K) * width * 4 * L;
  const int64_t own_size = copy_size + wide * 4 * L + K * K * 4 * L;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  for_groups<T>(
      g.N, g.C, bands.count(), [&](int64_t n, const ChannelGroup<T>& group, int64_t band, int64_t thread) {
        const int64_t begin = bands.begin(band), end = bands.end(band);
        const PixelCopy<T> copy{S * (end - begin - 1) + K, width, as<T>(own) + thread * own_size};
        T *const sums = copy.data + copy_size, *const w = sums + wide * 4 * L;
        group.pack(p.branches[0].weight, K * K, w);
        load_pixels(p, n, S * begin, group, copy);
        T b[4 * L] = {};
        if (bias) std::copy_n(bias + group.first, group.width, b);
        for (int64_t y = begin; y < end; ++y) {
          for (int64_t v = 0; v < group.vectors; ++v)
            sum_pixels<K, S>(copy.at(v, S * (y - begin), 0), width * L, K, w + v * K * K * L, g.Wo,
                             sums + v * L);
          const T* const factor = factors.row(p, n, y);
          for (int64_t x = 0; x < g.Wo; ++x) {
            T* const pixel = sums + x * 4 * L;
            for (int64_t v = 0; v < group.vectors; ++v) {
              const Vec<T> y = factor[x] * load(pixel + v * L) + load(b + v * L);
              store(pixel + v * L, factor[x] > T(0) ? y : Vec<T>{});
            }
            write_pixel(p.dtype, pixel, group, out.data, ((n * g.Ho + y) * g.Wo + x) * g.O + group.first);
          }
        }
      });
}

// Positions [begin, end) of a parity of rows and all of one of columns, which have KC taps.
template <int KC, int K, int S, class T>
static void grad_input_pixels(const Problem<T>& p, int64_t n, const ChannelGroup<T>& group,
                              const Parity& rows, const Parity& cols, int64_t begin, int64_t end,
                              const PixelCopy<T>& gradient, int64_t top, int64_t left, T* sums, T* w,
                              const Target& out) {
  constexpr int64_t L = kLanes<T>;
  const Geometry& g = p.geo;
  const Source& s = p.sources[0];
  std::fill_n(w, group.vectors * K * K * L, T(0));
  for (int64_t c = 0; c < group.width; ++c)
    for (int64_t i = 0; i < rows.taps; ++i)
      for (int64_t j = 0; j < KC; ++j)
        w[((c / L * rows.taps + i) * KC + j) * L + c % L] =
            p.branches[0].weight[((group.first + c) * K + rows.last - i * S) * K + cols.last - j * S];
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t v = 0; v < group.vectors; ++v)
      sum_pixels<KC, 1>(gradient.at(v, m - begin + rows.at - top, cols.at - left), gradient.width * L,
                        rows.taps, w + v * rows.taps * KC * L, cols.count, sums + v * L);
    const int64_t h = rows.first + m * S;
    for (int64_t k = 0; k < cols.count; ++k) {
      const int64_t column = cols.first + k * S;
      T* const pixel = sums + k * 4 * L;
      for (int64_t c = 0; s.mask && s.mask_per_channel && c < group.width; ++c)
        if (!mask_row(s, n, group.first + c, h)[column]) pixel[c] = T(0);
      if (s.mask && !s.mask_per_channel && !mask_row(s, n, 0, h)[column])
        std::fill_n(pixel, group.vectors * L, T(0));
      write_pixel(p.dtype, pixel, group, out.data, ((n * g.H + h) * g.W + column) * g.C + group.first);
    }
  }
}

template <int K, int S, class T>
static void grad_input_last(const Problem<T>& p, const Gradient& grad, const Target& out) {
  constexpr int64_t L = kLanes<T>;
  const Geometry& g = p.geo;
  const Factors<T> factors(p);
  std::vector<Parity> rows, cols;
  int64_t top = 0, left = 0, bottom = 0, right = 0, wide = 0;
  for (int64_t phase = 0; phase < S; ++phase) {
    rows.emplace_back(phase, g.H, g.pt, K, S);
    cols.emplace_back(phase, g.W, g.pl, K, S);
    top = std::min(top, rows.back().at), left = std::min(left, cols.back().at);
    bottom = std::max(bottom, rows.back().at + rows.back().taps);
    right = std::max(right, cols.back().at + cols.back().taps);
    wide = std::max(wide, round_up(cols.back().count, 8));
  }
  const int64_t width = std::max(wide + right, g.Wo) - left, height = (g.H + S - 1) / S;
  const RowBands bands(height, width * 4 * L * sizeof(T), 1, 1);
  const int64_t copy_size = (std::min(bands.rows, height) + bottom - top) * width * 4 * L;
  const int64_t own_size = copy_size + wide * 4 * L + K * K * 4 * L;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  for_groups<T>(
      g.N, g.C, bands.count(), [&](int64_t n, const ChannelGroup<T>& group, int64_t band, int64_t thread) {
        const int64_t begin = bands.begin(band), end = bands.end(band);
        const PixelCopy<T> gradient{end - begin + bottom - top, width, as<T>(own) + thread * own_size};
        T *const sums = gradient.data + copy_size, *const w = sums + wide * 4 * L;
        load_pixel_gradients(p, grad, factors, n, begin + top, left, true, group, gradient);
        for (const Parity& r : rows)
          for (const Parity& c : cols)
            if (c.taps == K / S)
              grad_input_pixels<K / S, K, S>(p, n, group, r, c, begin, std::min(end, r.count), gradient, top,
                                             left, sums, w, out);
            else
              grad_input_pixels<(K + S - 1) / S, K, S>(p, n, group, r, c, begin, std::min(end, r.count),
                                                       gradient, top, left, sums, w, out);
      });
}

template <int K, int S, class T>
static void grad_weight_last(const Problem<T>& p, const Gradient& grad, T* grad_weight, T* grad_sum) {
  constexpr int64_t L = kLanes<T>;
  constexpr int P = kDepthwiseRows<K>;
  const Geometry& g = p.geo;
  const Factors<T> factors(p);
  const int64_t wide = round_up(g.Wo, P), width = S * (wide - 1) + K;
  const RowBands bands(g.Ho, (S * width + wide) * 4 * L * sizeof(T), 1, 1);
  const int64_t rows = std::min(bands.rows, g.Ho);
  const int64_t copy_size = (S * (rows - 1) + K) * width * 4 * L;
  const int64_t own_size = copy_size + rows * wide * 4 * L;
  const Buffer own = allocate(thread_count() * own_size * sizeof(T));
  // Parts of the batch are a matter of its size alone, so that the sums do not depend on the threads.
  const int64_t groups = ChannelGroup<T>::count(g.C), units = g.N * bands.count();
  const int64_t parts = std::min(units, (64 + groups - 1) / groups), taps = K * K + 1;
  std::vector<double> sums(parts * g.C * taps);
  parallel(parts * groups, [&](int64_t task, int64_t thread) {
    const int64_t part = task / groups;
    const ChannelGroup<T> group(task % groups, g.C);
    T* const memory = as<T>(own) + thread * own_size;
    for (int64_t unit = part * units / parts; unit < (part + 1) * units / parts; ++unit) {
      const int64_t n = unit / bands.count(), begin = bands.begin(unit % bands.count()),
                    end = bands.end(unit % bands.count());
      const PixelCopy<T> features{S * (end - begin - 1) + K, width, memory},
          gradient{end - begin, wide, memory + copy_size};
      load_pixel_gradients(p, grad, factors, n, begin, 0, false, group, gradient);
      if (grad_weight) load_pixels(p, n, S * begin, group, features);
      for (int64_t v = 0; v < group.vectors; ++v) {
        const auto add = [&](int64_t tap, Vec<T> sum) {
          for (int64_t l = 0; l < std::min(L, group.width - v * L); ++l)
            sums[(part * g.C + group.first + v * L + l) * taps + tap] += sum[l];
        };
        Vec<T> live{};
        for (int64_t y = begin; y < end; ++y)
          for (int64_t x = 0; x < g.Wo; ++x) {
            T* const at = gradient.at(v, y - begin, x);
            live += load(at);
            store(at, load(at) * factors.row(p, n, y)[x]);
          }
        add(K * K, live);
        for (int64_t i = 0; grad_weight && i < K; ++i) {
          Vec<T> acc[K] = {};
          for (int64_t y = 0; y < end - begin; ++y)
            for (int64_t x = 0; x < wide; x += P)
              add_gradients<K, S, P>(features.at(v, S * y + i, S * x), L, gradient.at(v, y, x), L, acc);
          for (int64_t j = 0; j < K; ++j) add(i * K + j, acc[j]);
        }
      }
    }
  });
  write_sums(sums, parts, g.C, K * K, grad_weight, grad_sum);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// Bands: the part of a batch that one visit works on. Features enter as masked, padded [rows, Wp, C] copies
// (the up-sampled and concatenated input exists only as such a band), gradients as scaled copies, results
// leave through `write_panel`.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "isa.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// Consecutive rows [begin, end) of one image.
struct Slice {
  int64_t n, begin, end;
  int64_t rows() const { return end - begin; }
};
using Band = std::vector<Slice>;

static int64_t band_rows(const Band& band) {
  int64_t rows = 0;
  for (const Slice& s : band) rows += s.rows();
  return rows;
}

// `height` rows of each of N images, `rows` at a time; a band spans images only when it takes them whole.
static std::vector<Band> make_bands(int64_t N, int64_t height, int64_t rows) {
  std::vector<Band> bands;
  if (rows >= height) {
    const int64_t images = std::max<int64_t>(1, rows / height);
    for (int64_t n = 0; n < N; n += images) {
      bands.emplace_back();
      for (int64_t i = n; i < std::min(N, n + images); ++i) bands.back().push_back({i, 0, height});
    }
  } else {
    for (int64_t n = 0; n < N; ++n)
      for (int64_t h = 0; h < height; h += rows) bands.push_back({{n, h, std::min(height, h + rows)}});
  }
  return bands;
}

PCONV_INLINE const uint8_t* mask_row(const Source& s, int64_t n, int64_t c, int64_t h) {
  return s.mask ? s.mask + n * s.mask_stride_n + ((s.mask_per_channel ? c * s.H : 0) + h) * s.W : nullptr;
}

// Channels [c0, c0 + cn) of the masked stored row h into dst [width, ldd], entry w from column w >> up: a
// select, so that NaN in a hole goes no further.
template <class T>
static void load_channels(const Problem<T>& p, const Source& s, int up, int64_t n, int64_t h, int64_t c0,
                          int64_t cn, int64_t width, std::vector<T>& scratch, T* dst, int64_t ldd) {
  if (s.channels_last) {
    for (int64_t w = 0; w < width; ++w)
      widen(p.dtype, s.data, ((n * s.H + h) * s.W + (w >> up)) * s.C + c0, cn, dst + w * ldd);
  } else if (is_wide(p.dtype) && !up) {
    transpose(static_cast<const T*>(s.data) + ((n * s.C + c0) * s.H + h) * s.W, s.H * s.W, cn, width, dst,
              ldd);
  } else {
    scratch.resize(cn * width);
    for (int64_t c = 0; c < cn; ++c) {
      T* row = scratch.data() + c * width;
      widen(p.dtype, s.data, ((n * s.C + c0 + c) * s.H + h) * s.W, ((width - 1) >> up) + 1, row);
      for (int64_t w = width; up && w-- > 0;) row[w] = row[w >> up];
    }
    transpose(scratch.data(), width, cn, width, dst, ldd);
  }
  if (s.mask && !s.mask_per_channel) {
    const uint8_t *mask = mask_row(s, n, 0, h), *end = mask + ((width - 1) >> up) + 1;
    for (const uint8_t* at = mask; (at = static_cast<const uint8_t*>(memchr(at, 0, end - at))); ++at)
      for (int64_t w = (at - mask) << up; w < width && w >> up == at - mask; ++w)
        std::fill_n(dst + w * ldd, cn, T(0));
  } else if (s.mask) {
    for (int64_t c = 0; c < cn; ++c) {
      const uint8_t* mask = mask_row(s, n, c0 + c, h);
      for (int64_t w = 0; w < width; ++w)
        if (!mask[w >> up]) dst[w * ldd + c] = T(0);
    }
  }
}

// Whether all values are finite and so small that none of Winograd's transforms overflows: they grow less
// than 2^20-fold.
template <class T>
static bool moderate(const T* x, int64_t n) {
  constexpr int32_t limit = (127 + 40) << 23;  // the bits of 2^40
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, x + i, sizeof(bits));
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  return largest <= limit;
}

// Masked, padded features of one source for a band of output rows, [C / chunk][rows of all slices,
// Wp][chunk]. Planes of few channels also keep neighbouring pixels out of each other's cache sets.
template <class T>
struct FeatureBand {
  const View& view;
  const Source& source;
  T* data;
  int64_t chunk, plane = 0;     // entries between chunks
  Band stored;                  // the slices in stored rows
  std::vector<int64_t> offset;  // of each slice in a plane

  static Slice stored_slice(const View& v, const Slice& s) {
    return {s.n, s.begin >> v.up, s.rows() ? ((s.end - 1) >> v.up) + 1 : s.begin >> v.up};
  }
  static int64_t padded_rows(const View& v, const Slice& s) {
    const int64_t rows = (s.rows() + v.tile - 1) / v.tile * v.tile;
    return rows ? (rows - 1) * v.g.sh + (v.g.kh - 1) * v.g.dh + 1 : 0;
  }
  static int64_t size(const View& v, const Band& band) {
    int64_t n = 0;
    for (const Slice& s : band) n += padded_rows(v, stored_slice(v, s)) * v.g.Wp * v.g.C;
    return n;
  }
  FeatureBand(const View& v, const Source& source, const Band& band, int64_t chunk, T* memory)
      : view(v), source(source), data(memory), chunk(chunk) {
    for (const Slice& s : band) {
      stored.push_back(stored_slice(v, s));
      offset.push_back(plane);
      plane += padded_rows(v, stored.back()) * v.g.Wp * chunk;
    }
  }
  // Start of the window of output pixel (oh, ow) of slice s, in the first chunk.
  const T* window(size_t s, int64_t oh, int64_t ow) const {
    const Geometry& g = view.g;
    return data + offset[s] +
           (((oh >> view.up) - stored[s].begin) * g.sh * g.Wp + (ow >> view.up) * g.sw) * chunk;
  }
  // Chunk that begins with channel c of the source.
  int64_t channel_offset(int64_t c) const { return c / chunk * plane; }

  // Padded row i of slice s.
  void load_row(const Problem<T>& p, size_t s, int64_t i, std::vector<T>& scratch) const {
    const Geometry& g = view.g;
    const int64_t h = stored[s].begin * g.sh + i - g.pt, width = std::min(g.W, g.Wp - g.pl);
    for (int64_t c = 0; c < g.C; c += chunk) {
      T* row = data + channel_offset(c) + offset[s] + i * g.Wp * chunk;
      if (h < 0 || h >= g.H || width <= 0) {
        std::fill_n(row, g.Wp * chunk, T(0));
        continue;
      }
      std::fill_n(row, g.pl * chunk, T(0));
      std::fill_n(row + (g.pl + width) * chunk, (g.Wp - g.pl - width) * chunk, T(0));
      const int up = source.up - view.up;
      load_channels(p, source, up, stored[s].n, h >> up, c, chunk, width, scratch, row + g.pl * chunk, chunk);
    }
  }
  bool moderate_row(size_t s, int64_t i) const {
    const Geometry& g = view.g;
    bool fits = true;
    for (int64_t c = 0; c < g.C; c += chunk)
      fits &= moderate(data + channel_offset(c) + offset[s] + i * g.Wp * chunk, g.Wp * chunk);
    return fits;
  }
};

constexpr int64_t kTileCacheBytes = 512 << 10;  // features and results of a band that one thread works on
constexpr int64_t kSharedBandBytes = 32 << 20;  // the same where all threads work on one band

// Rows of a band: what fits the budget, but a share for every thread where each works on bands of its own.
PCONV_INLINE int64_t rows_per_band(int64_t budget, int64_t row_bytes, int64_t total_rows, int64_t threads) {
  return std::max<int64_t>(1, std::min(budget / row_bytes, (total_rows + threads - 1) / threads));
}

// Runs load(i) for i in [0, n): over the threads, or here where this already is one task of many.
template <class F>
static void each(bool threads, int64_t n, const F& f) {
  if (threads)
    parallel(n, [&](int64_t i, int64_t) { f(i); });
  else
    for (int64_t i = 0; i < n; ++i) f(i);
}

// Where `check`: whether all features are moderate.
template <class T>
static bool load_features(const Problem<T>& p, const FeatureBand<T>& features, bool threads,
                          bool check = false) {
  std::vector<std::pair<size_t, int64_t>> rows;
  for (size_t s = 0; s < features.stored.size(); ++s)
    for (int64_t i = 0; i < FeatureBand<T>::padded_rows(features.view, features.stored[s]); ++i)
      rows.emplace_back(s, i);
  std::atomic<bool> fits{true};
  each(threads, rows.size(), [&](int64_t i) {
    thread_local std::vector<T> scratch;
    const auto [s, row] = rows[i];
    features.load_row(p, s, row, scratch);
    if (check && !features.moderate_row(s, row)) fits = false;
  });
  return fits;
}

// The features of every source for one band, and the memory they need.
template <class T>
static int64_t features_size(const std::vector<View>& views, const Band& band) {
  int64_t n = 0;
  for (const View& v : views) n += FeatureBand<T>::size(v, band);
  return n;
}
template <class T>
static std::vector<FeatureBand<T>> make_features(const Problem<T>& p, const std::vector<View>& views,
                                                 const Band& band, const std::vector<int64_t>& chunk,
                                                 T* memory) {
  std::vector<FeatureBand<T>> out;
  for (size_t i = 0; i < views.size(); ++i) {
    out.emplace_back(views[i], p.sources[i], band, chunk[i], memory);
    memory += FeatureBand<T>::size(views[i], band);
  }
  return out;
}

// Channels [channel, channel + width) of a slice of rows of the gradient into dst [pixels, ldd].
template <class T>
static void load_gradient_rows(const Problem<T>& p, const Gradient& grad, const Slice& s, int64_t channel,
                               int64_t width, std::vector<T>& scratch, T* dst, int64_t ldd) {
  const Geometry& g = p.geo;
  const int64_t pixels = s.rows() * g.Wo;
  if (grad.channels_last) {
    const int64_t first = (s.n * g.Ho + s.begin) * g.Wo;
    for (int64_t i = 0; i < pixels; ++i)
      widen(p.dtype, grad.data, (first + i) * g.O + channel, width, dst + i * ldd);
    return;
  }
  const int64_t at = ((s.n * g.O + channel) * g.Ho + s.begin) * g.Wo;
  if (is_wide(p.dtype)) {
    transpose(static_cast<const T*>(grad.data) + at, g.Ho * g.Wo, width, pixels, dst, ldd);
    return;
  }
  scratch.resize(width * g.Wo);
  for (int64_t row = 0; row < s.rows(); ++row, dst += g.Wo * ldd) {
    for (int64_t o = 0; o < width; ++o)
      widen(p.dtype, grad.data, at + o * g.Ho * g.Wo + row * g.Wo, g.Wo, scratch.data() + o * g.Wo);
    transpose(scratch.data(), g.Wo, width, g.Wo, dst, ldd);
  }
}

// Pixels [pixels, columns] of one panel into channels [channel, channel + width) of rows [begin, end) of
// image n of a feature map [N, C, H, W].
template <class T>
static void write_panel(DType dtype, const T* pixels, int64_t columns, int64_t width, const Target& out,
                        int64_t C, int64_t H, int64_t W, const Slice& s, int64_t channel,
                        std::vector<T>& scratch) {
  const int64_t n = s.rows() * W;
  if (out.channels_last) {
    for (int64_t i = 0; i < n; ++i)
      narrow(dtype, pixels + i * columns, width, out.data, ((s.n * H + s.begin) * W + i) * C + channel);
    return;
  }
  const int64_t base = ((s.n * C + channel) * H + s.begin) * W;
  if (is_wide(dtype)) {
    transpose(pixels, columns, n, width, static_cast<T*>(out.data) + base, H * W);
    return;
  }
  scratch.resize(width * n);
  transpose(pixels, columns, n, width, scratch.data(), n);
  for (int64_t c = 0; c < width; ++c) narrow(dtype, scratch.data() + c * n, n, out.data, base + c * H * W);
}

// As write_panel, on what a dense convolution left in `out`: it stays where leave(i) of pixel i, and else is
// completed(dense, i, c) of what is there, for channel c of the panel.
template <class T, class Leave, class Completed>
static void complete_panel(DType dtype, int64_t width, const Target& out, int64_t C, int64_t H, int64_t W,
                           const Slice& s, int64_t channel, const Leave& leave, const Completed& completed) {
  const int64_t n = s.rows() * W;
  if (out.channels_last) {
    T row[kPanel<T>];
    for (int64_t i = 0; i < n; ++i) {
      if (leave(i)) continue;
      const int64_t at = ((s.n * H + s.begin) * W + i) * C + channel;
      widen(dtype, out.data, at, width, row);
      for (int64_t c = 0; c < width; ++c) row[c] = completed(row[c], i, c);
      narrow(dtype, row, width, out.data, at);
    }
    return;
  }
  constexpr int64_t kRun = 64;
  T run[kRun];
  for (int64_t i = 0, end; i < n; i = end) {
    end = i + 1;
    if (leave(i)) continue;
    while (end < n && end - i < kRun && !leave(end)) ++end;
    for (int64_t c = 0; c < width; ++c) {
      const int64_t at = ((s.n * C + channel + c) * H + s.begin) * W + i;
      widen(dtype, out.data, at, end - i, run);
      for (int64_t j = i; j < end; ++j) run[j - i] = completed(run[j - i], j, c);
      narrow(dtype, run, end - i, out.data, at);
    }
  }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

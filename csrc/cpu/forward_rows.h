// The rows of the implicit GEMM of every forward pass over a band: output pixels, each with the taps that its
// window has.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "passes.h"
#include "problem.h"
#include "tiles.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

PCONV_INLINE bool bits_available(const Geometry& g) {
  return g.dh == 1 && g.dw == 1 && g.kw <= 8 && g.kh * g.kw < 64;
}

static TapTable forward_taps(const View& view, const Pass& pass, int64_t chunk) {
  const Geometry& g = view.g;
  const bool bits = !view.up && bits_available(g);
  TapTable table;
  for (int64_t i = 0; i < pass.kh; ++i)
    for (int64_t j = 0; j < pass.kw; ++j) {
      const int64_t y = pass.top + i, x = pass.left + j;
      table.add({(y * g.dh * g.Wp + x * g.dw) * chunk, (i * pass.kw + j) * chunk, chunk,
                 bits ? uint64_t{1} << (y * g.kw + x) : kAllTaps});
    }
  table.close();
  return table;
}

// Rows cut alike by the image border share a class, 0 for rows that are not cut.
PCONV_INLINE int64_t border_class(int64_t start, int64_t extent, int64_t size, int64_t index, int64_t count) {
  if (start < 0) return 1 + std::min<int64_t>(index, 15);
  return start + extent > size ? 17 + std::min<int64_t>(count - 1 - index, 15) : 0;
}

// The rows of every pass over a band, and the pixels whose window is all holes.
template <class T>
struct ForwardRows {
  std::vector<TileList<T>> passes;
  std::vector<int32_t> dead;
  std::vector<T> factor;  // of Winograd's product at each pixel of the band

  // Pixels with a ratio of at most `limit` leave their dense pass to Winograd.
  ForwardRows(const Problem<T>& p, const std::vector<Pass>& list, const std::vector<TapTable>& taps,
              const Band& band, const std::vector<FeatureBand<T>>& features, T limit)
      : passes(list.size()), factor(limit > T(0) ? band_rows(band) * p.geo.Wo : 0, T(0)) {
    const Geometry& g = p.geo;
    const bool bits = bits_available(g);
    struct Mixed {
      int64_t key;
      int64_t slice, oh, ow;
      int32_t pixel;
      uint64_t bits;
      Ratios<T> ratios;
    };
    const auto add = [&](size_t k, int64_t s, int64_t oh, int64_t ow, int32_t pixel, T scale, uint64_t live) {
      const Pass& pass = list[k];
      if (pass.row_class >= 0 &&
          (up_class(oh, g.H, g.kh) != pass.row_class || up_class(ow, g.W, g.kw) != pass.col_class))
        return;
      passes[k].push(features[pass.source].window(s, oh, ow), pixel, scale, live, taps[k]);
    };
    const auto add_whole = [&](size_t k, int64_t s, int64_t oh, int64_t ow, int64_t run, int32_t pixel) {
      const FeatureBand<T>& source = features[list[k].source];
      if (source.view.up) {
        for (int64_t i = 0; i < run; ++i)
          add(k, s, oh, ow + i, pixel + static_cast<int32_t>(i), T(1), kAllTaps);
        return;
      }
      const T* a = source.window(s, oh, ow);
      for (int64_t i = 0; i < run; ++i, a += g.sw * source.chunk)
        passes[k].push(a, pixel + static_cast<int32_t>(i), T(1), kAllTaps, taps[k]);
    };
    std::vector<size_t> all;  // passes that whole windows take part in
    for (size_t k = 0; k < list.size(); ++k)
      if (list[k].kind == Pass::kAll) all.push_back(k);
    std::vector<Mixed> mixed;
    int32_t pixel = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const Counts<T> counts(p, band[s].n);
      const int32_t* largest = counts.of[p.branches.size() - 1];
      const int64_t whole = p.windows->whole.back();
      const uint8_t* valid = p.windows->valid_rows(g, band[s].n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh)
        for (int64_t ow = 0; ow < g.Wo; ++ow, ++pixel) {
          if (largest[oh * g.Wo + ow] == whole) {
            int64_t run = 1;
            while (ow + run < g.Wo && largest[oh * g.Wo + ow + run] == whole) ++run;
            if (limit > T(0))
              std::fill_n(factor.begin() + pixel, run, T(1));
            else
              for (size_t k : all) add_whole(k, s, oh, ow, run, pixel);
            ow += run - 1;
            pixel += static_cast<int32_t>(run - 1);
            continue;
          }
          const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow, limit);
          if (ratios.state == kDead) {
            dead.push_back(pixel);
            continue;
          }
          if (ratios.within_limit()) factor[pixel] = ratios.largest();
          const int64_t vertical = border_class(oh * g.sh - g.pt, (g.kh - 1) * g.dh + 1, g.H, oh, g.Ho);
          const int64_t horizontal = border_class(ow * g.sw - g.pl, (g.kw - 1) * g.dw + 1, g.W, ow, g.Wo);
          const int64_t stride = p.windows->valid_stride;
          mixed.push_back(
              {vertical * 64 + horizontal, static_cast<int64_t>(s), oh, ow, pixel,
               bits ? window_bits(valid + oh * g.sh * stride + ow * g.sw, stride, g.kh, g.kw) : kAllTaps,
               ratios});
        }
    }
    std::stable_sort(mixed.begin(), mixed.end(), [](const Mixed& a, const Mixed& b) {
      return a.key != b.key ? a.key < b.key : a.bits < b.bits;
    });
    for (const Mixed& m : mixed)
      for (size_t k = 0; k < list.size(); ++k) {
        const T scale = m.ratios.scale(list[k]);
        if (scale != T(0)) add(k, m.slice, m.oh, m.ow, m.pixel, scale, m.bits);
      }
    for (size_t k = 0; k < list.size(); ++k) passes[k].close(taps[k]);
  }
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// out = m' o (sum over passes of s_pass o conv(V_pass) + bias), rows of one band against panels of output
// channels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "forward_dots.h"
#include "forward_few_outputs.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
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

  ForwardRows(const Problem<T>& p, const std::vector<Pass>& list, const std::vector<TapTable>& taps,
              const Band& band, const std::vector<FeatureBand<T>>& features)
      : passes(list.size()) {
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
            for (size_t k : all) add_whole(k, s, oh, ow, run, pixel);
            ow += run - 1;
            pixel += static_cast<int32_t>(run - 1);
            continue;
          }
          const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow);
          if (ratios.state == kDead) {
            dead.push_back(pixel);
            continue;
          }
          const int64_t vertical = border_class(oh * g.sh - g.pt, (g.kh - 1) * g.dh + 1, g.H, oh, g.Ho);
          const int64_t horizontal = border_class(ow * g.sw - g.pl, (g.kw - 1) * g.dw + 1, g.W, ow, g.Wo);
          const int64_t stride = p.windows->valid_stride;
          mixed.push_back(
              {vertical * 64 + horizontal, static_cast<int64_t>(s), oh, ow, pixel,
               bits ? window_bits(valid + oh * g.sh * stride + ow * g.sw, stride, g.kh, g.kw) : kAllTaps,
               ratios});
        }
    }
    std::stable_sort(mixed.begin(), mixed.end(),
                     [](const Mixed& a, const Mixed& b) { return a.key < b.key; });
    for (const Mixed& m : mixed)
      for (size_t k = 0; k < list.size(); ++k) {
        const T scale = m.ratios.scale(list[k], true);
        if (scale != T(0)) add(k, m.slice, m.oh, m.ow, m.pixel, scale, m.bits);
      }
    for (size_t k = 0; k < list.size(); ++k) passes[k].close(taps[k]);
  }
};

template <class T>
static void forward(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0 || g.O == 0) return;
  if (g.pixels() <= kDotPixels) return forward_dots(p, bias, out);
  if (has_few_outputs(p)) return forward_few_outputs(p, bias, out);
  const std::vector<View> views = make_views(p);
  const std::vector<Pass> passes = make_passes(p, views, true);
  const Panels panels = make_panels<T>(g.groups, g.Og());

  const int64_t weight_bytes = reduction_rows(passes, views) * panels.columns * sizeof(T);
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * kPanel<T>)*sizeof(T);
  const int64_t threads = thread_count();
  // Where the weights outweigh the features each thread packs and uses panels of its own over one shared
  // band; else the packed weights are shared and each thread takes bands.
  const bool split_panels =
      weight_bytes > row_bytes * g.N * g.Ho && static_cast<int64_t>(panels.list.size()) >= threads;
  const Layout layout(passes, views, !split_panels);
  std::vector<TapTable> taps;
  for (const Pass& pass : passes)
    taps.push_back(forward_taps(views[pass.source], pass, layout.chunk[pass.source]));
  const std::vector<Band> bands =
      make_bands(g.N, g.Ho,
                 split_panels ? rows_per_band(kSharedBandBytes, row_bytes, g.N * g.Ho, 1)
                              : rows_per_band(kTileCacheBytes, row_bytes, g.N * g.Ho, threads));
  int64_t feature_size = 0, max_rows = 0;
  for (const Band& band : bands) {
    feature_size = std::max(feature_size, features_size<T>(views, band));
    max_rows = std::max(max_rows, band_rows(band));
  }
  const int64_t result_size = max_rows * g.Wo * kPanel<T>;
  const int64_t shared_size = split_panels ? feature_size : layout.rows * panels.columns;
  const int64_t own_size = result_size + (split_panels ? layout.rows * kPanel<T> : feature_size);
  const Buffer shared = allocate(shared_size * sizeof(T)), own = allocate(threads * own_size * sizeof(T));

  // One chunk of channels of one source, of one panel.
  const auto pack = [&](const Panel& panel, size_t source, int64_t c, PackScratch<T>& scratch, T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      if (passes[k].source == source)
        pack_forward(p, passes[k], panel, views[source].channel + c, layout.chunk[source], scratch,
                     dst + layout.row[k] * panel.vectors * kLanes<T>);
  };
  const auto multiply = [&](const ForwardRows<T>& rows, const std::vector<FeatureBand<T>>& features,
                            const Panel& panel, size_t source, int64_t c, const T* b, T* results) {
    const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
    T init[kPanel<T>] = {};
    if (bias) std::copy_n(bias + channel, panel.width, init);
    for (size_t k = 0; k < passes.size(); ++k)
      if (passes[k].source == source)
        rows.passes[k].multiply(
            panel, features[source].channel_offset(panel.group * views[source].g.Cg() + c),
            b + layout.row[k] * columns, results, passes[k].starts && c == 0 ? init : nullptr);
  };
  const auto finish = [&](const Band& band, const ForwardRows<T>& rows, const Panel& panel, T* results,
                          std::vector<T>& scratch) {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    for (const Slice& s : band) {
      write_panel(p.dtype, results, columns, panel.width, out, g.O, g.Ho, g.Wo, s,
                  panel.group * g.Og() + panel.first, scratch);
      results += s.rows() * g.Wo * columns;
    }
  };

  if (split_panels) {
    for (const Band& band : bands) {
      const std::vector<FeatureBand<T>> features = make_features(p, views, band, layout.chunk, as<T>(shared));
      for (const FeatureBand<T>& source : features) load_features(p, source, true);
      const ForwardRows<T> rows(p, passes, taps, band, features);
      parallel(panels.list.size(), [&](int64_t i, int64_t thread) {
        PackScratch<T> scratch;
        T *results = as<T>(own) + thread * own_size, *packed = results + result_size;
        for (size_t source = 0; source < views.size(); ++source)
          for (int64_t c = 0; c < views[source].g.Cg(); c += layout.chunk[source]) {
            pack(panels.list[i], source, c, scratch, packed);
            multiply(rows, features, panels.list[i], source, c, packed, results);
          }
        finish(band, rows, panels.list[i], results, scratch.block);
      });
    }
  } else {
    parallel(panels.list.size(), [&](int64_t i, int64_t) {
      PackScratch<T> scratch;
      for (size_t source = 0; source < views.size(); ++source)
        pack(panels.list[i], source, 0, scratch, as<T>(shared) + layout.rows * panels.list[i].column);
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      T* results = as<T>(own) + thread * own_size;
      std::vector<T> scratch;
      const std::vector<FeatureBand<T>> features =
          make_features(p, views, bands[i], layout.chunk, results + result_size);
      for (const FeatureBand<T>& source : features) load_features(p, source, false);
      const ForwardRows<T> rows(p, passes, taps, bands[i], features);
      for (const Panel& panel : panels.list) {
        for (size_t source = 0; source < views.size(); ++source)
          multiply(rows, features, panel, source, 0, as<T>(shared) + layout.rows * panel.column, results);
        finish(bands[i], rows, panel, results, scratch);
      }
    });
  }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

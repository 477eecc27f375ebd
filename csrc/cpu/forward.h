// out = m' o (sum over passes of s_pass o conv(V_pass) + bias), rows of one band against panels of output
// channels.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "forward_dots.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "tiles.h"
#include "vec.h"
#include "winograd.h"
#include "winograd_forward.h"
#include "winograd_input.h"

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

// One forward pass, its dense part by Winograd where `w` is given.
template <class T>
class Forward {
 public:
  Forward(const Problem<T>& p, const T* bias, Target out, const Winograd<T>* w)
      : p_(p),
        g_(p.geo),
        bias_(bias),
        out_(out),
        limit_(w ? kRatioLimit<T> : T(0)),
        threads_(thread_count()),
        views_(make_views(p, w ? w->m : 1)),
        passes_(make_passes(p, views_, true)),
        panels_(make_panels<T>(g_.groups, g_.Og())),
        split_panels_(weights_outweigh(w)),
        layout_(passes_, views_, !split_panels_, w ? kLanes<T> : 1) {
    if (w) {
      dense_.emplace(p, *w, views_, take_dense_passes(passes_, any_ratio_above(p, limit_)), layout_.chunk,
                     split_panels_);
      layout_ = Layout(passes_, views_, !split_panels_, kLanes<T>);
    }
    for (const Pass& pass : passes_)
      taps_.push_back(forward_taps(views_[pass.source], pass, layout_.chunk[pass.source]));
  }

  // False, and an output that is not whole, where a value is too large for Winograd's products.
  bool run() {
    const std::vector<Band> bands = make_bands(g_.N, g_.Ho, band_rows_at_once());
    for (const Band& band : bands) {
      feature_size_ = std::max(feature_size_, features_size<T>(views_, band));
      pixels_ = std::max(pixels_, band_rows(band) * g_.Wo);
      if (dense_) tiles_ = std::max(tiles_, dense_->tile_count(band));
    }
    if (split_panels_)
      for (const Band& band : bands) run_shared(band);
    else
      run_own(bands);
    return moderate_;
  }

 private:
  struct LoadedBand {
    std::vector<FeatureBand<T>> features;
    ForwardRows<T> rows;
    std::vector<WinogradTile> tiles;
  };

  // Where the weights outweigh the features each thread packs and uses panels of its own over one shared
  // band; else the packed weights are shared and each thread takes bands.
  bool weights_outweigh(const Winograd<T>* w) const {
    if (static_cast<int64_t>(panels_.list.size()) < threads_) return false;
    if (w) return panels_.columns > g_.N * w->tiles(g_.Ho) * w->tiles(g_.Wo);
    return reduction_rows(passes_, views_) * panels_.columns * static_cast<int64_t>(sizeof(T)) >
           row_bytes() * g_.N * g_.Ho;
  }
  int64_t row_bytes() const { return (g_.sh * g_.Wp * g_.C + g_.Wo * kPanel<T>)*sizeof(T); }
  int64_t band_rows_at_once() const {
    if (dense_) return dense_->rows_per_band(split_panels_, threads_);
    return split_panels_ ? rows_per_band(kSharedBandBytes, row_bytes(), g_.N * g_.Ho, 1)
                         : rows_per_band(kTileCacheBytes, row_bytes(), g_.N * g_.Ho, threads_);
  }

  LoadedBand load(const Band& band, T* memory, T* operand, bool threads) {
    std::vector<FeatureBand<T>> features = make_features(p_, views_, band, layout_.chunk, memory);
    for (const FeatureBand<T>& source : features) load_features(p_, source, threads);
    if (dense_ && !moderate(memory, features_size<T>(views_, band))) moderate_ = false;
    ForwardRows<T> rows(p_, passes_, taps_, band, features, limit_);
    LoadedBand loaded{std::move(features), std::move(rows), {}};
    if (dense_) {
      loaded.tiles = dense_->tiles(band, loaded.rows.factor);
      each(threads, loaded.tiles.size(), [&](int64_t i) {
        dense_->load(loaded.features, loaded.tiles[i], operand + i * dense_->tile_size());
      });
    }
    return loaded;
  }
  // One chunk of channels of one source, of one panel.
  void pack(const Panel& panel, size_t source, int64_t c, PackScratch<T>& scratch, T* dst) const {
    for (size_t k = 0; k < passes_.size(); ++k)
      if (passes_[k].source == source)
        pack_forward(p_, passes_[k], panel, views_[source].channel + c, layout_.chunk[source], scratch,
                     dst + layout_.row[k] * panel.vectors * kLanes<T>);
  }
  void multiply(const LoadedBand& band, const Panel& panel, size_t source, int64_t c, const T* b,
                const T* init, T* results) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (size_t k = 0; k < passes_.size(); ++k)
      if (passes_[k].source == source)
        band.rows.passes[k].multiply(
            panel, band.features[source].channel_offset(panel.group * views_[source].g.Cg() + c),
            b + layout_.row[k] * columns, results, passes_[k].starts && c == 0 ? init : nullptr);
  }
  void write(const Band& band, const ForwardRows<T>& rows, const Panel& panel, T* results,
             std::vector<T>& scratch) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    for (const Slice& s : band) {
      write_panel(p_.dtype, results, columns, panel.width, out_, g_.O, g_.Ho, g_.Wo, s,
                  panel.group * g_.Og() + panel.first, scratch);
      results += s.rows() * g_.Wo * columns;
    }
  }
  struct Init {
    T of[kPanel<T>] = {};
    Init(const Forward& f, const Panel& panel) {
      if (f.bias_) std::copy_n(f.bias_ + panel.group * f.g_.Og() + panel.first, panel.width, of);
    }
  };
  int64_t result_size() const { return (pixels_ + 1) * kPanel<T>; }
  int64_t operand_size() const { return dense_ ? tiles_ * dense_->tile_size() : 0; }
  int64_t product_size() const { return dense_ ? tiles_ * dense_->product_size() : 0; }

  void run_shared(const Band& band) {
    const int64_t merged = dense_ ? dense_->merged_size() : 0;
    const int64_t packed = std::max(layout_.rows, dense_ ? dense_->largest_rows() : 0) * kPanel<T>;
    const int64_t own_size = result_size() + merged + packed + product_size();
    const Buffer shared = allocate((feature_size_ + operand_size()) * sizeof(T));
    const Buffer own = allocate(threads_ * own_size * sizeof(T));
    T* const operand = as<T>(shared) + feature_size_;
    const LoadedBand loaded = load(band, as<T>(shared), operand, true);
    parallel(panels_.list.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      const Panel& panel = panels_.list[i];
      PackScratch<T> scratch;
      const Init init(*this, panel);
      T* results = as<T>(own) + thread * own_size;
      T *b = results + result_size(), *merged_weights = b + packed, *products = merged_weights + merged;
      if (dense_) {
        for (size_t c = 0; c < dense_->chunks(); ++c) {
          if (!dense_->pack(panel, c, scratch, merged_weights, b)) moderate_ = false;
          dense_->multiply(panel, c, loaded.tiles.size(), operand, b, products);
        }
        dense_->finish(panel, band, loaded.tiles, loaded.rows.factor, products, init.of, results);
      }
      for (size_t source = 0; source < views_.size(); ++source)
        for (int64_t c = 0; c < views_[source].g.Cg(); c += layout_.chunk[source]) {
          pack(panel, source, c, scratch, b);
          multiply(loaded, panel, source, c, b, init.of, results);
        }
      write(band, loaded.rows, panel, results, scratch.block);
    });
  }

  void run_own(const std::vector<Band>& bands) {
    const int64_t dense_rows = dense_ ? dense_->rows() : 0, merged = dense_ ? dense_->merged_size() : 0;
    const int64_t own_size =
        result_size() + feature_size_ + operand_size() + std::max(product_size(), merged);
    const Buffer shared = allocate((layout_.rows + dense_rows) * panels_.columns * sizeof(T));
    const Buffer own = allocate(threads_ * own_size * sizeof(T));
    T* const dense_weights = as<T>(shared) + layout_.rows * panels_.columns;
    const auto weights = [&](const Panel& panel) { return as<T>(shared) + layout_.rows * panel.column; };
    const int64_t dense_chunks = dense_ ? dense_->chunks() : 0, tasks = dense_chunks + 1;
    parallel(panels_.list.size() * tasks, [&](int64_t i, int64_t thread) {
      const Panel& panel = panels_.list[i / tasks];
      PackScratch<T> scratch;
      if (i % tasks < dense_chunks) {
        if (!dense_->pack(panel, i % tasks, scratch, as<T>(own) + thread * own_size,
                          dense_->part(panel, i % tasks, dense_weights)))
          moderate_ = false;
        return;
      }
      for (size_t source = 0; source < views_.size(); ++source) pack(panel, source, 0, scratch, weights(panel));
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      T* results = as<T>(own) + thread * own_size;
      T *memory = results + result_size(), *operand = memory + feature_size_, *products = operand + operand_size();
      std::vector<T> scratch;
      const LoadedBand loaded = load(bands[i], memory, operand, false);
      for (const Panel& panel : panels_.list) {
        const Init init(*this, panel);
        if (dense_) {
          for (size_t c = 0; c < dense_->chunks(); ++c)
            dense_->multiply(panel, c, loaded.tiles.size(), operand, dense_->part(panel, c, dense_weights),
                             products);
          dense_->finish(panel, bands[i], loaded.tiles, loaded.rows.factor, products, init.of, results);
        }
        for (size_t source = 0; source < views_.size(); ++source)
          multiply(loaded, panel, source, 0, weights(panel), init.of, results);
        write(bands[i], loaded.rows, panel, results, scratch);
      }
    });
  }

  const Problem<T>& p_;
  const Geometry& g_;
  const T* bias_;
  Target out_;
  T limit_;
  int64_t threads_;
  std::vector<View> views_;
  std::vector<Pass> passes_;
  Panels panels_;
  bool split_panels_;
  Layout layout_;
  std::optional<WinogradForward<T>> dense_;
  std::vector<TapTable> taps_;
  int64_t feature_size_ = 0, pixels_ = 0, tiles_ = 0;  // of the largest band
  std::atomic<bool> moderate_{true};
};

template <class T>
static void forward(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0 || g.O == 0) return;
  if (g.pixels() <= kDotPixels) return forward_dots(p, bias, out);
  const std::optional<Winograd<T>> w = choose_winograd(p);
  if (w && Forward<T>(p, bias, out, &*w).run()) return;
  Forward<T>(p, bias, out, nullptr).run();
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

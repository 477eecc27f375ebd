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
#include "forward_few_outputs.h"
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
        const T scale = m.ratios.scale(list[k]);
        if (scale != T(0)) add(k, m.slice, m.oh, m.ow, m.pixel, scale, m.bits);
      }
    for (size_t k = 0; k < list.size(); ++k) passes[k].close(taps[k]);
  }
};

// One forward pass, its dense part by Winograd where `w` is given; `whole`: with packed weights that serve
// any call.
template <class T>
class Forward {
 public:
  Forward(const Problem<T>& p, const T* bias, Target out, const Winograd<T>* w, bool whole = false)
      : p_(p),
        g_(p.geo),
        bias_(bias),
        out_(out),
        limit_(w ? kRatioLimit<T> : T(0)),
        threads_(thread_count()),
        views_(make_views(p, w ? w->m : 1)),
        passes_(make_passes(p, views_)),
        panels_(make_panels<T>(g_.groups, g_.Og())),
        split_panels_(weights_outweigh(w)),
        whole_(whole || !split_panels_),
        chunk_(channels_at_once(w)),
        layout_(passes_, chunk_, whole_) {
    if (w) {
      dense_passes_ = take_dense_passes(passes_, whole || any_ratio_above(p, limit_));
      layout_ = Layout(passes_, chunk_, whole_);
      dense_.emplace(p, *w, views_, chunk_);
    }
    for (const Pass& pass : passes_)
      taps_.push_back(forward_taps(views_[pass.source], pass, chunk_[pass.source]));
    for (size_t source = 0; source < views_.size(); ++source)
      for (int64_t c = 0; c < views_[source].g.Cg(); c += chunk_[source]) chunks_.push_back({source, c});
  }

  // Packed weights, of one chunk and panel or of all.
  struct Packed {
    T *direct, *winograd;
  };
  // Entries of packed weights where they are whole.
  int64_t direct_size() const { return layout_.rows * panels_.columns; }
  int64_t winograd_size() const { return dense_ ? dense_->rows() * panels_.columns : 0; }
  int64_t packed_size() const { return direct_size() + winograd_size(); }
  Packed parts(T* all) const { return {all, all + direct_size()}; }
  // False where a weight is too large for Winograd's products.
  bool pack_all(Packed to) {
    const Buffer own = allocate(threads_ * merged_size() * sizeof(T));
    parallel(panels_.list.size() * chunks_.size(), [&](int64_t i, int64_t thread) {
      const Panel& panel = panels_.list[i / chunks_.size()];
      const size_t chunk = i % chunks_.size();
      PackScratch<T> scratch;
      pack(panel, chunk, packed(to, panel, chunk), as<T>(own) + thread * merged_size(), scratch);
    });
    return moderate_;
  }
  // With whole packed weights if `prepacked`. False, and an output that is not whole, where a value is too
  // large for Winograd's products.
  bool run(std::optional<Packed> prepacked = {}) {
    prepacked_ = prepacked;
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
  struct Chunk {
    size_t source;
    int64_t c;
  };
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
  std::vector<int64_t> channels_at_once(const Winograd<T>* w) const {
    std::vector<int64_t> chunk;
    for (const View& v : views_)
      chunk.push_back(whole_ ? v.g.Cg() : w ? winograd_chunk(*w, v.g.Cg()) : channel_chunk(v.g.Cg()));
    return chunk;
  }
  int64_t band_rows_at_once() const {
    if (dense_) return dense_->rows_per_band(split_panels_, threads_);
    return split_panels_ ? rows_per_band(kSharedBandBytes, row_bytes(), g_.N * g_.Ho, 1)
                         : rows_per_band(kTileCacheBytes, row_bytes(), g_.N * g_.Ho, threads_);
  }

  LoadedBand load(const Band& band, T* memory, T* operand, bool threads) {
    std::vector<FeatureBand<T>> features = make_features(p_, views_, band, chunk_, memory);
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
  void pack(const Panel& panel, size_t chunk, Packed to, T* merged, PackScratch<T>& scratch) {
    const Chunk& at = chunks_[chunk];
    const int64_t columns = panel.vectors * kLanes<T>, size = chunk_[at.source];
    const int64_t step = dense_ ? kMergedChannels : size;
    for (int64_t c = 0; c < size; c += step) {
      const int64_t count = std::min(step, size - c);
      std::vector<PackTarget<T>> targets;
      if (dense_) targets.push_back({dense_passes_[at.source].placements, merged, count});
      for (size_t k = 0; k < passes_.size(); ++k)
        if (passes_[k].source == at.source)
          targets.push_back({passes_[k].placements, to.direct + (layout_.row[k] + c) * columns, size});
      pack_forward(p_, targets, panel, views_[at.source].channel + at.c + c, count, scratch);
      if (dense_ && !dense_->pack(panel, dense_->chunks()[chunk], c, count, merged, to.winograd))
        moderate_ = false;
    }
  }
  void start(const Panel& panel, T* results) const {
    T init[kPanel<T>] = {};
    if (bias_) std::copy_n(bias_ + panel.group * g_.Og() + panel.first, panel.width, init);
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int64_t pixel = 0; pixel <= pixels_; ++pixel) std::copy_n(init, columns, results + pixel * columns);
  }
  void multiply(const LoadedBand& band, const Panel& panel, size_t chunk, Packed from, const T* operand,
                T* products, T* results) const {
    const Chunk& at = chunks_[chunk];
    if (dense_)
      dense_->multiply(panel, dense_->chunks()[chunk], band.tiles.size(), operand, from.winograd, products);
    const int64_t offset =
        band.features[at.source].channel_offset(panel.group * views_[at.source].g.Cg() + at.c);
    for (size_t k = 0; k < passes_.size(); ++k)
      if (passes_[k].source == at.source)
        band.rows.passes[k].multiply(panel, offset, from.direct + layout_.row[k] * panel.vectors * kLanes<T>,
                                     results);
  }
  void finish(const Band& band, const LoadedBand& loaded, const Panel& panel, const T* products, T* results,
              std::vector<T>& scratch) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    if (dense_) dense_->finish(panel, band, loaded.tiles, loaded.rows.factor, products, results);
    for (int32_t pixel : loaded.rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    for (const Slice& s : band) {
      write_panel(p_.dtype, results, columns, panel.width, out_, g_.O, g_.Ho, g_.Wo, s,
                  panel.group * g_.Og() + panel.first, scratch);
      results += s.rows() * g_.Wo * columns;
    }
  }
  // Of one chunk and panel in those of all.
  Packed packed(const Packed& all, const Panel& panel, size_t chunk) const {
    return {all.direct + layout_.rows * panel.column,
            dense_ ? dense_->part(panel, dense_->chunks()[chunk], all.winograd) : nullptr};
  }
  int64_t result_size() const { return (pixels_ + 1) * kPanel<T>; }
  int64_t operand_size() const { return dense_ ? tiles_ * dense_->tile_size() : 0; }
  int64_t product_size() const { return dense_ ? tiles_ * dense_->product_size() : 0; }
  int64_t merged_size() const { return dense_ ? dense_->merged_size() : 0; }

  void run_shared(const Band& band) {
    const int64_t direct_rows = prepacked_ ? 0 : layout_.rows;
    const int64_t rows = direct_rows + (dense_ && !prepacked_ ? dense_->largest_rows() : 0);
    const int64_t own_size = result_size() + merged_size() + rows * kPanel<T> + product_size();
    const Buffer shared = allocate((feature_size_ + operand_size()) * sizeof(T));
    const Buffer own = allocate(threads_ * own_size * sizeof(T));
    T* const operand = as<T>(shared) + feature_size_;
    const LoadedBand loaded = load(band, as<T>(shared), operand, true);
    parallel(panels_.list.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      PackScratch<T> scratch;
      T* results = as<T>(own) + thread * own_size;
      T *merged = results + result_size(), *direct = merged + merged_size();
      T *winograd = direct + direct_rows * kPanel<T>, *products = direct + rows * kPanel<T>;
      start(panels_.list[i], results);
      for (size_t chunk = 0; chunk < chunks_.size(); ++chunk) {
        const Packed weights =
            prepacked_ ? packed(*prepacked_, panels_.list[i], chunk) : Packed{direct, winograd};
        if (!prepacked_) pack(panels_.list[i], chunk, weights, merged, scratch);
        multiply(loaded, panels_.list[i], chunk, weights, operand, products, results);
      }
      finish(band, loaded, panels_.list[i], products, results, scratch.block);
    });
  }

  void run_own(const std::vector<Band>& bands) {
    const int64_t own_size = result_size() + feature_size_ + operand_size() + product_size();
    // Two buffers, since allocators give very large ones back at once, and fresh pages cost more than
    // packing.
    const Buffer direct = allocate(prepacked_ ? 0 : direct_size() * sizeof(T));
    const Buffer winograd = allocate(prepacked_ ? 0 : winograd_size() * sizeof(T));
    const Buffer own = allocate(threads_ * own_size * sizeof(T));
    const Packed weights = prepacked_ ? *prepacked_ : Packed{as<T>(direct), as<T>(winograd)};
    if (!prepacked_) pack_all(weights);
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      T* results = as<T>(own) + thread * own_size;
      T *memory = results + result_size(), *operand = memory + feature_size_;
      T* products = operand + operand_size();
      std::vector<T> scratch;
      const LoadedBand loaded = load(bands[i], memory, operand, false);
      for (const Panel& panel : panels_.list) {
        start(panel, results);
        for (size_t chunk = 0; chunk < chunks_.size(); ++chunk)
          multiply(loaded, panel, chunk, packed(weights, panel, chunk), operand, products, results);
        finish(bands[i], loaded, panel, products, results, scratch);
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
  std::vector<Pass> passes_, dense_passes_;  // direct ones, those of Winograd by source
  Panels panels_;
  bool split_panels_, whole_;   // whole: packed weights of all panels and channels are there at once
  std::vector<int64_t> chunk_;  // channels, per source
  Layout layout_;
  std::optional<WinogradForward<T>> dense_;
  std::vector<TapTable> taps_;
  std::vector<Chunk> chunks_;                          // as those of `dense_`
  int64_t feature_size_ = 0, pixels_ = 0, tiles_ = 0;  // of the largest band
  std::optional<Packed> prepacked_;
  std::atomic<bool> moderate_{true};
};

// In prepacked.h. False, and an output that is not whole, where the packed weights do not fit or a value is
// too large.
template <class T>
static bool forward_prepacked(const Problem<T>& p, const T* bias, Target out, const Winograd<T>& w);

template <class T>
static void forward(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0 || g.O == 0) return;
  if (g.pixels() <= kDotPixels) return forward_dots(p, bias, out);
  if (has_few_outputs(p)) return forward_few_outputs(p, bias, out);
  const std::optional<Winograd<T>> w = choose_winograd<T, Favour::first>(p);
  if (w && p.prepacked.data && forward_prepacked(p, bias, out, *w)) return;
  if (w && Forward<T>(p, bias, out, &*w).run()) return;
  Forward<T>(p, bias, out, nullptr).run();
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

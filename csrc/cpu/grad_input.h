// dL/dx = sum over passes of conv_transposed(s_pass o m' o dL/dy, V_pass), gathered. Holes get exactly 0.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "bands.h"
#include "depthwise_passes.h"
#include "grad_input_axis.h"
#include "grad_input_rows.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "tiles.h"
#include "vec.h"
#include "winograd.h"
#include "winograd_grad_input.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// One panel of the result into rows of slice s of grad_x [N, C, H, W] of its source: what reached a hole
// becomes 0.
template <class T>
static void write_grad_input(DType dtype, const Source& source, T* pixels, int64_t columns, int64_t width,
                             const Target& out, const Slice& s, int64_t channel, std::vector<T>& scratch) {
  if (source.mask_per_channel)
    for (int64_t h = s.begin; h < s.end; ++h)
      for (int64_t c = 0; c < width; ++c) {
        const uint8_t* mask = mask_row(source, s.n, channel + c, h);
        for (int64_t w = 0; w < source.W; ++w)
          if (!mask[w]) pixels[((h - s.begin) * source.W + w) * columns + c] = T(0);
      }
  write_panel(dtype, pixels, columns, width, out, source.C, source.H, source.W, s, channel, scratch);
}

// dL/dx of one source, its dense part by Winograd where `w` is given.
template <class T>
class GradInput {
 public:
  GradInput(const Problem<T>& p, const Gradient& grad, const View& view, const Source& source,
            const Target& out, const Winograd<T>* w)
      : p_(p),
        g_(p.geo),
        grad_(grad),
        view_(view),
        source_(source),
        out_(out),
        limit_(ratio_limit(p, w != nullptr, kRatioLimitOfInput<T>)),
        threads_(thread_count()),
        rows_(source.up, source.H, g_.Ho, g_.kh, g_.sh, g_.dh, g_.pt),
        cols_(source.up, source.W, g_.Wo, g_.kw, g_.sw, g_.dw, g_.pl),
        panels_(make_panels<T>(g_.groups, view.g.Cg())) {
    Problem<T> alone = p;  // read at full resolution: its passes only say what is scaled and merged
    alone.sources.assign(1, Source{});
    passes_ = make_passes(alone, make_views(alone));
    if (limit_ > T(0)) {
      const std::vector<Pass> dense = winograd_passes(alone);
      if (!any_ratio_above(p, limit_)) passes_ = corrections(passes_);
      passes_.insert(passes_.begin(), dense.begin(), dense.end());
    }
    if (w) {
      rows_.tiles = source.up ? AxisTiles::over_upsampled(w->m, w->r, g_.kh)
                              : AxisTiles::of_residues(w->m, w->r, w->stride, w->short_h, g_.pt);
      cols_.tiles = source.up ? AxisTiles::over_upsampled(w->m, w->r, g_.kw)
                              : AxisTiles::of_residues(w->m, w->r, w->stride, w->short_w, g_.pl);
    }
    split_panels_ = static_cast<int64_t>(panels_.list.size()) >= threads_ && weights_outweigh(w);
    chunk_ = !split_panels_ ? g_.Og() : w ? winograd_chunk(*w, g_.Og()) : channel_chunk(g_.Og());
    if (w) dense_.emplace(p, *w, source, rows_, cols_, chunk_);
    for (const Pass& pass : passes_) {
      placements_.emplace_back(p.branches.size());
      tables_.push_back(class_tables(p, rows_, cols_, pass, chunk_, placements_.back()));
      int64_t slots = 0;
      for (const ClassTaps& t : tables_.back()) slots += t.table.taps.size();
      offset_.push_back(offset_.back() + (pass.kind == Pass::kWinograd ? 0 : slots * chunk_));
    }
  }

  // False, and a result that is not whole, where a value is too large for Winograd's products.
  bool run() {
    const std::vector<Band> bands = dense_ ? tiled_bands() : make_bands(g_.N, source_.H, band_rows_at_once());
    for (const Band& band : bands) {
      int64_t size = 0, tiles = 0;
      for (const Slice& s : band) {
        size += rows_.span(s.begin, s.end).size() * gradient_row();
        if (dense_) tiles += dense_->tile_count(s);
      }
      gradient_size_ = std::max(gradient_size_, size);
      tiles_ = std::max(tiles_, tiles);
      pixels_ = std::max(pixels_, band_rows(band) * source_.W);
    }
    if (split_panels_)
      for (const Band& band : bands) run_shared(band);
    else
      run_own(bands);
    return moderate_;
  }

 private:
  struct LoadedBand {
    InputRows<T> rows;
    std::vector<std::unique_ptr<GradientBand<T>>> slices;
    int64_t plane = 0;
    std::vector<GradientTile<T>> tiles;
  };

  int64_t gradient_row() const { return cols_.all().size() * g_.O; }  // of one pass
  int64_t row_bytes() const {
    const int64_t gradient_rows_per_row = source_.up ? 2 : 1;
    const int64_t copies = passes_.size();
    return (gradient_row() * copies * gradient_rows_per_row / g_.sh + source_.W * kPanel<T>)*sizeof(T);
  }
  bool weights_outweigh(const Winograd<T>* w) const {
    if (w) return panels_.columns > g_.N * rows_.tiles->count(rows_.size) * cols_.tiles->count(cols_.size);
    int64_t weight_rows = 0;
    for (const Pass& pass : passes_)
      weight_rows += (source_.up ? (g_.kh + 1) * (g_.kw + 1) : pass.taps()) * g_.Og();
    return weight_rows * panels_.columns * static_cast<int64_t>(sizeof(T)) > row_bytes() * g_.N * source_.H;
  }
  int64_t band_rows_at_once() const {
    return split_panels_ ? rows_per_band(kSharedBandBytes, row_bytes(), g_.N * source_.H, 1)
                         : rows_per_band(kTileCacheBytes, row_bytes(), g_.N * source_.H, threads_);
  }
  // Bands of whole tiles, the first of which may begin above the image.
  std::vector<Band> tiled_bands() const {
    const int64_t above = -rows_.tiles->start, tile = rows_.tiles->size;
    std::vector<Band> bands =
        make_bands(g_.N, source_.H + above, tile * dense_->tile_rows_per_band(split_panels_, threads_));
    for (Band& band : bands)
      for (Slice& s : band) s = {s.n, std::max<int64_t>(s.begin - above, 0), s.end - above};
    return bands;
  }

  // The gradient of the first pass goes to `gradient`, of which nobody asks after Winograd's transform.
  LoadedBand load(const Band& band, T* gradient, T* rest, T* operand, bool threads) {
    LoadedBand loaded;
    std::vector<int64_t> at;
    for (const Slice& s : band) {
      at.push_back(loaded.plane);
      loaded.plane += rows_.span(s.begin, s.end).size() * gradient_row() / g_.O * chunk_;
    }
    loaded.slices.resize(band.size());
    each(threads, band.size(), [&](int64_t i) {
      loaded.slices[i] = std::make_unique<GradientBand<T>>(
          p_, rows_, cols_, passes_, grad_, band[i], limit_, gradient + at[i],
          rest + (passes_.size() - 1) * at[i], chunk_, loaded.plane);
      if (dense_ && !loaded.slices[i]->all_moderate) moderate_ = false;
    });
    loaded.rows.passes.resize(passes_.size());
    int32_t pixel = 0;
    if (p_.dense_given) loaded.rows.reach.assign(band_rows(band) * source_.W, kNone);
    for (size_t i = 0; i < band.size(); ++i) {
      loaded.rows.add(source_, rows_, cols_, passes_, tables_, band[i], *loaded.slices[i], pixel);
      if (dense_) dense_->add_tiles(band[i], *loaded.slices[i], pixel, loaded.tiles);
      pixel += static_cast<int32_t>(band[i].rows() * source_.W);
    }
    each(threads, loaded.tiles.size(),
         [&](int64_t i) { dense_->load(loaded.tiles[i], i, loaded.tiles.size(), loaded.plane, operand); });
    return loaded;
  }
  // Packed weights of one chunk and panel.
  struct Packed {
    T *direct, *winograd;
  };
  void pack(const Panel& panel, int64_t chunk, Packed to, T* merged, PackScratch<T>& scratch) {
    const int64_t columns = panel.vectors * kLanes<T>, step = dense_ ? kMergedChannels : chunk_;
    for (int64_t o = 0; o < chunk_; o += step) {
      const int64_t count = std::min(step, chunk_ - o);
      std::vector<PackTarget<T>> targets;
      if (dense_) targets.push_back({source_.up ? placements_[0] : passes_[0].placements, merged, count});
      for (size_t k = 0; k < passes_.size(); ++k)
        if (passes_[k].kind != Pass::kWinograd)
          targets.push_back({placements_[k], to.direct + (offset_[k] + o) * columns, chunk_});
      pack_grad_input(p_, targets, panel, view_.channel + panel.first, chunk * chunk_ + o, count, scratch);
      if (dense_ && !dense_->pack(panel, o, count, merged, to.winograd)) moderate_ = false;
    }
  }
  void multiply(const LoadedBand& band, const Panel& panel, int64_t chunk, Packed from, const T* operand,
                T* products, T* results) const {
    if (dense_) dense_->multiply(panel, chunk, band.tiles.size(), operand, from.winograd, products);
    for (size_t k = 0; k < passes_.size(); ++k)
      band.rows.passes[k].multiply(panel, (panel.group * chunks() + chunk) * band.slices[0]->plane_of(k),
                                   from.direct + offset_[k] * panel.vectors * kLanes<T>, results);
  }
  int64_t chunks() const { return g_.Og() / chunk_; }
  void finish(const Band& band, const LoadedBand& loaded, const Panel& panel, const T* products, T* results,
              std::vector<T>& scratch) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    if (dense_) dense_->finish(panel, loaded.tiles, products, pixels_, results);
    for (int32_t pixel : loaded.rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    const int64_t channel = panel.group * view_.g.Cg() + panel.first;
    const uint8_t* reach = loaded.rows.reach.data();
    for (const Slice& s : band) {
      if (p_.dense_given) {
        complete_panel<T>(
            p_.dtype, panel.width, out_, source_.C, source_.H, source_.W, s, channel,
            [&](int64_t i) { return reach[i] == kNone; },
            [&](T dense, int64_t i, int64_t c) {
              return reach[i] == kHole ? T(0) : dense + results[i * columns + c];
            });
        reach += s.rows() * source_.W;
      } else {
        write_grad_input(p_.dtype, source_, results, columns, panel.width, out_, s, channel, scratch);
      }
      results += s.rows() * source_.W * columns;
    }
  }
  int64_t result_size() const { return (pixels_ + 1) * kPanel<T>; }
  int64_t operand_size() const { return dense_ ? dense_->operand_size(tiles_) : 0; }
  int64_t product_size() const { return dense_ ? dense_->product_size(tiles_) : 0; }

  int64_t merged_size() const { return dense_ ? dense_->merged_size() : 0; }

  int64_t rest_size() const { return (passes_.size() - 1) * gradient_size_; }

  void run_shared(const Band& band) {
    const int64_t direct_size = offset_.back() * kPanel<T>;
    const int64_t winograd_size = dense_ ? dense_->chunk_rows() * kPanel<T> : 0;
    const int64_t own_size = result_size() + merged_size() + direct_size + winograd_size + product_size();
    const Buffer shared =
        allocate((rest_size() + operand_size() + (dense_ ? 0 : gradient_size_)) * sizeof(T));
    const Buffer own = allocate(std::max(threads_ * own_size, dense_ ? gradient_size_ : 0) * sizeof(T));
    T *const rest = as<T>(shared), *const operand = rest + rest_size();
    const LoadedBand loaded = load(band, dense_ ? as<T>(own) : operand, rest, operand, true);
    parallel(panels_.list.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      PackScratch<T> scratch;
      T* results = as<T>(own) + thread * own_size;
      T *merged = results + result_size(), *direct = merged + merged_size();
      T *winograd = direct + direct_size, *products = winograd + winograd_size;
      std::fill_n(results, result_size(), T(0));
      for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
        pack(panels_.list[i], chunk, {direct, winograd}, merged, scratch);
        multiply(loaded, panels_.list[i], chunk, {direct, winograd}, operand, products, results);
      }
      finish(band, loaded, panels_.list[i], products, results, scratch.block);
    });
  }

  void run_own(const std::vector<Band>& bands) {
    const int64_t result_sizes = result_size() + std::max(product_size(), merged_size());
    const int64_t own_size =
        rest_size() + operand_size() +
        (dense_ ? std::max(result_sizes, gradient_size_) : result_sizes + gradient_size_);
    const int64_t winograd_rows = dense_ ? dense_->chunk_rows() : 0;
    const Buffer shared = allocate((offset_.back() + winograd_rows) * panels_.columns * sizeof(T));
    const Buffer own = allocate(threads_ * own_size * sizeof(T));
    const auto packed = [&](const Panel& panel) -> Packed {
      T* const winograd = as<T>(shared) + offset_.back() * panels_.columns;
      return {as<T>(shared) + offset_.back() * panel.column, winograd + winograd_rows * panel.column};
    };
    parallel(panels_.list.size(), [&](int64_t i, int64_t thread) {
      PackScratch<T> scratch;
      pack(panels_.list[i], 0, packed(panels_.list[i]), as<T>(own) + thread * own_size, scratch);
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      if (!moderate_) return;
      T *rest = as<T>(own) + thread * own_size, *operand = rest + rest_size();
      T *results = operand + operand_size(), *products = results + result_size();
      std::vector<T> scratch;
      const LoadedBand loaded =
          load(bands[i], dense_ ? results : results + result_sizes, rest, operand, false);
      for (const Panel& panel : panels_.list) {
        std::fill_n(results, result_size(), T(0));
        multiply(loaded, panel, 0, packed(panel), operand, products, results);
        finish(bands[i], loaded, panel, products, results, scratch);
      }
    });
  }

  const Problem<T>& p_;
  const Geometry& g_;
  const Gradient& grad_;
  const View& view_;
  const Source& source_;
  const Target& out_;
  T limit_;
  int64_t threads_;
  Axis rows_, cols_;
  std::vector<Pass> passes_;
  Panels panels_;
  bool split_panels_;
  int64_t chunk_;
  std::optional<WinogradGradInput<T>> dense_;
  std::vector<std::vector<ClassTaps>> tables_;
  std::vector<Placements> placements_;
  Offsets offset_{0};                                   // of each pass in a packed panel, in rows
  int64_t gradient_size_ = 0, pixels_ = 0, tiles_ = 0;  // of the largest band
  std::atomic<bool> moderate_{true};
};

// What moves over the gradient of a map that is read up-sampled.
static Geometry gathered(const Geometry& g, const Source& source) {
  Geometry out = g;
  out.sh = out.sw = 2;
  out.kh = g.kh + 1, out.kw = g.kw + 1;
  out.Ho = source.H, out.Wo = source.W;
  return out;
}

template <class T>
static void grad_input(const Problem<T>& p, Gradient grad, const std::vector<Target>& out) {
  const std::vector<View> views = make_views(p);
  if (p.dense_given) {
    GradInput<T>(p, grad, views[0], p.sources[0], out[0], nullptr).run();
    return;
  }
  if (is_depthwise(p)) return grad_input_depthwise(p, grad, out[0]);
  for (size_t i = 0; i < views.size(); ++i) {
    const Source& source = p.sources[i];
    if (!out[i].data || p.geo.N * source.H * source.W * source.C == 0) continue;
    std::optional<Winograd<T>> w;
    if (!source.up)
      w = choose_winograd<T, Favour::none>(p.geo, source.C);
    else if (p.geo.H % 2 == 0 && p.geo.W % 2 == 0)
      w = choose_winograd<T, Favour::none>(gathered(p.geo, source), source.C);
    if (w && GradInput<T>(p, grad, views[i], source, out[i], &*w).run()) continue;
    GradInput<T>(p, grad, views[i], source, out[i], nullptr).run();
  }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

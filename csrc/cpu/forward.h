// out = m' o (sum over passes of s_pass o conv(V_pass) + bias), rows of one band against panels of output
// channels.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <vector>

#include "bands.h"
#include "depthwise_passes.h"
#include "forward_dots.h"
#include "forward_few_outputs.h"
#include "forward_rows.h"
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

// One forward pass, its dense part by Winograd where there are `parts`, which have to stay; `whole`: with
// packed weights that serve any call.
template <class T>
class Forward {
 public:
  using Parts = std::vector<WinogradPart<T>>;

  Forward(const Problem<T>& p, const T* bias, Target out, const Parts& parts, bool whole = false)
      : p_(p),
        g_(p.geo),
        bias_(bias),
        out_(out),
        limit_(ratio_limit(p, !parts.empty(), kRatioLimit<T>)),
        threads_(thread_count()),
        views_(parts.empty() ? make_views(p) : make_views(p, readings(parts, p.sources.size()))),
        passes_(make_passes(p, views_)),
        panels_(make_panels<T>(g_.groups, g_.Og())),
        split_panels_(weights_outweigh(parts)),
        whole_(whole || !split_panels_),
        chunk_(channels_at_once(parts)),
        rows_at_once_(tile_rows(parts)),
        layout_(passes_, chunk_, whole_) {
    if (limit_ > T(0)) {
      if (!p.dense_given) dense_passes_ = winograd_passes(p);
      if (!whole && !any_ratio_above(p, limit_)) passes_ = corrections(passes_);
      layout_ = Layout(passes_, chunk_, whole_);
    }
    for (const WinogradPart<T>& part : parts) dense_.emplace_back(p, part, views_, chunk_);
    for (const Pass& pass : passes_)
      taps_.push_back(forward_taps(views_[pass.source], pass, chunk_[pass.source]));
    if (parts.empty() && reads_features())
      for (size_t source = 0; source < views_.size(); ++source)
        for (int64_t c = 0; c < views_[source].g.Cg(); c += chunk_[source])
          chunks_.push_back({source, c, 0, nullptr});
    for (size_t part = 0; part < dense_.size(); ++part)
      for (const WinogradChunk& c : dense_[part].chunks()) chunks_.push_back({c.source, c.channel, part, &c});
  }

  // Packed weights, of one chunk and panel or of all.
  struct Packed {
    T *direct, *winograd;
  };
  // Entries of packed weights where they are whole.
  int64_t direct_size() const { return layout_.rows * panels_.columns; }
  int64_t winograd_size() const {
    int64_t rows = 0;
    for (const WinogradForward<T>& part : dense_) rows += part.rows();
    return rows * panels_.columns;
  }
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
      int64_t operands = 0;
      for (const WinogradForward<T>& part : dense_) {
        operands += part.features(part.tile_count(band)).size();
        product_size_ = std::max(product_size_, part.tile_count(band) * part.product_size());
      }
      operand_size_ = std::max(operand_size_, operands);
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
    size_t part;
    const WinogradChunk* winograd;  // of the part, null where all is direct
  };
  struct LoadedPart {
    std::vector<WinogradTile> tiles;
    WinogradFeatures<T> features;
    T* operand;
  };
  struct LoadedBand {
    std::vector<FeatureBand<T>> features;
    ForwardRows<T> rows;
    std::vector<LoadedPart> parts;
  };
  // Where the weights outweigh the features each thread packs and uses panels of its own over one shared
  // band; else the packed weights are shared and each thread takes bands.
  bool weights_outweigh(const Parts& parts) const {
    if (static_cast<int64_t>(panels_.list.size()) < threads_) return false;
    if (!parts.empty()) {
      const Winograd<T>& w = parts.front().w;  // the largest tiles
      return panels_.columns > g_.N * w.tiles(g_.Ho) * w.tiles(g_.Wo);
    }
    return reduction_rows(passes_, views_) * panels_.columns * static_cast<int64_t>(sizeof(T)) >
           row_bytes() * g_.N * g_.Ho;
  }
  bool reads_features() const { return !passes_.empty() || !dense_.empty(); }
  int64_t row_bytes() const { return (g_.sh * g_.Wp * g_.C + g_.Wo * kPanel<T>)*sizeof(T); }
  std::vector<int64_t> channels_at_once(const Parts& parts) const {
    std::vector<int64_t> chunk;
    for (const View& v : views_) chunk.push_back(whole_ ? v.g.Cg() : channel_chunk(v.g.Cg()));
    for (const WinogradPart<T>& part : parts)
      for (size_t i : part.sources)
        if (!whole_) chunk[i] = winograd_chunk(part.w, views_[i].g.Cg());
    return chunk;
  }
  int64_t band_rows_at_once() const {
    if (dense_.empty())
      return split_panels_ ? rows_per_band(kSharedBandBytes, row_bytes(), g_.N * g_.Ho, 1)
                           : rows_per_band(kTileCacheBytes, row_bytes(), g_.N * g_.Ho, threads_);
    // Of squares as large as the largest tile.
    int64_t entries = 0, most_products = 0;
    for (const WinogradForward<T>& part : dense_) {
      const int64_t tiles = rows_at_once_ * rows_at_once_ / (part.m() * part.m());
      entries += part.features(tiles).size();
      most_products = std::max(most_products, tiles * part.product_size());
    }
    const auto squares = [&](int64_t size) { return (size + rows_at_once_ - 1) / rows_at_once_; };
    return rows_at_once_ * winograd_rows_per_band(g_.N, squares(g_.Ho), squares(g_.Wo),
                                                  (entries + most_products) * sizeof(T), split_panels_,
                                                  threads_);
  }

  LoadedBand load(const Band& band, T* memory, T* operand, bool threads) {
    std::vector<FeatureBand<T>> features = make_features(p_, views_, band, chunk_, memory);
    for (const FeatureBand<T>& source : features)
      if (reads_features() && !load_features(p_, source, threads, !dense_.empty())) moderate_ = false;
    ForwardRows<T> rows(p_, passes_, taps_, band, features, limit_);
    LoadedBand loaded{std::move(features), std::move(rows), {}};
    for (const WinogradForward<T>& part : dense_) {
      const std::vector<WinogradTile> tiles = part.tiles(band, loaded.rows.factor);
      loaded.parts.push_back({tiles, part.features(tiles.size()), operand});
      const LoadedPart& at = loaded.parts.back();
      each(threads, tiles.size(),
           [&](int64_t i) { at.features.load(loaded.features, at.tiles[i], i, operand); });
      operand += at.features.size();
    }
    return loaded;
  }
  void pack(const Panel& panel, size_t chunk, Packed to, T* merged, PackScratch<T>& scratch) {
    const Chunk& at = chunks_[chunk];
    const int64_t columns = panel.vectors * kLanes<T>, size = chunk_[at.source];
    const int64_t step = at.winograd ? kMergedChannels : size;
    for (int64_t c = 0; c < size; c += step) {
      const int64_t count = std::min(step, size - c);
      std::vector<PackTarget<T>> targets;
      if (at.winograd) targets.push_back({dense_passes_[at.source].placements, merged, count});
      for (size_t k = 0; k < passes_.size(); ++k)
        if (passes_[k].source == at.source)
          targets.push_back({passes_[k].placements, to.direct + (layout_.row[k] + c) * columns, size});
      pack_forward(p_, targets, panel, views_[at.source].channel + at.c + c, count, scratch);
      if (at.winograd && !dense_[at.part].pack(panel, *at.winograd, c, count, merged, to.winograd))
        moderate_ = false;
    }
  }
  void start(const Panel& panel, T* results) const {
    T init[kPanel<T>] = {};
    if (bias_) std::copy_n(bias_ + panel.group * g_.Og() + panel.first, panel.width, init);
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int64_t pixel = 0; pixel <= pixels_; ++pixel) std::copy_n(init, columns, results + pixel * columns);
  }
  void multiply(const Band& band, const LoadedBand& loaded, const Panel& panel, size_t chunk, Packed from,
                T* products, T* results) const {
    const Chunk& at = chunks_[chunk];
    if (at.winograd) {
      const WinogradForward<T>& part = dense_[at.part];
      const LoadedPart& with = loaded.parts[at.part];
      part.multiply(panel, *at.winograd, with.tiles.size(), with.features, with.operand, from.winograd,
                    products);
      if (chunk + 1 == chunks_.size() || chunks_[chunk + 1].part != at.part)
        part.finish(panel, band, with.tiles, loaded.rows.factor, products, results);
    }
    const int64_t offset =
        loaded.features[at.source].channel_offset(panel.group * views_[at.source].g.Cg() + at.c);
    for (size_t k = 0; k < passes_.size(); ++k)
      if (passes_[k].source == at.source)
        loaded.rows.passes[k].multiply(panel, offset,
                                       from.direct + layout_.row[k] * panel.vectors * kLanes<T>, results);
  }
  void finish(const Band& band, const LoadedBand& loaded, const Panel& panel, T* results,
              std::vector<T>& scratch) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : loaded.rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    const int64_t channel = panel.group * g_.Og() + panel.first;
    const T* factor = loaded.rows.factor.data();  // of each pixel where there is a dense product
    for (const Slice& s : band) {
      if (p_.dense_given) {
        const auto completed = [&](T dense, int64_t i, int64_t c) {
          const T own = results[i * columns + c], bias = bias_ ? bias_[channel + c] : T(0);
          return factor[i] == T(0) ? own : factor[i] * (dense - bias) + own;
        };
        complete_panel<T>(
            p_.dtype, panel.width, out_, g_.O, g_.Ho, g_.Wo, s, channel,
            [&](int64_t i) { return factor[i] == T(1); }, completed);
        factor += s.rows() * g_.Wo;
      } else {
        write_panel(p_.dtype, results, columns, panel.width, out_, g_.O, g_.Ho, g_.Wo, s, channel, scratch);
      }
      results += s.rows() * g_.Wo * columns;
    }
  }
  // Of one chunk and panel in those of all.
  Packed packed(const Packed& all, const Panel& panel, size_t chunk) const {
    T* const direct = all.direct + layout_.rows * panel.column;
    const Chunk& at = chunks_[chunk];
    if (!at.winograd) return {direct, nullptr};
    T* winograd = all.winograd;
    for (size_t part = 0; part < at.part; ++part) winograd += dense_[part].rows() * panels_.columns;
    return {direct, dense_[at.part].part(panel, *at.winograd, winograd)};
  }
  int64_t result_size() const { return (pixels_ + 1) * kPanel<T>; }
  int64_t merged_size() const { return dense_.empty() ? 0 : dense_.front().merged_size(); }

  void run_shared(const Band& band) {
    const int64_t direct_rows = prepacked_ ? 0 : layout_.rows;
    int64_t winograd_rows = 0;
    for (const WinogradForward<T>& part : dense_)
      if (!prepacked_) winograd_rows = std::max(winograd_rows, part.largest_rows());
    const int64_t rows = direct_rows + winograd_rows;
    const int64_t own_size = result_size() + merged_size() + rows * kPanel<T> + product_size_;
    const Buffer shared = allocate((feature_size_ + operand_size_) * sizeof(T));
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
        multiply(band, loaded, panels_.list[i], chunk, weights, products, results);
      }
      finish(band, loaded, panels_.list[i], results, scratch.block);
    });
  }

  void run_own(const std::vector<Band>& bands) {
    const int64_t own_size = result_size() + feature_size_ + operand_size_ + product_size_;
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
      T* products = operand + operand_size_;
      std::vector<T> scratch;
      const LoadedBand loaded = load(bands[i], memory, operand, false);
      for (const Panel& panel : panels_.list) {
        start(panel, results);
        for (size_t chunk = 0; chunk < chunks_.size(); ++chunk)
          multiply(bands[i], loaded, panel, chunk, packed(weights, panel, chunk), products, results);
        finish(bands[i], loaded, panel, results, scratch);
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
  std::vector<Pass> passes_, dense_passes_;  // direct ones, those of Winograd
  Panels panels_;
  bool split_panels_, whole_;   // whole: packed weights of all panels and channels are there at once
  std::vector<int64_t> chunk_;  // channels, per source
  int64_t rows_at_once_;        // bands have a multiple
  Layout layout_;
  std::vector<WinogradForward<T>> dense_;  // of each part
  std::vector<TapTable> taps_;
  std::vector<Chunk> chunks_;  // those of one part after another
  int64_t feature_size_ = 0, pixels_ = 0, operand_size_ = 0, product_size_ = 0;  // of the largest band
  std::optional<Packed> prepacked_;
  std::atomic<bool> moderate_{true};
};

// In prepacked.h. False, and an output that is not whole, where the packed weights do not fit or a value is
// too large.
template <class T>
static bool forward_prepacked(const Problem<T>& p, const T* bias, Target out,
                              const std::optional<Winograd<T>>& w);

template <class T>
static void forward(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0 || g.O == 0) return;
  if (p.dense_given) {
    Forward<T>(p, bias, out, {}).run();
    return;
  }
  if (is_depthwise(p)) return forward_depthwise(p, bias, out);
  if (g.pixels() <= kDotPixels) return forward_dots(p, bias, out);
  if (has_few_outputs(p)) return forward_few_outputs(p, bias, out);
  const std::optional<Winograd<T>> w = choose_winograd<T, Favour::first>(p);
  const std::vector<WinogradPart<T>> parts = winograd_parts(p, w, true);
  // A map that is read where it is stored saves more than its packing costs.
  const bool stored = !parts.empty() && parts.front().w.f->upsampled();
  if (w && !stored && p.prepacked.data && forward_prepacked(p, bias, out, w)) return;
  if (!parts.empty() && Forward<T>(p, bias, out, parts).run()) return;
  Forward<T>(p, bias, out, {}).run();
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// dL/dV_pass = sum over pixels of window(x o m) (outer) s_pass m' dL/dy: one outer product per tap and panel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"
#include "winograd_grad_weight.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// What one pass reduces over: pixels of a band, each with its window and its scaled gradient.
template <class T>
struct PassPixels {
  std::vector<std::vector<PixelPair>>
      kernel_rows;        // [kh of the pass]: pixels whose window row lies in the image
  T* gradient = nullptr;  // [panel][pixels, columns], scaled
  int64_t pixels = 0, stride = 0;  // rows of gradients, of a panel
};

// Gradients of a band of output rows, ready for every pass.
template <class T>
struct WeightBand {
  std::vector<PassPixels<T>> passes;

  const T* dense;         // [panel][pixels and a row of zeros, columns]
  std::vector<T> factor;  // of the dense pass at every pixel, where it is Winograd's
  bool all_moderate = true;

  // Whether a pass has a list of pixels and gradients of its own.
  static bool is_correction(const Pass& pass, T limit) {
    return pass.kind != (limit > T(0) ? Pass::kWinograd : Pass::kAll);
  }
  static int64_t size(int64_t pixels, const std::vector<Pass>& list, T limit, const Panels& panels) {
    int64_t copies = 1;
    for (const Pass& pass : list) copies += is_correction(pass, limit);
    return (pixels * copies + 1) * panels.columns;
  }

  // Uses `memory` of size(); adds the channel sums over live pixels to `sums` where that is not null.
  WeightBand(const Problem<T>& p, const std::vector<Pass>& list, const Panels& panels, const Gradient& grad,
             const Band& band, const std::vector<FeatureBand<T>>& features, T limit, T* memory, bool threads,
             double* sums)
      : passes(list.size()), dense(memory) {
    const Geometry& g = p.geo;
    const int64_t all = band_rows(band) * g.Wo;
    if (limit > T(0)) factor.assign(all, T(0));
    std::vector<Scaled> corrections(list.size());
    Scaled live;
    collect(p, list, band, features, limit, live, corrections);
    memory += (all + 1) * panels.columns;
    std::vector<char> moderates(panels.list.size(), true);
    for (size_t k = 0; k < list.size(); ++k) {
      const bool correction = is_correction(list[k], limit);
      passes[k].pixels = correction ? static_cast<int64_t>(corrections[k].pixel.size()) : all;
      passes[k].gradient = correction ? memory : const_cast<T*>(dense);
      passes[k].stride = passes[k].pixels + !correction;
      if (correction) memory += passes[k].pixels * panels.columns;
    }
    each(threads, panels.list.size(), [&](int64_t i) {
      const Panel& panel = panels.list[i];
      const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
      T* plain = const_cast<T*>(dense) + (all + 1) * panel.column;
      std::vector<T> scratch;
      T* row = plain;
      if (columns > panel.width) std::fill_n(plain, all * columns, T(0));
      std::fill_n(plain + all * columns, columns, T(0));
      for (const Slice& s : band)
        for (int64_t oh = s.begin; oh < s.end; ++oh, row += g.Wo * columns)
          load_gradient_row(p, grad, s.n, oh, channel, panel.width, scratch, row, columns);
      if (sums) add_sums(plain, columns, panel.width, live.pixel, sums + channel);
      for (size_t k = 0; k < list.size(); ++k)
        for (size_t j = 0; j < corrections[k].pixel.size(); ++j)
          scale_row(plain + corrections[k].pixel[j] * columns, corrections[k].scale[j], columns,
                    passes[k].gradient + passes[k].pixels * panel.column + j * columns);
      if (limit > T(0)) {
        for (int64_t pixel = 0; pixel < all; ++pixel) {
          T* at = plain + pixel * columns;
          if (factor[pixel] == T(0))
            std::fill_n(at, columns, T(0));
          else if (factor[pixel] != T(1))
            scale_row(at, factor[pixel], columns, at);
        }
        moderates[i] = moderate(plain, all * columns);
      } else {
        for (size_t j = 0; j < live.pixel.size(); ++j)
          if (live.scale[j] != T(1))
            scale_row(plain + live.pixel[j] * columns, live.scale[j], columns, plain + live.pixel[j] * columns);
      }
    });
    for (char fits : moderates) all_moderate &= fits != 0;
  }

 private:
  struct Scaled {
    std::vector<int32_t> pixel;  // of the band
    std::vector<T> scale;
  };

  void collect(const Problem<T>& p, const std::vector<Pass>& list, const Band& band,
               const std::vector<FeatureBand<T>>& features, T limit, Scaled& live,
               std::vector<Scaled>& corrections) {
    const Geometry& g = p.geo;
    for (size_t k = 0; k < list.size(); ++k) passes[k].kernel_rows.resize(list[k].kh);
    int32_t at = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const Counts<T> counts(p, band[s].n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh)
        for (int64_t ow = 0; ow < g.Wo; ++ow, ++at) {
          const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow, limit);
          if (ratios.state == kDead) continue;
          if (ratios.within_limit()) factor[at] = ratios.largest();
          live.pixel.push_back(at);
          live.scale.push_back(ratios.r[ratios.n - 1]);
          for (size_t k = 0; k < list.size(); ++k) {
            const Pass& pass = list[k];
            const bool correction = is_correction(pass, limit);
            if (pass.kind == Pass::kWinograd || (correction && ratios.state == kPlain)) continue;
            const T factor = ratios.scale(pass);
            if (factor == T(0)) continue;
            if (pass.row_class >= 0 &&
                (up_class(oh, g.H, g.kh) != pass.row_class || up_class(ow, g.W, g.kw) != pass.col_class))
              continue;
            if (correction) {
              corrections[k].pixel.push_back(at);
              corrections[k].scale.push_back(factor);
            }
            const FeatureBand<T>& source = features[pass.source];
            const int32_t window = static_cast<int32_t>(source.window(s, oh, ow) - source.data);
            const int32_t row = correction ? static_cast<int32_t>(corrections[k].pixel.size()) - 1 : at;
            const Geometry& v = source.view.g;
            for (int64_t i = 0; i < pass.kh; ++i) {
              const int64_t h = (oh >> source.view.up) * v.sh + (pass.top + i) * v.dh - v.pt;
              if (h >= 0 && h < v.H) passes[k].kernel_rows[i].push_back({window, row});
            }
          }
        }
    }
  }
  static void scale_row(const T* from, T scale, int64_t columns, T* to) {
    for (int64_t c = 0; c < columns; c += kLanes<T>) store(to + c, scale * load(from + c));
  }
  static void add_sums(const T* plain, int64_t columns, int64_t width, const std::vector<int32_t>& pixels,
                       double* sums) {
    constexpr size_t kRun = 256;  // summed in T, then in double
    for (size_t i = 0; i < pixels.size(); i += kRun) {
      T part[kPanel<T>] = {};
      for (size_t j = i; j < std::min(pixels.size(), i + kRun); ++j)
        for (int64_t c = 0; c < columns; c += kLanes<T>)
          store(part + c, load(part + c) + load(plain + pixels[j] * columns + c));
      for (int64_t c = 0; c < width; ++c) sums[c] += part[c];
    }
  }
};

// Channels [c, c + chunk) of one pass against one panel: adds to grads [taps * chunk, columns].
template <class T>
static void accumulate(const Pass& pass, const PassPixels<T>& pixels, const Panel& panel,
                       const FeatureBand<T>& features, int64_t c, T* grads) {
  const Geometry& g = features.view.g;
  const int64_t columns = panel.vectors * kLanes<T>, chunk = features.chunk;
  const T* gradient = pixels.gradient + pixels.stride * panel.column;
  // Neighbouring taps of a dense kernel are one run of the padded row.
  const bool dense = g.dw == 1;
  constexpr size_t kPixels = 128;  // whose gradients stay in the first cache
  const int64_t run = dense ? pass.kw * chunk : chunk;
  for (int64_t i = 0; i < pass.kh; ++i) {
    const std::vector<PixelPair>& list = pixels.kernel_rows[i];
    for (size_t first = 0; first < list.size(); first += kPixels) {
      const int64_t n = std::min(kPixels, list.size() - first);
      for (int64_t j = 0; j < (dense ? 1 : pass.kw); ++j) {
        const T* window = features.data + features.channel_offset(panel.group * g.Cg() + c) +
                          ((pass.top + i) * g.dh * g.Wp + (pass.left + j) * g.dw) * chunk;
        T* out = grads + (i * pass.kw + j) * chunk * columns;
        for (int64_t m = 0, tiles = (run + kRows - 1) / kRows; tiles > 0; --tiles) {
          const int64_t rows = (run - m + tiles - 1) / tiles;  // even tiles: a last one of 2 rows starves
          outer(panel.vectors, rows, window + m, list.data() + first, n, gradient, out + m * columns,
                columns);
          m += rows;
        }
      }
    }
  }
}

// The dense pass by Winograd where `w` is given: false, and gradients that are not whole, where a value is
// too large for it.
template <class T>
static bool grad_weight_by(const Winograd<T>* w, const Problem<T>& p, Gradient grad,
                           const std::vector<T*>& grad_weights, const std::vector<T*>& grad_scales,
                           T* grad_sum) {
  const Geometry& g = p.geo;
  const T limit = w ? kRatioLimit<T> : T(0);
  const std::vector<View> views = make_views(p, w ? w->m : 1);
  std::vector<Pass> passes = make_passes(p, views);
  if (w) {
    const std::vector<Pass> dense = take_dense_passes(passes, any_ratio_above(p, limit));
    passes.insert(passes.begin(), dense.begin(), dense.end());
  }
  const Panels panels = make_panels<T>(g.groups, g.Og());
  const size_t branches = p.branches.size();
  const int64_t threads = thread_count();
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * panels.columns) * sizeof(T);
  const int64_t weight_bytes = reduction_rows(passes, views) * panels.columns * sizeof(T);
  // Small gradients: every thread sums its own copy over bands of its own. Large ones: one band at a time,
  // and each task makes the final gradient of one panel and chunk of channels, so that no sum ever leaves the
  // cache.
  const bool own_copies = !w && weight_bytes * threads <= (16 << 20);
  std::vector<int64_t> channels;
  for (const View& v : views)
    channels.push_back(own_copies ? v.g.Cg() : w ? channel_chunk<T>(v.g.Cg(), 32) : channel_chunk(v.g.Cg()));
  const Layout layout(passes, channels, own_copies);
  std::optional<WinogradGradWeight<T>> dense;
  if (w) dense.emplace(p, *w, views, layout, panels);
  const std::vector<Band> bands =
      make_bands(g.N, g.Ho,
                 dense        ? dense->rows_per_band()
                 : own_copies ? rows_per_band(kTileCacheBytes, row_bytes, g.N * g.Ho, threads)
                            : rows_per_band(kSharedBandBytes, row_bytes, g.N * g.Ho, 1));
  int64_t feature_size = 0, max_pixels = 0, tiles = 0;
  for (const Band& band : bands) {
    if (dense) tiles = std::max(tiles, dense->tile_count(band));
    feature_size = std::max(feature_size, features_size<T>(views, band));
    max_pixels = std::max(max_pixels, band_rows(band) * g.Wo);
  }
  const int64_t copies = own_copies ? threads : 1;
  const int64_t band_size = feature_size + WeightBand<T>::size(max_pixels, passes, limit, panels);
  const int64_t sum_size = layout.rows * (own_copies ? panels.columns : kPanel<T>);
  const int64_t dense_sums = dense ? dense->sum_size() : 0;
  const Buffer operands = allocate(dense ? tiles * dense->tile_size() * sizeof(T) : 0);
  const Buffer scratch = allocate(copies * band_size * sizeof(T)),
               sums = allocate(threads * (sum_size + dense_sums) * sizeof(T));
  std::vector<std::vector<double>> channel_sums(copies, std::vector<double>(g.O, 0.0));

  // Chunks of channels, source after source; one of them is all of a source where layout.whole.
  struct Chunk {
    size_t source;
    int64_t c;
  };
  std::vector<Chunk> chunks;
  for (size_t s = 0; s < views.size(); ++s)
    for (int64_t c = 0; c < views[s].g.Cg(); c += layout.chunk[s]) chunks.push_back({s, c});
  std::vector<double> scale_sums(chunks.size() * branches * g.O, 0.0);  // [chunk][branch][O]

  const auto accumulate_chunk = [&](const WeightBand<T>& band, const std::vector<FeatureBand<T>>& features,
                                    const Panel& panel, const Chunk& chunk, T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      if (passes[k].source == chunk.source && passes[k].kind != Pass::kWinograd)
        accumulate(passes[k], band.passes[k], panel, features[chunk.source], chunk.c,
                   dst + layout.row[k] * panel.vectors * kLanes<T>);
  };
  const auto wanted = [&](size_t branch) { return grad_weights[branch] || grad_scales[branch]; };
  const auto unpack_chunk = [&](size_t branch, const Panel& panel, size_t chunk, const T* src,
                                int64_t partial_sums, bool add, PackScratch<T>& pack) {
    const Chunk& at = chunks[chunk];
    std::vector<const T*> parts(passes.size(), nullptr);
    for (size_t k = 0; k < passes.size(); ++k)
      if (passes[k].source == at.source) parts[k] = src + layout.row[k] * panel.vectors * kLanes<T>;
    double* scale =
        scale_sums.data() + (chunk * branches + branch) * g.O + panel.group * g.Og() + panel.first;
    unpack_grad_weight(p, passes, branch, panel, views[at.source].channel + at.c, layout.chunk[at.source],
                       parts, partial_sums, sum_size, pack, add, grad_weights[branch],
                       grad_scales[branch] ? scale : nullptr);
  };
  bool any = false;
  for (size_t i = 0; i < branches; ++i) any |= wanted(i);

  if (own_copies) {
    // Bands are dealt out in a fixed way, so that the sums do not depend on timing.
    parallel(copies, [&](int64_t copy, int64_t) {
      T* memory = as<T>(scratch) + copy * band_size;
      T* mine = as<T>(sums) + copy * sum_size;
      std::fill_n(mine, sum_size, T(0));
      const int64_t count = bands.size();
      for (int64_t i = copy * count / copies; i < (copy + 1) * count / copies; ++i) {
        const std::vector<FeatureBand<T>> features = make_features(p, views, bands[i], layout.chunk, memory);
        const WeightBand<T> band(p, passes, panels, grad, bands[i], features, limit, memory + feature_size, false,
                                 grad_sum ? channel_sums[copy].data() : nullptr);
        if (!any) continue;
        for (const FeatureBand<T>& source : features) load_features(p, source, false);
        for (const Panel& panel : panels.list)
          for (const Chunk& chunk : chunks)
            accumulate_chunk(band, features, panel, chunk, mine + layout.rows * panel.column);
      }
    });
    parallel(panels.list.size() * branches, [&](int64_t i, int64_t) {
      const Panel& panel = panels.list[i / branches];
      PackScratch<T> pack;
      for (size_t chunk = 0; wanted(i % branches) && chunk < chunks.size(); ++chunk)
        unpack_chunk(i % branches, panel, chunk, as<T>(sums) + layout.rows * panel.column, copies, false,
                     pack);
    });
  } else {
    for (size_t b = 0; b < bands.size(); ++b) {
      const std::vector<FeatureBand<T>> features =
          make_features(p, views, bands[b], layout.chunk, as<T>(scratch));
      const WeightBand<T> band(p, passes, panels, grad, bands[b], features, limit, as<T>(scratch) + feature_size,
                               true, grad_sum ? channel_sums[0].data() : nullptr);
      if (!any) continue;
      for (const FeatureBand<T>& source : features) load_features(p, source, true);
      if (dense) {
        if (!band.all_moderate || !moderate(as<T>(scratch), features_size<T>(views, bands[b]))) return false;
        dense->load(bands[b], features, band.factor, band.dense, as<T>(operands));
      }
      parallel(panels.list.size() * chunks.size(), [&](int64_t i, int64_t thread) {
        const Panel& panel = panels.list[i / chunks.size()];
        const size_t chunk = i % chunks.size();
        T* mine = as<T>(sums) + thread * (sum_size + dense_sums);
        std::fill_n(mine, sum_size, T(0));
        for (size_t k = 0; dense && k < passes.size(); ++k)
          if (passes[k].kind == Pass::kWinograd && passes[k].source == chunks[chunk].source)
            dense->multiply(panel, chunk, mine + sum_size,
                            mine + layout.row[k] * panel.vectors * kLanes<T>);
        accumulate_chunk(band, features, panel, chunks[chunk], mine);
        PackScratch<T> pack;
        for (size_t branch = 0; branch < branches; ++branch)
          if (wanted(branch)) unpack_chunk(branch, panel, chunk, mine, 1, b > 0, pack);
      });
    }
  }

  for (int64_t o = 0; grad_sum && o < g.O; ++o) {
    double sum = 0;
    for (const std::vector<double>& part : channel_sums) sum += part[o];
    grad_sum[o] = static_cast<T>(sum);
  }
  for (size_t branch = 0; branch < branches; ++branch)
    for (int64_t o = 0; grad_scales[branch] && o < g.O; ++o) {
      double sum = 0;
      for (size_t i = 0; i < chunks.size(); ++i) sum += scale_sums[(i * branches + branch) * g.O + o];
      grad_scales[branch][o] = static_cast<T>(sum);
    }
  return true;
}

template <class T>
static void grad_weight(const Problem<T>& p, Gradient grad, const std::vector<T*>& grad_weights,
                        const std::vector<T*>& grad_scales, T* grad_sum) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0) {  // no band would write anything
    for (size_t i = 0; i < p.branches.size(); ++i) {
      const Branch<T>& b = p.branches[i];
      if (grad_weights[i]) std::fill_n(grad_weights[i], g.O * g.Cg() * b.kh * b.kw, T(0));
      if (grad_scales[i]) std::fill_n(grad_scales[i], g.O, T(0));
    }
    if (grad_sum) std::fill_n(grad_sum, g.O, T(0));
    return;
  }
  const std::optional<Winograd<T>> w = choose_winograd(p);
  if (w && grad_weight_by(&*w, p, grad, grad_weights, grad_scales, grad_sum)) return;
  grad_weight_by<T>(nullptr, p, grad, grad_weights, grad_scales, grad_sum);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

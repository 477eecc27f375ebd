// dL/dV_pass = sum over pixels of window(x o m) (outer) s_pass m' dL/dy: one outer product per tap and panel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "grad_weight_few_outputs.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

struct PixelRange {
  int32_t begin, end;
};

// What one pass reduces over: pixels of a band, each with its window and its scaled gradient.
template <class T>
struct PassPixels {
  std::vector<PixelPair> list;
  // [kh of the pass]: the parts of the list whose window row lies in the image.
  std::vector<std::vector<PixelRange>> kernel_rows;
  T* gradient = nullptr;  // [panel][pixels, columns], scaled
  int64_t pixels = 0;
};

// Gradients of a band of output rows, ready for every pass.
template <class T>
struct WeightBand {
  std::vector<PassPixels<T>> passes;

  static int64_t size(int64_t pixels, const std::vector<Pass>& list, const Panels& panels) {
    int64_t copies = 1;
    for (const Pass& pass : list) copies += pass.kind != Pass::kAll;
    return pixels * copies * panels.columns;
  }

  // Uses `memory` of size(); adds the channel sums over live pixels to `sums` where that is not null.
  WeightBand(const Problem<T>& p, const std::vector<Pass>& list, const Panels& panels, const Gradient& grad,
             const Band& band, const std::vector<FeatureBand<T>>& features, T* memory, bool threads,
             double* sums)
      : passes(list.size()) {
    const Geometry& g = p.geo;
    const int64_t all = band_rows(band) * g.Wo;
    std::vector<Scaled> corrections(list.size());
    Scaled cut;
    std::vector<PixelRange> live;
    collect(p, list, band, features, live, cut, corrections);
    T* const dense = memory;
    memory += all * panels.columns;
    for (size_t k = 0; k < list.size(); ++k) {
      const bool correction = list[k].kind != Pass::kAll;
      passes[k].pixels = correction ? static_cast<int64_t>(corrections[k].pixel.size()) : all;
      passes[k].gradient = correction ? memory : dense;
      if (correction) memory += passes[k].pixels * panels.columns;
    }
    each(threads, panels.list.size(), [&](int64_t i) {
      const Panel& panel = panels.list[i];
      const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
      T* plain = dense + all * panel.column;
      std::vector<T> scratch;
      T* row = plain;
      if (columns > panel.width) std::fill_n(plain, all * columns, T(0));
      for (const Slice& s : band) {
        load_gradient_rows(p, grad, s, channel, panel.width, scratch, row, columns);
        row += s.rows() * g.Wo * columns;
      }
      if (sums) add_sums(plain, columns, panel.width, live, sums + channel);
      for (size_t k = 0; k < list.size(); ++k)
        for (size_t j = 0; j < corrections[k].pixel.size(); ++j)
          scale_row(plain + corrections[k].pixel[j] * columns, corrections[k].scale[j], columns,
                    passes[k].gradient + passes[k].pixels * panel.column + j * columns);
      for (size_t j = 0; j < cut.pixel.size(); ++j)
        scale_row(plain + cut.pixel[j] * columns, cut.scale[j], columns, plain + cut.pixel[j] * columns);
    });
  }

 private:
  struct Scaled {
    std::vector<int32_t> pixel;  // of the band
    std::vector<T> scale;
  };

  // `live` are the pixels with a valid entry, `cut` those of them whose largest window is not whole.
  void collect(const Problem<T>& p, const std::vector<Pass>& list, const Band& band,
               const std::vector<FeatureBand<T>>& features, std::vector<PixelRange>& live, Scaled& cut,
               std::vector<Scaled>& corrections) {
    const Geometry& g = p.geo;
    for (size_t k = 0; k < list.size(); ++k) {
      passes[k].kernel_rows.resize(list[k].kh);
      if (list[k].kind == Pass::kAll) passes[k].list.reserve(band_rows(band) * g.Wo);
    }
    std::vector<int64_t> col_class;
    for (int64_t ow = 0; ow < g.Wo; ++ow) col_class.push_back(up_class(ow, g.W, g.kw));
    std::vector<int32_t> begin(list.size());  // of a row of pixels in each list
    int32_t at = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const Counts<T> counts(p, band[s].n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh) {
        const int32_t* largest = counts.of[p.branches.size() - 1] + oh * g.Wo;
        const int64_t row_class = up_class(oh, g.H, g.kh);
        for (size_t k = 0; k < list.size(); ++k) begin[k] = static_cast<int32_t>(passes[k].list.size());
        const auto add = [&](size_t k, int64_t ow, int64_t n, int32_t row) {
          const FeatureBand<T>& source = features[list[k].source];
          for (int64_t i = 0; i < n; ++i) {
            if (list[k].col_class >= 0 && list[k].col_class != col_class[ow + i]) continue;
            PixelPair& pair =
                passes[k].list.emplace_back();  // a copied one waits for its halves to be stored
            pair.a = static_cast<int32_t>(source.window(s, oh, ow + i) - source.data);
            pair.b = row + static_cast<int32_t>(i);
          }
        };
        for (int64_t ow = 0, n; ow < g.Wo; ow += n, at += static_cast<int32_t>(n)) {
          n = 1;
          const bool whole = largest[ow] == p.windows->whole.back();
          while (whole && ow + n < g.Wo && largest[ow + n] == largest[ow]) ++n;
          const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow);
          if (ratios.state == kDead) continue;
          if (live.empty() || live.back().end != at) live.push_back({at, at});
          live.back().end = at + static_cast<int32_t>(n);
          const T scale = ratios.r[ratios.n - 1];
          if (scale != T(1)) {
            cut.pixel.push_back(at);
            cut.scale.push_back(scale);
          }
          for (size_t k = 0; k < list.size(); ++k) {
            if (list[k].row_class >= 0 && list[k].row_class != row_class) continue;
            if (list[k].kind == Pass::kAll) {
              add(k, ow, n, at);
              continue;
            }
            const T factor = whole ? T(0) : ratios.scale(list[k], true);
            if (factor == T(0)) continue;
            corrections[k].pixel.push_back(at);
            corrections[k].scale.push_back(factor);
            add(k, ow, 1, static_cast<int32_t>(corrections[k].pixel.size()) - 1);
          }
        }
        for (size_t k = 0; k < list.size(); ++k) {
          const int32_t end = static_cast<int32_t>(passes[k].list.size());
          const View& view = features[list[k].source].view;
          for (int64_t i = 0; begin[k] < end && i < list[k].kh; ++i) {
            const int64_t h = (oh >> view.up) * view.g.sh + (list[k].top + i) * view.g.dh - view.g.pt;
            if (h < 0 || h >= view.g.H) continue;
            std::vector<PixelRange>& parts = passes[k].kernel_rows[i];
            if (parts.empty() || parts.back().end != begin[k]) parts.push_back({begin[k], end});
            parts.back().end = end;
          }
        }
      }
    }
  }
  static void scale_row(const T* from, T scale, int64_t columns, T* to) {
    for (int64_t c = 0; c < columns; c += kLanes<T>) store(to + c, scale * load(from + c));
  }
  static void add_sums(const T* plain, int64_t columns, int64_t width, const std::vector<PixelRange>& live,
                       double* sums) {
    constexpr int32_t kRun = 256;  // summed in T, then in double
    for (const PixelRange& range : live)
      for (int32_t i = range.begin; i < range.end; i += kRun)
        for (int64_t c = 0; c < columns; c += kLanes<T>) {
          const T* at = plain + i * columns + c;
          const int64_t n = std::min(range.end - i, kRun);
          Vec<T> part[4] = {};  // so that one addition need not wait for the other
          for (int64_t j = 0; j < n / 4; ++j, at += 4 * columns)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) part[k] += load(at + k * columns);
          for (int64_t j = 0; j < n % 4; ++j) part[0] += load(at + j * columns);
          const Vec<T> sum = (part[0] + part[1]) + (part[2] + part[3]);
          for (int64_t l = 0; l < std::min(kLanes<T>, width - c); ++l) sums[c + l] += sum[l];
        }
  }
};

// Channels [c, c + chunk) of one pass against one panel: adds to grads [taps * chunk, columns].
template <class T>
static void accumulate(const Pass& pass, const PassPixels<T>& pixels, const Panel& panel,
                       const FeatureBand<T>& features, int64_t c, T* grads) {
  const Geometry& g = features.view.g;
  const int64_t columns = panel.vectors * kLanes<T>, chunk = features.chunk;
  const T* gradient = pixels.gradient + pixels.pixels * panel.column;
  // Neighbouring taps of a dense kernel are one run of the padded row.
  const bool dense = g.dw == 1;
  constexpr int64_t kPixels = 128;  // whose gradients stay in the first cache
  const int64_t run = dense ? pass.kw * chunk : chunk;
  for (int64_t i = 0; i < pass.kh; ++i) {
    for (const PixelRange& part : pixels.kernel_rows[i])
      for (int64_t first = part.begin; first < part.end; first += kPixels) {
        const int64_t n = std::min(kPixels, part.end - first);
        for (int64_t j = 0; j < (dense ? 1 : pass.kw); ++j) {
          const T* window = features.data + features.channel_offset(panel.group * g.Cg() + c) +
                            ((pass.top + i) * g.dh * g.Wp + (pass.left + j) * g.dw) * chunk;
          T* out = grads + (i * pass.kw + j) * chunk * columns;
          for (int64_t m = 0, tiles = (run + kRows - 1) / kRows; tiles > 0; --tiles) {
            const int64_t rows = (run - m + tiles - 1) / tiles;  // even tiles: a last one of 2 rows starves
            outer(panel.vectors, rows, window + m, pixels.list.data() + first, n, gradient, out + m * columns,
                  columns);
            m += rows;
          }
        }
      }
  }
}

template <class T>
static void grad_weight(const Problem<T>& p, Gradient grad, const std::vector<T*>& grad_weights,
                        const std::vector<T*>& grad_scales, T* grad_sum) {
  const Geometry& g = p.geo;
  const std::vector<View> views = make_views(p);
  const std::vector<Pass> passes = make_passes(p, views, true);
  const Panels panels = make_panels<T>(g.groups, g.Og());
  const size_t branches = p.branches.size();
  if (g.pixels() == 0) {  // no band would write anything
    for (size_t i = 0; i < branches; ++i) {
      const Branch<T>& b = p.branches[i];
      if (grad_weights[i]) std::fill_n(grad_weights[i], g.O * g.Cg() * b.kh * b.kw, T(0));
      if (grad_scales[i]) std::fill_n(grad_scales[i], g.O, T(0));
    }
    if (grad_sum) std::fill_n(grad_sum, g.O, T(0));
    return;
  }
  if (has_few_outputs_for_weights(p))
    return grad_weight_few_outputs(p, grad, grad_weights[0], grad_scales[0], grad_sum);

  const int64_t threads = thread_count();
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * panels.columns) * sizeof(T);
  const int64_t weight_bytes = reduction_rows(passes, views) * panels.columns * sizeof(T);
  // Small gradients: every thread sums its own copy over bands of its own. Large ones: one band at a time,
  // and each task makes the final gradient of one panel and chunk of channels, so that no sum ever leaves the
  // cache.
  const bool own_copies = weight_bytes * threads <= (16 << 20);
  const Layout layout(passes, views, own_copies);
  const std::vector<Band> bands =
      make_bands(g.N, g.Ho,
                 own_copies ? rows_per_band(kTileCacheBytes, row_bytes, g.N * g.Ho, threads)
                            : rows_per_band(kSharedBandBytes, row_bytes, g.N * g.Ho, 1));
  int64_t feature_size = 0, max_pixels = 0;
  for (const Band& band : bands) {
    feature_size = std::max(feature_size, features_size<T>(views, band));
    max_pixels = std::max(max_pixels, band_rows(band) * g.Wo);
  }
  const int64_t copies = own_copies ? threads : 1;
  const int64_t band_size = feature_size + WeightBand<T>::size(max_pixels, passes, panels);
  const int64_t sum_size = layout.rows * (own_copies ? panels.columns : kPanel<T>);
  const Buffer scratch = allocate(copies * band_size * sizeof(T)),
               sums = allocate(threads * sum_size * sizeof(T));
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
      if (passes[k].source == chunk.source)
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
        const WeightBand<T> band(p, passes, panels, grad, bands[i], features, memory + feature_size, false,
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
      const WeightBand<T> band(p, passes, panels, grad, bands[b], features, as<T>(scratch) + feature_size,
                               true, grad_sum ? channel_sums[0].data() : nullptr);
      if (!any) continue;
      for (const FeatureBand<T>& source : features) load_features(p, source, true);
      parallel(panels.list.size() * chunks.size(), [&](int64_t i, int64_t thread) {
        const Panel& panel = panels.list[i / chunks.size()];
        const size_t chunk = i % chunks.size();
        T* mine = as<T>(sums) + thread * sum_size;
        std::fill_n(mine, sum_size, T(0));
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
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

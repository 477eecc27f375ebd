// dL/dV_pass = sum over pixels of window(x o m) (outer) s_pass m' dL/dy: one outer product per tap and panel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "depthwise_passes.h"
#include "grad_weight_band.h"
#include "grad_weight_few_outputs.h"
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

// The dense pass by Winograd where there are parts: false, and gradients that are not whole, where a value is
// too large for it.
template <class T>
static bool grad_weight_by(const std::vector<WinogradPart<T>>& parts, const Problem<T>& p, Gradient grad,
                           const std::vector<T*>& grad_weights, const std::vector<T*>& grad_scales,
                           T* grad_sum) {
  const Geometry& g = p.geo;
  const bool by_winograd = !parts.empty();
  const T limit = ratio_limit(p, by_winograd, kRatioLimit<T>);
  const std::vector<View> views =
      by_winograd ? make_views(p, readings(parts, p.sources.size())) : make_views(p);
  std::vector<Pass> passes = make_passes(p, views);
  if (limit > T(0) && !any_ratio_above(p, limit)) passes = corrections(passes);
  if (by_winograd) {
    const std::vector<Pass> dense = winograd_passes(p);
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
  const bool own_copies = !by_winograd && weight_bytes * threads <= (16 << 20);
  std::vector<int64_t> channels;
  for (const View& v : views)
    channels.push_back(own_copies    ? v.g.Cg()
                       : by_winograd ? channel_chunk<T>(v.g.Cg(), 32)
                                     : channel_chunk(v.g.Cg()));
  const Layout layout(passes, channels, own_copies);
  std::vector<WinogradGradWeight<T>> dense;
  for (const WinogradPart<T>& part : parts) dense.emplace_back(p, part, views, layout, panels);
  int64_t rows = own_copies ? rows_per_band(kTileCacheBytes, row_bytes, g.N * g.Ho, threads)
                            : rows_per_band(kSharedBandBytes, row_bytes, g.N * g.Ho, 1);
  if (by_winograd) {
    rows = dense.front().rows_per_band();
    for (const WinogradGradWeight<T>& part : dense) rows = std::min(rows, part.rows_per_band());
    rows = std::max(tile_rows(parts), rows / tile_rows(parts) * tile_rows(parts));
  }
  const std::vector<Band> bands = make_bands(g.N, g.Ho, rows);
  int64_t feature_size = 0, operand_size = 0, dense_sums = 0;
  for (const Band& band : bands) feature_size = std::max(feature_size, features_size<T>(views, band));
  for (WinogradGradWeight<T>& part : dense) {
    int64_t tiles = 0;
    for (const Band& band : bands) tiles = std::max(tiles, part.tile_count(band));
    operand_size = std::max(operand_size, part.operand_size(tiles));
    dense_sums = std::max(dense_sums, part.sum_size());
  }
  const int64_t copies = own_copies ? threads : 1;
  const int64_t sum_size = layout.rows * (own_copies ? panels.columns : kPanel<T>);
  const Buffer operands = allocate(operand_size * sizeof(T));
  const Buffer memory = allocate(copies * feature_size * sizeof(T));
  std::vector<std::vector<double>> channel_sums(copies, std::vector<double>(g.O, 0.0));

  // Chunks of channels, source after source; one of them is all of a source where layout.whole.
  struct Chunk {
    size_t source;
    int64_t c;
  };
  std::vector<Chunk> chunks;
  if (by_winograd)  // those of one part after another
    for (const WinogradGradWeight<T>& part : dense)
      for (const WinogradChunk& c : part.chunks()) chunks.push_back({c.source, c.channel});
  else
    for (size_t s = 0; s < views.size(); ++s)
      for (int64_t c = 0; c < views[s].g.Cg(); c += layout.chunk[s]) chunks.push_back({s, c});
  // Sums of all tasks are kept from band to band where that is not too much; else each band adds its own to
  // the gradients.
  constexpr int64_t kKeptBytes = 24 << 20;
  const int64_t tasks = panels.list.size() * chunks.size(), task_size = sum_size + dense_sums;
  const bool keep =
      !own_copies && bands.size() > 1 && tasks * task_size * static_cast<int64_t>(sizeof(T)) <= kKeptBytes;
  const Buffer sums = allocate((keep ? tasks : threads) * task_size * sizeof(T));
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
      T* mine = as<T>(sums) + copy * sum_size;
      std::fill_n(mine, sum_size, T(0));
      const int64_t count = bands.size();
      for (int64_t i = copy * count / copies; i < (copy + 1) * count / copies; ++i) {
        const std::vector<FeatureBand<T>> features =
            make_features(p, views, bands[i], layout.chunk, as<T>(memory) + copy * feature_size);
        const WeightBand<T> band(p, passes, panels, grad, bands[i], features, limit, false,
                                 grad_sum ? channel_sums[copy].data() : nullptr);
        if (!any) continue;
        for (const FeatureBand<T>& source : features)
          if (!passes.empty()) load_features(p, source, false);
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
          make_features(p, views, bands[b], layout.chunk, as<T>(memory));
      const WeightBand<T> band(p, passes, panels, grad, bands[b], features, limit, true,
                               grad_sum ? channel_sums[0].data() : nullptr);
      if (!any) continue;
      bool all_moderate = band.all_moderate;
      for (const FeatureBand<T>& source : features)
        if (!passes.empty()) all_moderate &= load_features(p, source, true, by_winograd);
      if (by_winograd && !all_moderate) return false;
      // Chunks from the first-th on: `part` sums them, if there is one.
      const auto sum_chunks = [&](size_t first, size_t count, const WinogradGradWeight<T>* part,
                                  size_t first_of_part) {
        parallel(panels.list.size() * count, [&](int64_t i, int64_t thread) {
          const Panel& panel = panels.list[i / count];
          const size_t chunk = first + i % count;
          const bool started = keep && b > 0;
          T* mine = as<T>(sums) + (keep ? panel.index * chunks.size() + chunk : thread) * task_size;
          if (!started) std::fill_n(mine, sum_size, T(0));
          if (part) part->multiply(panel, first_of_part + i % count, mine + sum_size, started);
          accumulate_chunk(band, features, panel, chunks[chunk], mine);
          if (keep && b + 1 < bands.size()) return;
          for (size_t k = 0; part && k < passes.size(); ++k)
            if (passes[k].kind == Pass::kWinograd && passes[k].source == chunks[chunk].source)
              part->finish(panel, first_of_part + i % count, mine + sum_size,
                           mine + layout.row[k] * panel.vectors * kLanes<T>);
          PackScratch<T> pack;
          for (size_t branch = 0; branch < branches; ++branch)
            if (wanted(branch)) unpack_chunk(branch, panel, chunk, mine, 1, !keep && b > 0, pack);
        });
      };
      size_t first = 0;
      for (WinogradGradWeight<T>& part : dense) {
        part.load_gradients(bands[b], band.factor, band.dense, as<T>(operands));
        for (size_t c = 0; c < part.chunks().size(); c += part.chunks_at_once()) {
          const size_t count = std::min(part.chunks_at_once(), part.chunks().size() - c);
          part.load_features(features, c);
          sum_chunks(first + c, count, &part, c);
        }
        first += part.chunks().size();
      }
      if (!by_winograd) sum_chunks(0, chunks.size(), nullptr, 0);
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
  if (p.dense_given) {
    grad_weight_by<T>({}, p, grad, grad_weights, grad_scales, grad_sum);
    return;
  }
  if (is_depthwise(p)) return grad_weight_depthwise(p, grad, grad_weights[0], grad_sum);
  if (has_few_outputs_for_weights(p))
    return grad_weight_few_outputs(p, grad, grad_weights[0], grad_scales[0], grad_sum);
  const std::vector<WinogradPart<T>> parts =
      winograd_parts(p, choose_winograd<T, Favour::none>(p, kLeastTiles), true, kLeastTiles);
  if (!parts.empty() && grad_weight_by(parts, p, grad, grad_weights, grad_scales, grad_sum)) return;
  grad_weight_by<T>({}, p, grad, grad_weights, grad_scales, grad_sum);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

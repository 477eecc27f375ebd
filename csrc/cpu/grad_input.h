// dL/dx = sum over passes of conv_transposed(s_pass o m' o dL/dy, V_pass), gathered: rows are stored pixels
// of one source, sorted by class (the residue modulo the stride, one class for all that no tap meets) since
// each class meets its own taps. Holes get exactly 0.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "bands.h"
#include "grad_input_axis.h"
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

// The taps of one pass in one class of rows and columns, in the order of their gradient pixels.
struct ClassTaps {
  TapTable table;
  int64_t bit_rows = 0, bit_cols = 0;  // extent of all its taps in gradient pixels
  int64_t top = 0, left = 0;           // first gradient pixel relative to the base
  uint64_t used = 0;                   // bits of its taps
};

template <class T>
static std::vector<ClassTaps> class_tables(const Problem<T>& p, const Axis& rows, const Axis& cols,
                                           const Pass& pass, int64_t chunk, Placements& placements) {
  const bool bits = rows.bits() && cols.bits();
  const int64_t Gw = cols.extent();
  std::vector<ClassTaps> out;
  int64_t slot = 0;
  for (const auto& row_taps : rows.classes)
    for (const auto& col_taps : cols.classes) {
      ClassTaps taps;
      taps.bit_rows = row_taps.size();
      taps.bit_cols = col_taps.size();
      if (!row_taps.empty()) taps.top = row_taps[0].offset;
      if (!col_taps.empty()) taps.left = col_taps[0].offset;
      for (size_t r = 0; r < row_taps.size(); ++r)
        for (size_t c = 0; c < col_taps.size(); ++c) {
          bool any = false;
          for (size_t i : pass.merged) {
            const Branch<T>& b = p.branches[i];
            for (int64_t y : row_taps[r].kernel)
              for (int64_t x : col_taps[c].kernel) {
                const int64_t ky = y - (p.geo.kh - b.kh) / 2, kx = x - (p.geo.kw - b.kw) / 2;
                if (ky < 0 || ky >= b.kh || kx < 0 || kx >= b.kw) continue;
                placements.put(i, ky * b.kw + kx, slot);
                any = true;
              }
          }
          if (!any) continue;
          taps.table.add({(row_taps[r].offset * Gw + col_taps[c].offset) * chunk, slot * chunk, chunk,
                          bits ? uint64_t{1} << (r * col_taps.size() + c) : kAllTaps});
          taps.used |= taps.table.taps.back().bit;
          ++slot;
        }
      taps.table.close();
      out.push_back(taps);
    }
  return out;
}

// Gradient rows of a slice of input rows, [O / chunk][passes, rows, Gw, chunk]: per pass a copy scaled by
// that pass's factor, and marks where that is not 0. Chunks are `plane` entries apart, further than one slice
// needs.
template <class T>
struct GradientBand {
  int64_t first, rows;  // gradient rows with the zeros above counted in
  T* data;
  int64_t chunk, plane, passes, left, Gw;
  std::vector<uint8_t> marks;  // [passes, rows, mark_stride]
  int64_t mark_stride;

  static int64_t row_count(const Axis& rows, const Slice& s) {
    return rows.base(s.end - 1) - rows.base(s.begin) + rows.before + 1;
  }

  GradientBand(const Problem<T>& p, const Axis& row_axis, const Axis& col_axis, const std::vector<Pass>& list,
               const Gradient& grad, const Slice& s, T* memory, int64_t chunk, int64_t plane)
      : first(row_axis.base(s.begin) - row_axis.before),
        rows(row_count(row_axis, s)),
        data(memory),
        chunk(chunk),
        plane(plane),
        passes(list.size()),
        left(col_axis.before),
        Gw(col_axis.extent()),
        mark_stride(Gw + 8) {
    const Geometry& g = p.geo;
    marks.assign(passes * rows * mark_stride, 0);
    std::vector<T> scratch, scale(passes * g.Wo);
    const Counts<T> counts(p, s.n);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t oh = first + r;
      const bool inside = oh >= 0 && oh < g.Ho;
      for (int64_t ow = 0; inside && ow < g.Wo; ++ow) {
        const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow);
        for (int64_t k = 0; k < passes; ++k) {
          scale[k * g.Wo + ow] = ratios.scale(list[k], false);
          marks[(k * rows + r) * mark_stride + left + ow] = scale[k * g.Wo + ow] != T(0);
        }
      }
      for (int64_t c = 0; c < g.O; c += chunk) {
        T* all = row(0, r) + c / chunk * plane + left * chunk;
        if (inside) load_gradient_rows(p, grad, {s.n, oh, oh + 1}, c, chunk, scratch, all, chunk);
        for (int64_t k = passes; k-- > 0;)  // the first pass last: its row is the source
          scale_row(g.Wo, row(k, r) + c / chunk * plane, all, inside ? scale.data() + k * g.Wo : nullptr);
      }
    }
  }
  T* row(int64_t pass, int64_t r) const { return data + (pass * rows + r) * Gw * chunk; }

 private:
  void scale_row(int64_t Wo, T* dst, const T* source, const T* scale) const {
    if (!scale) {
      std::fill_n(dst, Gw * chunk, T(0));
      return;
    }
    std::fill_n(dst, left * chunk, T(0));
    std::fill_n(dst + (left + Wo) * chunk, (Gw - left - Wo) * chunk, T(0));
    dst += left * chunk;
    for (int64_t ow = 0; ow < Wo; ++ow, dst += chunk, source += chunk) {
      const T s = scale[ow];
      if (s == T(0))
        std::fill_n(dst, chunk, T(0));
      else if (dst != source || s != T(1))
        for (int64_t c = 0; c < chunk; ++c) dst[c] = s * source[c];
    }
  }
};

// Rows of every pass and class over a band of input rows; `dead` are the pixels that no gradient reaches.
template <class T>
struct InputRows {
  std::vector<TileList<T>> passes;
  std::vector<int32_t> dead;

  void add(const Source& source, const Axis& row_axis, const Axis& col_axis,
           const std::vector<std::vector<ClassTaps>>& tables, const Slice& s, const GradientBand<T>& gradient,
           int32_t first_pixel) {
    const bool bits = row_axis.bits() && col_axis.bits();
    const int64_t W = col_axis.size;
    std::vector<Row<T>> rows;
    for (size_t k = 0; k < tables.size(); ++k)
      for (size_t cls = 0; cls < tables[k].size(); ++cls) {
        const ClassTaps& t = tables[k][cls];
        const int64_t a = cls / col_axis.classes.size(), b = cls % col_axis.classes.size();
        rows.clear();
        for (int64_t h = s.begin; h < s.end; ++h) {
          if (row_axis.class_of[h] != a) continue;
          const uint8_t* mask = source.mask_per_channel ? nullptr : mask_row(source, s.n, 0, h);
          const int64_t r = row_axis.base(h) - gradient.first;
          for (int64_t w = 0; w < W; ++w) {
            if (col_axis.class_of[w] != b) continue;
            const int64_t c = col_axis.base(w) + gradient.left;
            const int32_t pixel = first_pixel + static_cast<int32_t>((h - s.begin) * W + w);
            const bool seen = (!mask || mask[w]) && !t.table.taps.empty();
            uint64_t hit = kAllTaps;
            if (seen && bits)
              hit = t.used &
                    window_bits(gradient.marks.data() +
                                    (k * gradient.rows + r + t.top) * gradient.mark_stride + c + t.left,
                                gradient.mark_stride, t.bit_rows, t.bit_cols);
            if (seen && hit)
              rows.push_back({gradient.row(k, r) + c * gradient.chunk, pixel, T(1), hit});
            else if (k == 0)
              dead.push_back(pixel);
          }
        }
        std::stable_sort(rows.begin(), rows.end(),
                         [](const Row<T>& x, const Row<T>& y) { return x.bits < y.bits; });
        for (const Row<T>& row : rows) passes[k].push(row.a, row.pixel, row.scale, row.bits, t.table);
        passes[k].close(t.table);
      }
  }
};

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

template <class T>
static void grad_source(const Problem<T>& p, const Gradient& grad, const View& view, const Source& source,
                        const Target& out) {
  const Geometry& g = p.geo;
  if (g.N * source.H * source.W * source.C == 0) return;
  const Axis rows(source.up, source.H, g.Ho, g.kh, g.sh, g.dh, g.pt),
      cols(source.up, source.W, g.Wo, g.kw, g.sw, g.dw, g.pl);
  Problem<T> dense =
      p;  // a source alone, read at full resolution: its passes only say what is scaled and merged
  dense.sources.assign(1, Source{});
  const std::vector<Pass> passes = make_passes(dense, make_views(dense), false);
  const Panels panels = make_panels<T>(g.groups, view.g.Cg());

  const int64_t gradient_row = cols.extent() * g.O * passes.size();
  const int64_t result_row = source.W * kPanel<T>;
  const int64_t gradient_rows_per_row = source.up ? 2 : 1;
  const int64_t row_bytes = (gradient_row * gradient_rows_per_row / g.sh + result_row) * sizeof(T);
  int64_t weight_rows = 0;
  for (const Pass& pass : passes) weight_rows += (source.up ? (g.kh + 1) * (g.kw + 1) : pass.taps()) * g.Og();
  const int64_t threads = thread_count();
  const bool split_panels =
      weight_rows * panels.columns * static_cast<int64_t>(sizeof(T)) > row_bytes * g.N * source.H &&
      static_cast<int64_t>(panels.list.size()) >= threads;
  const int64_t chunk = split_panels ? channel_chunk(g.Og()) : g.Og();
  std::vector<std::vector<ClassTaps>> tables;
  std::vector<Placements> placements;
  std::vector<int64_t> offset{0};  // of each pass in a packed panel, in rows
  for (const Pass& pass : passes) {
    placements.emplace_back(p.branches.size());
    tables.push_back(class_tables(p, rows, cols, pass, chunk, placements.back()));
    int64_t slots = 0;
    for (const ClassTaps& t : tables.back()) slots += t.table.taps.size();
    offset.push_back(offset.back() + slots * chunk);
  }

  const std::vector<Band> bands =
      make_bands(g.N, source.H,
                 split_panels ? rows_per_band(kSharedBandBytes, row_bytes, g.N * source.H, 1)
                              : rows_per_band(kTileCacheBytes, row_bytes, g.N * source.H, threads));
  int64_t gradient_size = 0, max_rows = 0;
  for (const Band& band : bands) {
    int64_t size = 0;
    for (const Slice& s : band) size += GradientBand<T>::row_count(rows, s) * gradient_row;
    gradient_size = std::max(gradient_size, size);
    max_rows = std::max(max_rows, band_rows(band));
  }
  const int64_t result_size = max_rows * result_row;
  const int64_t shared_size = split_panels ? gradient_size : offset.back() * panels.columns;
  const int64_t own_size = result_size + (split_panels ? offset.back() * kPanel<T> : gradient_size);
  const Buffer shared = allocate(shared_size * sizeof(T)), own = allocate(threads * own_size * sizeof(T));

  const auto pack = [&](const Panel& panel, int64_t o, PackScratch<T>& scratch, T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      pack_grad_input(p, passes[k], placements[k], panel, view.channel + panel.first, o, chunk, scratch,
                      dst + offset[k] * panel.vectors * kLanes<T>);
  };
  struct LoadedBand {
    InputRows<T> rows;
    int64_t plane = 0;
  };
  const auto load_band = [&](const Band& band, T* memory, bool in_parallel) {
    LoadedBand loaded;
    std::vector<int64_t> at;
    for (const Slice& s : band) {
      at.push_back(loaded.plane);
      loaded.plane += GradientBand<T>::row_count(rows, s) * gradient_row / g.O * chunk;
    }
    std::vector<std::unique_ptr<GradientBand<T>>> slices(band.size());
    each(in_parallel, band.size(), [&](int64_t i) {
      slices[i] = std::make_unique<GradientBand<T>>(p, rows, cols, passes, grad, band[i], memory + at[i],
                                                    chunk, loaded.plane);
    });
    loaded.rows.passes.resize(passes.size());
    int32_t pixel = 0;
    for (size_t i = 0; i < band.size(); ++i) {
      loaded.rows.add(source, rows, cols, tables, band[i], *slices[i], pixel);
      pixel += static_cast<int32_t>(band[i].rows() * source.W);
    }
    return loaded;
  };
  const T zero[kPanel<T>] = {};
  const auto multiply = [&](const LoadedBand& band, const Panel& panel, int64_t o, const T* b, T* results) {
    for (size_t k = 0; k < passes.size(); ++k)
      band.rows.passes[k].multiply(panel, (panel.group * g.Og() + o) / chunk * band.plane,
                                   b + offset[k] * panel.vectors * kLanes<T>, results,
                                   k == 0 && o == 0 ? zero : nullptr);
  };
  const auto finish = [&](const Band& band, const InputRows<T>& loaded, const Panel& panel, T* results,
                          std::vector<T>& scratch) {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : loaded.dead) std::fill_n(results + pixel * columns, columns, T(0));
    for (const Slice& s : band) {
      write_grad_input(p.dtype, source, results, columns, panel.width, out, s,
                       panel.group * view.g.Cg() + panel.first, scratch);
      results += s.rows() * source.W * columns;
    }
  };

  if (split_panels) {
    for (const Band& band : bands) {
      const LoadedBand loaded = load_band(band, as<T>(shared), true);
      parallel(panels.list.size(), [&](int64_t i, int64_t thread) {
        PackScratch<T> scratch;
        T *results = as<T>(own) + thread * own_size, *packed = results + result_size;
        for (int64_t o = 0; o < g.Og(); o += chunk) {
          pack(panels.list[i], o, scratch, packed);
          multiply(loaded, panels.list[i], o, packed, results);
        }
        finish(band, loaded.rows, panels.list[i], results, scratch.block);
      });
    }
  } else {
    parallel(panels.list.size(), [&](int64_t i, int64_t) {
      PackScratch<T> scratch;
      pack(panels.list[i], 0, scratch, as<T>(shared) + offset.back() * panels.list[i].column);
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      T* results = as<T>(own) + thread * own_size;
      std::vector<T> scratch;
      const LoadedBand loaded = load_band(bands[i], results + result_size, false);
      for (const Panel& panel : panels.list) {
        multiply(loaded, panel, 0, as<T>(shared) + offset.back() * panel.column, results);
        finish(bands[i], loaded.rows, panel, results, scratch);
      }
    });
  }
}

template <class T>
static void grad_input(const Problem<T>& p, Gradient grad, const std::vector<Target>& out) {
  const std::vector<View> views = make_views(p);
  for (size_t i = 0; i < views.size(); ++i)
    if (out[i].data) grad_source(p, grad, views[i], p.sources[i], out[i]);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

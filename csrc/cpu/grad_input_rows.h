// What the input gradient gathers from, and the rows that gather: stored pixels of one source, sorted by
// class (the residue modulo the stride, one class for all that no tap meets) since each class meets its own
// taps.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bands.h"
#include "grad_input_axis.h"
#include "isa.h"
#include "passes.h"
#include "problem.h"
#include "tiles.h"
#include "vec.h"
#include "winograd.h"

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
  const int64_t Gw = cols.all().size();
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
          for (size_t i = pass.branch + 1; i-- > 0;) {
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
// that pass's factor, and marks where that is not 0, in the first pass where any is not. The first pass lies
// in memory of its own. Chunks are `plane` entries of one pass apart, further than one slice needs.
template <class T>
struct GradientBand {
  int64_t first, rows;  // gradient rows with the zeros above counted in
  T *data, *rest;
  int64_t chunk, plane, passes, left, Gw;
  std::vector<uint8_t> marks;  // [passes, rows, mark_stride]
  int64_t mark_stride;
  bool all_moderate = true;  // the first pass, where it is Winograd's

  GradientBand(const Problem<T>& p, const Axis& row_axis, const Axis& col_axis, const std::vector<Pass>& list,
               const Gradient& grad, const Slice& s, T limit, T* memory, T* rest, int64_t chunk,
               int64_t plane)
      : first(row_axis.span(s.begin, s.end).begin),
        rows(row_axis.span(s.begin, s.end).size()),
        data(memory),
        rest(rest),
        chunk(chunk),
        plane(plane),
        passes(list.size()),
        left(-col_axis.all().begin),
        Gw(col_axis.all().size()),
        mark_stride(Gw + 8) {
    const Geometry& g = p.geo;
    marks.assign(passes * rows * mark_stride, 0);
    std::vector<T> scratch, scale(passes * g.Wo);
    const Counts<T> counts(p, s.n);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t oh = first + r;
      const bool inside = oh >= 0 && oh < g.Ho;
      for (int64_t ow = 0; inside && ow < g.Wo; ++ow) {
        const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow, limit);
        for (int64_t k = 0; k < passes; ++k) {
          scale[k * g.Wo + ow] = ratios.scale(list[k]);
          mark(k, r)[left + ow] = k == 0 ? ratios.state != kDead : scale[k * g.Wo + ow] != T(0);
        }
      }
      for (int64_t c = 0; c < g.O; c += chunk) {
        T* all = row(0, r) + c / chunk * plane_of(0) + left * chunk;
        if (inside) load_gradient_rows(p, grad, {s.n, oh, oh + 1}, c, chunk, scratch, all, chunk);
        for (int64_t k = passes; k-- > 0;)  // the first pass last: its row is the source
          scale_row(g.Wo, row(k, r) + c / chunk * plane_of(k), all,
                    inside ? scale.data() + k * g.Wo : nullptr);
        if (limit > T(0)) all_moderate &= moderate(all, g.Wo * chunk);
      }
    }
  }
  T* row(int64_t pass, int64_t r) const {
    return (pass == 0 ? data + r * Gw * chunk : rest + ((pass - 1) * rows + r) * Gw * chunk);
  }
  // Entries from one chunk of a pass to the next.
  int64_t plane_of(int64_t pass) const { return pass == 0 ? plane : (passes - 1) * plane; }
  const uint8_t* mark(int64_t pass, int64_t r) const {
    return marks.data() + (pass * rows + r) * mark_stride;
  }

 private:
  uint8_t* mark(int64_t pass, int64_t r) { return marks.data() + (pass * rows + r) * mark_stride; }
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

// What becomes of a pixel whose dense part is given: nothing, a sum, or 0.
enum Reach : uint8_t { kNone, kSum, kHole };

// Rows of every pass and class over a band of input rows; `dead` are the pixels that no gradient reaches.
template <class T>
struct InputRows {
  std::vector<TileList<T>> passes;
  std::vector<int32_t> dead;
  std::vector<uint8_t> reach;  // of every pixel where the dense part is given, else empty

  void add(const Source& source, const Axis& row_axis, const Axis& col_axis, const std::vector<Pass>& list,
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
            if (!reach.empty() && mask && !mask[w]) reach[pixel] = kHole;
            const bool seen = (!mask || mask[w]) && !t.table.taps.empty();
            uint64_t hit = kAllTaps;
            if (seen && bits)
              hit = t.used & window_bits(gradient.mark(k, r + t.top) + c + t.left, gradient.mark_stride,
                                         t.bit_rows, t.bit_cols);
            if (seen && hit && list[k].kind != Pass::kWinograd && !reach.empty()) reach[pixel] = kSum;
            if (seen && hit)
              rows.push_back({gradient.row(k, r) + c * gradient.chunk, pixel, T(1), hit});
            else if (k == 0)
              dead.push_back(pixel);
          }
        }
        if (list[k].kind == Pass::kWinograd) continue;
        std::stable_sort(rows.begin(), rows.end(),
                         [](const Row<T>& x, const Row<T>& y) { return x.bits < y.bits; });
        for (const Row<T>& row : rows) passes[k].push(row.a, row.pixel, row.scale, row.bits, t.table);
        passes[k].close(t.table);
      }
  }
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

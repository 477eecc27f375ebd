// One direction of the input gradient: which gradient rows (or columns) meet which input rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "../pixel.h"
#include "isa.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// A gradient pixel that a class of input rows (or columns) meets, relative to the row's base, and the kernel
// rows of the largest kernel that connect them: one, or two where an up-sampled source is summed over its
// copies.
struct AxisTap {
  int64_t offset;
  std::vector<int64_t> kernel;
};

struct Span {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Winograd's tiles: tile t covers input rows [start + t * size, start + (t + 1) * size) and meets gradient
// rows [first + t * step, first + t * step + span).
struct AxisTiles {
  int64_t size, start, step, span, first;

  // m results of each residue modulo the stride, which lie next to each other in the image. Of residue a tile
  // t holds rows stride * (first + t * step + taps(a) - 1 + i) + a - pad for i < m.
  static AxisTiles of_residues(int64_t m, int64_t r, int64_t stride, bool shorter, int64_t pad) {
    const int64_t odd = shorter ? 1 : 0;  // the last residue's results begin one earlier
    const int64_t first = (pad + odd) / stride - (r - 1);
    return {m * stride, stride * (first + r - 1) - odd - pad, m, m + r - 1, first};
  }
  // m stored rows of a map that is read up-sampled: a filter of stride 2 and one row more moves over the
  // gradient.
  static AxisTiles over_upsampled(int64_t m, int64_t r, int64_t kernel) {
    return {m, 0, 2 * m, 2 * (m + r - 1), kernel / 2 + 1 - kernel};
  }
  int64_t count(int64_t rows) const { return (rows - start + size - 1) / size; }
  // Tiles with results in [begin, end).
  Span of(int64_t begin, int64_t end) const { return {(begin - start) / size, count(end)}; }
  Span gradient(int64_t begin, int64_t end) const {
    const Span tiles = of(begin, end);
    return {first + tiles.begin * step, first + (tiles.end - 1) * step + span};
  }
};

// Input rows against gradient rows. Offsets are at most 0; `before` is how far they reach.
struct Axis {
  bool up;
  int64_t size, out, kernel, stride, dilation, pad;  // size: stored rows; out: gradient rows
  int64_t before;
  std::vector<std::vector<AxisTap>> classes;
  std::vector<int64_t> class_of;  // [size]
  std::optional<AxisTiles> tiles;

  Axis(bool up, int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad)
      : up(up),
        size(size),
        out(out),
        kernel(kernel),
        stride(stride),
        dilation(dilation),
        pad(pad),
        before(up ? kernel : (kernel - 1) * dilation / stride) {
    if (up) {
      // Stored row i lies at rows 2i and 2i + 1 of the image, 2i + 1 missing at the end of an odd size.
      for (int64_t copies = 2; copies >= (out % 2 ? 1 : 2); --copies) {
        classes.emplace_back();
        for (int64_t u = 0; u <= kernel; ++u) {
          AxisTap tap{u - kernel, {}};
          for (int64_t copy = 0; copy < copies; ++copy)
            if (kernel - 1 - u + copy >= 0 && kernel - 1 - u + copy < kernel)
              tap.kernel.push_back(kernel - 1 - u + copy);
          if (!tap.kernel.empty()) classes.back().push_back(tap);
        }
      }
      for (int64_t i = 0; i < size; ++i) class_of.push_back(stored_positions(size, out).type_of(i));
      return;
    }
    std::vector<int64_t> residues;  // met by a tap, so no more than kernel rows
    for (int64_t k = 0; k < kernel; ++k) residues.push_back(k * dilation % stride);
    std::sort(residues.begin(), residues.end());
    residues.erase(std::unique(residues.begin(), residues.end()), residues.end());
    for (int64_t residue : residues) {
      classes.emplace_back();
      for (int64_t k = kernel; k-- > 0;)
        if ((k * dilation - residue) % stride == 0)
          classes.back().push_back({(residue - k * dilation) / stride, {k}});
    }
    if (static_cast<int64_t>(residues.size()) < stride) classes.emplace_back();
    for (int64_t i = 0; i < size; ++i)
      class_of.push_back(std::find(residues.begin(), residues.end(), (i + pad) % stride) - residues.begin());
  }
  // Gradient row that offset 0 stands for.
  int64_t base(int64_t i) const { return up ? 2 * i + 1 + kernel / 2 : (i + pad) / stride; }
  // Gradient rows that input rows [begin, end) meet, one by one and in tiles.
  Span span(int64_t begin, int64_t end) const {
    Span met{base(begin) - before, base(end - 1) + 1};
    if (tiles) {
      const Span more = tiles->gradient(begin, end);
      met = {std::min(met.begin, more.begin), std::max(met.end, more.end)};
    }
    return met;
  }
  // All of them, and every gradient row.
  Span all() const {
    const Span met = span(0, size);
    return {std::min<int64_t>(met.begin, 0), std::max(met.end, out)};
  }
  // Whether the taps of every class are consecutive and few enough for window_bits.
  bool bits() const {
    bool fit = dilation == 1;
    for (const auto& taps : classes) fit &= taps.size() <= 8;
    return fit;
  }
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

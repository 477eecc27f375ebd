// The gradient of the weights where outputs are few: the roles of features and gradient are swapped, so that
// channels of the features fill the vectors,
//   S [offset x O, C] = sum over stored pixels of gradient at the offset (outer) features,
// an offset being that of an output pixel from the stored pixel (its first copy, where it is up-sampled), and
// each tap is the offset that it stands for, or the sum of those of both copies.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

template <class T>
static bool has_few_outputs_for_weights(const Problem<T>& p) {
  const Geometry& g = p.geo;
  int64_t vectors = 0;
  for (const Source& s : p.sources) {
    vectors += (s.C + kLanes<T> - 1) / kLanes<T>;
    // The last row or column of an odd size has one copy alone.
    if (s.up && (g.H != 2 * s.H || g.W != 2 * s.W)) return false;
  }
  return g.O * vectors < g.C && 2 * g.O <= kLanes<T> && g.groups == 1 && p.branches.size() == 1 &&
         g.sh == 1 && g.sw == 1;
}

// s_pass o m' o dL/dy with zeros around it, [N, rows, columns, O], its first entry that of output pixel (top,
// left).
template <class T>
struct PaddedGradient {
  int64_t top, left, rows, columns, O;
  Buffer memory;

  // Adds the sums over live pixels to `sums` [O].
  PaddedGradient(const Problem<T>& p, const Gradient& grad, double* sums) : O(p.geo.O) {
    const Geometry& g = p.geo;
    top = std::min<int64_t>(0, g.pt - (g.kh - 1) * g.dh),
    left = std::min<int64_t>(0, g.pl - (g.kw - 1) * g.dw);
    rows = std::max(g.Ho, g.H + g.pt) - top, columns = std::max(g.Wo, g.W + g.pl) - left;
    memory = allocate(g.N * rows * columns * O * sizeof(T));
    std::vector<double> row_sums(g.N * rows * O, 0.0);
    parallel(g.N * rows, [&](int64_t i, int64_t) {
      const int64_t n = i / rows, oh = i % rows + top;
      T* row = as<T>(memory) + i * columns * O;
      std::fill_n(row, columns * O, T(0));
      if (oh < 0 || oh >= g.Ho) return;
      row -= left * O;
      std::vector<T> scratch;
      load_gradient_rows(p, grad, {n, oh, oh + 1}, 0, O, scratch, row, O);
      const int32_t* count = Counts<T>(p, n).of[0] + oh * g.Wo;
      const int32_t whole = static_cast<int32_t>(p.windows->whole[0]);
      for (int64_t ow = 0; ow < g.Wo; ++ow, row += O) {
        const T scale = ratio_of(static_cast<T>(whole), count[ow]);
        for (int64_t o = 0; o < O; ++o) {
          const T value = count[ow] > 0 ? row[o] : T(0);
          row_sums[i * O + o] += value;
          row[o] = scale * value;
        }
      }
    });
    for (size_t i = 0; i < row_sums.size(); ++i) sums[i % O] += row_sums[i];
  }
  const T* at(int64_t n, int64_t oh, int64_t ow) const {
    return as<T>(memory) + ((n * rows + oh - top) * columns + ow - left) * O;
  }
};

// The offsets of a source.
struct TapOffsets {
  int64_t copies, rows, columns;  // copies of a stored row or column; offsets

  TapOffsets(const Source& s, const Geometry& g) : copies(s.up ? 2 : 1), rows(g.kh), columns(g.kw) {
    rows += s.up, columns += s.up;
  }
};

template <class T>
static void grad_weight_few_outputs(const Problem<T>& p, const Gradient& grad, T* grad_weight, T* grad_scale,
                                    T* grad_sum) {
  const Geometry& g = p.geo;
  const Branch<T>& branch = p.branches[0];
  std::vector<double> sums(g.O, 0.0), scale_sums(g.O, 0.0);
  const PaddedGradient<T> gradient(p, grad, sums.data());
  for (int64_t o = 0; grad_sum && o < g.O; ++o) grad_sum[o] = static_cast<T>(sums[o]);
  const int64_t threads = thread_count();
  int64_t channel = 0;
  for (size_t k = 0; (grad_weight || grad_scale) && k < p.sources.size(); channel += p.sources[k++].C) {
    const Source& source = p.sources[k];
    const TapOffsets offsets(source, g);
    const Panels panels = make_panels<T>(1, source.C);
    const int64_t size = offsets.rows * offsets.columns * g.O * panels.columns;
    const int64_t run =
        (g.dw == 1 ? offsets.columns : 1) * g.O;  // neighbouring offsets lie beside each other
    const Buffer memory = allocate(threads * (size + source.W * kPanel<T>)*sizeof(T));
    std::vector<PixelPair> pixels;
    for (int64_t w = 0; w < source.W; ++w)
      pixels.push_back({static_cast<int32_t>(offsets.copies * w * g.O), static_cast<int32_t>(w)});
    // Rows are dealt out in a fixed way, so that the sums do not depend on timing.
    parallel(threads, [&](int64_t thread, int64_t) {
      T *mine = as<T>(memory) + thread * size,
        *features = as<T>(memory) + threads * size + thread * source.W * kPanel<T>;
      std::fill_n(mine, size, T(0));
      std::vector<T> scratch;
      const int64_t total = g.N * source.H;
      for (const Panel& panel : panels.list) {
        const int64_t columns = panel.vectors * kLanes<T>;
        std::fill_n(features, source.W * columns, T(0));
        for (int64_t i = thread * total / threads; i < (thread + 1) * total / threads; ++i) {
          const int64_t n = i / source.H, h = i % source.H;
          load_channels(p, source, 0, n, h, panel.first, panel.width, source.W, scratch, features, columns);
          for (int64_t u = 0; u < offsets.rows; ++u) {
            const T* first =
                gradient.at(n, offsets.copies * h + g.pt - (g.kh - 1 - u) * g.dh, g.pl - (g.kw - 1) * g.dw);
            T* out = mine + offsets.rows * offsets.columns * g.O * panel.column +
                     u * offsets.columns * g.O * columns;
            for (int64_t r = 0; r < offsets.columns * g.O; r += run)
              for (int64_t m = 0, tiles = (run + kRows - 1) / kRows; tiles > 0; --tiles) {
                const int64_t rows = (run - m + tiles - 1) / tiles;
                outer(panel.vectors, rows, first + r * g.dw + m, pixels.data(), source.W, features,
                      out + (r + m) * columns, columns);
                m += rows;
              }
          }
        }
      }
    });
    // S of all threads into the first, and from there to the taps.
    T* all = as<T>(memory);
    for (int64_t thread = 1; thread < threads; ++thread)
      for (int64_t i = 0; i < size; ++i) all[i] += all[thread * size + i];
    for (const Panel& panel : panels.list)
      for (int64_t o = 0; o < g.O; ++o)
        for (int64_t c = 0; c < panel.width; ++c)
          for (int64_t y = 0; y < g.kh; ++y)
            for (int64_t x = 0; x < g.kw; ++x) {
              T sum = 0;
              for (int64_t a = 0; a < offsets.copies; ++a)
                for (int64_t b = 0; b < offsets.copies; ++b) {
                  const int64_t offset = (g.kh - 1 - y + a) * offsets.columns + g.kw - 1 - x + b;
                  sum += all[offsets.rows * offsets.columns * g.O * panel.column +
                             (offset * g.O + o) * panel.vectors * kLanes<T> + c];
                }
              const int64_t at = ((o * g.C + channel + panel.first + c) * g.kh + y) * g.kw + x;
              scale_sums[o] += static_cast<double>(branch.weight[at]) * sum;
              if (grad_weight) grad_weight[at] = branch.scale ? branch.scale[o] * sum : sum;
            }
  }
  for (int64_t o = 0; grad_scale && o < g.O; ++o) grad_scale[o] = static_cast<T>(scale_sums[o]);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

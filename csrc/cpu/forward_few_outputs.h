// Where outputs are few, vectors of them would be mostly empty: of a picture's three, 13 lanes of 16. Here
// pixels fill the vectors. Every stored pixel is multiplied by the weights of all taps at once,
//   products [taps x O, pixels] = weights [taps x O, C] x planes [C, pixels],
// and an output pixel adds up those that its window meets. Planes lie so already: nothing is transposed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

template <class T>
static bool has_few_outputs(const Problem<T>& p) {
  const Geometry& g = p.geo;
  return 2 * g.O <= kLanes<T> && g.groups == 1 && p.branches.size() == 1 && g.sh == 1 && g.sw == 1 &&
         g.pixels() >= kMergePixels;  // below, an up-sampled source is not read as it is stored
}

// dst [count] += the sum of rows; reads and writes up to a vector more.
template <class T>
static void add_rows(const std::vector<const T*>& rows, int64_t count, T* dst) {
  for (int64_t w = 0; w < count; w += kLanes<T>) {
    Vec<T> sum = load(rows[0] + w);
    for (size_t i = 1; i < rows.size(); ++i) sum += load(rows[i] + w);
    store(dst + w, load(dst + w) + sum);
  }
}

// Columns [first, first + n) of the masked stored row h as planes [C, ldd], with zeros behind the n-th.
template <class T>
static void load_planes(const Problem<T>& p, const Source& s, int64_t image, int64_t h, int64_t first,
                        int64_t n, std::vector<T>& scratch, T* dst, int64_t ldd) {
  if (s.channels_last) {
    scratch.resize(n * s.C);
    widen(p.dtype, s.data, ((image * s.H + h) * s.W + first) * s.C, n * s.C, scratch.data());
    transpose(scratch.data(), s.C, n, s.C, dst, ldd);
  } else {
    for (int64_t c = 0; c < s.C; ++c) {
      const int64_t at = ((image * s.C + c) * s.H + h) * s.W + first;
      widen(p.dtype, s.data, at, n, dst + c * ldd);
      // Too many planes for the processor to follow by itself: the same columns of the next row.
      for (int64_t i = 0; is_wide(p.dtype) && i < n; i += 64 / sizeof(T))
        __builtin_prefetch(static_cast<const T*>(s.data) + at + s.W + i, 0, 2);
    }
  }
  const uint8_t* mask = nullptr;
  for (int64_t c = 0; c < s.C; ++c) {
    T* row = dst + c * ldd;
    if (s.mask && (c == 0 || s.mask_per_channel)) {
      mask = mask_row(s, image, c, h) + first;
      if (!memchr(mask, 0, n)) mask = nullptr;
    }
    for (int64_t i = 0; mask && i < n; ++i) row[i] = mask[i] ? row[i] : T(0);
    std::fill(row + n, row + ldd, T(0));
  }
}

// The products of one source: rows of them, [rows of a window][slots x O][stride], each written over what no
// window needs any more.
template <class T>
struct FewProducts {
  const View& view;
  const Source& source;
  std::vector<const Pass*> passes;
  std::vector<int64_t> slot;  // where each begins
  int64_t O, slots = 0, depth, width, stride;
  std::vector<T> weights;  // [slots x O, C]

  FewProducts(const Problem<T>& p, const View& view, const Source& source, const std::vector<Pass>& all,
              size_t index)
      : view(view), source(source), O(p.geo.O) {
    const Geometry& g = view.g;
    constexpr int64_t L = kLanes<T>;
    depth = (g.kh - 1) * g.dh + 1;
    width = std::max<int64_t>(0, std::min(g.W, g.Wp - g.pl));
    stride = std::max(g.Wp, g.pl + width + L) + L;
    for (const Pass& pass : all)
      if (pass.source == index) {
        passes.push_back(&pass);
        slot.push_back(slots);
        slots += pass.taps();
      }
    weights.resize(slots * O * g.C);
    PackScratch<T> scratch;
    for (size_t k = 0; k < passes.size(); ++k) {
      std::vector<T> packed(passes[k]->taps() * g.C * L);
      pack_forward(p, {{passes[k]->placements, packed.data(), g.C}}, Panel{0, 0, O, 1, 0, 0}, view.channel,
                   g.C, scratch);
      for (int64_t t = 0; t < passes[k]->taps(); ++t)
        for (int64_t o = 0; o < O; ++o)
          for (int64_t c = 0; c < g.C; ++c)
            weights[((slot[k] + t) * O + o) * g.C + c] = packed[(t * g.C + c) * L + o];
    }
  }
  int64_t size() const { return depth * slots * O * stride; }
  int64_t panel_size() const { return view.g.C * kPanel<T>; }

  T* row(T* memory, int64_t y, int64_t r) const { return memory + (y % depth * slots * O + r) * stride; }

  // Padded row y of a slice that begins at stored row `begin`.
  void compute(const Problem<T>& p, int64_t image, int64_t begin, int64_t y, std::vector<T>& scratch,
               T* panel, T* memory) const {
    const int64_t h = begin + y - view.g.pt, rows = slots * O;
    if (h < 0 || h >= view.g.H) {
      std::fill_n(row(memory, y, 0), rows * stride, T(0));
      return;
    }
    for (int64_t r = 0; r < rows; ++r) {
      T* at = row(memory, y, r);
      std::fill_n(at, view.g.pl, T(0));
      std::fill(at + view.g.pl + width, at + stride, T(0));
    }
    for (int64_t w = 0; w < width; w += kPanel<T>) {
      const int64_t n = std::min(kPanel<T>, width - w), vectors = (n + kLanes<T> - 1) / kLanes<T>;
      load_planes(p, source, image, h, w, n, scratch, panel, vectors * kLanes<T>);
      product<T>(vectors, rows, {weights.data(), view.g.C, 1}, {panel, 0, vectors * kLanes<T>}, view.g.C,
                 row(memory, y, 0) + view.g.pl + w, stride, false);
    }
  }
  // Adds to the sums [O, ld] of output row oh the products its windows meet; `y` is the first padded row of
  // theirs.
  void add(const Geometry& out, int64_t oh, int64_t y, T* memory, std::vector<T>& line, T* sums,
           int64_t ld) const {
    const Geometry& g = view.g;
    std::vector<const T*> taps;
    for (size_t k = 0; k < passes.size(); ++k) {
      const Pass& pass = *passes[k];
      if (view.up && pass.row_class != up_class(oh, out.H, out.kh)) continue;
      const Positions<int64_t> columns = positions_over_upsampled(out.W, out.kw);
      const int64_t first = view.up ? columns.position(pass.col_class, 0) : 0;
      const int64_t count = !view.up             ? out.Wo
                            : pass.col_class < 2 ? (columns.size - columns.cut - first + 1) / 2
                                                 : 1;
      for (int64_t o = 0; o < O; ++o) {
        taps.clear();
        for (int64_t i = 0; i < pass.kh; ++i)
          for (int64_t j = 0; j < pass.kw; ++j)
            taps.push_back(row(memory, y + (pass.top + i) * g.dh, (slot[k] + i * pass.kw + j) * O + o) +
                           (first >> view.up) + (pass.left + j) * g.dw);
        if (!view.up) {
          add_rows(taps, count, sums + o * ld);
          continue;
        }
        std::fill_n(line.begin(), count, T(0));
        add_rows(taps, count, line.data());
        T* to = sums + o * ld + first;
        for (int64_t i = 0; i < count; ++i) to[2 * i] += line[i];
      }
    }
  }
};

template <class T>
static void forward_few_outputs(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  const std::vector<View> views = make_views(p);
  const std::vector<Pass> passes = make_passes(p, views);
  std::vector<FewProducts<T>> sources;
  int64_t size = 0, panel_size = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    sources.emplace_back(p, views[i], p.sources[i], passes, i);
    size += sources[i].size();
    panel_size = std::max(panel_size, sources[i].panel_size());
  }
  const int64_t ld = g.Wo + kLanes<T>, threads = thread_count();
  const int64_t own_size = size + panel_size + (g.O + 1) * ld;
  const Buffer own = allocate(threads * own_size * sizeof(T));
  // Rows of products are computed again where a band begins: bands of many rows.
  const std::vector<Band> bands = make_bands(g.N, g.Ho, std::max<int64_t>(16, g.N * g.Ho / (8 * threads)));
  parallel(bands.size(), [&](int64_t i, int64_t thread) {
    T *panel = as<T>(own) + thread * own_size, *products = panel + panel_size, *sums = products + size,
      *ratio = sums + g.O * ld;
    std::vector<T> scratch, line(ld);
    for (const Slice& s : bands[i]) {
      const Counts<T> counts(p, s.n);
      std::vector<int64_t> next(sources.size(), 0);  // padded row to compute
      for (int64_t oh = s.begin; oh < s.end; ++oh) {
        std::fill_n(sums, g.O * ld, T(0));
        T* memory = products;
        for (size_t k = 0; k < sources.size(); memory += sources[k++].size()) {
          const int64_t begin = s.begin >> views[k].up, y = (oh >> views[k].up) - begin;
          for (; next[k] < y + sources[k].depth; ++next[k])
            sources[k].compute(p, s.n, begin, next[k], scratch, panel, memory);
          sources[k].add(g, oh, y, memory, line, sums, ld);
        }
        const int32_t* count = counts.of[0] + oh * g.Wo;
        for (int64_t w = 0; w < g.Wo; ++w) ratio[w] = ratio_of(static_cast<T>(p.windows->whole[0]), count[w]);
        for (int64_t o = 0; o < g.O; ++o) {
          T* row = sums + o * ld;
          const T b = bias ? bias[o] : T(0);
          for (int64_t w = 0; w < g.Wo; ++w) row[w] = count[w] > 0 ? ratio[w] * row[w] + b : T(0);
          if (!out.channels_last) narrow(p.dtype, row, g.Wo, out.data, ((s.n * g.O + o) * g.Ho + oh) * g.Wo);
        }
        if (!out.channels_last) continue;
        scratch.resize(g.Wo * g.O);
        transpose(sums, ld, g.O, g.Wo, scratch.data(), g.O);
        narrow(p.dtype, scratch.data(), g.Wo * g.O, out.data, (s.n * g.Ho + oh) * g.Wo * g.O);
      }
    }
  });
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

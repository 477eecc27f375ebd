// The scaled gradients of a band of output rows, and the windows that each pass of the weight gradient sums
// over.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"

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
  const T* gradient = nullptr;  // [panel][rows, columns], scaled
  int64_t rows = 0;
};

// Gradients of a band of output rows, ready for every pass.
template <class T>
struct WeightBand {
  std::vector<PassPixels<T>> passes;

  const T* dense;         // of the dense pass: [panel][pixels and a row of zeros, columns]
  std::vector<T> factor;  // of Winograd's products at every pixel
  bool all_moderate = true;

  // Adds the channel sums over live pixels to `sums` where that is not null.
  WeightBand(const Problem<T>& p, const std::vector<Pass>& list, const Panels& panels, const Gradient& grad,
             const Band& band, const std::vector<FeatureBand<T>>& features, T limit, bool threads,
             double* sums)
      : passes(list.size()), factor(limit > T(0) ? band_rows(band) * p.geo.Wo : 0, T(0)) {
    const Geometry& g = p.geo;
    const int64_t all = band_rows(band) * g.Wo;
    std::vector<Scaled> corrections(list.size());
    Scaled cut;
    std::vector<PixelRange> live;
    collect(p, list, band, features, limit, live, cut, corrections);
    int64_t rows = all + 1;
    for (const Scaled& correction : corrections) rows += correction.pixel.size();
    memory_ = allocate(rows * panels.columns * sizeof(T));
    T *const plain_gradients = as<T>(memory_), *own = plain_gradients + (all + 1) * panels.columns;
    dense = plain_gradients;
    std::vector<T*> copies(list.size());
    for (size_t k = 0; k < list.size(); ++k) {
      const bool correction = has_own_gradients(list[k], limit);
      passes[k].rows = correction ? static_cast<int64_t>(corrections[k].pixel.size()) : all + 1;
      passes[k].gradient = copies[k] = correction ? own : plain_gradients;
      if (correction) own += passes[k].rows * panels.columns;
    }
    for (const Panel& panel : panels.list) {
      const int64_t columns = panel.vectors * kLanes<T>;
      std::fill_n(plain_gradients + ((all + 1) * panel.column + all * columns), columns, T(0));
    }
    const std::vector<Piece> pieces = pieces_of(band, g.Wo);
    const int64_t count = pieces.size();
    std::vector<double> part_sums(sums ? count * panels.columns : 0, 0.0);
    std::atomic<bool> fits{true};
    each(threads, panels.list.size() * count, [&](int64_t i) {
      const Panel& panel = panels.list[i / count];
      const Piece& piece = pieces[i % count];
      const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
      T* const plain = plain_gradients + (all + 1) * panel.column;
      if (columns > panel.width)
        std::fill_n(plain + piece.begin * columns, (piece.end - piece.begin) * columns, T(0));
      std::vector<T> scratch;
      load_gradient_rows(p, grad, piece.rows, channel, panel.width, scratch, plain + piece.begin * columns,
                         columns);
      if (sums)
        add_sums(plain, columns, panel.width, live, piece,
                 part_sums.data() + (i % count) * panels.columns + panel.column);
      for (size_t k = 0; k < list.size(); ++k)
        corrections[k].each_in(piece, [&](int32_t pixel, T scale, int64_t j) {
          scale_row(plain + pixel * columns, scale, columns,
                    copies[k] + passes[k].rows * panel.column + j * columns);
        });
      cut.each_in(piece, [&](int32_t pixel, T scale, int64_t) {
        scale_row(plain + pixel * columns, scale, columns, plain + pixel * columns);
      });
      if (limit > T(0) && !clear_others(plain, columns, piece)) fits = false;
    });
    all_moderate = fits;
    for (const Panel& panel : panels.list)
      for (int64_t i = 0; sums && i < count; ++i)
        for (int64_t c = 0; c < panel.width; ++c)
          sums[panel.group * g.Og() + panel.first + c] += part_sums[i * panels.columns + panel.column + c];
  }

 private:
  // Rows of a slice that one task works on, and their pixels of the band.
  struct Piece {
    Slice rows;
    int64_t begin, end;
  };
  static std::vector<Piece> pieces_of(const Band& band, int64_t Wo) {
    const int64_t rows = std::max<int64_t>(1, 512 / Wo);
    std::vector<Piece> pieces;
    int64_t first = 0;
    for (const Slice& s : band)
      for (int64_t h = s.begin; h < s.end; h += rows) {
        const Slice part{s.n, h, std::min(h + rows, s.end)};
        pieces.push_back({part, first, first + part.rows() * Wo});
        first = pieces.back().end;
      }
    return pieces;
  }
  // Pixels of the band in order.
  struct Scaled {
    std::vector<int32_t> pixel;
    std::vector<T> scale;

    template <class F>
    void each_in(const Piece& piece, const F& body) const {
      for (auto at = std::lower_bound(pixel.begin(), pixel.end(), piece.begin);
           at != pixel.end() && *at < piece.end; ++at)
        body(*at, scale[at - pixel.begin()], at - pixel.begin());
    }
  };

  Buffer memory_;

  // Whether a pass has a list of pixels, and gradients scaled for them.
  static bool has_own_gradients(const Pass& pass, T limit) {
    return pass.kind != (limit > T(0) ? Pass::kWinograd : Pass::kAll);
  }
  // Pixels that take no part in Winograd's products; whether the others fit them.
  bool clear_others(T* plain, int64_t columns, const Piece& piece) const {
    for (int64_t pixel = piece.begin; pixel < piece.end; ++pixel)
      if (factor[pixel] == T(0)) std::fill_n(plain + pixel * columns, columns, T(0));
    return moderate(plain + piece.begin * columns, (piece.end - piece.begin) * columns);
  }

  // `live` are the pixels with a valid entry, `cut` those of them whose largest window is not whole.
  void collect(const Problem<T>& p, const std::vector<Pass>& list, const Band& band,
               const std::vector<FeatureBand<T>>& features, T limit, std::vector<PixelRange>& live,
               Scaled& cut, std::vector<Scaled>& corrections) {
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
          const Ratios<T> ratios(p, counts.of, oh * g.Wo + ow, limit);
          if (ratios.state == kDead) continue;
          if (live.empty() || live.back().end != at) live.push_back({at, at});
          live.back().end = at + static_cast<int32_t>(n);
          if (ratios.within_limit()) std::fill_n(factor.begin() + at, n, ratios.largest());
          const T scale = ratios.largest();
          if (scale != T(1)) {
            cut.pixel.push_back(at);
            cut.scale.push_back(scale);
          }
          for (size_t k = 0; k < list.size(); ++k) {
            if (list[k].row_class >= 0 && list[k].row_class != row_class) continue;
            if (list[k].kind == Pass::kWinograd) continue;
            if (!has_own_gradients(list[k], limit)) {
              add(k, ow, n, at);
              continue;
            }
            const T own = whole ? T(0) : ratios.scale(list[k]);
            if (own == T(0)) continue;
            corrections[k].pixel.push_back(at);
            corrections[k].scale.push_back(own);
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
                       const Piece& piece, double* sums) {
    constexpr int64_t kRun = 256;  // summed in T, then in double
    auto range = std::partition_point(live.begin(), live.end(),
                                      [&](const PixelRange& r) { return r.end <= piece.begin; });
    for (; range != live.end() && range->begin < piece.end; ++range) {
      const int64_t end = std::min<int64_t>(range->end, piece.end);
      for (int64_t i = std::max<int64_t>(range->begin, piece.begin); i < end; i += kRun)
        for (int64_t c = 0; c < columns; c += kLanes<T>) {
          const T* at = plain + i * columns + c;
          const int64_t n = std::min(end - i, kRun);
          Vec<T> part[4] = {};  // so that one addition need not wait for the other
          for (int64_t j = 0; j < n / 4; ++j, at += 4 * columns)
#pragma GCC unroll 4
            for (int k = 0; k < 4; ++k) part[k] += load(at + k * columns);
          for (int64_t j = 0; j < n % 4; ++j) part[0] += load(at + j * columns);
          const Vec<T> sum = (part[0] + part[1]) + (part[2] + part[3]);
          for (int64_t l = 0; l < std::min(kLanes<T>, width - c); ++l) sums[c + l] += sum[l];
        }
    }
  }
};

// Channels [c, c + chunk) of one pass against one panel: adds to grads [taps * chunk, columns].
template <class T>
static void accumulate(const Pass& pass, const PassPixels<T>& pixels, const Panel& panel,
                       const FeatureBand<T>& features, int64_t c, T* grads) {
  const Geometry& g = features.view.g;
  const int64_t columns = panel.vectors * kLanes<T>, chunk = features.chunk;
  const T* gradient = pixels.gradient + pixels.rows * panel.column;
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

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

// The convolution of all branches as a list of dense products. With ratios r_1..r_n (ascending kernels) and
// merged kernels M_i = V_1 + ... + V_i every output is
//   sum_i r_i conv(V_i) = r_n conv(M_n) + sum_{i<n} (r_i - r_{i+1}) conv(M_i):
// one product with all kernels for all live windows, and corrections, each for the windows of which the
// larger of two kernels is not whole.
//
// An up-sampled source is read where it is stored: output pixels of one parity meet the same few stored
// pixels, so the taps that fall on one stored pixel are summed into one (3x3 becomes 2x2). Each parity is a
// pass of its own. On the smallest maps packing the four kernels costs more than it saves: there bands are
// up-sampled as they are loaded.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "isa.h"
#include "microkernels.h"
#include "problem.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kMergePixels = 192;

// A source as the convolution meets it: the geometry of its stored map, and its place in the concatenation.
struct View {
  Geometry g;       // C, H, W of the source; window, padding and stride in stored pixels
  int64_t channel;  // channels before it
  int up;           // 1 where it is read as stored and taps merge
  int64_t tile;     // rows and columns of results that are always loaded together
};

// How a source is read: results in tiles of so many rows and columns of its view, and whether a map that is
// up-sampled is read where it is stored, and not up-sampled as it is loaded.
struct Reading {
  int64_t tile = 1;
  bool stored = false;
};

// One reading for each source.
template <class T>
static std::vector<View> make_views(const Problem<T>& p, const std::vector<Reading>& readings) {
  std::vector<View> views;
  int64_t channel = 0;
  for (size_t i = 0; i < p.sources.size(); ++i) {
    const Source& s = p.sources[i];
    const int64_t tile = readings[i].tile;
    View v{p.geo, channel, readings[i].stored ? s.up : 0, tile};
    v.g.C = s.C;
    if (v.up) {
      v.g.H = v.g.Ho = s.H, v.g.W = v.g.Wo = s.W;
      v.g.pt = (p.geo.kh / 2 + 1) / 2, v.g.pl = (p.geo.kw / 2 + 1) / 2;
      v.g.kh = 2 * v.g.pt + 1, v.g.kw = 2 * v.g.pl + 1;
      v.g.Hp = s.H + 2 * v.g.pt, v.g.Wp = s.W + 2 * v.g.pl;
    }
    v.g.Wp += (tile - v.g.Wo % tile) % tile * v.g.sw;
    views.push_back(v);
    channel += s.C;
  }
  return views;
}
template <class T>
static std::vector<View> make_views(const Problem<T>& p) {
  return make_views(p, std::vector<Reading>(p.sources.size(), {1, p.geo.pixels() >= kMergePixels}));
}

// Tap `tap` of a branch is part of row block `slot` of a packed kernel; `first` to write it.
struct Placement {
  int64_t tap, slot;
  bool first;
};
class Placements {
 public:
  explicit Placements(size_t branches) : of_branch(branches) {}
  void put(size_t branch, int64_t tap, int64_t slot) {
    if (slot >= static_cast<int64_t>(used_.size())) used_.resize(slot + 1, false);
    of_branch[branch].push_back({tap, slot, !used_[slot]});
    used_[slot] = true;
  }
  std::vector<std::vector<Placement>> of_branch;

 private:
  std::vector<bool> used_;
};

struct Pass {
  // All kernels by Winograd's products or directly, or a correction.
  enum Kind { kWinograd, kAll, kCorrection } kind;
  size_t branch;  // summed into the kernel with all smaller ones
  size_t source;
  int64_t kh, kw, top, left;     // its kernel, and where that lies in the window of its source
  int64_t row_class, col_class;  // of the output pixels it is for, -1 = all
  Placements placements;
  int64_t taps() const { return kh * kw; }
};

// Class of an output row (or column) over an up-sampled source.
PCONV_INLINE int64_t up_class(int64_t index, int64_t size, int64_t kernel) {
  return positions_over_upsampled(size, kernel).type_of(index);
}
// Stored row, within the window of its source, of every kernel row of a class; -1 outside the image.
static std::vector<int64_t> up_taps(int64_t cls, int64_t size, int64_t kernel, int64_t pad) {
  const int64_t index = positions_over_upsampled(size, kernel).position(cls, 0);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < kernel; ++i) {
    const int64_t at = index + i - kernel / 2;
    rows.push_back(cls >= 2 && at >= size ? -1 : (at >> 1) - (index >> 1) + pad);
  }
  return rows;
}

template <class T>
static void add_up_passes(const Problem<T>& p, const View& view, size_t source, std::vector<Pass>& passes) {
  const Geometry& g = p.geo;
  const auto classes = [](int64_t size, int64_t kernel) {
    std::vector<int64_t> out;
    for (int64_t index = 0; index < size; ++index)
      if (std::find(out.begin(), out.end(), up_class(index, size, kernel)) == out.end())
        out.push_back(up_class(index, size, kernel));
    return out;
  };
  for (int64_t a : classes(g.H, g.kh))
    for (int64_t b : classes(g.W, g.kw)) {
      const std::vector<int64_t> rows = up_taps(a, g.H, g.kh, view.g.pt),
                                 cols = up_taps(b, g.W, g.kw, view.g.pl);
      // Rows ascend; those outside the image come last.
      const int64_t top = rows[0], left = cols[0];
      const int64_t kh = *std::max_element(rows.begin(), rows.end()) - top + 1;
      const int64_t kw = *std::max_element(cols.begin(), cols.end()) - left + 1;
      Pass pass{Pass::kAll, 0, source, kh, kw, top, left, a, b, Placements(1)};
      for (int64_t i = 0; i < g.kh; ++i)
        for (int64_t j = 0; j < g.kw; ++j)
          if (rows[i] >= 0 && cols[j] >= 0)
            pass.placements.put(0, i * g.kw + j, (rows[i] - top) * kw + cols[j] - left);
      passes.push_back(pass);
    }
}

// Passes of one source after another.
template <class T>
static std::vector<Pass> make_passes(const Problem<T>& p, const std::vector<View>& views) {
  const size_t n = p.branches.size();
  std::vector<Pass> passes;
  for (size_t source = 0; source < views.size(); ++source) {
    if (views[source].up) {
      add_up_passes(p, views[source], source, passes);
      continue;
    }
    for (size_t branch = n; branch-- > 0;) {
      const int64_t kh = p.branches[branch].kh, kw = p.branches[branch].kw;
      const bool all = branch == n - 1;
      Pass pass{all ? Pass::kAll : Pass::kCorrection,
                branch,
                source,
                kh,
                kw,
                (p.geo.kh - kh) / 2,
                (p.geo.kw - kw) / 2,
                -1,
                -1,
                Placements(n)};
      for (size_t i = branch + 1; i-- > 0;) {
        const Branch<T>& b = p.branches[i];
        for (int64_t t = 0; t < b.kh * b.kw; ++t)
          pass.placements.put(i, t, (t / b.kw + (kh - b.kh) / 2) * kw + t % b.kw + (kw - b.kw) / 2);
      }
      passes.push_back(pass);
    }
  }
  return passes;
}

// The largest ratio in Winograd's products: that of a 3x3 window with a row left, below that of the corners
// of an image under 7x7 with stride 2, 49/16, where the error of outputs was largest. The gradient of the
// input, where a corner is one window of many, keeps those.
template <class T>
constexpr T kRatioLimit = T(3);
template <class T>
constexpr T kRatioLimitOfInput = T(3.1);

// The largest ratio in a dense product that is not the direct passes'; 0 where there is none.
template <class T>
static T ratio_limit(const Problem<T>& p, bool winograd, T limit) {
  return p.dense_given ? T(kDenseRatioLimit) : winograd ? limit : T(0);
}

// Ratios of one output pixel. `scale(pass)` is the factor of the pass there, 0 where the pass has nothing to
// add. A pixel with a ratio above `limit` takes no part in Winograd's products, whose error it would amplify:
// that error follows the tile and not the window.
template <class T>
struct Ratios {
  State state;
  T r[kMaxBranches];
  size_t n;
  T limit;

  Ratios(const Problem<T>& p, const int32_t* const* counts, int64_t pixel, T limit = 0)
      : n(p.branches.size()), limit(limit) {
    const Windows& w = *p.windows;
    state = state_of(counts[0][pixel] > 0, counts[n - 1][pixel] == w.whole[n - 1]);
    if (state == kDead) return;
    for (size_t i = 0; i < n; ++i)
      r[i] = state == kPlain ? T(1) : ratio_of(static_cast<T>(w.whole[i]), counts[i][pixel]);
  }
  T largest() const { return r[n - 1]; }
  bool within_limit() const { return state != kDead && largest() <= limit; }
  T scale(const Pass& pass) const {
    if (state == kDead) return T(0);
    if (pass.kind == Pass::kCorrection) return r[pass.branch] - r[pass.branch + 1];
    return (pass.kind == Pass::kWinograd) == within_limit() ? largest() : T(0);
  }
};

// Window counts of every branch for one image.
template <class T>
struct Counts {
  const int32_t* of[kMaxBranches];
  Counts(const Problem<T>& p, int64_t n) {
    for (size_t i = 0; i < p.branches.size(); ++i) of[i] = p.windows->counts(i, p.geo, n);
  }
};

// Whether any live window asks for a ratio above the limit of Winograd's products.
template <class T>
static bool any_ratio_above(const Problem<T>& p, T limit) {
  const Geometry& g = p.geo;
  const T least = static_cast<T>(p.windows->whole.back()) / limit;
  for (int64_t n = 0; n < p.windows->Nm; ++n) {
    const int32_t* largest = p.windows->counts(p.branches.size() - 1, g, n);
    const int32_t* smallest = p.windows->counts(0, g, n);
    for (int64_t i = 0; i < g.Ho * g.Wo; ++i)
      if (largest[i] < least && smallest[i] > 0) return true;
  }
  return false;
}

// Winograd's passes, one for each source.
template <class T>
static std::vector<Pass> winograd_passes(const Problem<T>& p) {
  std::vector<Pass> dense;
  for (const Pass& pass : make_passes(p, make_views(p, std::vector<Reading>(p.sources.size()))))
    if (pass.kind == Pass::kAll) dense.push_back(pass);
  for (Pass& pass : dense) pass.kind = Pass::kWinograd;
  return dense;
}
// Without the direct passes of all kernels.
static std::vector<Pass> corrections(const std::vector<Pass>& passes) {
  std::vector<Pass> rest;
  for (const Pass& pass : passes)
    if (pass.kind == Pass::kCorrection) rest.push_back(pass);
  return rest;
}

// Columns of B: the channels of one group, cut into panels of at most kPanel.
struct Panel {
  int64_t group, first, width, vectors;  // first channel within the group, channels, vectors that hold them
  int64_t column, index;                 // columns and panels before it in a packed matrix
};
struct Panels {
  std::vector<Panel> list;
  int64_t columns = 0;  // all, padded to whole vectors
};
template <class T>
static Panels make_panels(int64_t groups, int64_t per_group) {
  Panels out;
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t done = 0; done < per_group; done += kPanel<T>) {
      const int64_t width = std::min(kPanel<T>, per_group - done);
      const int64_t vectors = (width + kLanes<T> - 1) / kLanes<T>;
      const int64_t index = out.list.size();
      out.list.push_back({g, done, width, vectors, out.columns, index});
      out.columns += vectors * kLanes<T>;
    }
  return out;
}

// Channels that one visit of packed weights covers where a thread packs them as it goes: all of them, or a
// divisor such that a pack of the largest kernel stays in the second cache.
PCONV_INLINE int64_t channel_chunk(int64_t channels) {
  for (int64_t chunk : {32, 24, 16, 20, 28, 12, 8})
    if (channels % chunk == 0) return chunk;
  return channels;
}
// The same for Winograd's products: at most `most`, and whole vectors.
template <class T>
static int64_t channel_chunk(int64_t channels, int64_t most) {
  for (int64_t chunk = std::min(most, channels) / kLanes<T> * kLanes<T>; chunk > 0; chunk -= kLanes<T>)
    if (channels % chunk == 0) return chunk;
  return channels;
}

// How the rows of B are laid out in a packed panel, the passes of one chunk of channels of one source after
// another. Either all chunks follow each other and are all channels of a source, or there is one at a time.
struct Layout {
  std::vector<int64_t> chunk;  // channels, per source
  std::vector<int64_t> row;    // where each pass begins
  int64_t rows = 0;            // of a packed panel, or of the largest chunk

  Layout(const std::vector<Pass>& passes, const std::vector<int64_t>& chunk, bool whole)
      : chunk(chunk), row(passes.size()) {
    for (size_t s = 0; s < chunk.size(); ++s) {
      int64_t at = whole ? rows : 0;
      for (size_t k = 0; k < passes.size(); ++k)
        if (passes[k].source == s) {
          row[k] = at;
          at += passes[k].taps() * chunk[s];
        }
      rows = std::max(rows, at);
    }
  }
};

static int64_t reduction_rows(const std::vector<Pass>& passes, const std::vector<View>& views) {
  int64_t rows = 0;
  for (const Pass& pass : passes) rows += pass.taps() * views[pass.source].g.Cg();
  return rows;
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

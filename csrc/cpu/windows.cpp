// Window counts from the mask planes: integers, never a convolution over a float mask (DESIGN: masks are
// planes).
#include <algorithm>
#include <cstring>

#include "problem.h"

namespace pconv {
namespace {

// Valid entries of one padded row over all channels, and whether any is valid.
void count_row(const Geometry& g, const std::vector<Source>& sources, int64_t n, int64_t h, int32_t* entries,
               bool per_plane) {
  for (const Source& s : sources) {
    const int64_t unit = per_plane ? 1 : s.C;
    const int64_t planes = s.mask_per_channel ? s.C : 1;
    const int64_t weight = s.mask_per_channel ? 1 : unit;
    for (int64_t c = 0; c < planes; ++c) {
      const uint8_t* row = s.mask ? s.mask + n * s.mask_stride_n + (c * s.H + (h >> s.up)) * s.W : nullptr;
      const int32_t w32 = static_cast<int32_t>(weight);
      if (!row) {
        for (int64_t w = 0; w < g.W; ++w) entries[w] += w32;
      } else if (s.up) {
        for (int64_t w = 0; w < g.W; ++w) entries[w] += row[w >> 1] * w32;
      } else {
        for (int64_t w = 0; w < g.W; ++w) entries[w] += row[w] * w32;
      }
    }
  }
}

}  // namespace

Windows count_windows(const Geometry& g, const std::vector<Source>& sources,
                      const std::vector<std::pair<int64_t, int64_t>>& kernels) {
  Windows out;
  const bool single_plane = sources.size() == 1 && !sources[0].mask_per_channel;
  bool batched = false;
  for (const Source& s : sources) batched |= s.mask && s.mask_stride_n != 0;
  out.Nm = batched ? g.N : std::min<int64_t>(g.N, 1);
  out.valid_stride = g.Wp + 8;
  out.valid.assign(out.Nm * g.Hp * out.valid_stride, 0);
  for (auto [kh, kw] : kernels) {
    out.whole.push_back(kh * kw * (single_plane ? 1 : g.C));
    out.count.emplace_back(out.Nm * g.Ho * g.Wo);
  }

  std::vector<int32_t> entries(out.Nm * g.Hp * g.Wp, 0);
  parallel(out.Nm * g.Hp, [&](int64_t task, int64_t) {
    const int64_t n = task / g.Hp, h = task % g.Hp - g.pt;
    if (h < 0 || h >= g.H) return;
    int32_t* row = entries.data() + task * g.Wp;
    // The last columns of the image may lie beyond every window: count into a row wide enough, keep Wp of it.
    std::vector<int32_t> image(g.W, 0);
    count_row(g, sources, n, h, image.data(), single_plane);
    const int64_t width = std::min(g.W, g.Wp - g.pl);
    if (width > 0) std::copy_n(image.data(), width, row + g.pl);
    uint8_t* valid = out.valid.data() + task * out.valid_stride;
    for (int64_t w = 0; w < g.Wp; ++w) valid[w] = row[w] > 0;
  });

  parallel(out.Nm * g.Ho, [&](int64_t task, int64_t) {
    const int64_t n = task / g.Ho, oh = task % g.Ho;
    std::vector<int32_t> columns(g.Wp);
    for (size_t b = 0; b < kernels.size(); ++b) {
      const auto [kh, kw] = kernels[b];
      const int64_t top = (g.kh - kh) / 2, left = (g.kw - kw) / 2;
      std::fill(columns.begin(), columns.end(), 0);
      for (int64_t i = 0; i < kh; ++i) {
        const int32_t* row = entries.data() + (n * g.Hp + oh * g.sh + (top + i) * g.dh) * g.Wp;
        for (int64_t w = 0; w < g.Wp; ++w) columns[w] += row[w];
      }
      int32_t* count = out.count[b].data() + task * g.Wo;
      std::fill_n(count, g.Wo, 0);
      for (int64_t j = 0; j < kw; ++j) {
        const int32_t* column = columns.data() + (left + j) * g.dw;
        for (int64_t ow = 0; ow < g.Wo; ++ow) count[ow] += column[ow * g.sw];
      }
    }
  });
  return out;
}

}  // namespace pconv

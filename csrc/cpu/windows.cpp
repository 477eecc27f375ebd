// Window counts from the mask planes: integers, never a convolution over a float mask (masks are
// planes).
#include <algorithm>
#include <cstring>

#include "problem.h"

namespace pconv {
namespace {

// Adds the valid entries of row h, columns [0, width), over all channels; a single plane counts once.
void count_row(const std::vector<Source>& sources, int64_t n, int64_t h, int64_t width, bool single_plane,
               int32_t* entries) {
  for (const Source& s : sources) {
    const int32_t weight = static_cast<int32_t>(single_plane || s.mask_per_channel ? 1 : s.C);
    for (int64_t c = 0; c < (s.mask_per_channel ? s.C : 1); ++c) {
      const uint8_t* row = s.mask ? s.mask + n * s.mask_stride_n + (c * s.H + (h >> s.up)) * s.W : nullptr;
      if (!row)
        for (int64_t w = 0; w < width; ++w) entries[w] += weight;
      else if (s.up)
        for (int64_t w = 0; w < width; ++w) entries[w] += row[w >> 1] ? weight : 0;
      else
        for (int64_t w = 0; w < width; ++w) entries[w] += row[w] ? weight : 0;
    }
  }
}

// Entries 0, stride, 2 stride, ... then 1, stride + 1, ...: each residue in a part of its own.
void split_residues(const std::vector<int32_t>& row, int64_t stride, int64_t part, int32_t* out) {
  const int64_t size = row.size();
  if (stride == 1) {
    std::copy(row.begin(), row.end(), out);
  } else if (stride == 2) {  // written out for the compiler's vectors
    for (int64_t i = 0; i < size / 2; ++i) {
      out[i] = row[2 * i];
      out[part + i] = row[2 * i + 1];
    }
    if (size % 2) out[size / 2] = row[size - 1];
  } else {
    for (int64_t r = 0; r < stride; ++r)
      for (int64_t w = r, i = r * part; w < size; w += stride) out[i++] = row[w];
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
    out.count.push_back(allocate(out.Nm * g.Ho * g.Wo * sizeof(int32_t)));
  }

  // Columns are kept residue by residue modulo the stride, so that the sums over windows read neighbours.
  const int64_t part = (g.Wp + g.sw - 1) / g.sw, stride = part * g.sw;
  const int64_t width = std::min(g.W, g.Wp - g.pl), reach = (g.kh - 1) * g.dh + 1;
  // A task counts all rows that its windows reach, where they are few enough to stay in the cache.
  constexpr int64_t kRowsPerTask = 32;
  const int64_t tasks = (g.Ho + kRowsPerTask - 1) / kRowsPerTask;
  parallel(out.Nm * tasks, [&](int64_t task, int64_t) {
    const int64_t n = task / tasks, begin = task % tasks * kRowsPerTask,
                  end = std::min(g.Ho, begin + kRowsPerTask);
    const int64_t top = begin * g.sh, rows = (end - 1 - begin) * g.sh + reach;
    std::vector<int32_t> row(g.Wp), columns(stride), entries(rows * stride, 0);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t h = top + i - g.pt;
      if (h < 0 || h >= g.H || width <= 0) continue;
      std::fill(row.begin(), row.end(), 0);
      count_row(sources, n, h, width, single_plane, row.data() + g.pl);
      split_residues(row, g.sw, part, entries.data() + i * stride);
      if (end < g.Ho && i >= (end - begin) * g.sh) continue;  // the next task's
      uint8_t* valid = out.valid.data() + (n * g.Hp + top + i) * out.valid_stride;
      for (int64_t w = 0; w < g.Wp; ++w) valid[w] = row[w] > 0;
    }
    for (int64_t oh = begin; oh < end; ++oh) {
      std::fill(columns.begin(), columns.end(), 0);
      int64_t first = 0, last = 0;  // rows of the window that `columns` has: each window lies in the next
      for (size_t b = 0; b < kernels.size(); ++b) {
        const auto [kh, kw] = kernels[b];
        const int64_t above = (g.kh - kh) / 2, left = (g.kw - kw) / 2;
        const auto add_rows = [&](int64_t from, int64_t to) {
          for (int64_t i = from; i < to; ++i) {
            const int32_t* at = entries.data() + ((oh - begin) * g.sh + i * g.dh) * stride;
            for (int64_t w = 0; w < stride; ++w) columns[w] += at[w];
          }
        };
        if (b == 0) first = last = above;
        add_rows(above, first);
        add_rows(last, above + kh);
        first = above, last = above + kh;
        int32_t* count = as<int32_t>(out.count[b]) + (n * g.Ho + oh) * g.Wo;
        std::fill_n(count, g.Wo, 0);
        for (int64_t j = 0; j < kw; ++j) {
          const int64_t at = (left + j) * g.dw;
          const int32_t* column = columns.data() + at % g.sw * part + at / g.sw;
          for (int64_t ow = 0; ow < g.Wo; ++ow) count[ow] += column[ow];
        }
      }
    }
  });
  return out;
}

}  // namespace pconv

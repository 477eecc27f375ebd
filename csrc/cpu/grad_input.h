// dL/dx = sum over passes of conv_transposed(s_pass o m' o dL/dy, V_pass), gathered: rows are input pixels, sorted by
// their residue modulo the stride since each residue meets its own taps. Holes get exactly 0.

// One residue class (a, b) of padded input pixels, and its taps of one pass in the order of their gradient pixels.
struct ResidueTaps {
  TapTable table;
  int64_t bit_rows = 0, bit_cols = 0;  // extent of its taps in gradient pixels, of the largest kernel
  int64_t top = 0, left = 0;           // first gradient pixel relative to (hp / sh, wp / sw)
  uint64_t used = 0;                   // bits of its taps
};

template <class T>
struct GradientGeometry {
  int64_t top, left;       // rows and columns of zeros before the gradient
  int64_t Gh, Gw;          // rows and columns that any input pixel touches, zeros included

  explicit GradientGeometry(const Geometry& g)
      : top((g.kh - 1) * g.dh / g.sh), left((g.kw - 1) * g.dw / g.sw),
        Gh(top + std::max(g.Ho - 1, (g.H - 1 + g.pt) / g.sh) + 1), Gw(left + std::max(g.Wo - 1, (g.W - 1 + g.pl) / g.sw) + 1) {}
};

// Kernel rows (or columns) of the largest window which meet residue a, from the first gradient pixel to the last.
static std::vector<int64_t> residue_taps(int64_t a, int64_t kernel, int64_t dilation, int64_t stride) {
  std::vector<int64_t> taps;
  for (int64_t k = kernel; k-- > 0;)
    if ((k * dilation - a) % stride == 0) taps.push_back(k);
  return taps;
}

// Slots of a pass's taps in its packed matrix, class after class, so that neighbouring gradient pixels are neighbours.
template <class T>
static std::vector<ResidueTaps> residue_tables(const Geometry& g, const GradientGeometry<T>& gg, const Pass& pass,
                                               int64_t chunk, std::vector<int64_t>& slot, bool bits) {
  std::vector<ResidueTaps> classes;
  slot.assign(pass.taps(), -1);
  int64_t next = 0;
  for (int64_t a = 0; a < g.sh; ++a)
    for (int64_t b = 0; b < g.sw; ++b) {
      ResidueTaps out;
      const std::vector<int64_t> rows = residue_taps(a, g.kh, g.dh, g.sh), cols = residue_taps(b, g.kw, g.dw, g.sw);
      out.bit_rows = rows.size();
      out.bit_cols = cols.size();
      if (!rows.empty()) out.top = -((rows[0] * g.dh - a) / g.sh);
      if (!cols.empty()) out.left = -((cols[0] * g.dw - b) / g.sw);
      for (size_t r = 0; r < rows.size(); ++r)
        for (size_t c = 0; c < cols.size(); ++c) {
          const int64_t i = rows[r] - pass.top, j = cols[c] - pass.left;
          if (i < 0 || i >= pass.kh || j < 0 || j >= pass.kw) continue;
          slot[i * pass.kw + j] = next;
          const int64_t y = (a - rows[r] * g.dh) / g.sh, x = (b - cols[c] * g.dw) / g.sw;
          out.table.add({(y * gg.Gw + x) * chunk, next * chunk, chunk, bits ? uint64_t{1} << (r * cols.size() + c) : kAllTaps});
          out.used |= out.table.taps.back().bit;
          ++next;
        }
      out.table.close();
      classes.push_back(out);
    }
  return classes;
}

// Gradient rows of a slice of input rows, [O / chunk][passes, rows, Gw, chunk]: per pass a copy scaled by that pass's
// factor, and marks where that is not 0. Chunks are `plane` entries apart, further than one slice needs.
template <class T>
struct GradientBand {
  int64_t first, rows;               // gradient rows with the zeros above counted in
  T* data;
  int64_t chunk, plane, passes;
  std::vector<uint8_t> marks;        // [passes, rows, mark_stride]
  int64_t mark_stride;

  static int64_t first_row(const Geometry& g, int64_t h) { return (h + g.pt) / g.sh; }
  static int64_t row_count(const Geometry& g, const GradientGeometry<T>& gg, const Slice& s) {
    return first_row(g, s.end - 1) - first_row(g, s.begin) + gg.top + 1;
  }

  GradientBand(const Problem<T>& p, const GradientGeometry<T>& gg, const std::vector<Pass>& list, const Gradient& grad,
               const Slice& s, T* memory, int64_t chunk, int64_t plane)
      : first(first_row(p.geo, s.begin)), rows(row_count(p.geo, gg, s)), data(memory), chunk(chunk), plane(plane),
        passes(list.size()), mark_stride(gg.Gw + 8) {
    const Geometry& g = p.geo;
    marks.assign(passes * rows * mark_stride, 0);
    std::vector<T> scratch, scale(passes * g.Wo);
    const int32_t* counts[16];
    for (size_t i = 0; i < p.branches.size(); ++i) counts[i] = p.windows->counts(i, g, s.n);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t oh = first + r - gg.top;
      const bool inside = oh >= 0 && oh < g.Ho;
      for (int64_t ow = 0; inside && ow < g.Wo; ++ow) {
        const Ratios<T> ratios(p, counts, oh * g.Wo + ow);
        for (int64_t k = 0; k < passes; ++k) {
          scale[k * g.Wo + ow] = ratios.scale(list[k], false);
          marks[(k * rows + r) * mark_stride + gg.left + ow] = scale[k * g.Wo + ow] != T(0);
        }
      }
      for (int64_t c = 0; c < g.O; c += chunk) {
        T* all = row(gg, 0, r) + c / chunk * plane + gg.left * chunk;
        if (inside) load_gradient_row(p, grad, s.n, oh, c, chunk, scratch, all, chunk);
        for (int64_t k = passes; k-- > 0;)  // the first pass last: its row is the source
          scale_row(g, gg, row(gg, k, r) + c / chunk * plane, all, inside ? scale.data() + k * g.Wo : nullptr);
      }
    }
  }
  T* row(const GradientGeometry<T>& gg, int64_t pass, int64_t r) const {
    return data + (pass * rows + r) * gg.Gw * chunk;
  }

 private:
  void scale_row(const Geometry& g, const GradientGeometry<T>& gg, T* dst, const T* source, const T* scale) const {
    if (!scale) {
      std::fill_n(dst, gg.Gw * chunk, T(0));
      return;
    }
    std::fill_n(dst, gg.left * chunk, T(0));
    std::fill_n(dst + (gg.left + g.Wo) * chunk, (gg.Gw - gg.left - g.Wo) * chunk, T(0));
    dst += gg.left * chunk;
    for (int64_t ow = 0; ow < g.Wo; ++ow, dst += chunk, source += chunk) {
      const T s = scale[ow];
      if (s == T(0))
        std::fill_n(dst, chunk, T(0));
      else if (dst != source || s != T(1))
        for (int64_t c = 0; c < chunk; ++c) dst[c] = s * source[c];
    }
  }
};

// Rows of every pass and residue over a band of input rows; `dead` are the pixels that get 0 from the start.
template <class T>
struct InputRows {
  std::vector<TileList<T>> passes;
  std::vector<int32_t> dead;

  void add(const Problem<T>& p, const GradientGeometry<T>& gg, const std::vector<std::vector<ResidueTaps>>& tables,
           const Slice& s, const GradientBand<T>& gradient, int32_t first_pixel, bool bits) {
    const Geometry& g = p.geo;
    std::vector<Row<T>> rows;
    const uint8_t* valid = p.windows->valid_rows(g, s.n);
    for (int64_t a = 0; a < g.sh; ++a)
      for (int64_t b = 0; b < g.sw; ++b)
        for (size_t k = 0; k < tables.size(); ++k) {
          const ResidueTaps& t = tables[k][a * g.sw + b];
          rows.clear();
          for (int64_t h = s.begin; h < s.end; ++h) {
            const int64_t hp = h + g.pt;
            if (hp % g.sh != a) continue;
            for (int64_t w = (b - g.pl % g.sw + g.sw) % g.sw; w < g.W; w += g.sw) {
              const int64_t wp = w + g.pl, r = hp / g.sh - gradient.first + gg.top, c = wp / g.sw + gg.left;
              const int32_t pixel = first_pixel + static_cast<int32_t>((h - s.begin) * g.W + w);
              const bool seen = hp < g.Hp && wp < g.Wp && valid[hp * p.windows->valid_stride + wp];
              uint64_t hit = kAllTaps;
              if (seen && bits)
                hit = t.used & window_bits(gradient.marks.data() + (k * gradient.rows + r + t.top) * gradient.mark_stride + c + t.left,
                                  gradient.mark_stride, t.bit_rows, t.bit_cols);
              if (k == 0 && (!seen || !hit || t.table.taps.empty()))
                dead.push_back(pixel);
              else if (seen && hit && !t.table.taps.empty())
                rows.push_back({gradient.row(gg, k, r) + c * gradient.chunk, pixel, T(1), hit});
            }
          }
          std::stable_sort(rows.begin(), rows.end(), [](const Row<T>& x, const Row<T>& y) { return x.bits < y.bits; });
          passes[k].append(rows, t.table);
        }
  }
};

// One panel of the result into grad_x of its source, [H, W] rows of slice s: holes become 0, an up-sampled source gets
// the sum over its 2x2 copies.
template <class T>
static void write_grad_input(const Problem<T>& p, size_t source, T* pixels, int64_t columns, int64_t width,
                             const Target& out, const Slice& s, int64_t channel, std::vector<T>& scratch) {
  const Geometry& g = p.geo;
  const Source& src = p.sources[source];
  Slice stored = s;
  if (src.up) {
    stored = {s.n, s.begin >> 1, (s.end + 1) >> 1};
    for (int64_t h = stored.begin; h < stored.end; ++h)
      for (int64_t w = 0; w < src.W; ++w) {
        T* dst = pixels + ((h - stored.begin) * src.W + w) * columns;
        const int64_t top = 2 * h - s.begin, bottom = std::min(2 * h + 2, s.end) - s.begin;
        const int64_t right = std::min(2 * w + 2, g.W);
        T sum[kPanel<T>] = {};
        for (int64_t y = top; y < bottom; ++y)
          for (int64_t x = 2 * w; x < right; ++x)
            for (int64_t c = 0; c < columns; ++c) sum[c] += pixels[(y * g.W + x) * columns + c];
        std::copy_n(sum, columns, dst);
      }
  }
  if (src.mask)
    for (int64_t h = stored.begin; h < stored.end; ++h)
      for (int64_t c = 0; c < (src.mask_per_channel ? width : 1); ++c) {
        const uint8_t* mask = mask_row(src, s.n, channel + c, h);
        for (int64_t w = 0; w < src.W; ++w) {
          T* pixel = pixels + ((h - stored.begin) * src.W + w) * columns;
          if (mask[w]) continue;
          if (src.mask_per_channel)
            pixel[c] = T(0);
          else
            std::fill_n(pixel, columns, T(0));
        }
      }
  write_panel(p.dtype, pixels, columns, width, out, src.C, src.H, src.W, stored, channel, scratch);
}

template <class T>
static void grad_input(const Problem<T>& p, Gradient grad, const std::vector<Target>& out) {
  const Geometry& g = p.geo;
  if (g.N * g.H * g.W * g.C == 0) return;
  const GradientGeometry<T> gg(g);
  const std::vector<Pass> passes = make_passes(p, false);
  std::vector<int64_t> parts;
  bool even = false;
  for (const Source& s : p.sources) {
    parts.push_back(p.sources.size() == 1 ? g.Cg() : s.C);
    even |= s.up != 0;
  }
  const Panels panels = make_panels<T>(g.groups, parts);
  bool bits = true;
  std::vector<std::vector<ResidueTaps>> tables;
  std::vector<std::vector<int64_t>> slots(passes.size());
  std::vector<int64_t> offset{0};
  for (int64_t a = 0; a < g.sh; ++a) bits &= residue_taps(a, g.kh, g.dh, g.sh).size() <= 8;
  for (int64_t b = 0; b < g.sw; ++b) bits &= residue_taps(b, g.kw, g.dw, g.sw).size() < 8;
  bits &= g.dh == 1 && g.dw == 1;
  for (const Pass& pass : passes) offset.push_back(offset.back() + pass.taps());

  const int64_t gradient_row = gg.Gw * g.O * passes.size();
  const int64_t weight_bytes = offset.back() * g.Og() * panels.columns * sizeof(T);
  const int64_t row_bytes = (gradient_row / g.sh + g.W * kPanel<T>) * sizeof(T);
  const int64_t threads = thread_count();
  const bool split_panels = weight_bytes > row_bytes * g.N * g.H && static_cast<int64_t>(panels.list.size()) >= threads;
  const int64_t chunk = split_panels ? channel_chunk(g.Og()) : g.Og();
  for (size_t k = 0; k < passes.size(); ++k) tables.push_back(residue_tables(g, gg, passes[k], chunk, slots[k], bits));
  const int64_t budget = split_panels ? kSharedBandBytes : kTileCacheBytes;
  int64_t height = std::max<int64_t>(1, budget / row_bytes);
  if (even) height = (height + 1) / 2 * 2;
  const std::vector<Band> bands = make_bands(g.N, g.H, height);
  int64_t gradient_size = 0, max_rows = 0;
  for (const Band& band : bands) {
    int64_t size = 0;
    for (const Slice& s : band) size += GradientBand<T>::row_count(g, gg, s) * gradient_row;
    gradient_size = std::max(gradient_size, size);
    max_rows = std::max(max_rows, band_rows(band));
  }
  const int64_t result_size = max_rows * g.W * kPanel<T>;
  const int64_t panel_size = split_panels ? offset.back() * chunk * kPanel<T> : 0;
  const int64_t shared_size = split_panels ? gradient_size : offset.back() * chunk * panels.columns;
  const int64_t own_size = result_size + (split_panels ? panel_size : gradient_size);
  const Buffer shared = allocate(shared_size * sizeof(T)), own = allocate(threads * own_size * sizeof(T));

  const auto pack = [&](const Panel& panel, int64_t o, PackScratch<T>& scratch, T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      pack_grad_input(p, passes[k], slots[k], panel, o, o + chunk, scratch,
                      dst + offset[k] * chunk * panel.vectors * kLanes<T>);
  };
  struct LoadedBand {
    InputRows<T> rows;
    int64_t plane = 0;
  };
  const auto load_band = [&](const Band& band, T* memory, bool threads) {
    LoadedBand out;
    std::vector<int64_t> at;
    for (const Slice& s : band) {
      at.push_back(out.plane);
      out.plane += GradientBand<T>::row_count(g, gg, s) * gradient_row / g.O * chunk;
    }
    std::vector<std::unique_ptr<GradientBand<T>>> slices(band.size());
    each(threads, band.size(), [&](int64_t i) {
      slices[i] = std::make_unique<GradientBand<T>>(p, gg, passes, grad, band[i], memory + at[i], chunk, out.plane);
    });
    out.rows.passes.resize(passes.size());
    int32_t pixel = 0;
    for (size_t i = 0; i < band.size(); ++i) {
      out.rows.add(p, gg, tables, band[i], *slices[i], pixel, bits);
      pixel += static_cast<int32_t>(band[i].rows() * g.W);
    }
    return out;
  };
  const T zero[kPanel<T>] = {};
  const auto multiply = [&](const LoadedBand& band, const Panel& panel, int64_t o, const T* b, T* results) {
    for (size_t k = 0; k < passes.size(); ++k)
      band.rows.passes[k].multiply(panel, (panel.group * g.Og() + o) / chunk * band.plane,
                                   b + offset[k] * chunk * panel.vectors * kLanes<T>, results,
                                   k == 0 && o == 0 ? zero : nullptr);
  };
  const auto finish = [&](const Band& band, const InputRows<T>& rows, const Panel& panel, T* results,
                          std::vector<T>& scratch) {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    int64_t channel = panel.group * g.Cg() + panel.first;
    size_t source = 0;
    while (channel >= p.sources[source].C) channel -= p.sources[source++].C;
    for (const Slice& s : band) {
      write_grad_input(p, source, results, columns, panel.width, out[source], s, channel, scratch);
      results += s.rows() * g.W * columns;
    }
  };
  // Panels of a source whose gradient nobody wants are left out.
  std::vector<Panel> wanted;
  for (const Panel& panel : panels.list)
    if (out[p.sources.size() > 1 && panel.first >= p.sources[0].C].data) wanted.push_back(panel);

  if (split_panels) {
    for (const Band& band : bands) {
      const LoadedBand loaded = load_band(band, as<T>(shared), true);
      parallel(wanted.size(), [&](int64_t i, int64_t thread) {
        PackScratch<T> scratch;
        T *results = as<T>(own) + thread * own_size, *packed = results + result_size;
        for (int64_t o = 0; o < g.Og(); o += chunk) {
          pack(wanted[i], o, scratch, packed);
          multiply(loaded, wanted[i], o, packed, results);
        }
        finish(band, loaded.rows, wanted[i], results, scratch.block);
      });
    }
  } else {
    parallel(wanted.size(), [&](int64_t i, int64_t) {
      PackScratch<T> scratch;
      pack(wanted[i], 0, scratch, as<T>(shared) + offset.back() * chunk * wanted[i].column);
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      T* results = as<T>(own) + thread * own_size;
      std::vector<T> scratch;
      const LoadedBand loaded = load_band(bands[i], results + result_size, false);
      for (const Panel& panel : wanted) {
        multiply(loaded, panel, 0, as<T>(shared) + offset.back() * chunk * panel.column, results);
        finish(bands[i], loaded.rows, panel, results, scratch);
      }
    });
  }
}

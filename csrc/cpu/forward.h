// out = m' o (sum over passes of s_pass o conv(V_pass) + bias), rows of one band against panels of output channels.

constexpr int64_t kTileCacheBytes = 512 << 10;   // features and results of a band that one thread works on
constexpr int64_t kSharedBandBytes = 32 << 20;   // the same where all threads work on one band

PCONV_INLINE bool bits_available(const Geometry& g) {
  return g.dh == 1 && g.dw == 1 && g.kw <= 8 && g.kh * g.kw < 64;
}

template <class T>
static TapTable forward_taps(const Geometry& g, const Pass& pass, int64_t chunk, bool bits) {
  TapTable table;
  for (int64_t i = 0; i < pass.kh; ++i)
    for (int64_t j = 0; j < pass.kw; ++j) {
      const int64_t y = pass.top + i, x = pass.left + j;
      table.add({(y * g.dh * g.Wp + x * g.dw) * chunk, (i * pass.kw + j) * chunk, chunk,
                 bits ? uint64_t{1} << (y * g.kw + x) : kAllTaps});
    }
  table.close();
  return table;
}

// Rows cut alike by the image border share a class, 0 for rows that are not cut.
PCONV_INLINE int64_t border_class(int64_t start, int64_t extent, int64_t size, int64_t index, int64_t count) {
  if (start < 0) return 1 + std::min<int64_t>(index, 15);
  return start + extent > size ? 17 + std::min<int64_t>(count - 1 - index, 15) : 0;
}

// The rows of every pass over a band, and the pixels whose window is all holes.
template <class T>
struct ForwardRows {
  std::vector<TileList<T>> passes;
  std::vector<int32_t> dead;

  ForwardRows(const Problem<T>& p, const std::vector<Pass>& list, const std::vector<TapTable>& taps, const Band& band,
              const FeatureBand<T>& features) : passes(list.size()) {
    const Geometry& g = p.geo;
    const bool bits = bits_available(g);
    struct Mixed {
      int64_t key;
      Row<T> row;
      Ratios<T> ratios;
    };
    std::vector<std::vector<Row<T>>> rows(list.size());
    std::vector<Mixed> mixed;
    int32_t pixel = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const int64_t n = band[s].n;
      const int32_t* counts[16];
      for (size_t i = 0; i < p.branches.size(); ++i) counts[i] = p.windows->counts(i, g, n);
      const uint8_t* valid = p.windows->valid_rows(g, n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh)
        for (int64_t ow = 0; ow < g.Wo; ++ow, ++pixel) {
          const Ratios<T> ratios(p, counts, oh * g.Wo + ow);
          const Row<T> row{features.window(g, band, s, oh, ow), pixel, T(1), kAllTaps};
          if (!ratios.live) {
            dead.push_back(pixel);
          } else if (ratios.whole) {
            rows[0].push_back(row);
          } else {
            const int64_t vertical = border_class(oh * g.sh - g.pt, (g.kh - 1) * g.dh + 1, g.H, oh, g.Ho);
            const int64_t horizontal = border_class(ow * g.sw - g.pl, (g.kw - 1) * g.dw + 1, g.W, ow, g.Wo);
            mixed.push_back({vertical * 64 + horizontal, row, ratios});
            if (bits) {
              const int64_t stride = p.windows->valid_stride;
              mixed.back().row.bits = window_bits(valid + oh * g.sh * stride + ow * g.sw, stride, g.kh, g.kw);
            }
          }
        }
    }
    std::stable_sort(mixed.begin(), mixed.end(), [](const Mixed& a, const Mixed& b) { return a.key < b.key; });
    for (Mixed& m : mixed)
      for (size_t k = 0; k < list.size(); ++k) {
        m.row.scale = m.ratios.scale(list[k], true);
        if (m.row.scale != T(0)) rows[k].push_back(m.row);
      }
    for (size_t k = 0; k < list.size(); ++k) passes[k].append(rows[k], taps[k]);
  }
};

template <class T>
static void forward(const Problem<T>& p, const T* bias, Target out) {
  const Geometry& g = p.geo;
  if (g.pixels() == 0 || g.O == 0) return;
  const std::vector<Pass> passes = make_passes(p, true);
  const Panels panels = make_panels<T>(g.groups, {g.Og()});
  std::vector<int64_t> offset{0};  // of each pass in a packed panel, in taps
  for (const Pass& pass : passes) offset.push_back(offset.back() + pass.taps());

  const int64_t weight_bytes = offset.back() * g.Cg() * panels.columns * sizeof(T);
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * kPanel<T>) * sizeof(T);
  const int64_t threads = thread_count();
  // Where the weights outweigh the features each thread packs and uses panels of its own over one shared band; else
  // the packed weights are shared and each thread takes bands.
  const bool split_panels = weight_bytes > row_bytes * g.N * g.Ho && static_cast<int64_t>(panels.list.size()) >= threads;
  const int64_t chunk = split_panels ? channel_chunk(g.Cg()) : g.Cg();
  std::vector<TapTable> taps;
  for (const Pass& pass : passes) taps.push_back(forward_taps<T>(g, pass, chunk, bits_available(g)));
  const int64_t budget = split_panels ? kSharedBandBytes : kTileCacheBytes;
  const std::vector<Band> bands = make_bands(g.N, g.Ho, std::max<int64_t>(1, budget / row_bytes));
  int64_t feature_size = 0, max_rows = 0;
  for (const Band& band : bands) {
    feature_size = std::max(feature_size, FeatureBand<T>::size(g, band));
    max_rows = std::max(max_rows, band_rows(band));
  }
  const int64_t result_size = max_rows * g.Wo * kPanel<T>;
  const int64_t panel_size = split_panels ? offset.back() * chunk * kPanel<T> : 0;
  const int64_t shared_size = split_panels ? feature_size : offset.back() * chunk * panels.columns;
  const int64_t own_size = result_size + (split_panels ? panel_size : feature_size);
  const Buffer shared = allocate(shared_size * sizeof(T)), own = allocate(threads * own_size * sizeof(T));

  const auto pack = [&](const Panel& panel, int64_t c, PackScratch<T>& scratch, T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      pack_forward(p, passes[k], panel, c, c + chunk, scratch, dst + offset[k] * chunk * panel.vectors * kLanes<T>);
  };
  // One chunk of input channels against one panel; the first one starts the results.
  const auto multiply = [&](const ForwardRows<T>& rows, const FeatureBand<T>& features, const Panel& panel, int64_t c,
                            const T* b, T* results) {
    const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
    T init[kPanel<T>] = {};
    if (bias) std::copy_n(bias + channel, panel.width, init);
    for (size_t k = 0; k < passes.size(); ++k)
      rows.passes[k].multiply(panel, features.channel_offset(panel.group * g.Cg() + c), b + offset[k] * chunk * columns, results,
                              k == 0 && c == 0 ? init : nullptr);
  };
  const auto finish = [&](const Band& band, const ForwardRows<T>& rows, const Panel& panel, T* results,
                          std::vector<T>& scratch) {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (int32_t pixel : rows.dead) std::fill_n(results + pixel * columns, columns, T(0));
    for (const Slice& s : band) {
      write_panel(p.dtype, results, columns, panel.width, out, g.O, g.Ho, g.Wo, s, panel.group * g.Og() + panel.first, scratch);
      results += s.rows() * g.Wo * columns;
    }
  };

  if (split_panels) {
    for (const Band& band : bands) {
      const FeatureBand<T> features(g, band, chunk, as<T>(shared));
      load_features(p, band, features, true);
      const ForwardRows<T> rows(p, passes, taps, band, features);
      parallel(panels.list.size(), [&](int64_t i, int64_t thread) {
        PackScratch<T> scratch;
        T *results = as<T>(own) + thread * own_size, *packed = results + result_size;
        for (int64_t c = 0; c < g.Cg(); c += chunk) {
          pack(panels.list[i], c, scratch, packed);
          multiply(rows, features, panels.list[i], c, packed, results);
        }
        finish(band, rows, panels.list[i], results, scratch.block);
      });
    }
  } else {
    parallel(panels.list.size(), [&](int64_t i, int64_t) {
      PackScratch<T> scratch;
      pack(panels.list[i], 0, scratch, as<T>(shared) + offset.back() * chunk * panels.list[i].column);
    });
    parallel(bands.size(), [&](int64_t i, int64_t thread) {
      T* results = as<T>(own) + thread * own_size;
      std::vector<T> scratch;
      const FeatureBand<T> features(g, bands[i], chunk, results + result_size);
      load_features(p, bands[i], features, false);
      const ForwardRows<T> rows(p, passes, taps, bands[i], features);
      for (const Panel& panel : panels.list) {
        multiply(rows, features, panel, 0, as<T>(shared) + offset.back() * chunk * panel.column, results);
        finish(bands[i], rows, panel, results, scratch);
      }
    });
  }
}

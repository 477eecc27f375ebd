// dL/dV_pass = sum over pixels of window(x o m) (outer) s_pass m' dL/dy: one outer product per kernel row and panel.

// Gradients of one pass over a band: for every panel the scaled rows [pixels, columns], and for every kernel row the
// pixels whose window row lies inside the image.
template <class T>
struct PassPixels {
  std::vector<int64_t> pixel;                       // (of the band) that the pass has something to add for
  std::vector<T> scale;
  std::vector<std::vector<PixelPair>> kernel_rows;  // [kh of the pass]
  T* rows = nullptr;                                // [panel][pixels, columns]
};

template <class T>
struct WeightBand {
  std::vector<PassPixels<T>> passes;
  int64_t size = 0;  // entries of T that the scaled rows need

  WeightBand(const Problem<T>& p, const std::vector<Pass>& list, const Panels& panels, const Band& band,
             const FeatureBand<T>& features) : passes(list.size()) {
    const Geometry& g = p.geo;
    for (size_t k = 0; k < list.size(); ++k) passes[k].kernel_rows.resize(list[k].kh);
    int64_t pixel = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const int32_t* counts[16];
      for (size_t i = 0; i < p.branches.size(); ++i) counts[i] = p.windows->counts(i, g, band[s].n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh)
        for (int64_t ow = 0; ow < g.Wo; ++ow, ++pixel) {
          const Ratios<T> ratios(p, counts, oh * g.Wo + ow);
          if (!ratios.live) continue;
          const int32_t start = static_cast<int32_t>(features.window(g, band, s, oh, ow) - features.data);
          for (size_t k = 0; k < list.size(); ++k) {
            const T scale = ratios.scale(list[k], true);
            if (scale == T(0)) continue;
            PassPixels<T>& out = passes[k];
            const int32_t row = static_cast<int32_t>(out.pixel.size());
            out.pixel.push_back(pixel);
            out.scale.push_back(scale);
            for (int64_t i = 0; i < list[k].kh; ++i) {
              const int64_t h = oh * g.sh + (list[k].top + i) * g.dh - g.pt;
              if (h >= 0 && h < g.H) out.kernel_rows[i].push_back({start, row});
            }
          }
        }
    }
    for (PassPixels<T>& pass : passes) size += pass.pixel.size() * panels.columns;
  }

  // Most entries that any band of `pixels` pixels can need.
  static int64_t bound(int64_t pixels, size_t passes, const Panels& panels) { return pixels * passes * panels.columns; }

  // Scaled rows of pass k from `plain` [pixels, O], pixels [begin, end) of the pass.
  void scale_rows(const Problem<T>& p, const Panels& panels, size_t k, const T* plain, int64_t begin, int64_t end) {
    const Geometry& g = p.geo;
    PassPixels<T>& pass = passes[k];
    const int64_t n = pass.pixel.size();
    for (int64_t i = begin; i < end; ++i)
      for (const Panel& panel : panels.list) {
        const int64_t columns = panel.vectors * kLanes<T>;
        const T* src = plain + pass.pixel[i] * g.O + panel.group * g.Og() + panel.first;
        T* dst = pass.rows + n * panel.column + i * columns;
        for (int64_t c = 0; c < panel.width; ++c) dst[c] = pass.scale[i] * src[c];
        for (int64_t c = panel.width; c < columns; ++c) dst[c] = T(0);
      }
  }
};

// One kernel row of one pass against one panel: grads [taps * Cg, columns] of that pass and panel.
template <class T>
static void accumulate(const Problem<T>& p, const Pass& pass, const PassPixels<T>& pixels, const Panel& panel,
                       const FeatureBand<T>& features, int64_t kernel_row, T* grads) {
  const Geometry& g = p.geo;
  constexpr int64_t kPixels = 128;  // rows of a panel that stay in the first cache
  const std::vector<PixelPair>& list = pixels.kernel_rows[kernel_row];
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg();
  const T* rows = pixels.rows + static_cast<int64_t>(pixels.pixel.size()) * panel.column;
  // Neighbouring taps of a dense kernel are one run of the padded row.
  const bool dense = g.groups == 1 && g.dw == 1;
  const int64_t run = dense ? pass.kw * Cg : Cg;
  for (size_t i = 0; i < list.size(); i += kPixels) {
    const int64_t n = std::min<int64_t>(kPixels, list.size() - i);
    for (int64_t j = 0; j < (dense ? 1 : pass.kw); ++j) {
      const T* window = features.data + ((pass.top + kernel_row) * g.dh * g.Wp + (pass.left + j) * g.dw) * g.C + panel.group * Cg;
      T* out = grads + (kernel_row * pass.kw + j) * Cg * columns;
      for (int64_t m = 0; m < run; m += kRows)
        outer(panel.vectors, std::min(kRows, run - m), window + m, list.data() + i, n, rows, out + m * columns, columns);
    }
  }
}

template <class T>
static void grad_weight(const Problem<T>& p, Gradient grad, const std::vector<T*>& grad_weights,
                        const std::vector<T*>& grad_scales, T* grad_sum) {
  const Geometry& g = p.geo;
  const std::vector<Pass> passes = make_passes(p, true);
  const Panels panels = make_panels<T>(g.groups, {g.Og()});
  std::vector<int64_t> offset{0};
  for (const Pass& pass : passes) offset.push_back(offset.back() + pass.taps() * g.Cg());
  const bool weights = std::any_of(grad_weights.begin(), grad_weights.end(), [](T* w) { return w != nullptr; }) ||
                       std::any_of(grad_scales.begin(), grad_scales.end(), [](T* s) { return s != nullptr; });

  const int64_t threads = thread_count(), total = offset.back() * panels.columns;
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * (g.O + panels.columns)) * sizeof(T);
  // Small gradients: every thread sums its own copy over bands of its own. Large ones: one copy, one band at a time,
  // threads take kernel rows and panels.
  const bool own_copies = total * threads * static_cast<int64_t>(sizeof(T)) <= (16 << 20);
  const std::vector<Band> bands =
      make_bands(g.N, g.Ho, std::max<int64_t>(1, (own_copies ? kTileCacheBytes : kSharedBandBytes) / row_bytes));
  int64_t feature_size = 0, max_pixels = 0;
  for (const Band& band : bands) {
    feature_size = std::max(feature_size, FeatureBand<T>::size(g, band));
    max_pixels = std::max(max_pixels, band_rows(band) * g.Wo);
  }
  const int64_t copies = own_copies ? threads : 1;
  const int64_t scaled_size = WeightBand<T>::bound(max_pixels, passes.size(), panels);
  const int64_t band_size = feature_size + max_pixels * g.O + scaled_size;
  const Buffer scratch = allocate(copies * band_size * sizeof(T));
  const Buffer sums = allocate(copies * total * sizeof(T));
  std::vector<std::vector<double>> channel_sums(copies, std::vector<double>(g.O, 0.0));

  const auto load_plain = [&](const Band& band, T* plain, bool in_parallel) {
    for (const Slice& s : band) {
      each(in_parallel, s.rows(), [&](int64_t i) {
        thread_local std::vector<T> row;
        load_gradient_row(p, grad, s.n, s.begin + i, row, plain + i * g.Wo * g.O);
      });
      plain += s.rows() * g.Wo * g.O;
    }
  };
  const auto add_channel_sums = [&](const std::vector<int64_t>& pixels, const T* plain, std::vector<double>& out) {
    constexpr int64_t kRun = 256;  // summed in T, then in double
    std::vector<T> part(g.O);
    for (size_t i = 0; i < pixels.size(); i += kRun) {
      std::fill(part.begin(), part.end(), T(0));
      for (size_t j = i; j < std::min(pixels.size(), i + kRun); ++j)
        for (int64_t o = 0; o < g.O; ++o) part[o] += plain[pixels[j] * g.O + o];
      for (int64_t o = 0; o < g.O; ++o) out[o] += part[o];
    }
  };

  if (own_copies) {
    // Bands are dealt out in a fixed way, so that the sums do not depend on timing.
    parallel(copies, [&](int64_t copy, int64_t) {
      T* memory = as<T>(scratch) + copy * band_size;
      T* mine = as<T>(sums) + copy * total;
      std::fill_n(mine, total, T(0));
      const int64_t count = bands.size();
      for (int64_t i = copy * count / copies; i < (copy + 1) * count / copies; ++i) {
        const FeatureBand<T> features(g, bands[i], memory);
        T* plain = memory + feature_size;
        load_plain(bands[i], plain, false);
        WeightBand<T> band(p, passes, panels, bands[i], features);
        if (grad_sum) add_channel_sums(band.passes[0].pixel, plain, channel_sums[copy]);
        if (!weights) continue;
        load_features(p, bands[i], features, false);
        T* rows = plain + max_pixels * g.O;
        for (size_t k = 0; k < passes.size(); ++k) {
          PassPixels<T>& pass = band.passes[k];
          pass.rows = rows;
          rows += pass.pixel.size() * panels.columns;
          band.scale_rows(p, panels, k, plain, 0, pass.pixel.size());
          for (const Panel& panel : panels.list)
            for (int64_t r = 0; r < passes[k].kh; ++r)
              accumulate(p, passes[k], pass, panel, features, r,
                         mine + offset.back() * panel.column + offset[k] * panel.vectors * kLanes<T>);
        }
      }
    });
  } else {
    T* memory = as<T>(scratch);
    const int64_t rows_per_task = 4;
    parallel((total + (1 << 20) - 1) >> 20, [&](int64_t i, int64_t) {
      std::fill_n(as<T>(sums) + (i << 20), std::min<int64_t>(1 << 20, total - (i << 20)), T(0));
    });
    struct Task {
      size_t pass, panel;
      int64_t row;
    };
    std::vector<Task> tasks;
    for (size_t k = 0; k < passes.size(); ++k)
      for (size_t q = 0; q < panels.list.size(); ++q)
        for (int64_t r = 0; r < passes[k].kh; ++r) tasks.push_back({k, q, r});
    for (const Band& rows_of_band : bands) {
      const FeatureBand<T> features(g, rows_of_band, memory);
      T* plain = memory + feature_size;
      load_plain(rows_of_band, plain, true);
      WeightBand<T> band(p, passes, panels, rows_of_band, features);
      if (grad_sum) add_channel_sums(band.passes[0].pixel, plain, channel_sums[0]);
      if (!weights) continue;
      load_features(p, rows_of_band, features, true);
      T* rows = plain + max_pixels * g.O;
      for (size_t k = 0; k < passes.size(); ++k) {
        band.passes[k].rows = rows;
        const int64_t n = band.passes[k].pixel.size();
        rows += n * panels.columns;
        parallel((n + rows_per_task - 1) / rows_per_task, [&](int64_t i, int64_t) {
          band.scale_rows(p, panels, k, plain, i * rows_per_task, std::min(n, (i + 1) * rows_per_task));
        });
      }
      parallel(tasks.size(), [&](int64_t i, int64_t) {
        const Task& t = tasks[i];
        const Panel& panel = panels.list[t.panel];
        accumulate(p, passes[t.pass], band.passes[t.pass], panel, features, t.row,
                   as<T>(sums) + offset.back() * panel.column + offset[t.pass] * panel.vectors * kLanes<T>);
      });
    }
  }

  if (grad_sum)
    for (int64_t o = 0; o < g.O; ++o) {
      double sum = 0;
      for (const std::vector<double>& part : channel_sums) sum += part[o];
      grad_sum[o] = static_cast<T>(sum);
    }
  if (!weights) return;
  const size_t branches = p.branches.size();
  parallel(panels.list.size() * branches, [&](int64_t i, int64_t) {
    const size_t branch = i % branches;
    const Panel& panel = panels.list[i / branches];
    if (!grad_weights[branch] && !grad_scales[branch]) return;
    std::vector<const T*> parts;
    for (size_t k = 0; k < passes.size(); ++k)
      parts.push_back(as<T>(sums) + offset.back() * panel.column + offset[k] * panel.vectors * kLanes<T>);
    std::vector<T> rows, out;
    unpack_grad_weight(p, passes, branch, panel, parts, copies, total, rows, out, grad_weights[branch], grad_scales[branch]);
  });
}

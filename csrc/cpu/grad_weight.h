// dL/dV_pass = sum over pixels of window(x o m) (outer) s_pass m' dL/dy: one outer product per tap and panel.

// What one pass reduces over: pixels of a band, each with its window and its scaled gradient.
template <class T>
struct PassPixels {
  std::vector<std::vector<PixelPair>> kernel_rows;  // [kh of the pass]: pixels whose window row lies in the image
  T* gradient = nullptr;                            // [panel][pixels, columns], scaled
  int64_t pixels = 0;
};

// Gradients of a band of output rows, ready for every pass.
template <class T>
struct WeightBand {
  std::vector<PassPixels<T>> passes;

  static int64_t size(int64_t pixels, size_t passes, const Panels& panels) { return pixels * passes * panels.columns; }

  // Uses `memory` of size(); adds the channel sums over live pixels to `sums` where that is not null.
  WeightBand(const Problem<T>& p, const std::vector<Pass>& list, const Panels& panels, const Gradient& grad,
             const Band& band, const FeatureBand<T>& features, T* memory, bool threads, double* sums)
      : passes(list.size()) {
    const Geometry& g = p.geo;
    const int64_t all = band_rows(band) * g.Wo;
    std::vector<std::vector<int32_t>> pixel(list.size());  // of the band, for every pixel of a pass
    std::vector<std::vector<T>> scale(list.size());
    collect(p, list, band, features, pixel, scale);
    for (PassPixels<T>& pass : passes) {
      const size_t k = &pass - passes.data();
      pass.pixels = k == 0 ? all : static_cast<int64_t>(pixel[k].size());
      pass.gradient = memory;
      memory += pass.pixels * panels.columns;
    }
    each(threads, panels.list.size(), [&](int64_t i) {
      const Panel& panel = panels.list[i];
      const int64_t columns = panel.vectors * kLanes<T>, channel = panel.group * g.Og() + panel.first;
      T* plain = passes[0].gradient + all * panel.column;
      std::vector<T> scratch;
      T* row = plain;
      if (columns > panel.width) std::fill_n(plain, all * columns, T(0));
      for (const Slice& s : band)
        for (int64_t oh = s.begin; oh < s.end; ++oh, row += g.Wo * columns)
          load_gradient_row(p, grad, s.n, oh, channel, panel.width, scratch, row, columns);
      if (sums) add_sums(plain, columns, panel.width, pixel[0], sums + channel);
      for (size_t k = list.size(); k-- > 0;) {  // the first pass last: it scales in place what the others read
        T* dst = passes[k].gradient + passes[k].pixels * panel.column;
        for (size_t j = 0; j < pixel[k].size(); ++j) {
          const T* from = plain + pixel[k][j] * columns;
          T* to = k == 0 ? plain + pixel[k][j] * columns : dst + j * columns;
          const T s = scale[k][j];
          if (k > 0 || s != T(1))
            for (int64_t c = 0; c < columns; c += kLanes<T>) store(to + c, s * load(from + c));
        }
      }
    });
  }

 private:
  void collect(const Problem<T>& p, const std::vector<Pass>& list, const Band& band, const FeatureBand<T>& features,
               std::vector<std::vector<int32_t>>& pixel, std::vector<std::vector<T>>& scale) {
    const Geometry& g = p.geo;
    for (size_t k = 0; k < list.size(); ++k) passes[k].kernel_rows.resize(list[k].kh);
    int32_t at = 0;
    for (size_t s = 0; s < band.size(); ++s) {
      const int32_t* counts[16];
      for (size_t i = 0; i < p.branches.size(); ++i) counts[i] = p.windows->counts(i, g, band[s].n);
      for (int64_t oh = band[s].begin; oh < band[s].end; ++oh)
        for (int64_t ow = 0; ow < g.Wo; ++ow, ++at) {
          const Ratios<T> ratios(p, counts, oh * g.Wo + ow);
          if (!ratios.live) continue;
          const int32_t window = static_cast<int32_t>(features.window(g, band, s, oh, ow) - features.data);
          for (size_t k = 0; k < (ratios.whole ? 1 : list.size()); ++k) {
            const T factor = ratios.scale(list[k], true);
            if (factor == T(0)) continue;
            const int32_t row = k == 0 ? at : static_cast<int32_t>(pixel[k].size());
            pixel[k].push_back(at);
            scale[k].push_back(factor);
            for (int64_t i = 0; i < list[k].kh; ++i) {
              const int64_t h = oh * g.sh + (list[k].top + i) * g.dh - g.pt;
              if (h >= 0 && h < g.H) passes[k].kernel_rows[i].push_back({window, row});
            }
          }
        }
    }
  }
  static void add_sums(const T* plain, int64_t columns, int64_t width, const std::vector<int32_t>& pixels, double* sums) {
    constexpr size_t kRun = 256;  // summed in T, then in double
    for (size_t i = 0; i < pixels.size(); i += kRun) {
      T part[kPanel<T>] = {};
      for (size_t j = i; j < std::min(pixels.size(), i + kRun); ++j)
        for (int64_t c = 0; c < columns; c += kLanes<T>)
          store(part + c, load(part + c) + load(plain + pixels[j] * columns + c));
      for (int64_t c = 0; c < width; ++c) sums[c] += part[c];
    }
  }
};

// Channels [c, c + chunk) of one pass against one panel: adds to grads [taps * chunk, columns].
template <class T>
static void accumulate(const Problem<T>& p, const Pass& pass, const PassPixels<T>& pixels, const Panel& panel,
                       const FeatureBand<T>& features, int64_t c, int64_t chunk, T* grads) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>;
  const T* gradient = pixels.gradient + pixels.pixels * panel.column;
  // Neighbouring taps of a dense kernel are one run of the padded row.
  const bool dense = g.dw == 1;
  constexpr size_t kPixels = 128;  // whose gradients stay in the first cache
  const int64_t run = dense ? pass.kw * chunk : chunk;
  for (int64_t i = 0; i < pass.kh; ++i) {
    const std::vector<PixelPair>& list = pixels.kernel_rows[i];
    for (size_t first = 0; first < list.size(); first += kPixels) {
      const int64_t n = std::min(kPixels, list.size() - first);
      for (int64_t j = 0; j < (dense ? 1 : pass.kw); ++j) {
        const T* window = features.data + features.channel_offset(panel.group * g.Cg() + c) +
                          ((pass.top + i) * g.dh * g.Wp + (pass.left + j) * g.dw) * chunk;
        T* out = grads + (i * pass.kw + j) * chunk * columns;
        for (int64_t m = 0, tiles = (run + kRows - 1) / kRows; tiles > 0; --tiles) {
          const int64_t rows = (run - m + tiles - 1) / tiles;  // even tiles: a last one of 2 rows starves
          outer(panel.vectors, rows, window + m, list.data() + first, n, gradient, out + m * columns, columns);
          m += rows;
        }
      }
    }
  }
}

template <class T>
static void grad_weight(const Problem<T>& p, Gradient grad, const std::vector<T*>& grad_weights,
                        const std::vector<T*>& grad_scales, T* grad_sum) {
  const Geometry& g = p.geo;
  const std::vector<Pass> passes = make_passes(p, true);
  const Panels panels = make_panels<T>(g.groups, {g.Og()});
  const size_t branches = p.branches.size();
  std::vector<int64_t> offset{0};  // of each pass, in taps
  for (const Pass& pass : passes) offset.push_back(offset.back() + pass.taps());

  const int64_t threads = thread_count();
  const int64_t row_bytes = (g.sh * g.Wp * g.C + g.Wo * panels.columns) * sizeof(T);
  const int64_t weight_bytes = offset.back() * g.Cg() * panels.columns * sizeof(T);
  // Small gradients: every thread sums its own copy over bands of its own. Large ones: one band at a time, and each
  // task makes the final gradient of one panel and chunk of channels, so that no sum ever leaves the cache.
  const bool own_copies = weight_bytes * threads <= (16 << 20);
  const int64_t chunk = own_copies ? g.Cg() : channel_chunk(g.Cg());
  const std::vector<Band> bands =
      make_bands(g.N, g.Ho, std::max<int64_t>(1, (own_copies ? kTileCacheBytes : kSharedBandBytes) / row_bytes));
  int64_t feature_size = 0, max_pixels = 0;
  for (const Band& band : bands) {
    feature_size = std::max(feature_size, FeatureBand<T>::size(g, band));
    max_pixels = std::max(max_pixels, band_rows(band) * g.Wo);
  }
  const int64_t copies = own_copies ? threads : 1;
  const int64_t band_size = feature_size + WeightBand<T>::size(max_pixels, passes.size(), panels);
  const int64_t sum_size = offset.back() * chunk * (own_copies ? panels.columns : kPanel<T>);
  const Buffer scratch = allocate(copies * band_size * sizeof(T)), sums = allocate(threads * sum_size * sizeof(T));
  std::vector<std::vector<double>> channel_sums(copies, std::vector<double>(g.O, 0.0));

  const auto accumulate_all = [&](const WeightBand<T>& band, const FeatureBand<T>& features, const Panel& panel, int64_t c,
                                  T* dst) {
    for (size_t k = 0; k < passes.size(); ++k)
      accumulate(p, passes[k], band.passes[k], panel, features, c, chunk,
                 dst + offset[k] * chunk * panel.vectors * kLanes<T>);
  };
  const auto unpack = [&](size_t branch, const Panel& panel, int64_t c, const T* src, int64_t partial_sums, bool add,
                          PackScratch<T>& pack, double* scale) {
    std::vector<const T*> parts;
    for (size_t k = 0; k < passes.size(); ++k) parts.push_back(src + offset[k] * chunk * panel.vectors * kLanes<T>);
    unpack_grad_weight(p, passes, branch, panel, c, c + chunk, parts, partial_sums, sum_size, pack, add,
                       grad_weights[branch], grad_scales[branch] ? scale : nullptr);
  };
  const auto wanted = [&](size_t branch) { return grad_weights[branch] || grad_scales[branch]; };
  bool any = false;
  for (size_t i = 0; i < branches; ++i) any |= wanted(i);
  const int64_t chunks = g.Cg() / std::max<int64_t>(chunk, 1);
  std::vector<double> scale_sums(chunks * branches * g.O, 0.0);  // [chunk][branch][O]
  const auto scale_sum = [&](int64_t i, size_t branch, const Panel& panel) {
    return scale_sums.data() + (i * branches + branch) * g.O + panel.group * g.Og() + panel.first;
  };

  if (own_copies) {
    // Bands are dealt out in a fixed way, so that the sums do not depend on timing.
    parallel(copies, [&](int64_t copy, int64_t) {
      T* memory = as<T>(scratch) + copy * band_size;
      T* mine = as<T>(sums) + copy * sum_size;
      std::fill_n(mine, sum_size, T(0));
      const int64_t count = bands.size();
      for (int64_t i = copy * count / copies; i < (copy + 1) * count / copies; ++i) {
        const FeatureBand<T> features(g, bands[i], chunk, memory);
        const WeightBand<T> band(p, passes, panels, grad, bands[i], features, memory + feature_size, false,
                                 grad_sum ? channel_sums[copy].data() : nullptr);
        if (!any) continue;
        load_features(p, bands[i], features, false);
        for (const Panel& panel : panels.list)
          accumulate_all(band, features, panel, 0, mine + offset.back() * chunk * panel.column);
      }
    });
    parallel(panels.list.size() * branches, [&](int64_t i, int64_t) {
      const Panel& panel = panels.list[i / branches];
      PackScratch<T> pack;
      if (wanted(i % branches))
        unpack(i % branches, panel, 0, as<T>(sums) + offset.back() * chunk * panel.column, copies, false, pack,
               scale_sum(0, i % branches, panel));
    });
  } else {
    for (size_t b = 0; b < bands.size(); ++b) {
      const FeatureBand<T> features(g, bands[b], chunk, as<T>(scratch));
      const WeightBand<T> band(p, passes, panels, grad, bands[b], features, as<T>(scratch) + feature_size, true,
                               grad_sum ? channel_sums[0].data() : nullptr);
      if (!any) continue;
      load_features(p, bands[b], features, true);
      parallel(panels.list.size() * chunks, [&](int64_t i, int64_t thread) {
        const Panel& panel = panels.list[i / chunks];
        T* mine = as<T>(sums) + thread * sum_size;
        std::fill_n(mine, sum_size, T(0));
        accumulate_all(band, features, panel, i % chunks * chunk, mine);
        PackScratch<T> pack;
        for (size_t branch = 0; branch < branches; ++branch)
          if (wanted(branch))
            unpack(branch, panel, i % chunks * chunk, mine, 1, b > 0, pack, scale_sum(i % chunks, branch, panel));
      });
    }
  }

  for (int64_t o = 0; grad_sum && o < g.O; ++o) {
    double sum = 0;
    for (const std::vector<double>& part : channel_sums) sum += part[o];
    grad_sum[o] = static_cast<T>(sum);
  }
  for (size_t branch = 0; branch < branches; ++branch)
    for (int64_t o = 0; grad_scales[branch] && o < g.O; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < chunks; ++i) sum += scale_sums[(i * branches + branch) * g.O + o];
      grad_scales[branch][o] = static_cast<T>(sum);
    }
}

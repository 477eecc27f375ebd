// Weights into panels and gradients back out of them: fold (V = a o W), merge, transpose.

// Row `row(tap)` * stride + k of dst, `columns` wide, (=|+=) factor o src for one tap of one channel.
template <class T>
PCONV_INLINE void put_row(T* dst, const T* src, const T* factor, int64_t columns, bool first) {
  for (int64_t v = 0; v < columns; v += kLanes<T>) {
    const Vec<T> x = load(src + v) * load(factor + v);
    store(dst + v, first ? x : load(dst + v) + x);
  }
}

// Scratch of one packing thread: a transposed block of weights and the scale of its columns.
template <class T>
struct PackScratch {
  std::vector<T> block;
  T factor[kPanel<T>];
  T* sized(int64_t n) {
    if (static_cast<int64_t>(block.size()) < n) block.resize(n);
    return block.data();
  }
};

// B of the forward pass, [taps * Cg, columns]: row tap * Cg + c, column = output channel.
template <class T>
static void pack_forward(const Problem<T>& p, const Pass& pass, const Panel& panel, PackScratch<T>& scratch, T* dst) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  bool first = true;
  for (size_t i : pass.merged) {
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw, dy = (pass.kh - b.kh) / 2, dx = (pass.kw - b.kw) / 2;
    for (int64_t o = 0; o < columns; ++o) scratch.factor[o] = o < panel.width ? (b.scale ? b.scale[o0 + o] : T(1)) : T(0);
    const int64_t step = std::max<int64_t>(1, 96 / taps);  // channels at a time: the block stays in the first cache
    T* block = scratch.sized(step * taps * columns);
    if (columns > panel.width) std::fill_n(block, step * taps * columns, T(0));
    for (int64_t c0 = 0; c0 < Cg; c0 += step) {
      const int64_t cn = std::min(step, Cg - c0);
      transpose(b.weight + (o0 * Cg + c0) * taps, Cg * taps, panel.width, cn * taps, block, columns);
      for (int64_t c = 0; c < cn; ++c)
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t tap = (t / b.kw + dy) * pass.kw + t % b.kw + dx;
          put_row(dst + (tap * Cg + c0 + c) * columns, block + (c * taps + t) * columns, scratch.factor, columns, first);
        }
    }
    first = false;
  }
}

// B of the input gradient, [taps * Og, columns]: row slot[tap] * Og + o, column = input channel.
template <class T>
static void pack_grad_input(const Problem<T>& p, const Pass& pass, const std::vector<int64_t>& slot, const Panel& panel,
                            PackScratch<T>& scratch, T* dst) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), Og = g.Og();
  bool first = true;
  for (size_t i : pass.merged) {
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw, dy = (pass.kh - b.kh) / 2, dx = (pass.kw - b.kw) / 2;
    T* block = scratch.sized(taps * columns);
    if (columns > panel.width) std::fill_n(block, taps * columns, T(0));
    for (int64_t o = 0; o < Og; ++o) {
      const int64_t channel = panel.group * Og + o;
      std::fill_n(scratch.factor, columns, b.scale ? b.scale[channel] : T(1));
      transpose(b.weight + (channel * Cg + panel.first) * taps, taps, panel.width, taps, block, columns);
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t tap = (t / b.kw + dy) * pass.kw + t % b.kw + dx;
        put_row(dst + (slot[tap] * Og + o) * columns, block + t * columns, scratch.factor, columns, first);
      }
    }
    first = false;
  }
}

// dL/dW = a o dL/dV and dL/da = <W, dL/dV> for the panel's output channels, where
// dL/dV_i = sum over the passes that merged i of the part of their gradient under kernel i.
// `grads[pass]` is the panel's [taps * Cg, columns] in each of `copies` partial sums, `copy_stride` apart.
template <class T>
static void unpack_grad_weight(const Problem<T>& p, const std::vector<Pass>& passes, size_t branch, const Panel& panel,
                               const std::vector<const T*>& grads, int64_t copies, int64_t copy_stride,
                               std::vector<T>& rows, std::vector<T>& out, T* grad_weight, T* grad_scale) {
  const Geometry& g = p.geo;
  const Branch<T>& b = p.branches[branch];
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  const int64_t taps = b.kh * b.kw, step = std::max<int64_t>(1, 96 / taps);
  rows.resize(step * taps * columns);
  out.resize(panel.width * step * taps);
  std::vector<double> dot(panel.width, 0.0);
  for (int64_t c0 = 0; c0 < Cg; c0 += step) {
    const int64_t cn = std::min(step, Cg - c0);
    for (int64_t c = 0; c < cn; ++c)
      for (int64_t t = 0; t < taps; ++t) {
        T* row = rows.data() + (c * taps + t) * columns;
        bool first = true;
        for (size_t k = 0; k < passes.size(); ++k) {
          const Pass& pass = passes[k];
          if (std::find(pass.merged.begin(), pass.merged.end(), branch) == pass.merged.end()) continue;
          const int64_t tap = (t / b.kw + (pass.kh - b.kh) / 2) * pass.kw + t % b.kw + (pass.kw - b.kw) / 2;
          for (int64_t s = 0; s < copies; ++s) {
            const T* src = grads[k] + s * copy_stride + (tap * Cg + c0 + c) * columns;
            for (int64_t v = 0; v < columns; v += kLanes<T>)
              store(row + v, first ? load(src + v) : load(row + v) + load(src + v));
            first = false;
          }
        }
      }
    const int64_t n = cn * taps;
    transpose(rows.data(), columns, n, panel.width, out.data(), n);
    for (int64_t o = 0; o < panel.width; ++o) {
      const int64_t at = ((o0 + o) * Cg + c0) * taps;
      const T* v = out.data() + o * n;
      if (grad_scale) {
        const T* w = b.weight + at;
        Vec<T> sum{};
        int64_t i = 0;
        for (; i + kLanes<T> <= n; i += kLanes<T>) sum += load(w + i) * load(v + i);
        double rest = 0;
        for (; i < n; ++i) rest += static_cast<double>(w[i]) * v[i];
        for (int64_t l = 0; l < kLanes<T>; ++l) rest += sum[l];
        dot[o] += rest;
      }
      if (grad_weight) {
        const T a = b.scale ? b.scale[o0 + o] : T(1);
        for (int64_t i = 0; i < n; ++i) grad_weight[at + i] = a * v[i];
      }
    }
  }
  if (grad_scale)
    for (int64_t o = 0; o < panel.width; ++o) grad_scale[o0 + o] = static_cast<T>(dot[o]);
}

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

// Channels at a time whose transposed taps stay in the first cache.
PCONV_INLINE int64_t channel_step(int64_t taps) { return std::max<int64_t>(1, 96 / taps); }

// Channels that one visit of packed weights covers where a thread packs them as it goes: all of them, or a divisor
// such that a pack of the largest kernel stays in the second cache.
PCONV_INLINE int64_t channel_chunk(int64_t channels) {
  for (int64_t chunk : {32, 24, 16, 20, 28, 12, 8})
    if (channels % chunk == 0) return chunk;
  return channels;
}

// B of the forward pass for channels [c_begin, c_end) of the group, [taps * (c_end - c_begin), columns]: row
// tap * (c_end - c_begin) + c, column = output channel.
template <class T>
static void pack_forward(const Problem<T>& p, const Pass& pass, const Panel& panel, int64_t c_begin, int64_t c_end,
                         PackScratch<T>& scratch, T* dst) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  bool first = true;
  for (size_t i : pass.merged) {
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw, dy = (pass.kh - b.kh) / 2, dx = (pass.kw - b.kw) / 2;
    for (int64_t o = 0; o < columns; ++o) scratch.factor[o] = o < panel.width ? (b.scale ? b.scale[o0 + o] : T(1)) : T(0);
    const int64_t step = channel_step(taps);
    T* block = scratch.sized(step * taps * columns);
    if (columns > panel.width) std::fill_n(block, step * taps * columns, T(0));
    for (int64_t c0 = c_begin; c0 < c_end; c0 += step) {
      const int64_t cn = std::min(step, c_end - c0);
      transpose(b.weight + (o0 * Cg + c0) * taps, Cg * taps, panel.width, cn * taps, block, columns);
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t tap = (t / b.kw + dy) * pass.kw + t % b.kw + dx;
        for (int64_t c = 0; c < cn; ++c)
          put_row(dst + (tap * (c_end - c_begin) + c0 - c_begin + c) * columns, block + (c * taps + t) * columns,
                  scratch.factor, columns, first);
      }
    }
    first = false;
  }
}

// B of the input gradient for output channels [o_begin, o_end) of the group, [taps * (o_end - o_begin), columns]: row
// slot[tap] * (o_end - o_begin) + o, column = input channel.
template <class T>
static void pack_grad_input(const Problem<T>& p, const Pass& pass, const std::vector<int64_t>& slot, const Panel& panel,
                            int64_t o_begin, int64_t o_end, PackScratch<T>& scratch, T* dst) {
  const Geometry& g = p.geo;
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg();
  bool first = true;
  for (size_t i : pass.merged) {
    const Branch<T>& b = p.branches[i];
    const int64_t taps = b.kh * b.kw, dy = (pass.kh - b.kh) / 2, dx = (pass.kw - b.kw) / 2;
    T* block = scratch.sized(taps * columns);
    if (columns > panel.width) std::fill_n(block, taps * columns, T(0));
    for (int64_t o = o_begin; o < o_end; ++o) {
      const int64_t channel = panel.group * g.Og() + o;
      std::fill_n(scratch.factor, columns, b.scale ? b.scale[channel] : T(1));
      transpose(b.weight + (channel * Cg + panel.first) * taps, taps, panel.width, taps, block, columns);
      for (int64_t t = 0; t < taps; ++t) {
        const int64_t tap = (t / b.kw + dy) * pass.kw + t % b.kw + dx;
        put_row(dst + (slot[tap] * (o_end - o_begin) + o - o_begin) * columns, block + t * columns, scratch.factor,
                columns, first);
      }
    }
    first = false;
  }
}

// dL/dW = a o dL/dV and the panel's part of dL/da = <W, dL/dV>, channels [c_begin, c_end) of the group, where
// dL/dV_i = sum over the passes that merged i of the part of their gradient under kernel i.
// `grads[pass]` is [taps * (c_end - c_begin), columns] in each of `copies` partial sums, `copy_stride` apart.
// `add` adds to what an earlier band left.
template <class T>
static void unpack_grad_weight(const Problem<T>& p, const std::vector<Pass>& passes, size_t branch, const Panel& panel,
                               int64_t c_begin, int64_t c_end, const std::vector<const T*>& grads, int64_t copies,
                               int64_t copy_stride, PackScratch<T>& scratch, bool add, T* grad_weight, double* grad_scale) {
  const Geometry& g = p.geo;
  const Branch<T>& b = p.branches[branch];
  const int64_t columns = panel.vectors * kLanes<T>, Cg = g.Cg(), o0 = panel.group * g.Og() + panel.first;
  const int64_t taps = b.kh * b.kw, step = channel_step(taps);
  T* rows = scratch.sized(step * taps * (columns + panel.width));
  T* out = rows + step * taps * columns;
  for (int64_t c0 = c_begin; c0 < c_end; c0 += step) {
    const int64_t cn = std::min(step, c_end - c0), n = cn * taps;
    bool first = true;
    for (size_t k = 0; k < passes.size(); ++k) {
      const Pass& pass = passes[k];
      if (std::find(pass.merged.begin(), pass.merged.end(), branch) == pass.merged.end()) continue;
      for (int64_t s = 0; s < copies; ++s) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t tap = (t / b.kw + (pass.kh - b.kh) / 2) * pass.kw + t % b.kw + (pass.kw - b.kw) / 2;
          for (int64_t c = 0; c < cn; ++c) {
            const T* src = grads[k] + s * copy_stride + (tap * (c_end - c_begin) + c0 - c_begin + c) * columns;
            T* row = rows + (c * taps + t) * columns;
            for (int64_t v = 0; v < columns; v += kLanes<T>)
              store(row + v, first ? load(src + v) : load(row + v) + load(src + v));
          }
        }
        first = false;
      }
    }
    transpose(rows, columns, n, panel.width, out, n);
    for (int64_t o = 0; o < panel.width; ++o) {
      const int64_t at = ((o0 + o) * Cg + c0) * taps;
      const T* v = out + o * n;
      if (grad_scale) {
        const T* w = b.weight + at;
        Vec<T> sum{};
        int64_t i = 0;
        for (; i + kLanes<T> <= n; i += kLanes<T>) sum += load(w + i) * load(v + i);
        double rest = 0;
        for (; i < n; ++i) rest += static_cast<double>(w[i]) * v[i];
        for (int64_t l = 0; l < kLanes<T>; ++l) rest += sum[l];
        grad_scale[o] += rest;
      }
      if (grad_weight) {
        const T a = b.scale ? b.scale[o0 + o] : T(1);
        for (int64_t i = 0; i < n; ++i) grad_weight[at + i] = add ? grad_weight[at + i] + a * v[i] : a * v[i];
      }
    }
  }
}

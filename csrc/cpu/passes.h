// Identity 3 as a list of dense products. With ratios r_1..r_n (ascending kernels) every output is
//   sum_i r_i conv(V_i) = r_n conv(V_1 + ... + V_n) + sum_{i<n} (r_i - r_n) conv(V_i):
// one product with the merged kernel for all live windows, corrections for the windows that are not whole. Where all
// but the largest window are whole (r_i = 1, i < n) the corrections share one factor and so one merged kernel.

struct Pass {
  enum Kind { kAll, kLower, kSingle } kind;
  size_t branch;                // the largest merged branch, whose kernel the pass has
  std::vector<size_t> merged;   // branches summed into the kernel, largest first
  int64_t kh, kw, top, left;    // kernel, and where it lies in the largest window
  int64_t taps() const { return kh * kw; }
};

template <class T>
static std::vector<Pass> make_passes(const Problem<T>& p, bool with_lower) {
  const size_t n = p.branches.size();
  std::vector<Pass> passes;
  auto add = [&](typename Pass::Kind kind, size_t branch, bool all_below) {
    Pass pass{kind, branch, {branch}, p.branches[branch].kh, p.branches[branch].kw, 0, 0};
    if (all_below)
      for (size_t i = branch; i-- > 0;) pass.merged.push_back(i);
    pass.top = (p.geo.kh - pass.kh) / 2;
    pass.left = (p.geo.kw - pass.kw) / 2;
    passes.push_back(pass);
  };
  add(Pass::kAll, n - 1, true);
  if (with_lower && n > 2) add(Pass::kLower, n - 2, true);
  for (size_t i = n - 1; i-- > 0;) add(Pass::kSingle, i, false);
  return passes;
}

// Ratios of one output pixel. `scale(pass)` is the factor of the pass there, 0 where the pass has nothing to add.
template <class T>
struct Ratios {
  bool live, whole, lower_whole;
  T r[16];
  size_t n;

  Ratios(const Problem<T>& p, const int32_t* const* counts, int64_t pixel) : n(p.branches.size()) {
    const Windows& w = *p.windows;
    live = counts[0][pixel] > 0;
    whole = counts[n - 1][pixel] == w.whole[n - 1];
    lower_whole = n == 1 || counts[n - 2][pixel] == w.whole[n - 2];
    if (!live) return;
    for (size_t i = 0; i < n; ++i) r[i] = static_cast<T>(w.whole[i]) / static_cast<T>(counts[i][pixel]);
  }
  T scale(const Pass& pass, bool with_lower) const {
    if (!live) return T(0);
    const T largest = r[n - 1];
    if (pass.kind == Pass::kAll) return largest;
    const bool shared = with_lower && n > 2 && lower_whole;
    if (pass.kind == Pass::kLower) return shared ? T(1) - largest : T(0);
    return shared ? T(0) : r[pass.branch] - largest;
  }
};

// Columns of B: the channels of one group, cut into panels of at most kPanel (and where `cuts` say).
struct Panel {
  int64_t group, first, width, vectors;  // first channel within the group, channels, vectors that hold them
  int64_t column;                        // columns before it in a packed matrix
};
struct Panels {
  std::vector<Panel> list;
  int64_t columns = 0;  // all, padded to whole vectors
};
template <class T>
static Panels make_panels(int64_t groups, const std::vector<int64_t>& parts) {
  Panels out;
  for (int64_t g = 0; g < groups; ++g) {
    int64_t first = 0;
    for (int64_t part : parts) {
      for (int64_t done = 0; done < part; done += kPanel<T>) {
        const int64_t width = std::min(kPanel<T>, part - done);
        const int64_t vectors = (width + kLanes<T> - 1) / kLanes<T>;
        out.list.push_back({g, first + done, width, vectors, out.columns});
        out.columns += vectors * kLanes<T>;
      }
      first += part;
    }
  }
  return out;
}

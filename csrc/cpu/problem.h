// What the CPU kernels are told and what they ask of their host. No torch header: tensors arrive as raw
// pointers.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace pconv {

constexpr int kMaxBranches = 16;

enum class DType : uint8_t { f32, f64, bf16, f16 };

// How one window position sees the image. Every operator is a convolution over [N, H, W, C] with one
// centre.
struct Geometry {
  int64_t N, C, H, W;  // input of the convolution (after up-sampling and concatenation)
  int64_t O, Ho, Wo;   // output
  int64_t groups;
  int64_t kh, kw;  // the largest window
  int64_t sh, sw;  // stride, at most the padded size: any larger one has one window too
  int64_t dh, dw;  // dilation
  int64_t pt, pl;  // padding above and to the left
  int64_t Hp, Wp;  // rows and columns of the padded image that any window touches

  int64_t Cg() const { return C / groups; }
  int64_t Og() const { return O / groups; }
  int64_t pixels() const { return N * Ho * Wo; }
};

// One feature map of the concatenated input; `up` = 1 reads it through a nearest 2x up-sampling (index i >>
// 1). Memory is NCHW-contiguous or channels-last.
struct Source {
  const void* data = nullptr;
  int64_t C = 0;
  int up = 0;
  int64_t H = 0, W = 0;  // of the stored map
  bool channels_last = false;
  const uint8_t* mask = nullptr;  // [Nm, Cm, H, W], nonzero = valid; null = all valid
  int64_t mask_stride_n = 0;      // 0 where one mask serves the batch
  bool mask_per_channel = false;
};

// One weight of the operator, [O, C / groups, kh, kw]; `scale` [O] multiplies it (the fold), null
// = 1.
template <class T>
struct Branch {
  int64_t kh, kw;
  const T* weight;
  const T* scale;
};

// Scratch memory from the framework's allocator, freed with the last owner.
using Buffer = std::shared_ptr<void>;
Buffer allocate(int64_t bytes);
template <class T>
T* as(const Buffer& b) {
  return static_cast<T*>(b.get());
}

// Valid entries of every window, per branch; shared by forward and backward.
struct Windows {
  int64_t Nm = 1;              // 1 where all images share one mask
  std::vector<Buffer> count;   // per branch int32_t [Nm, Ho, Wo]
  std::vector<int64_t> whole;  // count of a full window, per branch
  std::vector<uint8_t> valid;  // [Nm, Hp, valid_stride] any channel valid, padding included as 0
  int64_t valid_stride = 0;    // Wp and at least 8 more bytes, so that 8 can be read anywhere

  const int32_t* counts(size_t branch, const Geometry& g, int64_t n) const {
    return as<int32_t>(count[branch]) + (Nm == 1 ? 0 : n) * g.Ho * g.Wo;
  }
  const uint8_t* valid_rows(const Geometry& g, int64_t n) const {
    return valid.data() + (Nm == 1 ? 0 : n) * g.Hp * valid_stride;
  }
};

// Packed weights that outlive a call, null for none: `pack` writes what `forward` reads.
template <class T>
struct Prepacked {
  T* data = nullptr;
  int64_t size = 0;
};

// Where another library has convolved all windows with the branches merged and summed: the largest ratio of a
// window that its convolution serves. Its results have the dtype of the features, and their rounding is
// multiplied by the ratio.
constexpr int kDenseRatioLimit = 4;

template <class T>
struct Problem {
  DType dtype;  // of the feature maps; T computes
  Geometry geo;
  std::vector<Source> sources;
  std::vector<Branch<T>> branches;  // by ascending window
  const Windows* windows;
  Prepacked<T> prepacked = {};
  // Outputs and gradients of inputs hold the dense part already, and are completed.
  bool dense_given = false;
  const T* dense_gradient = nullptr;  // [O, C, kh, kw], the dense part of gradients of weights
};

// A feature map to be written, in the dtype of the problem.
struct Target {
  void* data = nullptr;
  bool channels_last = false;
};

// A gradient that comes in, [N, O, Ho, Wo].
struct Gradient {
  const void* data;
  bool channels_last;
};

int64_t thread_count();
// Runs body(ctx, i) for i in [0, n) over the framework's threads, each taking the next free i. The body never
// throws.
void parallel_tasks(int64_t n, void (*body)(void* ctx, int64_t task, int64_t thread), void* ctx);
template <class F>
void parallel(int64_t n, const F& f) {
  parallel_tasks(
      n, [](void* ctx, int64_t task, int64_t thread) { (*static_cast<const F*>(ctx))(task, thread); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// What a call needs computed, compiled once per instruction set.
template <class T>
struct Engine {
  // out [N, O, Ho, Wo]; bias [O] (already scaled and summed over branches) or null.
  void (*forward)(const Problem<T>&, const T* bias, Target out);
  // Entries of the packed weights that forward takes where they fit, 0 where it takes none; written where
  // there is room for them.
  int64_t (*pack)(const Problem<T>&);
  // One target per source.
  void (*grad_input)(const Problem<T>&, Gradient, const std::vector<Target>&);
  // Per branch: grad_weight like weight; grad_scale [O] = <W, dL/dV> (only where the branch has a scale).
  // grad_sum [O] = sum of the gradient over live windows. Null pointers are skipped.
  void (*grad_weight)(const Problem<T>&, Gradient, const std::vector<T*>& grad_weights,
                      const std::vector<T*>& grad_scales, T* grad_sum);
};
template <class T>
const Engine<T>& engine();  // the best for this processor
const char* instruction_set();

// What pconv_ext.set_algorithm chose; it may change during a call, which therefore asks once.
enum class Algorithm { automatic, direct };
Algorithm algorithm();
void set_algorithm(Algorithm);

Windows count_windows(const Geometry&, const std::vector<Source>&,
                      const std::vector<std::pair<int64_t, int64_t>>& sizes);

}  // namespace pconv

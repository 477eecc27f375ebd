// Between the framework's tensors and the kernels' pointers. The only CPU header that knows torch.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "problem.h"

namespace pconv {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

DType dtype_of(const Tensor& t);
// float64 computes in float64, all else in float32.
ScalarType compute_type(const Tensor& t);

// A feature map made dense in its own memory format.
struct FeatureMap {
  Tensor tensor;
  bool channels_last;
  explicit FeatureMap(const Tensor& t);
  int64_t size(int64_t d) const { return tensor.size(d); }
};

// A mask as bytes, nonzero = valid; a mask expanded over its channels is one plane.
struct MaskPlanes {
  OptionalTensor planes;  // uint8 [Nm, Cm, H, W]
  explicit MaskPlanes(const OptionalTensor& mask);
};

Source make_source(const FeatureMap& x, const MaskPlanes& mask, int up);
// New feature map or gradient [N, C, H, W].
Tensor empty_map(int64_t N, int64_t C, int64_t H, int64_t W, ScalarType dtype, bool channels_last);
Tensor empty_like_dense(const Tensor& t, ScalarType dtype);
// Asks for pages of 2 MB.
void ask_for_large_pages(void* data, int64_t bytes);
Target target_of(const Tensor& t, bool channels_last);
// new_mask [N, 1, Ho, Wo]: a window of the smallest kernel holds a valid entry.
Tensor updated_mask(const Geometry& g, const Windows& w, ScalarType dtype);

// A parameter in the compute type and contiguous, and a gradient back in the type of the parameter.
Tensor to_compute(const Tensor& t);
OptionalTensor to_compute(const OptionalTensor& t);
std::vector<Tensor> to_compute(const std::vector<Tensor>& tensors);
Tensor to_storage(const Tensor& t, ScalarType dtype);
Tensor none();

// Calls f(T{}) with the compute type of x.
template <class F>
auto with_compute_type(const Tensor& x, const F& f) {
  return x.scalar_type() == ScalarType::Double ? f(double{}) : f(float{});
}

template <class T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace pconv

// Packed weights that outlive a call: `pack` makes them, `forward_packed` computes with them. Both take a
// Call of any operator, in the order of pconv_ext/ops/call.py.
#include "call.h"

namespace pconv {
namespace {

Call call_of(const std::vector<Tensor>& features, const std::vector<OptionalTensor>& masks,
             const std::vector<bool>& up, const std::vector<Tensor>& weights, const OptionalTensor& scales,
             const Spacing& spacing) {
  std::vector<MaskedMap> sources;
  for (size_t i = 0; i < features.size(); ++i) sources.emplace_back(features[i], masks[i], up[i]);
  return Call("forward_packed", std::move(sources), weights, scales, spacing);
}

}  // namespace

Tensor pack(std::vector<Tensor> features, std::vector<bool> up, std::vector<Tensor> weights,
            const OptionalTensor& scales, std::vector<int64_t> stride, std::vector<int64_t> padding,
            std::vector<int64_t> dilation, int64_t groups) {
  const std::vector<OptionalTensor> masks(features.size());
  return call_of(features, masks, up, weights, scales, {stride, padding, dilation, groups}).pack();
}

std::tuple<Tensor, Tensor> forward_packed(std::vector<Tensor> features, std::vector<OptionalTensor> masks,
                                          std::vector<bool> up, std::vector<Tensor> weights,
                                          std::vector<Tensor> biases, const OptionalTensor& scales,
                                          std::vector<int64_t> stride, std::vector<int64_t> padding,
                                          std::vector<int64_t> dilation, int64_t groups,
                                          const Tensor& packed) {
  const Call call = call_of(features, masks, up, weights, scales, {stride, padding, dilation, groups});
  return call.forward(biases, packed);
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack));
  m.impl("forward_packed", TORCH_BOX(&forward_packed));
}

}  // namespace pconv

// partial_conv2d on the CPU: one branch, any stride, padding, dilation, groups, single- or per-channel mask.
#include <algorithm>

#include "tensors.h"

namespace pconv {
namespace {

Geometry geometry(const Tensor& x, const Tensor& weight, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups) {
  Geometry g{};
  g.N = x.size(0), g.C = x.size(1), g.H = x.size(2), g.W = x.size(3);
  g.O = weight.size(0), g.kh = weight.size(2), g.kw = weight.size(3), g.groups = groups;
  g.sh = std::min(stride[0], g.H + padding[0] + padding[1]);
  g.sw = std::min(stride[1], g.W + padding[2] + padding[3]);
  g.dh = dilation[0], g.dw = dilation[1];
  g.pt = padding[0], g.pl = padding[2];
  g.Ho = (g.H + padding[0] + padding[1] - g.dh * (g.kh - 1) - 1) / g.sh + 1;
  g.Wo = (g.W + padding[2] + padding[3] - g.dw * (g.kw - 1) - 1) / g.sw + 1;
  g.Hp = (g.Ho - 1) * g.sh + (g.kh - 1) * g.dh + 1;
  g.Wp = (g.Wo - 1) * g.sw + (g.kw - 1) * g.dw + 1;
  return g;
}

}  // namespace

std::tuple<Tensor, Tensor> partial_conv2d(const Tensor& x_, const OptionalTensor& mask_,
                                          const Tensor& weight_, const OptionalTensor& bias_,
                                          std::vector<int64_t> stride, std::vector<int64_t> padding,
                                          std::vector<int64_t> dilation, int64_t groups) {
  const FeatureMap x(x_);
  const MaskPlanes mask(mask_);
  const Tensor weight = to_compute(weight_);
  const Geometry g = geometry(x_, weight_, stride, padding, dilation, groups);
  const std::vector<Source> sources{make_source(x, mask, 0)};
  const Windows windows = count_windows(g, sources, {{g.kh, g.kw}});
  const Tensor out = empty_map(g.N, g.O, g.Ho, g.Wo, x_.scalar_type(), x.channels_last);
  const OptionalTensor bias = to_compute(bias_);
  with_compute_type(x_, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p{dtype_of(x_), g, sources, {{g.kh, g.kw, const_data<T>(weight), nullptr}}, &windows};
    engine<T>().forward(p, bias ? const_data<T>(*bias) : nullptr, target_of(out, x.channels_last));
  });
  return {out, updated_mask(g, windows, mask_ ? mask_->scalar_type() : x_.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> partial_conv2d_backward(const Tensor& grad_, const Tensor& x_,
                                                           const OptionalTensor& mask_, const Tensor& weight_,
                                                           std::vector<int64_t> stride,
                                                           std::vector<int64_t> padding,
                                                           std::vector<int64_t> dilation, int64_t groups,
                                                           std::vector<bool> needs) {
  const FeatureMap x(x_), grad(grad_);
  const MaskPlanes mask(mask_);
  const Tensor weight = to_compute(weight_);
  const Geometry g = geometry(x_, weight_, stride, padding, dilation, groups);
  const std::vector<Source> sources{make_source(x, mask, 0)};
  const Windows windows = count_windows(g, sources, {{g.kh, g.kw}});
  const ScalarType dtype = x_.scalar_type();
  const Tensor grad_x = needs[0] ? empty_map(g.N, g.C, g.H, g.W, dtype, x.channels_last) : none();
  const Tensor grad_weight = needs[1] ? empty_like_dense(weight, weight.scalar_type()) : none();
  const Tensor grad_bias = needs[2] ? torch::stable::empty({g.O}, weight.scalar_type()) : none();
  with_compute_type(x_, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p{dtype_of(x_), g, sources, {{g.kh, g.kw, const_data<T>(weight), nullptr}}, &windows};
    const Gradient gradient{grad.tensor.const_data_ptr(), grad.channels_last};
    if (needs[0]) engine<T>().grad_input(p, gradient, {target_of(grad_x, x.channels_last)});
    if (needs[1] || needs[2])
      engine<T>().grad_weight(p, gradient, {needs[1] ? mutable_data<T>(grad_weight) : nullptr}, {nullptr},
                              needs[2] ? mutable_data<T>(grad_bias) : nullptr);
  });
  return {grad_x, needs[1] ? to_storage(grad_weight, dtype) : grad_weight,
          needs[2] ? to_storage(grad_bias, dtype) : grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("partial_conv2d", TORCH_BOX(&partial_conv2d));
  m.impl("partial_conv2d_backward", TORCH_BOX(&partial_conv2d_backward));
}

}  // namespace pconv

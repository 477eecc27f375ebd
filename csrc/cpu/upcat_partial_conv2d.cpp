// upcat_partial_conv2d on the CPU: the up-sampling is an index, the concatenation two pointers (Source), the
// count C1 * cnt1 + C2 * cnt2.
#include "tensors.h"

namespace pconv {
namespace {

struct Call {
  FeatureMap low, skip;
  MaskPlanes mask_low, mask_skip;
  Tensor weight;
  Geometry g{};
  std::vector<Source> sources;
  Windows windows;

  Call(const Tensor& low_, const OptionalTensor& mask_low_, const Tensor& skip_,
       const OptionalTensor& mask_skip_, const Tensor& weight_)
      : low(low_), skip(skip_), mask_low(mask_low_), mask_skip(mask_skip_), weight(to_compute(weight_)) {
    g.N = skip.size(0), g.C = low.size(1) + skip.size(1), g.H = skip.size(2), g.W = skip.size(3),
    g.groups = 1;
    g.O = weight.size(0), g.kh = weight.size(2), g.kw = weight.size(3);
    g.sh = g.sw = g.dh = g.dw = 1, g.pt = g.kh / 2, g.pl = g.kw / 2;
    g.Ho = g.H, g.Wo = g.W, g.Hp = g.Ho + g.kh - 1, g.Wp = g.Wo + g.kw - 1;
    sources = {make_source(low, mask_low, 1), make_source(skip, mask_skip, 0)};
    windows = count_windows(g, sources, {{g.kh, g.kw}});
  }
  template <class T>
  Problem<T> problem() const {
    return {dtype_of(skip.tensor), g, sources, {{g.kh, g.kw, const_data<T>(weight), nullptr}}, &windows};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> upcat_partial_conv2d(const Tensor& low_, const OptionalTensor& mask_low_,
                                                const Tensor& skip_, const OptionalTensor& mask_skip_,
                                                const Tensor& weight_, const OptionalTensor& bias_) {
  const Call call(low_, mask_low_, skip_, mask_skip_, weight_);
  const Geometry& g = call.g;
  const Tensor out = empty_map(g.N, g.O, g.Ho, g.Wo, skip_.scalar_type(), call.skip.channels_last);
  const OptionalTensor bias = to_compute(bias_);
  with_compute_type(skip_, [&](auto zero) {
    using T = decltype(zero);
    engine<T>().forward(call.problem<T>(), bias ? const_data<T>(*bias) : nullptr,
                        target_of(out, call.skip.channels_last));
  });
  const ScalarType dtype = mask_low_    ? mask_low_->scalar_type()
                           : mask_skip_ ? mask_skip_->scalar_type()
                                        : skip_.scalar_type();
  return {out, updated_mask(g, call.windows, dtype)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> upcat_partial_conv2d_backward(
    const Tensor& grad_, const Tensor& low_, const OptionalTensor& mask_low_, const Tensor& skip_,
    const OptionalTensor& mask_skip_, const Tensor& weight_, std::vector<bool> needs) {
  const Call call(low_, mask_low_, skip_, mask_skip_, weight_);
  const FeatureMap grad(grad_);
  const Geometry& g = call.g;
  const ScalarType dtype = skip_.scalar_type(), compute = compute_type(skip_);
  const Tensor grad_low = needs[0] ? empty_map(g.N, call.low.size(1), call.low.size(2), call.low.size(3),
                                               dtype, call.low.channels_last)
                                   : none();
  const Tensor grad_skip =
      needs[1] ? empty_map(g.N, call.skip.size(1), g.H, g.W, dtype, call.skip.channels_last) : none();
  const Tensor grad_weight = needs[2] ? empty_like_dense(call.weight, compute) : none();
  const Tensor grad_bias = needs[3] ? torch::stable::empty({g.O}, compute) : none();
  with_compute_type(skip_, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = call.problem<T>();
    const Gradient gradient{grad.tensor.const_data_ptr(), grad.channels_last};
    if (needs[0] || needs[1])
      engine<T>().grad_input(p, gradient,
                             {needs[0] ? target_of(grad_low, call.low.channels_last) : Target{},
                              needs[1] ? target_of(grad_skip, call.skip.channels_last) : Target{}});
    if (needs[2] || needs[3])
      engine<T>().grad_weight(p, gradient, {needs[2] ? mutable_data<T>(grad_weight) : nullptr}, {nullptr},
                              needs[3] ? mutable_data<T>(grad_bias) : nullptr);
  });
  return {grad_low, grad_skip, needs[2] ? to_storage(grad_weight, dtype) : grad_weight,
          needs[3] ? to_storage(grad_bias, dtype) : grad_bias};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("upcat_partial_conv2d", TORCH_BOX(&upcat_partial_conv2d));
  m.impl("upcat_partial_conv2d_backward", TORCH_BOX(&upcat_partial_conv2d_backward));
}

}  // namespace pconv

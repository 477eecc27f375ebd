// The passes of a depthwise convolution: by the layout of its maps, its kernel and its stride.
#pragma once
#include "depthwise.h"
#include "depthwise_last.h"
#include "depthwise_planes.h"
#include "isa.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

template <class T>
static void forward_depthwise(const Problem<T>& p, const T* bias, Target out) {
  with_window(p.geo, [&](auto kernel, auto stride) {
    if (p.sources[0].channels_last) return forward_last<kernel, stride>(p, bias, out);
    forward_planes<kernel, stride>(p, bias, out);
  });
}

template <class T>
static void grad_input_depthwise(const Problem<T>& p, const Gradient& grad, const Target& out) {
  with_window(p.geo, [&](auto kernel, auto stride) {
    if (p.sources[0].channels_last) return grad_input_last<kernel, stride>(p, grad, out);
    GradInputPlanes<kernel, stride, T>(p, grad, out).run();
  });
}

template <class T>
static void grad_weight_depthwise(const Problem<T>& p, const Gradient& grad, T* grad_weight, T* grad_sum) {
  with_window(p.geo, [&](auto kernel, auto stride) {
    if (p.sources[0].channels_last) return grad_weight_last<kernel, stride>(p, grad, grad_weight, grad_sum);
    grad_weight_planes<kernel, stride>(p, grad, grad_weight, grad_sum);
  });
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA

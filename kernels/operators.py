"""The way in: the operators on a GPU, by the kernels that host/kernel_set.py says.

A call has one source and any number of branches, with scales if there are several; or two sources, first an
up-sampled one and then one that is not, with a single branch: an odd square, centred, at stride 1, without
scales. Its masks have one plane, and it has no groups.
"""

from __future__ import annotations

from torch import Tensor

from pconv_ext.ops.call import Call, Gradients, Needs

from .host import backward as _backward
from .host import devices
from .host import forward as _forward


def forward(call: Call) -> tuple[Tensor, Tensor]:
    """out [N, C_out, Ho, Wo] in the layout of ``call.like``, new_mask [N, 1, Ho, Wo]."""
    with devices.on(call.like.device):
        out, new_mask = _forward.forward(call)
        return devices.as_laid_out(out, call.like), new_mask


def backward(call: Call, grad_out: Tensor, needs: Needs) -> Gradients:
    """Gradients of `forward`, those of features in their layouts."""
    with devices.on(call.like.device):
        grads = _backward.backward(call, grad_out, needs)
        features = [
            None if grad is None else devices.as_laid_out(grad, source.x)
            for grad, source in zip(grads.sources, call.sources, strict=True)
        ]
        return Gradients(features, grads.weights, grads.biases, grads.scales)

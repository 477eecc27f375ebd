"""Whether a call is one that runs now, and that nobody but the kernels has to see."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """No tracer, transform, dispatch mode, capture or class of tensor has a part in it."""
    return (
        not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None
        and all(type(one) in (Tensor, nn.Parameter) for one in tensors)
    )

"""The layers that `replace_partial_convs` puts in where `PartialConv2d` is called or returns otherwise."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..modules import PartialConv2d


class MMagicPartialConv2d(PartialConv2d):
    """`PartialConv2d` that is called and returns as mmagic's layer."""

    def forward(self, input: Tensor, mask: Tensor | None = None, return_mask: bool = True) -> Any:
        """A plain convolution without `mask`; else out, or (out, new_mask) if `return_mask`."""
        if mask is None:
            return F.conv2d(
                input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        out, new_mask = self.partial_conv(input, mask)
        return (out, new_mask) if return_mask else out


class NormActPartialConv2d(PartialConv2d):
    """`PartialConv2d` followed by modules, such as norm and activation, under the names that the layer it
    replaces has for them; without any it is called and returns as naoto0804's layer.

    Args:
        *args, **kwargs: those of `PartialConv2d`.
        after: the modules by name, in the order in which they are applied.
        masked: names in `after` of modules that are called with (out, new_mask [N, C_out, H', W']), such as
            masked batch norms; the others get out.
    """

    def __init__(
        self, *args: Any, after: dict[str, nn.Module], masked: tuple[str, ...] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, module in after.items():
            self.add_module(name, module)
        self.after = tuple(after)
        self.masked = masked

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Any:
        """Return (out after all modules, new_mask), shapes as of `PartialConv2d`."""
        out, new_mask = self.partial_conv(input, mask)
        for name in self.after:
            module = getattr(self, name)
            out = module(out, new_mask) if name in self.masked else module(out)
        return out, new_mask

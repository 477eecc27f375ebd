"""Forward over few channels in one launch: the CUDA kernel ``few_inputs``, which Triton has no twin of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from . import launch, plan
from .kernel_set import current
from .lists import Plane, empty_mask
from .plan import Taps

if TYPE_CHECKING:
    from .conv import Problem

#: Of the packed weights: the kernel takes blocks of 16 to 64 output channels.
BLOCK_N = 16

_MAX_STRIDE = 2
_MAX_SIDE = 8  # of the largest kernel: all together, msfef's are distinct and odd, have few enough rows
_TILE_SIDE = 80  # more than the rows or columns of input under a tile, whose offsets in bytes are 32 bits


def fits(x: Tensor, mask: Tensor | None, p: Problem) -> bool:
    """Whether the kernel is there and can compute `p` of `x` and `mask`."""
    return current().few_inputs is not None and loads(x, mask, p)


def loads(x: Tensor, mask: Tensor | None, p: Problem) -> bool:
    """Whether csrc/cuda/few_inputs_feed.h can load what lies below a tile of `p`."""
    last = p.parts[-1]
    return (
        plan.row_depth(p.c_in, last.kw, x.element_size()) > 0
        and list(p.dilation) == [1, 1]
        and max(p.stride) <= _MAX_STRIDE
        and max(last.kh, last.kw) <= _MAX_SIDE
        and p.pixels < 2**31
        and all(_TILE_SIDE * (t.stride(2) + t.stride(3)) * 8 < 2**31 for t in (x, mask) if t is not None)
    )


def forward(
    x: Tensor, mask: Tensor | None, packed: launch.Packed, bias: Tensor | None, p: Problem, taps: Taps
) -> tuple[Tensor, Tensor]:
    """As conv.forward; `packed` are the weights for `taps`."""
    plane = Plane.of(mask, x)
    out = launch.empty_features((p.n, p.c_out, p.ho, p.wo), x)
    new_mask, stored = empty_mask((p.n, 1, p.ho, p.wo), mask, x)
    top, left = p.padding
    current().few_inputs[(1,)](
        x, plane.data, packed.data, out if bias is None else bias.contiguous(), out, stored,
        *x.stride(), *plane.strides,
        N=p.n, C=p.c_in, H=p.h, W=p.w, NOUT=p.c_out, HO=p.ho, WO=p.wo, TOP=top, LEFT=left,
        SH=p.stride[0], SW=p.stride[1], NP=plan.rounded(p.c_out, BLOCK_N), KP=packed.kp,
        ROW_CHANNELS=packed.row_channels, PHASES=tuple(map(tuple, taps.phases)), MASK=plane.kind,
        HAS_BIAS=bias is not None, PRECISION=launch.precision(x.dtype),
    )  # fmt: skip
    return out, new_mask

"""Arguments for the CUDA kernels of few channels, put in the place of Triton's general ones."""

from functools import partial

import torch
from support import arguments
from support.cases import DEVICE_OF, holes_of, laid_out, mask_of, randn, rubbish

BACKEND = "triton"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

conv_case = partial(arguments.partial_conv2d, BACKEND)
upcat_case = partial(arguments.upcat_partial_conv2d, BACKEND)


def features(shape, dtype, mask, *, layout="contiguous", mask_dtype=torch.bool, mask_layout="contiguous"):
    """x with rubbish in its holes, and its mask."""
    x = laid_out(randn(*shape, dtype=dtype, device=DEVICE_OF[BACKEND]), layout)
    mask = mask_of(mask, x, mask_dtype)
    mask = mask if mask is None else laid_out(mask, mask_layout)
    return {"x": rubbish(x, holes_of(mask, x)), "mask": mask}


def partial_conv2d(shape, c_out, size, mask, *, stride, padding=0, bias=True, dtype=torch.float32, **options):
    """Arguments with `features` of these `options`."""
    args = conv_case(shape, c_out, size, "none", bias, dtype, stride=stride, padding=padding)
    return args | features(shape, dtype, mask, **options)


def msfef(shape, c_out, sizes, mask, *, stride=2, bias=True, dtype=torch.float32, **options):
    """The same."""
    args = arguments.msfef(BACKEND, shape, c_out, sizes, "none", bias, dtype, stride)
    return args | features(shape, dtype, mask, **options)

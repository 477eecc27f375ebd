"""Each operator on enough pixels for several threads, as a function of the tensors with gradients."""

import pytest
from support.cases import kernel, mask_of, randn

import pconv_ext


def partial_conv2d(where):
    x = randn(2, 32, 40, 44, **where)
    leaves = [x, kernel(48, 32, 3, **where), randn(48, **where)]
    mask = mask_of("random", x)
    return leaves, lambda x, w, b, **o: pconv_ext.partial_conv2d(x, mask, w, b, padding=1, **o)


def msfef(where):
    x = randn(2, 16, 40, 44, **where)
    leaves = [x, *(kernel(32, 16, k, **where) for k in (3, 5, 7)), randn(3, 32, **where)]
    mask = mask_of("random", x)
    return leaves, lambda x, u, v, w, s, **o: pconv_ext.msfef(x, mask, [u, v, w], None, s, 2, **o)


def upcat_partial_conv2d(where):
    x_low, skip = randn(2, 32, 20, 22, **where), randn(2, 16, 39, 44, **where)
    leaves = [x_low, skip, kernel(32, 48, 3, **where)]
    mask_low, mask_skip = mask_of("random", x_low), mask_of("random", skip)
    return leaves, lambda x, s, w, **o: pconv_ext.upcat_partial_conv2d(x, mask_low, s, mask_skip, w, **o)


every_operator = pytest.mark.parametrize("make", [partial_conv2d, msfef, upcat_partial_conv2d])

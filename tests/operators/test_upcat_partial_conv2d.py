"""`pconv_ext.upcat_partial_conv2d` against the float64 reference, in every compiled backend."""

import pytest
import torch
from support.arguments import upcat_partial_conv2d as case
from support.cases import (
    DTYPES,
    LAYOUTS,
    MASK_DTYPES,
    PLANES,
    assert_same,
    check_against_reference,
    every_backend,
    laid_out,
    mask_of,
    randn,
)

import pconv_ext

pytestmark = every_backend


def check(backend, args, **options):
    check_against_reference("upcat_partial_conv2d", backend, args, **options)


@pytest.mark.parametrize("size", [(10, 12), (9, 12), (10, 11), (9, 11)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 5, 7])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_skip_sizes_and_kernels(backend, size, k, bias):
    check(backend, case(backend, size=size, k=k, bias=bias))


@pytest.mark.parametrize("mask_low", PLANES)
@pytest.mark.parametrize("mask_skip", PLANES)
def test_masks(backend, mask_low, mask_skip):
    check(backend, case(backend, size=(9, 12), masks=(mask_low, mask_skip)))


@pytest.mark.parametrize("low_dtype", [None, *MASK_DTYPES], ids=str)
@pytest.mark.parametrize("skip_dtype", [None, *MASK_DTYPES], ids=str)
def test_mask_dtypes_may_differ(backend, low_dtype, skip_dtype):
    args = case(backend, masks=("none", "none"))
    if low_dtype is not None:
        args["mask_low"] = mask_of("random", args["x_low"], low_dtype)
    if skip_dtype is not None:
        args["mask_skip"] = mask_of("random", args["skip"], skip_dtype)
    check(backend, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masks", [("none", "none"), ("random", "random"), ("none", "rectangle")], ids=str)
def test_dtypes(backend, masks, dtype):
    check(backend, case(backend, (2, 17, 9, 12), 5, (17, 23), 21, masks=masks, dtype=dtype))
    check(backend, case(backend, (2, 3, 9, 12), 16, (18, 24), 3, 5, masks=masks, dtype=dtype))


@pytest.mark.parametrize(
    ("low", "c_skip", "size", "c_out"),
    [
        ((1, 64, 32, 32), 3, (64, 64), 3),
        ((1, 128, 16, 17), 64, (31, 34), 64),
        ((2, 256, 4, 4), 128, (8, 8), 128),
        ((1, 64, 64, 64), 3, (127, 128), 3),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "masks", [("none", "none"), ("rectangle", "rectangle"), ("blobs", "valid"), ("valid", "blobs")], ids=str
)
def test_layers_of_real_size(backend, low, c_skip, size, c_out, masks):
    check(backend, case(backend, low, c_skip, size, c_out, masks=masks, dtype=torch.float32))


@pytest.mark.parametrize("low_layout", LAYOUTS)
@pytest.mark.parametrize("skip_layout", LAYOUTS)
def test_layouts(backend, low_layout, skip_layout):
    args = case(backend, dtype=torch.float32)
    args["x_low"] = laid_out(args["x_low"], low_layout)
    args["mask_low"] = laid_out(args["mask_low"], skip_layout)
    args["skip"] = laid_out(args["skip"], skip_layout)
    args["mask_skip"] = laid_out(args["mask_skip"], low_layout)
    args["weight"] = laid_out(args["weight"], low_layout)
    check(backend, args, grad_layout=skip_layout)


def test_gradient_of_a_sum_is_expanded(backend):
    check(backend, case(backend), grad_layout="expanded")


@pytest.mark.parametrize(
    ("low", "size"),
    [((0, 3, 4, 4), (8, 8)), ((1, 1, 1, 1), (1, 1)), ((2, 2, 1, 1), (2, 1)), ((1, 3, 1, 4), (2, 7))],
    ids=str,
)
@pytest.mark.parametrize(
    "masks", [("none", "none"), ("holes", "holes"), ("valid", "holes"), ("random", "none")], ids=str
)
def test_small_and_empty(backend, low, size, masks):
    check(backend, case(backend, low, 2, size, 5, masks=masks))
    check(backend, case(backend, low, 2, size, 5, 1, masks=masks))


@pytest.mark.parametrize("name", ["x_low", "skip", "weight", "bias"])
def test_only_what_is_asked_for_gets_a_gradient(backend, name):
    args = case(backend)
    names = ("x_low", "skip", "weight", "bias")
    together = {n: args[n].clone().requires_grad_() for n in names}
    pconv_ext.upcat_partial_conv2d(**(args | together), backend=backend)[0].sum().backward()
    alone = args[name].clone().requires_grad_()
    pconv_ext.upcat_partial_conv2d(**(args | {name: alone}), backend=backend)[0].sum().backward()
    assert_same(alone.grad, together[name].grad, backend, name)


def test_skips_beyond_twice_the_size_are_refused(backend):
    args = case(backend)
    for size in ((8, 12), (11, 12), (10, 10), (10, 13)):
        args["skip"], args["mask_skip"] = randn(2, 3, *size).to(args["x_low"]), None
        with pytest.raises(ValueError, match="skip must have shape"):
            pconv_ext.upcat_partial_conv2d(**args, backend=backend)

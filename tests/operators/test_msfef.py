"""`pconv_ext.msfef` against the float64 reference: forward and all gradients, in every compiled backend."""

import pytest
import torch
from support.arguments import msfef as case
from support.cases import (
    DTYPES,
    LAYOUTS,
    MASK_DTYPES,
    PLANES,
    assert_same,
    check_against_reference,
    emulated,
    every_backend,
    laid_out,
    mask_of,
)

import pconv_ext

pytestmark = every_backend


def check(backend, args, **options):
    check_against_reference("msfef", backend, args, **options)


@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)], ids=str)
@pytest.mark.parametrize(
    "sizes",
    [(3, 5, 7), (7, 5, 3), (5, 7, 3), (1, 3), (3,), (1,), (7,), (7, 1), (9, 3, 5), (1, 3, 5, 7, 11)],
    ids=str,
)
@pytest.mark.parametrize("mask", ["none", "random", "sparse"])
def test_kernel_sets(backend, sizes, stride, mask):
    check(backend, case(backend, sizes=sizes, stride=stride, mask=mask))


@pytest.mark.parametrize("stride", [(3, 2**40), (2**40, 2**40)], ids=str)
def test_strides_beyond_the_image(backend, stride):
    check(backend, case(backend, stride=stride))


@pytest.mark.parametrize("mask", PLANES)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shape", [(2, 3, 24, 27), (1, 16, 21, 20)], ids=str)
def test_masks(backend, shape, mask, bias):
    check(backend, case(backend, shape, 8, mask=mask, bias=bias))
    check(backend, case(backend, shape, 8, mask=mask, bias=bias, stride=1))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_mask_dtypes_any_nonzero_value_is_valid(backend, dtype):
    args = case(backend, mask="none")
    args["mask"] = mask_of("random", args["x"], dtype)
    check(backend, args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "random", "rectangle"])
def test_dtypes(backend, mask, dtype):
    check(backend, case(backend, (2, 3, 33, 30), 21, mask=mask, dtype=dtype))
    check(backend, case(backend, (2, 17, 15, 18), 19, (5, 3), mask, dtype=dtype, stride=1))


@pytest.mark.parametrize(
    ("shape", "c_out"),
    [
        ((2, 3, 256, 256), 64),
        ((1, 64, 128, 128), 128),
        ((1, 128, 64, 64), 256),
        ((1, 256, 32, 32), 512),
        ((2, 130, 37, 41), 70),
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", ["none", "rectangle", "blobs"])
def test_layers_of_real_size(backend, shape, c_out, mask):
    if emulated(backend):  # which takes minutes for each of them
        n, c_in, h, w = shape
        while h * w > 600:
            h, w = h // 2, w // 2
        shape, c_out = (n, min(c_in, 130), h, w), min(c_out, 128)
    args = case(backend, shape, c_out, mask=mask, dtype=torch.float32)
    # Errors of the weights' gradients are measured by one rms for all outputs: scales far apart would show.
    args["scales"].uniform_(0.5, 1.5)
    check(backend, args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend, layout, dtype):
    args = case(backend, (2, 5, 9, 12), 7, dtype=dtype)
    args["x"] = laid_out(args["x"], layout)
    args["mask"] = laid_out(args["mask"], layout)
    args["weights"] = [laid_out(weight, layout) for weight in args["weights"]]
    args["scales"] = args["scales"].t().contiguous().t()
    check(backend, args, grad_layout=layout)


@pytest.mark.parametrize("mask", ["none", "random"])
def test_gradient_of_a_sum_is_expanded(backend, mask):
    check(backend, case(backend, mask=mask), grad_layout="expanded")


@pytest.mark.parametrize(
    "shape", [(0, 3, 8, 8), (1, 1, 1, 1), (3, 4, 1, 1), (1, 2, 1, 9), (2, 1, 2, 3)], ids=str
)
@pytest.mark.parametrize("mask", ["none", "random", "holes", "valid"])
def test_small_and_empty(backend, shape, mask):
    check(backend, case(backend, shape, 5, mask=mask))
    check(backend, case(backend, shape, 5, mask=mask, stride=1))


def test_empty_batch_with_large_weights(backend):
    """Gradients are zeros, also where they are too large for a copy in every thread."""
    check(backend, case(backend, (0, 128, 8, 8), c_out=256))


def test_only_what_is_asked_for_gets_a_gradient(backend):
    args = case(backend)

    def gradients(needed):
        args_now, leaves = dict(args), {}
        for name in needed:
            value = args[name]
            if isinstance(value, list):
                leaves[name] = [tensor.clone().requires_grad_() for tensor in value]
            else:
                leaves[name] = value.clone().requires_grad_()
            args_now[name] = leaves[name]
        pconv_ext.msfef(**args_now, backend=backend)[0].sum().backward()
        return {
            name: [t.grad for t in leaf] if isinstance(leaf, list) else [leaf.grad]
            for name, leaf in leaves.items()
        }

    together = gradients(["x", "weights", "biases", "scales"])
    for name, expected in together.items():
        for one, other in zip(gradients([name])[name], expected, strict=True):
            assert_same(one, other, backend, name)


def test_frozen_branches(backend):
    args = case(backend)
    args["weights"][1].requires_grad_()
    args["biases"][2].requires_grad_()
    pconv_ext.msfef(**args, backend=backend)[0].sum().backward()
    assert [w.grad is None for w in args["weights"]] == [True, False, True]
    assert [b.grad is None for b in args["biases"]] == [True, True, False]

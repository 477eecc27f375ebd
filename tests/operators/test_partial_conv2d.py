"""`pconv_ext.partial_conv2d` against the float64 reference: forward and all gradients, in every backend."""

import pytest
import torch
from support.arguments import partial_conv2d as case
from support.cases import (
    DTYPES,
    LAYOUTS,
    MASK_DTYPES,
    PER_CHANNEL,
    PLANES,
    assert_same,
    check_against_reference,
    every_backend,
    kernel,
    laid_out,
    mask_of,
)

import pconv_ext

pytestmark = every_backend


def check(backend, args, **options):
    check_against_reference("partial_conv2d", backend, args, **options)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_geometry(backend, size, stride, dilation):
    reach = dilation * (size - 1)
    for padding in (0, reach // 2, reach + 1):
        for mask in ("random", "channels"):
            shape = (2, 3, 13, 14) if padding == 0 else (2, 3, 7, 6)
            if padding or reach < 13:
                check(
                    backend,
                    case(backend, shape, 5, size, mask, stride=stride, padding=padding, dilation=dilation),
                )


@pytest.mark.parametrize("mask", ["none", "random", "channels"])
@pytest.mark.parametrize(
    "options",
    [
        {"size": (1, 7), "padding": (0, 3)},
        {"size": (7, 1), "padding": (3, 0), "stride": (2, 1)},
        {"size": (2, 5), "stride": (1, 3), "dilation": (3, 1), "padding": (2, 1)},
        {"size": 4, "padding": "same"},
        {"size": (2, 3), "padding": "same", "dilation": (3, 2)},
        {"size": 3, "padding": "valid", "stride": 2},
        {"size": 3, "padding": 5, "stride": 2},
        {"size": 3, "padding": 4},
    ],
    ids=str,
)
def test_uneven_windows_and_wide_padding(backend, options, mask):
    check(backend, case(backend, mask=mask, **options))


@pytest.mark.parametrize("stride", [(128, 1), (129, 1), (2, 129), (3, 2**40), (2**40, 2**40)], ids=str)
def test_wide_strides(backend, stride):
    check(backend, case(backend, (1, 3, 135, 140), 2, stride=stride))


@pytest.mark.parametrize("mask", [*PLANES, *PER_CHANNEL])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_masks(backend, mask, bias):
    check(backend, case(backend, mask=mask, bias=bias, stride=2, padding=1))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("planes", ["random", "channels"])
def test_mask_dtypes_any_nonzero_value_is_valid(backend, planes, dtype):
    args = case(backend, mask="none", padding=2, size=5)
    args["mask"] = mask_of(planes, args["x"], dtype)
    check(backend, args)


@pytest.mark.parametrize("layout", ["slice", "transposed", "strided"])
@pytest.mark.parametrize("planes", ["random", "channels"])
def test_mask_layouts(backend, planes, layout):
    args = case(backend, mask=planes, padding=1)
    args["mask"] = laid_out(args["mask"], layout)
    check(backend, args)


@pytest.mark.parametrize("mask", ["none", "rectangle", "channels"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "options",
    [
        {"size": 1},
        {"size": 3, "padding": 1},
        {"size": (2, 5), "dilation": (3, 1), "padding": (2, 1)},
        {"size": (1, 3), "padding": (0, 4), "dilation": (1, 2)},
        {"size": 7, "padding": 0, "dtype": torch.float32},
        {"size": 3, "padding": 5, "dtype": torch.bfloat16},
    ],
    ids=str,
)
@pytest.mark.parametrize("c_out", [1, 2, 3])
def test_few_outputs(backend, c_out, options, layout, mask):
    args = case(backend, (2, 19, 13, 71), c_out, mask=mask, **options)
    check(backend, args | {"x": laid_out(args["x"], layout)})


@pytest.mark.parametrize("mask", ["none", "random", "channels"])
@pytest.mark.parametrize(
    ("groups", "c_in", "c_out"), [(2, 4, 6), (3, 9, 3), (4, 4, 4), (4, 4, 8), (5, 35, 20)]
)
def test_groups(backend, groups, c_in, c_out, mask):
    check(backend, case(backend, (2, c_in, 8, 9), c_out, 3, mask, groups=groups, padding=1))
    check(backend, case(backend, (2, c_in, 8, 9), c_out, 5, mask, groups=groups, padding=2, stride=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "random", "channels", "rectangle"])
def test_dtypes(backend, mask, dtype):
    check(backend, case(backend, (2, 17, 19, 23), 21, 3, mask, dtype=dtype, padding=1))
    check(backend, case(backend, (2, 6, 19, 23), 8, 7, mask, dtype=dtype, padding=3, stride=2, groups=2))


@pytest.mark.parametrize(
    ("shape", "c_out", "size", "stride"),
    [
        ((2, 3, 64, 61), 64, 7, 2),
        ((1, 64, 33, 47), 130, 5, 2),
        ((3, 130, 17, 16), 64, 3, 1),
        ((1, 96, 40, 40), 48, 3, 1),
        ((1, 16, 150, 131), 32, 5, 1),
        ((2, 67, 24, 25), 3, 3, 1),
        ((1, 256, 8, 8), 256, 3, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", ["none", "rectangle", "blobs", "channels"])
def test_layers_of_real_size(backend, shape, c_out, size, stride, mask):
    check(
        backend,
        case(backend, shape, c_out, size, mask, dtype=torch.float32, stride=stride, padding=size // 2),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layouts(backend, layout, dtype):
    args = case(backend, (2, 5, 9, 12), 7, dtype=dtype, padding=1)
    args["x"] = laid_out(args["x"], layout)
    args["weight"] = laid_out(args["weight"], layout)
    args["bias"] = args["bias"].repeat_interleave(2)[::2]
    check(backend, args, grad_layout=layout)


@pytest.mark.parametrize("mask", ["none", "random", "channels"])
def test_gradient_of_a_sum_is_expanded(backend, mask):
    check(backend, case(backend, mask=mask, padding=1), grad_layout="expanded")


def test_expanded_features(backend):
    args = case(backend, (1, 1, 9, 8), padding=1)
    x = args["x"].expand(3, 4, 9, 8)
    args |= {"x": x, "mask": mask_of("random", x)}
    args["weight"] = kernel(6, 4, 3, dtype=x.dtype, device=x.device)
    args["x"] = x.contiguous()  # the comparison writes into holes, which an expanded tensor does not allow
    out, new_mask = pconv_ext.partial_conv2d(**args, backend=backend)
    again, again_mask = pconv_ext.partial_conv2d(**(args | {"x": x}), backend=backend)
    assert torch.equal(out, again)
    assert torch.equal(new_mask, again_mask)


def test_bool_mask_of_other_bytes(backend):
    """A view as bool may hold any nonzero byte for True."""
    args = case(backend, padding=1)
    marks = (torch.rand(2, 1, *args["x"].shape[2:]) < 0.7).to(args["x"].device, torch.uint8)
    expected = pconv_ext.partial_conv2d(**(args | {"mask": marks}), backend=backend)
    for mask in (marks * 255, (marks * 255).view(torch.bool)):
        out, new_mask = pconv_ext.partial_conv2d(**(args | {"mask": mask}), backend=backend)
        assert torch.equal(out, expected[0])
        assert torch.equal(new_mask != 0, expected[1] != 0)


@pytest.mark.parametrize(
    "shape", [(0, 3, 8, 8), (1, 1, 1, 1), (3, 4, 1, 1), (1, 2, 1, 9), (2, 1, 9, 1), (1, 5, 2, 2)], ids=str
)
@pytest.mark.parametrize("mask", ["none", "random", "holes", "valid", "channels"])
def test_small_and_empty(backend, shape, mask):
    check(backend, case(backend, shape, 5, 3, mask, padding=1))
    check(backend, case(backend, shape, 5, 1, mask))
    check(backend, case(backend, shape, 1, 7, mask, padding=3, stride=2))


def test_only_what_is_asked_for_gets_a_gradient(backend):
    args = case(backend, padding=1)
    expected = {name: args[name].clone().requires_grad_() for name in ("x", "weight", "bias")}
    pconv_ext.partial_conv2d(**(args | expected), backend=backend)[0].sum().backward()
    for name in expected:
        leaf = args[name].clone().requires_grad_()
        pconv_ext.partial_conv2d(**(args | {name: leaf}), backend=backend)[0].sum().backward()
        assert_same(leaf.grad, expected[name].grad, backend, name)


def test_mask_with_requires_grad_gets_none(backend):
    args = case(backend, padding=1)
    args["mask"] = args["mask"].double().requires_grad_()
    args["x"].requires_grad_()
    out, new_mask = pconv_ext.partial_conv2d(**args, backend=backend)
    assert not new_mask.requires_grad
    out.sum().backward()
    assert args["mask"].grad is None

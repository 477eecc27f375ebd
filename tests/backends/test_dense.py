"""Backend "dense": what torch's convolution computes, what the engine completes, what it does alone."""

import pytest
import torch
import torch.nn.functional as F
from support import arguments
from support.cases import LAYOUTS, check_against_reference, kernel, laid_out, mask_of, randn
from support.tolerances import assert_close

import pconv_ext
from pconv_ext.ops import OPERATORS

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def factors_of(x, mask, weights, stride):
    call = OPERATORS["msfef"].call(x, mask, weights, [], torch.ones(len(weights), 1), [stride, stride])
    return torch.ops.pconv_ext.dense_factors(x, mask, call.weights, *call.geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [1, 2])
def test_ratios_on_both_sides_of_the_limit(dtype, layout, stride):
    """Holes that leave whole windows, cut ones of small and of large ratio, and dead ones."""
    args = arguments.msfef("dense", (2, 20, 40, 37), 24, (3, 5, 7), "rectangle", stride=stride, dtype=dtype)
    args["x"] = laid_out(args["x"], layout)
    valid = args["mask"] != 0
    valid[0, :, 24:] = False  # a corner of the image whose windows see little of it
    valid[0, :, 30, 10:12] = True
    args["mask"] = valid
    factors = factors_of(args["x"], valid, args["weights"], stride)
    assert (factors == 1).any(), "whole"
    assert (factors > 1).any(), "cut"
    _, alive = pconv_ext.reference.msfef(**args)
    assert ((factors == 0) & alive).any(), "above the limit"
    assert not alive.all(), "dead"
    check_against_reference("msfef", "dense", args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", [0, 2, (2, 1), (0, 3), 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((3, 2), 1), (1, 2), (2, (2, 3))])
def test_windows_of_partial_conv2d(dtype, padding, stride, dilation):
    args = arguments.partial_conv2d(
        "dense",
        (2, 9, 23, 21),
        17,
        (5, 3),
        "rectangle",
        padding=padding,
        stride=stride,
        dilation=dilation,
        dtype=dtype,
    )
    check_against_reference("partial_conv2d", "dense", args)


@pytest.mark.parametrize("planes", ["rectangle", "none", "random"])
def test_padding_of_different_sides(planes):
    """Even windows with padding "same" have more of it below and on the right."""
    args = arguments.partial_conv2d(
        "dense", (2, 6, 15, 14), 8, (4, 2), planes, padding="same", dtype=torch.float32
    )
    check_against_reference("partial_conv2d", "dense", args)


def test_whole_windows_are_torchs():
    x, scales = randn(2, 16, 30, 32, dtype=torch.bfloat16), torch.rand(2, 24).to(torch.bfloat16)
    mask = mask_of("rectangle", x)
    weights = [kernel(24, 16, k, dtype=torch.bfloat16) for k in (3, 5)]
    out, _ = pconv_ext.msfef(x, mask, weights, None, scales, backend="dense")
    merged = weights[1].float() * scales[1].float().view(-1, 1, 1, 1)
    merged[:, :, 1:4, 1:4] += weights[0].float() * scales[0].float().view(-1, 1, 1, 1)
    expected = F.conv2d(torch.where(mask, x, 0), merged.bfloat16(), padding=2)
    whole = (factors_of(x, mask, weights, 1) == 1).expand_as(out)
    assert whole.any()
    assert_close(out[whole], expected[whole].double(), torch.bfloat16, "out at whole windows")


@pytest.mark.parametrize("case", ["groups", "masks by channel", "float64", "concatenation"])
def test_what_is_left_to_the_engine(case):
    """The same bits as from backend "cpu"."""
    dtype = torch.float64 if case == "float64" else torch.float32
    x, weight = randn(2, 8, 12, 14, dtype=dtype), kernel(8, 4 if case == "groups" else 8, 3, dtype=dtype)
    mask = mask_of("channels" if case == "masks by channel" else "random", x)

    def results(backend):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        if case == "concatenation":
            wide = torch.cat([leaves[1], leaves[1]], 1)
            low = mask[:, :, ::2, ::2]
            out, _ = pconv_ext.upcat_partial_conv2d(
                leaves[0][:, :, ::2, ::2], low, leaves[0], mask, wide, backend=backend
            )
        else:
            groups = 2 if case == "groups" else 1
            out, _ = pconv_ext.partial_conv2d(leaves[0], mask, leaves[1], groups=groups, backend=backend)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    for one, other in zip(results("dense"), results("cpu"), strict=True):
        assert torch.equal(one, other)


def test_backward_under_autocast():
    """Autocast would make float32 of one operand and bfloat16 of the other."""
    args = arguments.msfef("dense", (1, 8, 12, 12), 8, (3, 5), "rectangle", dtype=torch.float32)
    args["x"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = pconv_ext.msfef(**args, backend="dense")
        (grad,) = torch.autograd.grad(out.float().sum(), [args["x"]])
    assert out.dtype == torch.bfloat16
    assert grad.dtype == torch.float32

"""Gradients with few output channels (csrc/cuda/few_outputs_gradients.cu), in the emulator or on a GPU."""

import pytest
import torch
from pconv_ext.kernels import kernel_set, operators
from support.cases import (
    DEVICE_OF,
    LAYOUTS,
    MASK_DTYPES,
    PLANES,
    deep_without_gpu,
    holes_of,
    laid_out,
    mask_of,
    randn,
    rubbish,
)
from support.emulated_cuda import Counted
from support.few_channels import BACKEND, DTYPES, conv_case, upcat_case
from support.tolerances import GPU_TOLERANCES, TF32

import pconv_ext
from pconv_ext import _backends, reference

pytestmark = [*deep_without_gpu]


@pytest.fixture
def kernels(cuda_kernels):
    return cuda_kernels


def close(actual, expected, what="gradient"):
    """As `assert_close`; scaled gradients are rounded, so a sum that cancels may have twice its error."""
    slack = 1 if actual.dtype == torch.float32 else 2
    scale = expected.abs() + expected.square().mean().sqrt()
    error = ((actual.double() - expected).abs() / scale.clamp(min=1e-300)).max().item()
    limit = slack * GPU_TOLERANCES[actual.dtype].relative
    assert error <= limit, f"{what}: error {error:.2e} of its scale, {actual.dtype} allows {limit:.0e}"


def counting(kernels):
    """`kernels` with counters of the kernel and of one that all other calls launch."""
    few, other = Counted(kernels.few_outputs_gradients), Counted(kernels.scale_gradient)
    return kernels._replace(few_outputs_gradients=few, scale_gradient=other), few, other


def run(kernels, operator, args, grad_layout="contiguous", needs=None):
    """Gradients of features, weight and bias by `kernels`, and those of the reference in float64.

    Holes of the features hold NaN and Inf, and so does the incoming gradient where a window is dead.
    """
    names = ("x_low", "skip") if "skip" in args else ("x",)
    masks = {name: args[{"x": "mask", "x_low": "mask_low", "skip": "mask_skip"}[name]] for name in names}
    for name, mask in masks.items():
        rubbish(args[name], holes_of(mask, args[name]))
    leaves = {name: args[name].double().requires_grad_() for name in (*names, "weight")}
    expected, new_mask = getattr(reference, operator)(**args | leaves | {"bias": None})
    grad = torch.randn(expected.shape).to(expected.device, args["weight"].dtype)
    grad = grad[:1, :1, :1, :1].expand_as(grad) if grad_layout == "expanded" else laid_out(grad, grad_layout)
    dead = (new_mask == 0).expand_as(grad)
    sums = torch.where(dead, 0, grad.double()).sum((0, 2, 3))
    wanted = [
        *torch.autograd.grad(expected, list(leaves.values()), torch.where(dead, 0, grad.double())),
        sums,
    ]
    if grad_layout != "expanded":
        rubbish(grad, dead)
    needs = [True] * len(wanted) if needs is None else needs
    given = [value for name in names for value in (args[name], masks[name])]
    options = [needs]
    if operator == "partial_conv2d":
        padding = args.get("padding", 0)
        top, left = (padding, padding) if isinstance(padding, int) else padding
        two = [args.get(name, 1) for name in ("stride", "dilation")]
        stride, dilation = ([v, v] if isinstance(v, int) else list(v) for v in two)
        options = [stride, [top, top, left, left], dilation, 1, needs]
    with kernel_set.using(kernels):
        actual = getattr(operators, f"{operator}_backward")(grad, *given, args["weight"], *options)
    return [pair if need else None for need, *pair in zip(needs, actual, wanted, strict=True)], masks


def compare(kernels, operator, args, *, direct=True, **options):
    """Check `run`, and that it took one launch for each source if `direct`, else the other kernels."""
    kernels, few, other = counting(kernels)
    pairs, masks = run(kernels, operator, args, **options)
    for pair, name in zip(pairs, (*masks, "weight", "bias"), strict=True):
        if pair is None:
            continue
        actual, expected = pair
        assert actual.dtype == args["weight"].dtype
        assert actual.shape == expected.shape
        close(actual, expected, f"gradient of {name}")
        if name in masks:
            assert (actual[holes_of(masks[name], actual)] == 0).all(), f"{name}: exactly zero in holes"
    assert (few.launches, other.launches) == ((len(masks), 0) if direct else (0, 1))


@pytest.fixture
def check(kernels):
    return lambda *args, **options: compare(kernels, *args, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c_in", [3, 20])
def test_kernels(check, c_in, dtype):
    """Padding that is less and more than half of the kernel; several tiles."""
    for size, c_out, padding in ((3, 3, 1), (1, 4, 0), ((2, 5), 3, (0, 1)), (5, 1, 3), ((3, 4), 2, (4, 2))):
        check("partial_conv2d", conv_case((1, c_in, 13, 19), c_out, size, padding=padding, dtype=dtype))


@pytest.mark.parametrize("c_in", [1, 4, 5, 8, 16, 17, 33, 64, 70])
def test_channels(check, c_in):
    for c_out in (1, 3):
        dtype = DTYPES[(c_in + c_out) % 3]
        check("partial_conv2d", conv_case((1, c_in, 9, 11), c_out, 3, "blobs", padding=1, dtype=dtype))


@pytest.mark.parametrize("size", [(18, 20), (9, 33), (19, 17)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upcat(check, dtype, size):
    """Odd sizes, of which the last low pixels have one copy in either direction."""
    for channels, k, c_out in (((40, 3), 3, 3), ((3, 20), 5, 1), ((6, 2), 1, 4)):
        low = (1, channels[0], -(-size[0] // 2), -(-size[1] // 2))
        check("upcat_partial_conv2d", upcat_case(low, channels[1], size, c_out, k, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_more_tiles_than_blocks(check, dtype):
    """Of which a block copies the next while it multiplies one."""
    check("partial_conv2d", conv_case((2, 24, 17, 33), 3, 3, padding=1, dtype=dtype))
    check("partial_conv2d", conv_case((3, 4, 34, 17), 3, 3, padding=1, dtype=dtype))


@pytest.mark.parametrize("mask", PLANES)
@pytest.mark.parametrize("c_in", [3, 20])
def test_masks(check, c_in, mask):
    check("partial_conv2d", conv_case((2, c_in, 17, 9), 3, 3, mask, padding=2))


@pytest.mark.parametrize(
    "masks",
    [("none", "holes"), ("holes", "none"), ("sparse", "blobs"), ("one_for_all", "rectangle"), ("none",) * 2],
    ids=str,
)
def test_upcat_masks(check, masks):
    check("upcat_partial_conv2d", upcat_case((2, 20, 8, 5), 3, (16, 9), 3, 3, masks))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_mask_dtypes(check, dtype):
    args = conv_case((2, 12, 9, 7), 3, 3, "none", padding=1)
    args["mask"] = laid_out(mask_of("random", args["x"], dtype), "strided")
    check("partial_conv2d", args)
    args = upcat_case((2, 12, 5, 4), 3, (9, 8), 3)
    args["mask_skip"] = mask_of("random", args["skip"], dtype)
    check("upcat_partial_conv2d", args)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("c_in", [3, 20])
def test_layouts(check, c_in, layout):
    """Of the features and of the incoming gradient."""
    of_x = "contiguous" if layout == "expanded" else layout
    args = conv_case((2, c_in, 7, 15), 3, padding=1, dtype=torch.bfloat16)
    check("partial_conv2d", args | {"x": laid_out(args["x"], of_x)}, grad_layout=layout)
    args = upcat_case((1, 20, 4, 8), c_in, (7, 15), 3)
    moved = {name: laid_out(args[name], of_x) for name in ("x_low", "skip")}
    check("upcat_partial_conv2d", args | moved, grad_layout=layout)


@pytest.mark.parametrize("channels", [10, 12, 14, 13, 34, 36])
def test_pixels_that_are_not_aligned(check, channels):
    """Copies of 8 or 4 bytes and single elements."""
    for dtype in (torch.bfloat16, torch.float32):
        args = conv_case((1, channels, 6, 7), 2, padding=1, dtype=dtype)
        big = args["x"].new_zeros(args["x"].numel() + 1)
        x = args["x"].permute(0, 2, 3, 1)
        check("partial_conv2d", args | {"x": big[1:].view(x.shape).copy_(x).permute(0, 3, 1, 2)})


@pytest.mark.parametrize("wanted", range(4), ids=["x_low", "skip", "weight", "bias"])
def test_single_gradients(kernels, wanted):
    """Only what is wanted is computed."""
    kernels, few, _ = counting(kernels)
    args = upcat_case((1, 20, 5, 6), 3, (9, 12), 3)
    pairs, _ = run(kernels, "upcat_partial_conv2d", args, needs=[i == wanted for i in range(4)])
    close(*pairs[wanted])
    assert few.launches == (2 if wanted in (1, 2) else 1)


def test_large_gradients_in_float16(kernels):
    """Times the ratio of windows with one valid entry of few channels, and summed over four copies."""
    args = upcat_case((1, 62, 5, 6), 2, (10, 12), 3, masks=("sparse", "sparse"), dtype=torch.float16)
    args["weight"] *= 1e-3
    grad = torch.full((1, 3, 10, 12), 3e4, dtype=torch.float16, device=args["weight"].device)
    with kernel_set.using(kernels):
        grads = [
            operators.upcat_partial_conv2d_backward(
                g,
                args["x_low"],
                args["mask_low"],
                args["skip"],
                args["mask_skip"],
                args["weight"],
                [True] * 4,
            )
            for g in (grad, grad / 1024)
        ]
    for large, small in zip(*(pair[:2] for pair in grads), strict=True):
        assert large.isfinite().all()
        torch.testing.assert_close(large / 1024, small, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("channels", [3, 40])
def test_tf32(kernels, channels):
    torch.backends.cudnn.allow_tf32 = True
    pairs, _ = run(kernels, "partial_conv2d", conv_case((1, channels, 20, 13), 3, padding=1))
    for actual, expected in pairs[:2]:
        error = (actual - expected).abs() / (expected.abs() + expected.square().mean().sqrt())
        assert GPU_TOLERANCES[torch.float32].relative < error.max() <= TF32.relative


def test_what_does_not_fit_goes_the_old_way(check):
    check("partial_conv2d", conv_case((1, 4, 9, 9), 5, 1), direct=False)
    check("partial_conv2d", conv_case((1, 4, 9, 9), 4, 3), direct=False)
    check("partial_conv2d", conv_case((1, 4, 9, 9), 3, 3, stride=(1, 2)), direct=False)
    check("partial_conv2d", conv_case((1, 4, 9, 9), 3, 3, dilation=2), direct=False)
    check("partial_conv2d", conv_case((1, 4, 9, 9), 1, (6, 1)), direct=False)
    check("upcat_partial_conv2d", upcat_case(c_out=4), direct=False)


def test_through_autograd(kernels, monkeypatch):
    """And the same in every run."""
    replaced, few, _ = counting(kernels)
    monkeypatch.setattr(_backends.triton, "_kernels", lambda: replaced)
    args = upcat_case((2, 20, 9, 6), 3, (18, 11), 3)
    leaves = [args[name].requires_grad_() for name in ("x_low", "skip", "weight", "bias")]
    out, _ = pconv_ext.upcat_partial_conv2d(**args, backend=BACKEND)
    expected, _ = pconv_ext.upcat_partial_conv2d(**args, backend="reference")
    grad = randn(*out.shape, dtype=torch.float32, device=DEVICE_OF[BACKEND])
    first, second = (torch.autograd.grad(out, leaves, grad, retain_graph=True) for _ in range(2))
    assert few.launches == 4
    for a, b, other in zip(first, second, torch.autograd.grad(expected, leaves, grad), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, other, rtol=1e-4, atol=1e-4)

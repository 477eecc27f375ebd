"""Depthwise convolutions, for which the CPU has kernels of their own, against the float64 reference."""

import pytest
import torch
from support.arguments import partial_conv2d as case
from support.cases import (
    DTYPES,
    LAYOUTS,
    PER_CHANNEL,
    PLANES,
    check_against_reference,
    every_backend,
    laid_out,
)

import pconv_ext

MAPS = ["contiguous", "channels_last"]


def depthwise(backend, channels, height, width, size=3, mask="random", batch=2, **options):
    shape = (batch, channels, height, width)
    if backend == "dense":  # which leaves groups to the engine, in all dtypes
        options.setdefault("dtype", torch.float64)
    return case(backend, shape, channels, size, mask, groups=channels, **options)


def check(backend, args, layout="contiguous", grad_layout="contiguous"):
    args = args | {"x": laid_out(args["x"], layout)}
    check_against_reference("partial_conv2d", backend, args, grad_layout=grad_layout)


@every_backend
@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
def test_windows(backend, size, stride, layout):
    for padding in (0, 1, size // 2, size - 1, size):  # with the last, windows lie in the padding as a whole
        for height, width in ((size, size), (8, 17), (19, 16), (13, 31)):
            args = depthwise(backend, 3, height, width, size, padding=padding, stride=stride)
            check(backend, args, layout)


@every_backend
@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("mask", [*PLANES, *PER_CHANNEL])
def test_masks(backend, mask, layout):
    for stride, bias in ((1, True), (2, False)):
        args = depthwise(backend, 5, 12, 18, mask=mask, padding=1, stride=stride, bias=bias)
        check(backend, args, layout)


@every_backend
@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [3, 7])
def test_dtypes(backend, size, dtype, layout):
    for stride in (1, 2):
        args = depthwise(backend, 7, 14, 21, size, padding=size // 2, stride=stride, dtype=dtype)
        check(backend, args, layout)


@every_backend
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "transposed", "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, grad_layout):
    for stride in (1, 2):
        args = depthwise(backend, 6, 10, 13, padding=1, stride=stride)
        check(backend, args, layout, grad_layout)


@every_backend
@pytest.mark.parametrize(
    "options",
    [
        {"size": (3, 5), "padding": (1, 2)},
        {"size": 3, "padding": 2, "dilation": 2},
        {"size": 3, "padding": 1, "stride": (1, 2)},
        {"size": 3, "padding": 1, "stride": 3},
        {"size": 9, "padding": 4},
        {"size": 4, "padding": "same"},
    ],
    ids=str,
)
def test_windows_that_go_the_common_way(backend, options):
    check(backend, depthwise(backend, 4, 11, 12, **options))


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64, 70, 131])
def test_channels(channels, layout):
    for stride in (1, 2):
        check("cpu", depthwise("cpu", channels, 9, 20, 5, padding=2, stride=stride), layout)


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("mask", ["rectangle", "channels"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 7])
def test_bands(size, stride, mask, layout):
    """Maps so large that they are worked on in bands."""
    args = depthwise(
        "cpu", 3, 157, 531, size, mask, dtype=torch.float32, batch=1, padding=size // 2, stride=stride
    )
    check("cpu", args, layout)


@pytest.mark.parametrize("layout", MAPS)
def test_gradients_of_infinite_values_stay_in_their_windows(layout):
    """What is added to a sum is of its window alone: no product with a zero, which would make NaN."""
    for stride in (1, 2):
        args = depthwise("cpu", 2, 9, 9, 7, "none", batch=1, padding=3, stride=stride)
        x = laid_out(args.pop("x"), layout).requires_grad_()
        out, _ = pconv_ext.partial_conv2d(x, **args)
        grad = torch.zeros_like(out)
        grad[..., 0, 0] = torch.inf
        (actual,) = torch.autograd.grad(out, x, grad)
        touched = torch.zeros(9, 9, dtype=torch.bool)
        touched[:4, :4] = True
        assert actual[..., ~touched].isfinite().all()
        assert not actual[..., touched].isfinite().any()


@pytest.mark.parametrize("layout", MAPS)
@pytest.mark.parametrize("channels", [2, 80])
def test_threads_change_no_bit(channels, layout):
    args = depthwise("cpu", channels, 33, 47, 7, batch=5, padding=3, dtype=torch.float32)
    x, weight = laid_out(args.pop("x"), layout), args.pop("weight")
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = [t.detach().requires_grad_() for t in (x, weight)]
            out, _ = pconv_ext.partial_conv2d(leaves[0], weight=leaves[1], **args)
            results.append([out.detach(), *torch.autograd.grad(out.square().sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))

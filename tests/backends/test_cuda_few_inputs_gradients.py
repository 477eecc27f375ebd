"""The CUDA kernel for the gradient of the weights over few channels, in the emulator or on a GPU.

test_gpu_kernels.py runs it too, wherever a test asks for no gradient of x with few channels.
"""

import pytest
import torch
from pconv_ext.kernels.host.taps import branches
from support import few_channels
from support.cases import (
    DEVICE_OF,
    LAYOUTS,
    MASK_DTYPES,
    PLANES,
    deep_without_gpu,
    holes_of,
    kernel,
    laid_out,
    randn,
    rubbish,
)
from support.emulated_cuda import Counted
from support.few_channels import BACKEND, features
from support.tolerances import TF32, assert_close

import pconv_ext
from pconv_ext import _backends, reference

pytestmark = [*deep_without_gpu]


@pytest.fixture(autouse=True)
def counted(cuda_kernels, monkeypatch):
    kernel = Counted(cuda_kernels.few_inputs_gradients)
    monkeypatch.setattr(
        _backends.triton, "_kernels", lambda: cuda_kernels._replace(few_inputs_gradients=kernel)
    )
    return kernel


def partial_conv2d(*args, grad_layout="channels_last", stride=2, **options):
    check("partial_conv2d", grad_layout, **few_channels.partial_conv2d(*args, stride=stride, **options))


def msfef(*args, grad_layout="channels_last", **options):
    check("msfef", grad_layout, **few_channels.msfef(*args, **options))


def leaves_of(args, dtype=None):
    """`args` with its parameters as leaves, in `dtype` if given, and the leaves by name; x is none."""
    leaves = {}

    def leaf(name, value):
        if isinstance(value, list):
            return [leaf(f"{name}[{i}]", v) for i, v in enumerate(value)]
        if not isinstance(value, torch.Tensor) or name == "mask":
            return value
        value = value.detach().to(dtype or value.dtype)
        if name != "x":
            leaves[name] = value.requires_grad_()
        return value

    return {name: leaf(name, value) for name, value in args.items()}, leaves


def check(operator, grad_layout, **args):
    """Compare the gradients of all parameters with the reference in float64; NaN where windows are dead."""
    dtype = args["x"].dtype
    wide, expected = leaves_of(args, torch.float64)
    narrow, actual = leaves_of(args)
    out, new_mask = getattr(reference, operator)(**wide)
    grad = torch.randn_like(out, dtype=dtype)
    if grad_layout == "expanded":
        grad = torch.randn((), dtype=dtype, device=out.device).expand_as(out)
    else:
        grad = rubbish(laid_out(grad, grad_layout), (new_mask == 0).expand_as(grad))
    out.backward(torch.where(new_mask == 0, 0, grad.double()))
    getattr(pconv_ext, operator)(**narrow, backend=BACKEND)[0].backward(grad)
    tf32 = torch.backends.cudnn.allow_tf32 and dtype == torch.float32
    for name, leaf in actual.items():
        assert leaf.grad.dtype == dtype
        wanted = expected[name].grad
        if tf32:
            error = (leaf.grad - wanted).abs() / (wanted.abs() + wanted.square().mean().sqrt() + 1e-300)
            assert error.max() <= TF32.relative, name
        else:
            assert_close(leaf.grad, wanted, dtype, f"gradient of {name}", BACKEND)


@pytest.mark.parametrize(
    ("c_out", "dtype"),
    [
        (3, torch.float32),
        (72, torch.float32),
        (64, "tf32"),
        (64, torch.bfloat16),
        (64, torch.float16),
    ],
    ids=str,
)
def test_first_layer(c_out, dtype, counted):
    """Several tiles, whole and cut, for blocks that take several of them."""
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    dtype = torch.float32 if dtype == "tf32" else dtype
    msfef((1, 3, 21, 70), c_out, (3, 5, 7), "blobs", dtype=dtype, bias=c_out != 3)
    partial_conv2d((1, 3, 21, 39), c_out, (7, 7), "rectangle", dtype=dtype, padding=3)
    assert counted.launches == 2


@pytest.mark.parametrize("mask", PLANES)
def test_masks(mask, counted):
    msfef((2, 3, 21, 18), 10, (3, 5, 7), mask)
    msfef((2, 2, 9, 11), 10, (1, 5), mask, dtype=torch.float16)
    partial_conv2d((2, 4, 11, 20), 10, (3, 3), mask, dtype=torch.bfloat16, bias=False)
    assert counted.launches == 3


def test_plain_and_dead_tiles(counted):
    """Tiles without a mixed pixel between others: those of the second section skip them."""
    x = randn(1, 3, 70, 130, dtype=torch.float32, device=DEVICE_OF[BACKEND])
    mask = torch.zeros(1, 1, 70, 130, dtype=torch.bool, device=x.device)
    mask[:, :, :, 50:] = True
    mask[:, :, 60, 110] = False
    weights = [kernel(8, 3, k, dtype=x.dtype, device=x.device) for k in (3, 7)]
    scales = randn(2, 8, dtype=x.dtype, device=x.device)
    rubbish(x, holes_of(mask, x))
    check("msfef", "channels_last", x=x, mask=mask, weights=weights, biases=None, scales=scales, stride=2)
    assert counted.launches == 1


@pytest.mark.parametrize("c_in", [1, 4, 5, 8])
@pytest.mark.parametrize(
    ("stride", "size"), [((1, 2), (1, 1)), (2, (2, 4)), ((1, 2), (4, 3)), (2, (8, 4))], ids=str
)
def test_geometry(c_in, stride, size, counted):
    padding = (size[0] // 2, size[1])
    partial_conv2d((2, c_in, 13, 18), 9, size, "random", stride=stride, padding=padding)
    partial_conv2d((1, c_in, 9, 33), 20, size, "none", stride=stride, dtype=torch.float16)
    assert counted.launches == 2


def test_many_channels_of_one_element(counted):
    """Rows of taps of 64 elements, which two warps share; and the stride that only they allow."""
    msfef((1, 8, 17, 21), 12, (1, 3, 5, 7), "random", dtype=torch.bfloat16)
    partial_conv2d((1, 6, 11, 21), 12, (8, 8), "random", dtype=torch.float16, stride=1, padding=4)
    partial_conv2d((1, 3, 9, 21), 70, (3, 5), "random", dtype=torch.float32, stride=1)
    assert counted.launches == 3


@pytest.mark.parametrize(("layout", "mask_dtype"), list(zip(LAYOUTS, MASK_DTYPES, strict=True)), ids=str)
def test_layouts_and_mask_dtypes(layout, mask_dtype, counted):
    where = {"layout": layout, "mask_dtype": mask_dtype, "mask_layout": LAYOUTS[-1 - LAYOUTS.index(layout)]}
    msfef((2, 3, 10, 19), 8, (3, 5, 7), "random", dtype=torch.bfloat16, grad_layout=layout, **where)
    partial_conv2d((2, 5, 10, 7), 4, (3, 3), "random", grad_layout="expanded", **where)
    assert counted.launches == 2


def test_gradients_of_tiles_that_other_pixels_share(counted):
    """A gradient that is not finite shows in its own output channel alone."""
    x = torch.ones(1, 3, 16, 40, device=DEVICE_OF[BACKEND])
    weight = torch.ones(4, 3, 3, 3, device=x.device, requires_grad=True)
    out, _ = pconv_ext.partial_conv2d(x, None, weight, stride=2, padding=1, backend=BACKEND)
    grad = torch.ones_like(out)
    grad[0, 2, 3, 17] = float("inf")
    out.backward(grad)
    assert weight.grad[[0, 1, 3]].isfinite().all()
    assert (weight.grad[2] == float("inf")).all()
    assert counted.launches == 1


def test_every_run_is_the_same(counted):
    args = features((2, 3, 33, 40), torch.float32, "blobs")
    weight = kernel(64, 3, 7, dtype=torch.float32, device=args["x"].device).requires_grad_()
    out, _ = pconv_ext.partial_conv2d(**args, weight=weight, stride=2, padding=3, backend=BACKEND)
    runs = [torch.autograd.grad(out.sum(), weight, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*runs)
    assert counted.launches == 2


@pytest.mark.parametrize(
    ("change", "case"),
    [
        ("channels", {"shape": (1, 9, 9, 8), "size": (3, 3)}),
        ("stride", {"shape": (1, 3, 9, 8), "size": (3, 3), "stride": 3}),
        ("height", {"shape": (1, 3, 9, 8), "size": (9, 3)}),
        ("a row of 256 bytes", {"shape": (1, 5, 9, 8), "size": (3, 5)}),
        ("pixels of 8 bytes", {"shape": (1, 3, 9, 8), "size": (3, 3), "stride": 1, "dtype": torch.bfloat16}),
    ],
    ids=str,
)
def test_what_it_leaves_to_the_general_kernels(change, case, counted):
    partial_conv2d(c_out=4, mask="random", **case)
    assert counted.launches == 0


def test_more_that_it_leaves_to_the_general_kernels(counted):
    args = features((1, 3, 12, 12), torch.float32, "random")
    weight = kernel(4, 3, 3, dtype=torch.float32, device=args["x"].device)
    check("partial_conv2d", "channels_last", **args, weight=weight, dilation=2)
    check("partial_conv2d", "channels_last", **features((0, 3, 12, 12), torch.float32, "none"), weight=weight)
    x = args["x"].clone().requires_grad_()
    weight.requires_grad_()
    pconv_ext.partial_conv2d(x, args["mask"], weight, backend=BACKEND)[0].sum().backward()
    assert counted.launches == 0


@pytest.mark.parametrize("sizes", [(3, 5, 7), (1, 3, 5, 7), (7,), (1,), (1, 3, 5), (8, 4)], ids=str)
@pytest.mark.parametrize("cp", [16, 32, 64])
def test_jobs_cover_every_row_once(sizes, cp, counted):
    parts = branches(tuple((k, k) for k in sizes), 12)
    strides = dict.fromkeys(("x_n", "x_c", "x_h", "x_w", "mask_n", "mask_h", "mask_w"), 1)
    numbers = {"N": 1, "C": 3, "H": 9, "W": 9, "NOUT": 4, "HO": 9, "WO": 9, "TOP": 0, "LEFT": 0}
    numbers |= dict.fromkeys(("SH", "SW", "DH", "DW"), 1) | {"ROW_CHANNELS": 4, "CP": cp}
    windows = tuple(part.window for part in parts)
    plan = counted.plan(ITEM=4, **strides, **numbers, WINDOWS=windows, PROCESSORS=1)
    assert plan.fits
    several = range(len(parts)) if len(parts) > 1 else []
    groups, jobs = list(plan.groups), list(plan.jobs)
    for section, chosen in enumerate(([len(parts) - 1], several)):
        found = []
        count = plan.sections[section]
        for i, (copy, row, first, slot) in enumerate(jobs[: 8 * count]):
            if slot >= 0:
                found.append((slot, first, groups[i // 8][copy], row))
        groups, jobs = groups[count:], jobs[8 * count :]
        slot, wanted = 0, []
        for b in chosen:
            for y in range(parts[b].kh):
                wanted += [(slot, first, b, parts[b].oy + y) for first in range(0, cp, 32)]
                slot += 1
        assert sorted(found) == wanted
        assert plan.slots[section] == slot
    assert not groups
    assert not jobs

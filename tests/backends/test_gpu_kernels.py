"""The kernels of Triton and of CUDA against the float64 reference: on a GPU or, without one, emulated.

On a GPU the tests of the operators run with these backends as well, with all their cases; these few reach
every path of every kernel, and are small enough for Triton's interpreter and the emulator of CUDA.
"""

import warnings

import pytest
import torch
from pconv_ext.kernels import tuning
from pconv_ext.kernels.host import devices
from support import arguments
from support.cases import (
    DEVICE_OF,
    check_against_reference,
    deep_without_gpu,
    kernel,
    laid_out,
    mask_of,
    randn,
)
from support.tolerances import TF32, assert_close

import pconv_ext
from pconv_ext import _backends, reference
from pconv_ext._backends import rule, tables

BACKEND = "triton"  # in the place of whose kernels those of CUDA are put
TRITON = pytest.param("triton", marks=pytest.mark.deep)
CUDA = pytest.param("cuda", marks=deep_without_gpu)
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=[TRITON, CUDA])
def kernels(request, monkeypatch):
    """Which are tested."""
    if request.param == "cuda":
        cuda_kernels = request.getfixturevalue("cuda_kernels")
        monkeypatch.setattr(_backends.triton, "_kernels", lambda: cuda_kernels)
    ok, reason = pconv_ext.backends()[BACKEND]
    assert ok, f"these tests need Triton and a GPU or its interpreter: {reason}"
    return request.param


def partial_conv2d(*args, layout="contiguous", grad_layout="contiguous", **options):
    case = arguments.partial_conv2d(BACKEND, *args, **options)
    case["x"] = laid_out(case["x"], layout)
    check_against_reference("partial_conv2d", BACKEND, case, grad_layout=grad_layout)


def msfef(*args, layout="contiguous", grad_layout="contiguous", **options):
    case = arguments.msfef(BACKEND, *args, **options)
    case["x"] = laid_out(case["x"], layout)
    check_against_reference("msfef", BACKEND, case, grad_layout=grad_layout)


def upcat_partial_conv2d(*args, **options):
    check_against_reference(
        "upcat_partial_conv2d", BACKEND, arguments.upcat_partial_conv2d(BACKEND, *args, **options)
    )


@pytest.mark.parametrize(
    "options",
    [
        {"size": 3, "padding": 1},
        {"size": 3, "padding": 1, "stride": 2, "mask": "blobs"},
        {"size": 1, "stride": 2, "bias": False},
        {"size": (2, 5), "stride": (1, 3), "dilation": (3, 1), "padding": (2, 1)},
        {"size": 4, "stride": (2, 3), "dilation": (2, 2), "padding": 3},
        {"size": 4, "padding": "same"},
        {"size": 9, "padding": 4, "mask": "none"},
        {"size": 3, "padding": 5, "stride": 2, "mask": "none"},
    ],
    ids=str,
)
@pytest.mark.parametrize("c_in", [4, 21])
def test_partial_conv2d_geometry(c_in, options):
    partial_conv2d((2, c_in, 13, 12), 10, **options)


@pytest.mark.parametrize("c_in", [1, 3, 8, 9, 67])
@pytest.mark.parametrize("c_out", [3, 40])
def test_partial_conv2d_channels(c_in, c_out):
    partial_conv2d((1, c_in, 7, 9), c_out, 3, padding=1, stride=1 if c_in % 2 else 2)


def test_partial_conv2d_several_tiles():
    """More channels and pixels than a block has, in every direction."""
    partial_conv2d((1, 70, 13, 11), 72, 3, "rectangle", padding=1)


@pytest.mark.parametrize("sizes", [(3, 5, 7), (7, 1), (5,), (9, 3, 5)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mask", ["rectangle", "sparse"])
def test_msfef_kernel_sets(sizes, stride, mask):
    msfef((1, 12, 17, 18), 18, sizes, mask, stride=stride)


@pytest.mark.parametrize("mask", ["none", "valid", "holes", "random", "blobs", "one_for_all"])
@pytest.mark.parametrize("c_in", [3, 16])
def test_msfef_masks(c_in, mask):
    msfef((2, c_in, 19, 16), 8, mask=mask, bias=mask != "random")


@pytest.mark.parametrize(
    ("k", "size"), [(1, (10, 11)), (3, (10, 12)), (3, (9, 11)), (3, (9, 12)), (5, (10, 11))], ids=str
)
@pytest.mark.parametrize(("c_low", "c_skip", "c_out"), [(12, 10, 20), (20, 3, 3)], ids=str)
def test_upcat_partial_conv2d_geometry(k, size, c_low, c_skip, c_out):
    upcat_partial_conv2d((2, c_low, 5, 6), c_skip, size, c_out, k, bias=k != 1)


@pytest.mark.parametrize(
    "masks",
    [("none", "none"), ("holes", "random"), ("sparse", "none"), ("one_for_all", "rectangle")],
    ids=str,
)
def test_upcat_partial_conv2d_masks(masks):
    upcat_partial_conv2d((2, 12, 5, 6), masks=masks)


def test_upcat_partial_conv2d_tiny():
    upcat_partial_conv2d((1, 9, 1, 1), 2, (1, 1), 4, 5)
    upcat_partial_conv2d((1, 3, 1, 2), 2, (2, 3), 4, 3)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision(dtype):
    partial_conv2d((1, 20, 9, 10), 24, mask="none", dtype=dtype, padding=1)
    msfef((1, 3, 17, 16), 12, mask="none", dtype=dtype)
    msfef((1, 17, 13, 14), 12, dtype=dtype)
    upcat_partial_conv2d((1, 12, 5, 6), 3, dtype=dtype)


def test_ratio_in_half_precision():
    """One valid pixel of 49: the sum of the window is scaled in float32, and cannot overflow."""
    x = randn(1, 4, 7, 7, dtype=torch.float16, device=DEVICE_OF[BACKEND], scale=100.0)
    mask = torch.zeros(1, 1, 7, 7, dtype=torch.bool, device=x.device)
    mask[..., 3, 3] = True
    weight = kernel(4, 4, 7, dtype=x.dtype, device=x.device)
    out, new_mask = pconv_ext.partial_conv2d(x, mask, weight, padding=3, backend=BACKEND)
    assert out.isfinite().all()
    assert new_mask.all()


def test_gradient_in_half_precision():
    """The gradient times a ratio of 49 is no float16, the gradients of features and weights are."""
    x = randn(1, 4, 9, 9, dtype=torch.float16, device=DEVICE_OF[BACKEND], scale=0.1)
    mask = torch.zeros(1, 1, 9, 9, dtype=torch.bool, device=x.device)
    mask[..., 4, 4] = True
    args = {"x": x, "mask": mask, "weight": kernel(4, 4, 7, dtype=x.dtype, device=x.device) / 50}
    leaves = {n: a.requires_grad_() if n != "mask" else a for n, a in args.items()}
    out, _ = pconv_ext.partial_conv2d(**leaves, padding=3, backend=BACKEND)
    grads = torch.autograd.grad(out, [x, leaves["weight"]], torch.full_like(out, 1500))
    wide = {n: a.detach().double().requires_grad_() if n != "mask" else a for n, a in args.items()}
    expected, _ = reference.partial_conv2d(**wide, padding=3)
    grad = torch.full_like(expected, 1500)
    for one, other in zip(
        grads, torch.autograd.grad(expected, [wide["x"], wide["weight"]], grad), strict=True
    ):
        assert_close(one, other, torch.float16, "gradient", BACKEND)


def test_gradients_at_few_valid_pixels_do_not_cancel():
    """Ratios of one window differ by a factor of 80: each kernel's gradient is scaled by its own."""
    for dtype in HALF:
        msfef((1, 9, 17, 16), 10, (1, 3, 9), "sparse", dtype=dtype, stride=1)


def test_parameters_with_gaps():
    args = arguments.partial_conv2d(BACKEND)
    args["bias"] = args["bias"].repeat_interleave(2)[::2]
    check_against_reference("partial_conv2d", BACKEND, args)
    args["bias"] = torch.ones(1, device=args["x"].device).expand(6)
    out, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
    expected, _ = pconv_ext.partial_conv2d(**args, backend="reference")
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_strides_of_one_channel_or_pixel(layout):
    """They decide the layout of what follows: as those of a convolution."""
    x = laid_out(torch.randn(2, 3, 4, 5, device=DEVICE_OF[BACKEND]), layout)
    for size, c_out in (((3, 3), 1), ((4, 5), 6), ((4, 5), 1)):
        weight = torch.randn(c_out, 3, *size, device=x.device)
        out, _ = pconv_ext.partial_conv2d(x, None, weight, backend=BACKEND)
        format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        assert out.stride() == torch.empty(out.shape, memory_format=format).stride()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.float64], ids=str)
def test_mask_dtypes(dtype):
    args = arguments.partial_conv2d(BACKEND, mask="none", padding=1)
    args["mask"] = laid_out(mask_of("random", args["x"], dtype), "strided")
    check_against_reference("partial_conv2d", BACKEND, args)


@pytest.mark.parametrize("layout", ["channels_last", "slice", "strided", "channels_last_slice"])
def test_layouts(layout):
    partial_conv2d((2, 9, 8, 7), 12, padding=1, layout=layout, grad_layout=layout)
    msfef((2, 3, 9, 8), 12, layout=layout, grad_layout="expanded")


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 1, 1, 1), (3, 4, 1, 1), (1, 12, 1, 9)], ids=str)
def test_small_and_empty(shape):
    partial_conv2d(shape, 5, 3, padding=1)
    partial_conv2d(shape, 5, 7, "holes", padding=3, stride=2)
    msfef(shape, 5)
    upcat_partial_conv2d((*shape[:2], 5, 6))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"groups": 2, "weight": torch.ones(6, 2, 3, 3)}, "no grouped convolution, groups is 2"),
        ({"mask": torch.ones(2, 4, 9, 11)}, r"masks of one plane, mask has shape \[2, 4, 9, 11\]"),
        (
            {"x": torch.ones(2, 4, 9, 11).double(), "weight": torch.ones(6, 4, 3, 3).double()},
            "is torch.float64",
        ),
    ],
    ids=["groups", "per channel mask", "float64"],
)
def test_what_it_cannot_take(change, reason):
    args = {"x": torch.ones(2, 4, 9, 11), "mask": None, "weight": torch.ones(6, 4, 3, 3)} | change
    args = {n: a.to(DEVICE_OF[BACKEND]) if isinstance(a, torch.Tensor) else a for n, a in args.items()}
    with pytest.raises(
        ValueError, match=f"partial_conv2d: backend 'triton' cannot take this call: .*{reason}"
    ):
        pconv_ext.partial_conv2d(**args, backend=BACKEND)


@pytest.mark.parametrize("shape", [(1, 1, 2**14, 2**14 + 1), (2**15 + 1, 1, 64, 128)], ids=str)
def test_too_many_pixels_are_refused(shape):
    x = torch.ones(1, 1, 1, 1, device=DEVICE_OF[BACKEND]).expand(shape)
    with pytest.raises(ValueError, match=r"at most 2\^28 pixels, x \[.*\] has more; split the batch"):
        pconv_ext.partial_conv2d(x, None, torch.ones(1, 1, 1, 1, device=x.device), backend=BACKEND)


@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [
        *[pytest.param("triton", dtype, marks=TRITON.marks) for dtype in (torch.float32, torch.bfloat16)],
        *[pytest.param("cuda", dtype, marks=CUDA.marks) for dtype in (torch.float32, *HALF)],
    ],
    indirect=["kernels"],
    ids=str,
)
def test_every_configuration(kernels, dtype, monkeypatch):
    """All block sizes that may be chosen, on a shape for which few of them are.

    Of CUDA's, those of the precision that is computed in: the kernels are compiled for no others.
    """
    precisions = ("ieee", "tf32") if kernels == "triton" else (devices.precision(dtype),)
    gather = {
        tuning.gather_blocks(rows, n, dtype, capability, precision)
        for capability in (80, 90)
        for rows in (1, 2**20)
        for n in (16, 32, 64, 128, 256)
        for precision in precisions
    }
    wgrad = {
        tuning.wgrad_blocks(words, n, dtype, capability)
        for capability in (80, 90)
        for words in (1, 2)
        for n in (16, 32, 64, 128, 256)
    }
    assert min(len(gather), len(wgrad)) >= 4
    for i in range(max(len(gather), len(wgrad))):
        chosen = sorted(gather)[i % len(gather)], sorted(wgrad)[i % len(wgrad)]
        monkeypatch.setattr(tuning, "gather_blocks", lambda *_, chosen=chosen: chosen[0])
        monkeypatch.setattr(tuning, "wgrad_blocks", lambda *_, chosen=chosen: chosen[1])
        partial_conv2d((1, 18, 7, 8), 20, 3, padding=1, dtype=dtype, stride=1 + i % 2)


def test_auto_takes_it_first_where_it_can(monkeypatch):
    device = DEVICE_OF[BACKEND]
    assert rule.order("cuda", 64, 64)[0] == BACKEND
    monkeypatch.setattr(rule, "CPU", (BACKEND, "reference"))
    monkeypatch.setattr(rule, "order", lambda *_: (BACKEND, "reference"))
    monkeypatch.setattr(_backends, "_warned", set())
    place = tables.at(device, 0)
    monkeypatch.setitem(tables.KNOWN, place, tables.Known())  # what was measured would come first
    layer, x = pconv_ext.MSFEF(3, 4).to(device), torch.randn(1, 3, 9, 9, device=device)
    with torch.profiler.profile() as profile, warnings.catch_warnings():
        warnings.filterwarnings("error", message="pconv_ext")
        layer(x, mask_of("random", x))
    assert "pconv_ext_triton::msfef" in {event.key for event in profile.key_averages()}
    weight = torch.ones(4, 1, 3, 3, device=device)
    with pytest.warns(
        UserWarning, match="slow reference .*triton: it has no grouped convolution, groups is 3"
    ):
        out, _ = pconv_ext.partial_conv2d(x, None, weight[:3], groups=3)
    assert torch.equal(out, reference.partial_conv2d(x, None, weight[:3], groups=3)[0])


def test_the_sum_over_splits_is_the_same_in_every_run():
    args = arguments.partial_conv2d(BACKEND, (2, 9, 40, 33), 12, padding=1)
    args["weight"].requires_grad_()
    grads = []
    for _ in range(2):
        out, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
        grads.append(torch.autograd.grad(out.sum(), args["weight"])[0])
    assert torch.equal(*grads)


def test_tf32_where_cudnn_may_use_it():
    torch.backends.cudnn.allow_tf32 = True
    args = arguments.partial_conv2d(BACKEND, (1, 40, 12, 13), 32, padding=1)
    out, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
    wide = {
        n: a.double() if isinstance(a, torch.Tensor) and a.dtype.is_floating_point else a
        for n, a in args.items()
    }
    expected, _ = reference.partial_conv2d(**wide)
    error = (out - expected).abs() / (expected.abs() + expected.square().mean().sqrt())
    assert error.max() <= TF32.relative


def test_gradients_only_of_what_is_asked_for():
    args = arguments.msfef(BACKEND, (1, 12, 9, 8), 10)
    for name in ("x", "scales"):
        leaf = args[name].clone().requires_grad_()
        out, _ = pconv_ext.msfef(**(args | {name: leaf}), backend=BACKEND)
        wide = leaf.detach().double().requires_grad_()
        double = {
            n: [t.double() for t in a] if isinstance(a, list) else a.double() if n in ("x", "scales") else a
            for n, a in args.items()
        }
        expected, _ = reference.msfef(**(double | {name: wide}))
        grad = torch.randn_like(out)
        out.backward(grad)
        expected.backward(grad.double())
        torch.testing.assert_close(leaf.grad, wide.grad.float(), rtol=1e-4, atol=1e-4)

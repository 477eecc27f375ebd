"""The CUDA kernel for few input channels (csrc/cuda/few_inputs.cu), in the emulator or on a GPU.

test_gpu_kernels.py runs it too, wherever an operator has few channels.
"""

import pytest
import torch
from support import few_channels
from support.cases import DEVICE_OF, LAYOUTS, MASK_DTYPES, PLANES, deep_without_gpu, kernel
from support.emulated_cuda import Counted
from support.few_channels import BACKEND, features
from support.tolerances import TF32, assert_close

import pconv_ext
from pconv_ext import _backends, reference

pytestmark = [*deep_without_gpu]


@pytest.fixture(autouse=True)
def few_inputs(cuda_kernels, monkeypatch):
    counted = Counted(cuda_kernels.few_inputs)
    monkeypatch.setattr(_backends.triton, "_kernels", lambda: cuda_kernels._replace(few_inputs=counted))
    return counted


def partial_conv2d(*args, stride=1, **options):
    check("partial_conv2d", **few_channels.partial_conv2d(*args, stride=stride, **options))


def msfef(*args, **options):
    check("msfef", **few_channels.msfef(*args, **options))


def wide(value):
    if isinstance(value, list):
        return [wide(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) else value


def check(operator, mask, **args):
    """Compare the forward pass with the reference in float64."""
    dtype = args["x"].dtype
    out, new_mask = getattr(pconv_ext, operator)(mask=mask, **args, backend=BACKEND)
    expected, expected_mask = getattr(reference, operator)(mask=mask, **{n: wide(v) for n, v in args.items()})
    assert torch.equal(new_mask, expected_mask.to(new_mask.dtype))
    assert (out[(expected_mask == 0).expand_as(out)] == 0).all()
    if torch.backends.cudnn.allow_tf32 and dtype == torch.float32:
        error = (out - expected).abs() / (expected.abs() + expected.square().mean().sqrt())
        assert error.max() <= TF32.relative
    else:
        assert_close(out, expected, dtype, "out", BACKEND)


@pytest.mark.parametrize("dtype", [torch.float32, "tf32", torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("c_out", "shared"), [(3, 99), (64, 99), (64, 163), (64, 227), (72, 99)])
def test_first_layer(dtype, c_out, shared, few_inputs, request):
    """Several tiles, whole and cut, for blocks that take several; `shared` KiB of memory for a block."""
    if not torch.cuda.is_available():
        limit = few_inputs.kernel.library.pconv_emulate_shared
        limit(shared << 10)
        request.addfinalizer(lambda: limit(99 << 10))
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    dtype = torch.float32 if dtype == "tf32" else dtype
    msfef((1, 3, 39, 37), c_out, (3, 5, 7), "blobs", dtype=dtype, bias=c_out != 3)
    partial_conv2d((1, 3, 19, 37), c_out, (7, 7), "rectangle", dtype=dtype, stride=2, padding=3)
    assert few_inputs.launches == 2


@pytest.mark.parametrize("mask", PLANES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_masks(mask, dtype, few_inputs):
    msfef((2, 3, 21, 18), 10, (3, 5, 7), mask, dtype=dtype)
    msfef((2, 2, 9, 11), 10, (1, 5), mask, dtype=dtype, stride=1)
    partial_conv2d((2, 4, 11, 20), 10, (3, 3), mask, dtype=dtype, bias=False)
    assert few_inputs.launches == 3


@pytest.mark.parametrize("c_in", [1, 4, 5, 8])
@pytest.mark.parametrize(
    ("stride", "size"), [(1, (1, 1)), (2, (2, 4)), ((1, 2), (4, 3)), ((2, 1), (8, 4))], ids=str
)
def test_geometry(c_in, stride, size, few_inputs):
    padding = (size[0] // 2, size[1])
    partial_conv2d((2, c_in, 13, 18), 9, size, "random", stride=stride, padding=padding)
    partial_conv2d((1, c_in, 9, 33), 20, size, "none", stride=stride, dtype=torch.float16)
    assert few_inputs.launches == 2


@pytest.mark.parametrize(("layout", "mask_dtype"), list(zip(LAYOUTS, MASK_DTYPES, strict=True)), ids=str)
def test_layouts_and_mask_dtypes(layout, mask_dtype, few_inputs):
    where = {"layout": layout, "mask_dtype": mask_dtype, "mask_layout": LAYOUTS[-1 - LAYOUTS.index(layout)]}
    msfef((2, 3, 10, 19), 8, (3, 5, 7), "random", dtype=torch.bfloat16, **where)
    partial_conv2d((2, 5, 10, 7), 12, (3, 3), "random", **where)
    assert few_inputs.launches == 2


def test_valid_values_that_are_not_finite_stay_in_their_windows(few_inputs):
    """A row of taps is filled up with pixels right of the window."""
    x = torch.zeros(1, 3, 9, 40, device=DEVICE_OF[BACKEND])
    x[:, :, 4, 20] = float("inf")
    for size in (3, 5, 7):
        for dtype in (torch.float32, torch.bfloat16):
            weight = torch.ones(9, 3, size, size, device=x.device, dtype=dtype)
            out, _ = pconv_ext.partial_conv2d(x.to(dtype), None, weight, padding=size // 2, backend=BACKEND)
            r = size // 2
            near = torch.zeros_like(out, dtype=torch.bool)
            near[:, :, max(4 - r, 0) : 5 + r, 20 - r : 21 + r] = True
            assert torch.equal(~out.isfinite(), near)
    assert few_inputs.launches == 6


def test_every_run_is_the_same(few_inputs):
    args = features((2, 3, 33, 40), torch.bfloat16, "blobs")
    weight = kernel(64, 3, 7, dtype=torch.bfloat16, device=args["x"].device)
    runs = [pconv_ext.partial_conv2d(**args, weight=weight, padding=3, backend=BACKEND)[0] for _ in range(2)]
    assert torch.equal(*runs)
    assert few_inputs.launches == 2


@pytest.mark.parametrize(
    ("change", "case"),
    [
        ("channels", {"shape": (1, 9, 9, 8), "size": (3, 3)}),
        ("stride", {"shape": (1, 3, 9, 8), "size": (3, 3), "stride": 3}),
        ("height", {"shape": (1, 3, 9, 8), "size": (9, 3)}),
        ("a row of 256 bytes", {"shape": (1, 5, 9, 8), "size": (3, 5)}),
    ],
    ids=str,
)
def test_what_it_leaves_to_the_general_kernels(change, case, few_inputs):
    partial_conv2d(c_out=4, mask="random", **case)
    assert few_inputs.launches == 0


def test_dilation_is_left_to_the_general_kernels(few_inputs):
    args = features((1, 3, 12, 12), torch.float32, "random")
    weight = kernel(4, 3, 3, dtype=torch.float32, device=args["x"].device)
    check("partial_conv2d", **args, weight=weight, dilation=2)
    assert few_inputs.launches == 0

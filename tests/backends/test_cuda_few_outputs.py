"""The forward kernel for few output channels (csrc/cuda/few_outputs.cu), in the emulator or on a GPU."""

import pytest
import torch
from support.cases import LAYOUTS, MASK_DTYPES, PLANES, deep_without_gpu, holes_of, laid_out, mask_of, rubbish
from support.emulated_cuda import Counted
from support.few_channels import BACKEND, DTYPES, conv_case, upcat_case
from support.tolerances import TF32, assert_close

import pconv_ext
from pconv_ext import _backends, reference
from pconv_ext._geometry import memory_format

pytestmark = [*deep_without_gpu]


@pytest.fixture(autouse=True)
def counted(cuda_kernels, monkeypatch):
    """The kernel, and that of all other calls, which must not run beside it."""
    few, gather = Counted(cuda_kernels.few_outputs), Counted(cuda_kernels.gather_matmul)
    replaced = cuda_kernels._replace(few_outputs=few, gather_matmul=gather)
    monkeypatch.setattr(_backends.triton, "_kernels", lambda: replaced)
    return few, gather


@pytest.fixture
def check(counted):
    few, gather = counted

    def run(operator, args, *, direct=True, relative=None):
        """Compare the forward pass with the reference in float64; it must be one launch if `direct`."""
        for name, x in (("mask", "x"), ("mask_low", "x_low"), ("mask_skip", "skip")):
            if name in args:
                rubbish(args[x], holes_of(args[name], args[x]))
        before = few.launches, gather.launches
        actual, actual_mask = getattr(pconv_ext, operator)(**args, backend=BACKEND)
        assert (few.launches - before[0], gather.launches - before[1]) == ((1, 0) if direct else (0, 1))
        wide = {
            n: a.double() if isinstance(a, torch.Tensor) and not n.startswith("mask") else a
            for n, a in args.items()
        }
        expected, expected_mask = getattr(reference, operator)(**wide)
        like = args["skip" if "skip" in args else "x"]
        given = next((a for n, a in args.items() if n.startswith("mask") and a is not None), like)
        assert actual.dtype == like.dtype
        assert actual_mask.dtype == given.dtype
        layout = memory_format(like)
        assert actual.stride() == torch.empty(actual.shape, memory_format=layout).stride()
        assert torch.equal(actual_mask, (expected_mask != 0).to(given.dtype))
        assert (actual[(expected_mask == 0).expand_as(actual)] == 0).all()
        if relative is None:
            assert_close(actual, expected, like.dtype, "out", BACKEND)
        else:
            error = (actual - expected).abs() / (expected.abs() + expected.square().mean().sqrt())
            assert error.max() <= relative

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 3, 7, (2, 5), (6, 1)], ids=str)
def test_kernels(check, size, dtype):
    """Few and many channels; padding that is less and more than half of the kernel; several tiles."""
    check("partial_conv2d", conv_case((2, 3, 19, 21), 3, size, padding=1, dtype=dtype))
    check("partial_conv2d", conv_case((1, 20, 18, 17), 8, size, padding=(3, 2), dtype=dtype))


@pytest.mark.parametrize("c_in", [1, 4, 5, 8, 9, 16, 33, 64, 130])
@pytest.mark.parametrize("c_out", [1, 5, 8])
def test_channels(check, c_in, c_out):
    dtype = DTYPES[(c_in + c_out) % 3]
    check("partial_conv2d", conv_case((1, c_in, 9, 11), c_out, 3, "blobs", padding=1, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(64, 3), (20, 12), (3, 4), (2, 40)], ids=str)
def test_upcat(check, channels, dtype):
    for size, k in (((18, 20), 3), ((9, 33), 3), ((19, 17), 5)):
        low = (2, channels[0], -(-size[0] // 2), -(-size[1] // 2))
        check("upcat_partial_conv2d", upcat_case(low, channels[1], size, 3, k, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 7])
def test_upcat_in_little_shared_memory(check, k, dtype):
    """Two wide maps, or a narrow one beside a wide one: rows of pixels are cut until all fits."""
    for c_low, c_skip in ((70, 40), (7, 70)):
        check("upcat_partial_conv2d", upcat_case((1, c_low, 5, 4), c_skip, (10, 7), 8, k, dtype=dtype))


@pytest.mark.parametrize("mask", PLANES)
@pytest.mark.parametrize("c_in", [3, 12])
def test_masks(check, c_in, mask):
    check("partial_conv2d", conv_case((2, c_in, 17, 9), 3, 3, mask, bias=mask == "sparse", padding=2))


@pytest.mark.parametrize(
    "masks",
    [("none", "holes"), ("holes", "none"), ("sparse", "blobs"), ("one_for_all", "rectangle"), ("none",) * 2],
    ids=str,
)
def test_upcat_masks(check, masks):
    check("upcat_partial_conv2d", upcat_case((2, 12, 9, 5), 3, (18, 9), 3, 3, masks, bias=False))


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
def test_mask_dtypes(check, dtype):
    args = conv_case((2, 12, 9, 7), 3, 3, "none", padding=1)
    args["mask"] = laid_out(mask_of("random", args["x"], dtype), "strided")
    check("partial_conv2d", args)
    args = upcat_case((2, 12, 5, 4), 3, (9, 8))
    args["mask_skip"] = mask_of("random", args["skip"], dtype)
    check("upcat_partial_conv2d", args)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("c_in", [3, 12])
def test_layouts(check, c_in, layout):
    args = conv_case((2, c_in, 9, 18), 4, padding=1, dtype=torch.bfloat16)
    check("partial_conv2d", args | {"x": laid_out(args["x"], layout)})
    args = upcat_case((2, 12, 5, 9), c_in, (9, 18))
    check("upcat_partial_conv2d", args | {n: laid_out(args[n], layout) for n in ("x_low", "skip")})


@pytest.mark.parametrize("channels", [10, 12, 14, 13])
def test_pixels_that_are_not_aligned(check, channels):
    """Copies of 8 or 4 bytes and single elements."""
    for dtype in (torch.bfloat16, torch.float32):
        args = conv_case((1, channels, 6, 7), 2, padding=1, dtype=dtype)
        big = args["x"].new_zeros(args["x"].numel() + 1)
        x = args["x"].permute(0, 2, 3, 1)
        moved = big[1:].view(x.shape).copy_(x).permute(0, 3, 1, 2)
        check("partial_conv2d", args | {"x": moved})


@pytest.mark.parametrize("c_in", [3, 12])
def test_infinity_in_a_valid_pixel_stays_in_its_windows(counted, c_in):
    args = conv_case((1, c_in, 20, 20), 3, 3, "valid", padding=1)
    args["x"][0, 1, 7, 9] = float("inf")
    out, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
    bad = ~out.isfinite().all(1)[0]
    expected = torch.zeros_like(bad)
    expected[6:9, 8:11] = True
    assert torch.equal(bad, expected)
    assert counted[0].launches == 1


@pytest.mark.parametrize("channels", [3, 40])
def test_tf32(check, channels):
    args = conv_case((1, channels, 20, 13), 3, padding=1)
    exact, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
    torch.backends.cudnn.allow_tf32 = True
    check("partial_conv2d", args, relative=TF32.relative)
    rounded, _ = pconv_ext.partial_conv2d(**args, backend=BACKEND)
    assert (rounded - exact).abs().max() > 1e-5


def test_what_does_not_fit_goes_the_old_way(check):
    check("partial_conv2d", conv_case((1, 12, 9, 9), 9, 3), direct=False)
    check("partial_conv2d", conv_case((1, 12, 9, 9), 3, 3, stride=(1, 2)), direct=False)
    check("partial_conv2d", conv_case((1, 12, 9, 9), 3, 3, dilation=2), direct=False)
    check("partial_conv2d", conv_case((1, 12, 9, 9), 3, (8, 1)), direct=False)
    check("upcat_partial_conv2d", upcat_case(c_out=9), direct=False)
    check("upcat_partial_conv2d", upcat_case(k=9), direct=False)


def test_gradients_behind_it(counted):
    args = upcat_case((1, 12, 5, 6), 3, (9, 12), 3)
    leaves = [args[n].requires_grad_() for n in ("x_low", "skip", "weight", "bias")]
    out, _ = pconv_ext.upcat_partial_conv2d(**args, backend=BACKEND)
    assert counted[0].launches == 1
    grad = torch.randn_like(out)
    expected, _ = pconv_ext.upcat_partial_conv2d(**args, backend="reference")
    grads = torch.autograd.grad(out, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    for actual, other in zip(*grads, strict=True):
        torch.testing.assert_close(actual, other, rtol=1e-4, atol=1e-4)


def test_it_is_the_same_in_every_run():
    args = upcat_case((2, 64, 12, 9), 3, (24, 18), 3, dtype=torch.bfloat16)
    results = [pconv_ext.upcat_partial_conv2d(**args, backend=BACKEND)[0] for _ in range(2)]
    assert torch.equal(*results)

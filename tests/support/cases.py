"""Inputs, and the one comparison with the reference that the tests of all operators share."""

import pytest
import torch
from support.tolerances import GPU_BACKENDS, assert_close

import pconv_ext
from pconv_ext import _backends, reference

DEVICE_OF = {"cpu": "cpu", "dense": "cpu", "cuda": "cuda", "triton": _backends.triton.DEVICE_TYPE}
#: The most precise dtype of a backend.
DTYPE_OF = {
    "cpu": torch.float64,
    "dense": torch.float32,
    "cuda": torch.float32,
    "triton": torch.float32,
}
#: Every compiled backend of this machine; "cpu" is always there, see conftest.py. Triton's interpreter is too
#: slow for all tests: test_gpu_kernels.py has a selection for it.
COMPILED = [
    name
    for name, (available, _) in pconv_ext.backends().items()
    if available and name != "reference" and not (name == "triton" and _backends.triton.INTERPRETED)
]
#: All cases of an operator on a GPU are thousands of kernels for Triton to compile, so they are deep there.
every_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.deep if name in GPU_BACKENDS else ()) for name in COMPILED],
)
#: For tests of a GPU's kernels: there they take seconds, in Triton's interpreter and the emulator minutes.
deep_without_gpu = () if torch.cuda.is_available() else (pytest.mark.deep,)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MASK_DTYPES = [torch.bool, torch.uint8, *DTYPES]
PLANES = ["none", "valid", "holes", "random", "sparse", "rectangle", "blobs", "one_for_all"]
PER_CHANNEL = ["channels", "channels_one_for_all", "channels_expanded"]


def mask_of(kind, x, dtype=torch.bool):
    """A mask for `x` [N, C, H, W]. Its valid entries are any nonzero values that `dtype` has."""
    n, c, h, w = x.shape
    if kind == "none":
        return None
    if kind in ("valid", "holes"):
        valid = torch.full((n, 1, h, w), kind == "valid")
    elif kind == "rectangle":
        valid = torch.ones(n, 1, h, w, dtype=torch.bool)
        valid[:, :, h // 4 : h // 4 + max(1, h // 2), w // 3 : w // 3 + max(1, w // 2)] = False
    elif kind == "blobs":  # irregular holes larger than a window, some of the image's rows and columns dead
        coarse = torch.rand(n, 1, 2 + h // 8, 2 + w // 8) < 0.6
        valid = torch.nn.functional.interpolate(coarse.float(), size=(h, w)).bool()
    elif kind == "channels_expanded":
        valid = torch.rand(n, 1, h, w) < 0.5
    else:
        batch = 1 if kind.endswith("one_for_all") else n
        share = {"sparse": 0.1, "few": 0.02}.get(kind, 0.5)
        valid = torch.rand(batch, c if kind.startswith("channels") else 1, h, w) < share
    mask = valid.to(dtype)
    if dtype == torch.uint8:
        mask = torch.where(valid, torch.randint(1, 256, valid.shape, dtype=dtype), mask)
    elif dtype.is_floating_point:
        values = torch.tensor([1.0, 0.25, -3.0, float("inf"), float("nan")], dtype=dtype)
        mask = torch.where(valid, values[torch.randint(len(values), valid.shape)], mask * -0.0)
    if kind == "channels_expanded":
        mask = mask.expand(n, c, h, w)
    return mask.to(x.device)


def holes_of(mask, x):
    """bool, shape of `x`: where it is masked out."""
    return torch.zeros_like(x, dtype=torch.bool) if mask is None else (mask == 0).expand_as(x)


def rubbish(tensor, where):
    """`tensor` with NaN, Inf and -Inf at `where`, strides kept."""
    values = torch.tensor(
        [float("nan"), float("inf"), -float("inf")], dtype=tensor.dtype, device=tensor.device
    )
    noise = values[torch.randint(3, tensor.shape, device=tensor.device)]
    with torch.no_grad():
        return tensor.copy_(torch.where(where, noise, tensor)) if where.any() else tensor


def laid_out(tensor, layout):
    """A copy of `tensor` [N, C, H, W] in `layout`."""
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    n, c, h, w = tensor.shape
    big = tensor.new_full((n + 1, c + 2, h + 3, w + 5), float("nan") if tensor.is_floating_point() else 1)
    if layout == "channels_last_slice":
        big = big.contiguous(memory_format=torch.channels_last)
    view = big[1:, 1 : c + 1, 2 : h + 2, 3 : w + 3]
    if layout == "transposed":
        view = tensor.new_empty(n, c, w, h).transpose(2, 3)
    elif layout == "strided":
        view = tensor.new_empty(n, 2 * c, h, 2 * w)[:, ::2, :, 1::2]
    return view.copy_(tensor)


LAYOUTS = ["contiguous", "channels_last", "slice", "channels_last_slice", "transposed", "strided"]


def _map(value, function):
    return [function(v) for v in value] if isinstance(value, (list, tuple)) else function(value)


def differentiable(args, dtype=None):
    """`args` with every differentiable tensor a leaf (in `dtype` if given), and these leaves by name."""
    leaves, mapped = {}, {}

    def leaf(name, value):
        if not isinstance(value, torch.Tensor) or name.startswith("mask"):
            return value
        return value.detach().to(dtype or value.dtype).requires_grad_()

    for name, value in args.items():
        mapped[name] = _map(value, lambda v, name=name: leaf(name, v))
        many = isinstance(mapped[name], list)
        for i, tensor in enumerate(mapped[name] if many else [mapped[name]]):
            if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                leaves[f"{name}[{i}]" if many else name] = tensor
    return mapped, leaves


def emulated(backend):
    """Whether a GPU's backend runs without one, slowly."""
    return backend in GPU_BACKENDS and DEVICE_OF[backend] == "cpu"


def _lacks(backend, args):
    """Whether `backend` does not offer this call."""
    if backend not in GPU_BACKENDS:
        return False
    features = [args[name] for name in ("x", "x_low", "skip") if name in args]
    mask, stride = args.get("mask"), args.get("stride", 1)
    per_channel = mask is not None and mask.shape[1] > 1 and mask.stride(1) != 0
    lacks = features[0].dtype == torch.float64
    lacks |= per_channel or args.get("groups", 1) > 1
    lacks |= len(features) > 1 and "x_low" not in args  # of several maps it up-samples the first
    if backend == "cuda":
        strides = stride if isinstance(stride, tuple) else (stride, stride)
        size = features[0].shape[2:]  # beyond it (no test pads so far) all strides are the same
        lacks |= any(min(pair) > 128 for pair in zip(strides, size, strict=True))
    return lacks


def refused(operator, backend, args):
    """Whether `backend` does not offer this call. If so, it must say so."""
    if not _lacks(backend, args):
        return False
    with pytest.raises(ValueError, match=f"{operator}: backend '{backend}' cannot take this call: it "):
        getattr(pconv_ext, operator)(**args, backend=backend)
    return True


def check_against_reference(operator, backend, args, *, grad_layout="contiguous", limit=None):
    """Compare result and all gradients of `operator` in `backend` with the reference in float64, by `limit`
    where it is not the dtype's.

    Holes of the features hold NaN and Inf, and so does the incoming gradient where a window is dead: neither
    may show. Gradients in holes must be exactly zero, the mask must be equal, dtypes and layout as
    documented. A call that the backend cannot take must be refused with a reason.
    """
    if refused(operator, backend, args):
        return
    masks = {name: value for name, value in args.items() if name.startswith("mask")}
    features = {"mask": "x", "mask_low": "x_low", "mask_skip": "skip"}
    for mask_name, mask in masks.items():
        x = args[features[mask_name]]
        rubbish(x, holes_of(mask, x))
    layout_from = args["skip" if "skip" in args else "x"]
    dtype = layout_from.dtype

    expected_args, expected_leaves = differentiable(args, torch.float64)
    expected, expected_mask = getattr(reference, operator)(**expected_args)
    actual_args, actual_leaves = differentiable(args)
    actual, actual_mask = getattr(pconv_ext, operator)(**actual_args, backend=backend)

    assert actual.dtype == dtype
    given = [mask for mask in masks.values() if mask is not None]
    assert actual_mask.dtype == (given[0].dtype if given else dtype)
    assert not actual_mask.requires_grad
    assert actual_mask.is_contiguous()
    assert torch.equal(actual_mask != 0, expected_mask != 0)
    assert torch.equal(actual_mask, (actual_mask != 0).to(actual_mask.dtype)), "new_mask holds 0 and 1"
    if layout_from.is_contiguous(memory_format=torch.channels_last) and not layout_from.is_contiguous():
        assert actual.is_contiguous(memory_format=torch.channels_last)
    if layout_from.is_contiguous():
        assert actual.is_contiguous()
    assert_close(actual, expected, dtype, "out", backend, limit)
    assert (actual[(expected_mask == 0).expand_as(actual)] == 0).all(), "out is zero where the window is dead"

    if grad_layout == "expanded":
        grad = torch.randn((), dtype=dtype, device=actual.device).expand_as(actual)
    else:
        grad = laid_out(torch.randn_like(actual), grad_layout)
        rubbish(grad, (expected_mask == 0).expand_as(grad))
    expected.backward(grad.double())
    actual.backward(grad)
    for name, leaf in actual_leaves.items():
        assert leaf.grad is not None, f"no gradient for {name}"
        assert leaf.grad.dtype == leaf.dtype
        assert_close(leaf.grad, expected_leaves[name].grad, dtype, f"gradient of {name}", backend, limit)
    for mask_name, mask in masks.items():
        x_name = features[mask_name]
        hole_gradient = actual_leaves[x_name].grad[holes_of(mask, args[x_name])]
        assert (hole_gradient == 0).all(), f"gradient of {x_name} is exactly zero in holes"


def assert_same(actual, expected, backend, what="result"):
    """Equal bits from the CPU's kernels; equal numbers from a GPU's, of which two calls may take others."""
    if backend in GPU_BACKENDS:
        assert_close(actual, expected.double(), actual.dtype, what, backend)
    else:
        assert torch.equal(actual, expected), what


def randn(*shape, dtype=torch.float64, device="cpu", scale=1.0):
    """Normal numbers, drawn on the CPU so that a seed means the same on every device."""
    return (scale * torch.randn(*shape)).to(device=device, dtype=dtype)


def kernel(c_out, c_in, kh, kw=None, **where):
    """A weight [c_out, c_in, kh, kw] that makes outputs of the order of one."""
    kw = kh if kw is None else kw
    return randn(c_out, c_in, kh, kw, scale=(c_in * kh * kw) ** -0.5, **where)

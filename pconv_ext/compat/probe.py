"""The proof that a layer and its replacement compute the same."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .forms import MASK_KERNELS, Form

#: Of the largest output. Published layers add up to 1e-6 to the sum that they divide by.
_TOLERANCE = 1e-5


def difference(layer: nn.Module, form: Form) -> str | None:
    """Convert a copy of `layer` and compare the two; None if they agree, else why not.

    Copies in float64 on the layer's device, so that rounding hides nothing whatever its dtype, with random
    parameters, so that no zero bias or fresh norm does. In evaluation and in training mode, with holes of all
    kinds, masks of one plane, of one per channel and without: whatever the layer can be called with. The
    layer itself and the state of the random generators are left alone, and warnings are kept in.
    """
    devices = {tensor.device for tensor in itertools.chain(layer.parameters(), layer.buffers())}
    if len(devices) != 1 or (device := devices.pop()).type == "meta":
        return "it cannot be compared with its replacement: its tensors are on no single device that computes"
    try:
        with _isolated(device):
            generator = torch.Generator("cpu").manual_seed(0)
            old: Any = copy.deepcopy(layer).double()
            if hasattr(old, "last_size"):  # NVIDIA's layer would reuse the last mask for inputs of that shape
                old.last_size = (None,) * 4
            _randomise(old, generator)
            new = form.convert(copy.deepcopy(old), "reference")
            return _compare(old, new, form, device, generator)
    except Exception as error:
        return f"it cannot be compared with its replacement: {_told(error)}"


@contextmanager
def _isolated(device: torch.device) -> Iterator[None]:
    cuda = [device] if device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.random.fork_rng(cuda))
        for device_type in {device.type, "cpu"}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(torch.no_grad())
        yield


def _randomise(layer: nn.Module, generator: torch.Generator) -> None:
    """Draw parameters and buffers; those which sum the mask stay."""
    parameters = dict(layer.named_parameters())
    for name, tensor in (*parameters.items(), *layer.named_buffers()):
        if name.split(".")[0] in MASK_KERNELS or not tensor.is_floating_point():
            continue
        drawn = torch.empty(tensor.shape, dtype=torch.float64, device="cpu")
        if name in parameters:
            drawn.normal_(generator=generator)
        else:
            drawn.uniform_(0.5, 1.5, generator=generator)  # a running variance is positive
        tensor.copy_(drawn)


def _compare(
    old: nn.Module, new: nn.Module, form: Form, device: torch.device, generator: torch.Generator
) -> str | None:
    x, masks = _inputs(new, device, generator)
    # Without a mask only at first: NVIDIA's layer would remember the mask before.
    calls = [("without a mask", (x,)), *((name, (x, mask)) for name, mask in masks.items())]
    synchronises = any(isinstance(module, nn.SyncBatchNorm) for module in old.modules())
    called, refusal = False, ""
    for training in (False,) if synchronises else (False, True):
        old.train(training)
        new.train(training)
        for (name, args), options in itertools.product(calls[training:], form.calls):
            where = f"{name}, in {'training' if training else 'evaluation'} mode"
            try:
                expected = _call(old, args, options, device)
            except Exception as error:  # this kind of mask is not for this layer
                refusal = _told(error)
                continue
            called = called or len(args) == 2
            try:
                actual = _call(new, args, options, device)
            except Exception as error:
                return f"its replacement would fail {where}: {_told(error)}"
            reason = _results_differ(actual, expected)
            if reason:
                return f"its replacement would differ {where}: {reason}"
    return None if called else f"it cannot be compared with its replacement: {refusal}"


def _inputs(layer: Any, device: torch.device, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Features and masks by name: valid, with holes of which one is larger than a window, and one hole."""
    reach = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    height, width = (size + n * step for size, n, step in zip(reach, (2, 3), layer.stride, strict=True))
    shape = (3, layer.in_channels, height, width)
    masks = {}
    for name, planes in {"with a mask of all channels": shape[1], "with a mask of one plane": 1}.items():
        valid = torch.rand((3, planes, height, width), generator=generator, dtype=torch.float64, device="cpu")
        mask = (valid < 0.5).double()
        mask[1, :, : reach[0], : reach[1]] = 0
        mask[0], mask[2] = 1, 0
        masks[name] = mask.to(device)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return x.to(device), masks


def _call(layer: nn.Module, args: Any, options: dict[str, Any], device: torch.device) -> Any:
    """The same random numbers in both layers, for modules that draw some."""
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(0)
    return layer(*args, **options)


def _results_differ(actual: Any, expected: Any) -> str | None:
    if type(actual) is not type(expected):
        return f"it would return a {type(actual).__name__}, not a {type(expected).__name__}"
    if isinstance(actual, Tensor):
        actual, expected = (actual,), (expected,)
    if len(actual) != len(expected):
        return f"it would return {len(actual)} values, not {len(expected)}"
    for name, ours, theirs in zip(("output", "mask"), actual, expected, strict=False):
        if name == "mask" and theirs.shape[0] == 1:
            theirs = theirs.expand(ours.shape[0], -1, -1, -1)  # NVIDIA's layer makes one for all
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            return f"{name} {list(ours.shape)} {ours.dtype}, not {list(theirs.shape)} {theirs.dtype}"
        error, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
        if not error <= (_TOLERANCE * largest if name == "output" else 0):  # NaN differs
            return f"{name} by {error:.2g}, of at most {largest:.2g}"
    return None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

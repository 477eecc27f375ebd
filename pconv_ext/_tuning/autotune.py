"""Measuring a call where it is first made: ``set_autotune``, as ``torch.backends.cudnn.benchmark``."""

from __future__ import annotations

import logging
import statistics
import threading
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from .. import _machine, ops
from .._backends import banned, candidates, eager, first_use, measured, tables
from .._backends.measured import TRAINING
from ..ops.call import Call
from . import timing
from .problems import Arguments
from .tune import steps_of

MIN_ROUNDS, MAX_ROUNDS, SECONDS = 3, 10, 0.05

_log = logging.getLogger("pconv_ext.autotune")
_one_at_a_time = threading.Lock()
_given_up: set[tuple[Any, ...]] = set()


class set_autotune:
    """Measure the backends at the first call of each shape, from now on or in the body of a ``with``::

        pconv_ext.set_autotune(True)
        with pconv_ext.set_autotune(True):  # and then what it was before
            net(image, mask)

    With it, a call with ``backend="auto"`` that neither the user's table (`pconv-ext tune`) nor this process
    has measured is timed in every backend that can compute it, for a twentieth of a second and at least three
    times each, on the tensors of the call; the fastest computes it, and every later call of that operator,
    dtype, numbers of channels, taps and pixels, with or without gradients. As with
    ``torch.backends.cudnn.benchmark`` two processes may so choose differently, and round differently.

    Each measurement is told by the logger "pconv_ext.autotune", at level WARNING, which Python prints where
    nobody says otherwise. What is measured is kept for the process; `pconv-ext tune` writes it to a file, and
    also checks that the backends are right, which this does not. Where memory does not suffice to measure,
    that is told once and the choice is what it is without.

    Nothing is measured, but what was measured is followed, while torch.compile, torch.export or a transform
    of torch.func traces, in a dispatch mode, for classes of tensors, and while a CUDA graph is captured:
    so call every shape once before.

    Layers that keep packed weights (`prepack`) use them as before, and are not measured.

    It holds for the whole process, not for a thread. Threads that meet new shapes measure one after another.

    Args:
        enabled: whether to measure.

    Raises:
        TypeError: `enabled` is no bool.
    """

    def __init__(self, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise TypeError(f"set_autotune: enabled must be a bool, got {enabled!r}")
        self._before = first_use.measure
        self._measure = _measure if enabled else None
        first_use.measure = self._measure

    def __enter__(self) -> None:
        first_use.measure = self._measure

    def __exit__(self, *error: object) -> None:
        first_use.measure = self._before


def _measure(arguments: Arguments, call: Call) -> None:
    """Add the row of `call` to what is known, unless it is there or cannot be measured now."""
    device = call.like.device
    key, size, pixels = measured.key_of(call), measured.size_of(call), measured.pixels_of(call)
    place = tables.at(device.type, device.index)
    what = (*key, *size, pixels)
    if not place or not pixels or (place, what) in _given_up or _is_known(place, what):
        return
    if not eager.is_plain([one for one in tree_leaves(arguments) if isinstance(one, Tensor)]):
        return
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return
    with _one_at_a_time:
        if (place, what) in _given_up or _is_known(place, what):
            return
        able = [name for name, cause in candidates(call).items() if not cause and not banned(name, call)]
        if len(able) < 2:
            _given_up.add((place, what))
            return
        told = "{} {}, {}, channels {} -> {}, {} taps, {} pixels".format(*what)
        try:
            ms = _times(arguments, call, able, training=key[2] == TRAINING)
        except RuntimeError as error:  # out of memory among them
            _given_up.add((place, what))
            _log.warning("%s: not measured: %s", told, " ".join(str(error).split())[:200])
            return
        found = measured.row((_machine.capability(device), *what), ms)
        tables.add(place, found)
        _log.warning("%s: %s", told, ", ".join(f"{name} {ms[name]:.3f} ms" for name, _ in found.times))


def _is_known(place: str, what: tuple[Any, ...]) -> bool:
    return any(row.call[1:] == what for row in tables.KNOWN[place].rows)


def _times(arguments: Arguments, call: Call, backends: list[str], *, training: bool) -> dict[str, float]:
    """Median milliseconds by backend, on the tensors of the call, in what autocast makes of their dtype."""
    dtype, device = measured.dtype_of(call), call.like.device.type
    places = ops.OPERATORS[call.op].differentiable

    def cast(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype)

    with torch.inference_mode(False), torch.autocast(device, enabled=False):
        given = tuple(
            tree_map_only(Tensor, cast, argument) if place in places else argument
            for place, argument in enumerate(_as_given(arguments))
        )
        steps = steps_of(call.op, given, backends, training=training)
        samples = timing.interleaved(steps, device, MIN_ROUNDS, MAX_ROUNDS, SECONDS)
    return {name: statistics.median(taken) for name, taken in samples.items()}


def _as_given(arguments: Arguments) -> Arguments:
    """Checked arguments as those of a public function: None for no biases, a padding as it is written."""

    def given(argument: Any) -> Any:
        if argument == []:
            return None
        if isinstance(argument, list) and len(argument) == 4 and all(type(one) is int for one in argument):
            top, bottom, left, right = argument
            return (top, left) if (top, left) == (bottom, right) else "same"
        return argument

    return tuple(map(given, arguments))

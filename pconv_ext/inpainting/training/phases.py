"""Phases of a training: from some epoch on, other sizes, batches and weights of the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from .._arguments import about, integer, named
from ..losses import SMALLEST, merged_weights, needs_vgg16

Phases: TypeAlias = Sequence[Mapping[str, Any]]

_CYCLES = ("size", "batch_size")
_KEYS = ("epoch", *_CYCLES, "weights")


class Phase(NamedTuple):
    """What an epoch is trained with; `number` counts the phases, 0 for what is before the first.

    All of its epochs are validated at one size, to compare their losses.
    """

    number: int
    size: int
    val_size: int
    batch_size: int
    weights: dict[str, float]


def check(user: str, name: str, value: Any) -> None:
    """TypeError or ValueError unless `value` is a sequence of phases, in the order of their epochs."""
    subject = about(user, name)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Sequence):
        raise TypeError(f"{subject} must be a sequence of dicts, got {type(value).__name__}")
    last = 1
    for phase in value:
        if not isinstance(phase, Mapping) or "epoch" not in phase or not phase.keys() <= {*_KEYS}:
            raise ValueError(
                f"{subject} must be dicts with an epoch, from which on they hold, and some of "
                f"{', '.join(_KEYS[1:])}, got {phase!r}"
            )
        epoch = integer(user, name, phase["epoch"], 2)
        if epoch <= last:
            raise ValueError(f"{subject} must be in the order of their epochs, got {epoch} after {last}")
        last = epoch
        counts = [len(_cycle(user, name, phase[key])) for key in _CYCLES if key in phase]
        if len({*counts} - {1}) > 1:
            raise ValueError(f"{subject} must have as many of size as of batch_size, or one, got {phase!r}")
        merged_weights(user, phase.get("weights", {}))


def check_size(phase: Phase, phases: Phases, depth: int, processes: int) -> None:
    """ValueError where no step of one of the `phases` could be made, with a network of this depth."""
    size, where = phase.size, named("size")
    if phase.number:
        where = f"{named('phases')}, from epoch {phases[phase.number - 1]['epoch']} on,"
    if phase.batch_size == processes and size <= 2**depth:
        raise ValueError(
            f"batch normalisation needs more than one value: {where} has one picture of {size}x{size} at a "
            f"time, with {named('depth')} {depth} that is one"
        )
    if needs_vgg16(phase.weights) and size < SMALLEST:
        raise ValueError(
            f"the losses perceptual and style need at least {SMALLEST}x{SMALLEST} pixels, {where} has "
            f"{size}x{size}"
        )


def as_json(phases: Phases) -> list[dict[str, Any]]:
    """Checked phases in the one form that they are stored and compared in."""
    return [_as_json(phase) for phase in phases]


def _as_json(phase: Mapping[str, Any]) -> dict[str, Any]:
    cycles = {key: _cycle("train", "phases", phase[key]) for key in _CYCLES if key in phase}
    weights = {name: float(weight) for name, weight in phase.get("weights", {}).items()}
    return {"epoch": int(phase["epoch"]), **cycles, **({"weights": weights} if weights else {})}


def _cycle(user: str, name: str, value: Any) -> list[int]:
    values = list(value) if isinstance(value, Iterable) else [value]
    if not values:
        raise ValueError(f"{about(user, name)} must have a size and a batch_size, got none")
    return [integer(user, name, one, 1) for one in values]


def phase_of(epoch: int, size: int, batch_size: int, weights: Mapping[str, float], phases: Phases) -> Phase:
    """The phase of an epoch, the first being 0. What one phase does not say is as in the one before.

    What is before the first has `size`, `batch_size` and `weights`.
    """
    number, first, sizes, batches, weights = 0, 0, [size], [batch_size], dict(weights)
    for phase in phases:
        if epoch + 1 < phase["epoch"]:
            break
        number, first = number + 1, phase["epoch"] - 1
        sizes = _cycle("train", "phases", phase.get("size", sizes))
        batches = _cycle("train", "phases", phase.get("batch_size", batches))
        weights |= phase.get("weights", {})
    at = epoch - first
    merged = merged_weights("train", weights)
    return Phase(number, sizes[at % len(sizes)], sizes[0], batches[at % len(batches)], merged)

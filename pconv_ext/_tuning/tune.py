"""`pconv-ext tune`: every backend checked and timed on this machine, and the table that "auto" follows."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _machine
from .._backends import candidates, measured, tables
from .._backends.measured import FORWARD, TRAINING, Row
from .._backends.tables import Ban, Tuned
from ..inpainting._files import check_folder, write_atomically
from . import timing
from .accuracy import Check, Truth, check, leaves_of, limit_of, run, truth
from .problems import Arguments, Problem

#: Errors are the largest of many more numbers than on the small maps that the limits are for.
_SLACK = 2
MIN_ROUNDS, MAX_ROUNDS = 3, 40


class Finding(NamedTuple):
    """What came of a problem in a dtype."""

    problem: Problem
    dtype: torch.dtype
    checks: list[Check]
    rows: list[Row]  # one for each direction, none where no two backends were left
    failure: str = ""  # why it was not measured to the end

    @property
    def bans(self) -> list[Ban]:
        return [Ban(*one[:3], one.verdict) for one in self.checks if not one.passed]

    def __str__(self) -> str:
        lines = [f"{self.problem} {str(self.dtype).removeprefix('torch.')}"]
        lines += [f"  {one.backend}: {one.verdict}" for one in self.checks]
        for row in self.rows:
            times = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row.times)
            lines.append(f"  {row.direction}, over the fastest: {times}")
        return "\n".join([*lines, *([f"  {self.failure}"] if self.failure else [])])


def measure(
    problems: Iterable[Problem],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    backends: Sequence[str] | None = None,
    seconds: float = 0.4,
) -> Iterator[Finding]:
    """Check and time the backends that can compute each problem, one finding after another.

    Args:
        problems: what to measure; the first dtype goes through all of them before the next.
        device: of the tensors.
        dtypes: of features and parameters.
        backends: by default those that "auto" knows for this device. The reference is timed unchecked: it is
            what the others are checked against, in float64.
        seconds: how long each direction of each problem is timed, at least three rounds.

    Yields:
        A `Finding`. A backend that is wrong, or raises, is not timed, and of that operator and dtype not
        checked again.
    """
    problems, wrong = list(problems), set[tuple[str, ...]]()
    for dtype in dtypes:
        for problem in problems:
            finding = _finding(problem, device, dtype, backends, wrong, seconds)
            wrong |= {ban[:3] for ban in finding.bans}
            yield finding
            if finding.bans and device.type == "cuda":
                torch.cuda.synchronize(device)  # raises where the backend took the GPU's context with it


def _finding(
    problem: Problem,
    device: torch.device,
    dtype: torch.dtype,
    backends: Sequence[str] | None,
    wrong: set[tuple[str, ...]],
    seconds: float,
) -> Finding:
    checks: list[Check] = []
    rows: list[Row] = []
    try:
        true = truth(problem, device, dtype, device)
        call = Problem(problem.operator, true.arguments).call
        told = str(dtype).removeprefix("torch.")
        able = [
            name
            for name, cause in candidates(call, backends).items()
            if not cause and (name, problem.operator, told) not in wrong
        ]
        asked = [name for name in able if name != "reference"]
        checks += [check(name, true, _SLACK * limit_of(dtype, name)) for name in asked]
        right = [name for name in able if all(one.passed for one in checks if one.backend == name)]
        if len(right) > 1:
            rows += _rows(true, right, device, seconds)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        return Finding(problem, dtype, checks, rows, f"not measured: {' '.join(str(error).split())[:200]}")
    return Finding(problem, dtype, checks, rows)


def _rows(true: Truth, backends: Sequence[str], device: torch.device, seconds: float) -> list[Row]:
    call = Problem(true.operator, true.arguments).call
    size, pixels = measured.size_of(call), measured.pixels_of(call)
    found = []
    for direction in (FORWARD, TRAINING):
        steps = steps_of(true.operator, true.arguments, backends, training=direction == TRAINING)
        with timing.cudnn_search():
            samples = timing.interleaved(steps, device.type, MIN_ROUNDS, MAX_ROUNDS, seconds)
        key = _machine.capability(device), true.operator, measured.DTYPES[true.dtype], direction
        ms = {name: statistics.median(taken) for name, taken in samples.items()}
        found.append(measured.row((*key, *size, pixels), ms))
    return found


def steps_of(
    operator: str, arguments: Arguments, backends: Sequence[str], *, training: bool
) -> list[timing.Step]:
    """A step for each backend: forward without gradients, or forward and backward of all but the masks."""
    given, leaves = leaves_of(operator, arguments) if training else (arguments, [])
    slopes: list[Tensor] = []  # one serves all

    def step(backend: str) -> None:
        with torch.set_grad_enabled(training):
            out, _ = run(operator, *given, backend=backend)
            if training:
                if not slopes:
                    slopes.append(torch.ones_like(out))
                torch.autograd.grad(out, leaves, slopes[0])

    return [timing.Step(name, functools.partial(step, name)) for name in backends]


def merged(machine: dict[str, str], findings: Sequence[Finding]) -> Tuned:
    """What was found, and what the table of this machine had of other calls."""
    before, _ = tables.find(machine)
    rows = {row.call: row for row in before.rows} if before else {}
    bans = {ban[:3]: ban for ban in before.bans} if before else {}
    for finding in findings:
        rows |= {row.call: row for row in finding.rows}
        for one in finding.checks:
            bans.pop(one[:3], None)
    for finding in findings:
        bans |= {ban[:3]: ban for ban in finding.bans}
    return Tuned(machine, list(bans.values()), list(rows.values()))


def tune(
    problems: Sequence[Problem],
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    report: Callable[[str], object],
    *,
    backends: Sequence[str] | None = None,
    seconds: float = 0.4,
) -> list[Finding]:
    """Measure as `measure` does, report each finding, and write the table of this machine.

    What was found until an error or interruption is written too.

    Raises:
        OSError: the table cannot be written.
    """
    check_folder("tune", tables.VARIABLE, tables.folder())  # before minutes are spent
    machine, findings = _machine.identity(device), list[Finding]()
    try:
        for finding in measure(problems, device, dtypes, backends=backends, seconds=seconds):
            findings.append(finding)
            report(str(finding))
    finally:
        if findings:
            file = tables.path_of(machine)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, tables.dumps(merged(machine, findings)))
            tables.read_again(device)
            report(f"written to {file}")
    return findings


def export(machine: dict[str, str]) -> str:
    """The table of this machine as measured.json has one, for ``tools/write_measured.py``.

    Raises:
        ValueError: there is no table that can be used.
    """
    tuned, complaint = tables.find(machine)
    if tuned is None:
        raise ValueError(complaint or f"there is no table of {machine['device']}: run `pconv-ext tune` first")
    return measured.to_package([machine], tuned.rows)

"""The paper's ablation study (section 4.4): six trainings, measured on the same pictures and masks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ._arguments import choice
from .checkpoint import load_net, network_file
from .evaluation import Report, evaluate
from .tables import write_ablation, write_report
from .training import DivergedError, train_in
from .training.config import TrainConfig
from .training.pictures import datasets
from .training.processes import Processes, processes

__all__ = ["CONFIGURATIONS", "Configuration", "ablate"]


class Configuration(NamedTuple):
    """A row of the table: its name there, that of its folder, and the settings that make it."""

    title: str
    folder: str
    settings: dict[str, Any]


_NO_MSE = {"avail": 0.0, "missing": 0.0}
#: The rows of the paper's table 1.
CONFIGURATIONS = (
    Configuration("All loss + MSFEF", "all", {}),
    Configuration("No MSE + MSFEF", "no-mse", {"weights": _NO_MSE}),
    Configuration("No Perceptual + MSFEF", "no-perceptual", {"weights": {"perceptual": 0.0}}),
    Configuration("No Style + MSFEF", "no-style", {"weights": {"style": 0.0}}),
    Configuration(
        "No perceptual, no style + MSFEF", "mse-only", {"weights": {"perceptual": 0.0, "style": 0.0}}
    ),
    Configuration("All loss + No MSFEF", "no-msfef", {"msfef_stages": 0, "kernel_sizes": (3,)}),
)


def ablate(
    settings: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    lpips: nn.Module | str = "it was not asked for",
    only: Sequence[str] = (),
    limit: int | None = None,
    device: str | None = None,
    workers: int = 0,
    backend: str = "auto",
    announce: Callable[[str], None] = print,
) -> dict[str, Report] | None:
    """Train and measure the paper's six configurations, and write its table.

    Called again with the same arguments it goes on where it was, within an epoch too. Each network is the
    best of its training by the loss that it was trained with. A training that diverges is reported and left
    out.

    Args:
        settings: attributes of `pconv_ext.training.TrainConfig` by name, for all configurations.
        output: gets a folder for each training, with its metrics, and ``ablation.md``, ``.csv``, ``.json``
            and ``.png``, written again after each configuration.
        lpips: of `pconv_ext.evaluation.load_lpips`, or why there is none.
        only: folders of the configurations to train, such as ("all", "no-msfef"); by default all six.
        limit: measure on the first so many of the validation pictures; None for all.
        device, workers, backend: as for `pconv_ext.training.train`.
        announce: called with a line about each configuration.

    Returns:
        The reports by title; None after SIGINT, SIGTERM or SIGHUP, with checkpoints written.

    Raises:
        OSError, ValueError, ImportError: no such configuration; see also `pconv_ext.training.train` and
            `pconv_ext.evaluation.evaluate`.
        DivergedError: all trainings did.
    """
    for name in only:
        choice("ablate", "only", name, tuple(one.folder for one in CONFIGURATIONS))
    rows = [one for one in CONFIGURATIONS if not only or one.folder in only]
    reports: dict[str, Report] = {}
    with processes(device) as group:
        for number, one in enumerate(rows, 1):
            if group.first:
                announce(f"{number}/{len(rows)} {one.title}")
            chosen = _settings(one, settings)
            folder = Path(output, one.folder)
            try:
                if not train_in(group, chosen, folder, resume=True, workers=workers, backend=backend):
                    return None
            except DivergedError as error:
                warnings.warn(f"{one.title} is left out: {error}", stacklevel=2)
                continue
            if group.first:
                reports[one.title] = _measure(group, TrainConfig(**chosen), folder, lpips, limit, workers)
                write_ablation(reports, Path(output))
    if group.first and not reports:
        raise DivergedError("all trainings of the ablation study diverged, try a smaller lr")
    return reports


def _settings(one: Configuration, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those `given` with those of a configuration, whose losses stay off in every phase."""
    weights = one.settings.get("weights", {})
    chosen = {**given, **one.settings, "weights": {**given.get("weights", {}), **weights}}
    if "phases" in given:
        chosen["phases"] = [
            {**phase, "weights": {**phase.get("weights", {}), **weights}} for phase in given["phases"]
        ]
    return chosen


def _measure(
    group: Processes,
    config: TrainConfig,
    folder: Path,
    lpips: nn.Module | str,
    limit: int | None,
    workers: int,
) -> Report:
    """The report of the training in `folder`: that of an earlier call, where it was measured like this."""
    file = folder / "metrics.json"
    net = load_net(folder)
    pictures = datasets(replace(config, ranges=net.config["ranges"]))[1].pictures
    names = [pictures.collection.name(i) for i in range(len(pictures))]
    described = {
        "epochs": config.epochs,
        "network": hashlib.sha256(network_file(folder).read_bytes()).hexdigest(),
        "limit": limit,
        "with_lpips": isinstance(lpips, nn.Module),
        "names": hashlib.sha256(json.dumps(names).encode()).hexdigest(),
    }
    with contextlib.suppress(OSError, ValueError):  # there is none, or a damaged one
        report = Report.from_json(file.read_text(encoding="utf-8"))
        whole = all(one.psnr_holes_pooled is not None for one in report.bins if one.images)
        if whole and described.items() <= report.settings.items():
            return report
    report = evaluate(
        net,
        pictures,
        lpips=lpips,
        limit=limit,
        workers=workers,
        device=group.device,
        batch_size=config.batch_size,
    )
    report = replace(report, settings={**report.settings, **described})
    write_report(report, folder)
    return report

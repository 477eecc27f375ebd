"""Training of `pconv_ext.InpaintingNet`, on one processor or GPU or, under torchrun, on several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..._backends import check_available
from .._arguments import named
from ..checkpoint import CheckpointError
from .config import TrainConfig, resumed
from .pictures import with_ranges
from .processes import Processes, processes
from .run_folder import STATE, RunFolder
from .trainer import DivergedError, Trainer

__all__ = ["DivergedError", "TrainConfig", "train"]


def train(
    settings: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    device: str | None = None,
    workers: int = 0,
    backend: str = "auto",
) -> bool:
    """Train a network, or go on with its training.

    Under torchrun all processes take part: the batch is divided among them, gradients are averaged;
    statistics of batch normalisation are each process's own unless `TrainConfig.sync_batchnorm` is set (the
    saved ones are the first process's).

    Args:
        settings: attributes of `TrainConfig` by name, those that differ from its defaults; "data" is required
            to begin.
        output: folder of the training, see `RunFolder`.
        resume: go on where the training in `output` was, whatever ended it; begin if there is none. On the
            CPU, with the same number of threads, the result has the bits of an uninterrupted training.
        device: by default a GPU where there is one.
        workers: processes that load pictures, for each process that trains.
        backend: of the partial convolutions.

    Returns:
        Whether the last epoch was reached; False after SIGINT, SIGTERM or SIGHUP, with a checkpoint written.

    Raises:
        FileExistsError: `output` holds a training and `resume` is False, or another process trains into it.
        OSError, ValueError, ImportError: settings that make no training, also: others than those of the
            training to resume.
        DivergedError: the loss is not finite any more.
    """
    with processes(device) as group:
        return train_in(group, settings, output, resume=resume, workers=workers, backend=backend)


def train_in(
    group: Processes,
    settings: Mapping[str, Any],
    output: str | os.PathLike[str],
    *,
    resume: bool,
    workers: int,
    backend: str,
) -> bool:
    """`train` in processes that exist."""
    folder = RunFolder(output)
    try:
        return _train(group, folder, settings, resume=resume, workers=workers, backend=backend)
    finally:
        folder.release()


def _train(
    group: Processes,
    folder: RunFolder,
    settings: Mapping[str, Any],
    *,
    resume: bool,
    workers: int,
    backend: str,
) -> bool:
    def begin() -> tuple[TrainConfig, dict[str, Any] | None]:
        folder.check()
        folder.hold()
        check_available("train", backend, named("backend"))
        given = TrainConfig(**settings) if "data" in settings else None
        state = folder.load() if folder.begun else None
        # A state before the first step is of a start that failed.
        failed_start = state is not None and state["progress"]["epoch"] == state["progress"]["step"] == 0
        if not resume and folder.used and not failed_start:
            raise FileExistsError(
                f"{folder.root} holds a training already: go on with it ({named('resume')}), or take another "
                "folder"
            )
        if state is not None and resume:
            try:
                TrainConfig(**state["config"])
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{folder.root / STATE} is damaged, its settings: {error}") from error
            return resumed(state["config"], settings), state
        if given is None:
            nothing = f"there is no training in {folder.root} to resume; " if resume else ""
            raise ValueError(f"train: {nothing}data must be given, the folder of the pictures")
        return with_ranges(given), None

    # The first process reads: on several machines the others may not see the folder.
    config, state = group.first_alone(begin)
    trainer = Trainer(config, folder, group, state=state, workers=workers, backend=backend)
    group.first_alone(folder.create)
    return trainer.run()

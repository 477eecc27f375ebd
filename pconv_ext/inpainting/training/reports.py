"""What a training shows: a progress bar, a line an epoch, TensorBoard scalars and pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import figures
from .._extras import require
from .config import TrainConfig
from .pictures import Batches


class Report:
    """Shows one training, in the first process; a context manager.

    The terminal gets a bar with the mean losses of the epoch so far and pictures a second, and a line at the
    end of every epoch; TensorBoard the losses, learning rate and speed by step and epoch, and rows truth |
    masked | output of the same validation pictures. What a continued training repeats replaces what it
    showed before.
    """

    def __init__(self, config: TrainConfig, folder: Path, done: int, *, finished: bool, first: bool) -> None:
        """`done`: steps, over all epochs; `finished`: there are no more."""
        self.first = first
        if not first:
            return
        console = require("train", "rich.console").Console(stderr=True)
        rich = require("train", "rich.progress")
        self.config, self.finished = config, finished
        self.bar = rich.Progress(
            rich.TextColumn("epoch {task.fields[epoch]}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TimeRemainingColumn(),
            rich.TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.console = console
        self.task = self.bar.add_task("", epoch="", text="")
        writer = require("train", "torch.utils.tensorboard").SummaryWriter
        self.board = writer(folder / "tensorboard", purge_step=done + 1)

    def __enter__(self) -> Report:
        if self.first:
            if self.finished:
                self.console.print("all epochs are done; a larger --epochs, or --stop-after, goes on")
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.first:
            self.bar.stop()
            self.board.close()

    def begin(self, epoch: int, step: int, before: int, batches: Batches) -> None:
        """An epoch begins, or is continued after `step` of its batches; `before` it were so many."""
        if not self.first:
            return
        self.before, self.began_at = before, step
        self.batches = batches
        self.clock, self.counted = time.perf_counter(), step
        self.began = self.clock
        self.bar.reset(
            self.task, total=len(batches), completed=step, epoch=f"{epoch + 1}/{self.config.epochs}", text=""
        )

    def step(self, step: int, means: dict[str, float]) -> None:
        """`step` steps of the epoch are done, with these mean losses."""
        if not self.first:
            return
        now = time.perf_counter()
        rate = self._pictures(self.counted, step) / (now - self.clock)
        self.clock, self.counted = now, step
        self.bar.update(self.task, completed=step, text=f"{_losses(means)}  {rate:.1f} images/s")
        total = self.before + step
        for name, value in means.items():
            self.board.add_scalar(f"step/{name}", value, total)
        self.board.add_scalar("step/images_per_second", rate, total)

    def end(self, record: dict[str, Any], shown: list[Tensor]) -> None:
        """An epoch is done: its record, and validation pictures [n, 3, H, W], masks, composites."""
        if not self.first:
            return
        epoch, total = record["epoch"], self.before + len(self.batches)
        for part in ("train", "val"):
            for name, value in record[part].items():
                self.board.add_scalar(f"{part}/{name}", value, total)
        self.board.add_scalar("train/lr", record["lr"], total)
        if shown:  # none where this process could read none of its share
            rows = [figures.triptych(*row) for row in zip(*shown, strict=True)]
            self.board.add_image("val", figures.tile(rows), total)
        self.board.flush()
        pictures = self._pictures(self.began_at, self.counted)
        rate = pictures / (self.clock - self.began) if pictures else 0.0
        self.console.print(
            f"epoch {epoch}/{self.config.epochs}: train {_losses(record['train'])}; "
            f"val {_losses(record['val'])}; lr {record['lr']:g}; {rate:.1f} images/s",
            highlight=False,
            soft_wrap=True,
        )

    def _pictures(self, first: int, last: int) -> int:
        """In the steps of this epoch from one to another."""
        return self.batches.pictures(last) - self.batches.pictures(first)


def _losses(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in means.items())

"""The training loop: section 4.2 of the paper, resumable after any interruption with the same bits."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from .._arguments import about, named
from ..checkpoint import CheckpointError, load_net
from ..losses import InpaintingLoss, load_vgg16, needs_vgg16
from ..model import InpaintingNet, composite
from .config import TrainConfig
from .optimizing import Scheduler, running_mean, scheduler, stalled
from .phases import Phase, check_size
from .pictures import Batches, Validation, datasets, identities, loader, warn_of_common
from .processes import Processes
from .reports import Report
from .run_folder import STATE, RunFolder
from .signals import stop_flag

_REPORT_EVERY = 10  # steps between looks at the losses: each waits for the GPU
_DIVERGED = 1000  # times the loss of the first step


class DivergedError(ArithmeticError):
    """The loss or a weight is not finite any more, or the loss a thousand times what it was at first."""


class OtherPicturesError(ValueError):
    """A training is to be resumed with other pictures than it was begun with."""


@dataclass
class Progress:
    """Where a training is: all of it is in the checkpoint, with the states of network and optimiser.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch in progress.
        best: lowest validation loss so far, of this phase.
        first: total loss of the first step of this phase, None before it.
        sums: of the loss terms over the steps of this epoch, float64.
        history: one dict for each finished epoch.
    """

    epoch: int
    step: int
    best: float
    first: float | None
    sums: Tensor
    history: list[dict[str, Any]]


class Trainer:
    """One training in one process.

    Args:
        config: what is trained.
        folder: where checkpoints are written.
        group: the processes; the first one writes and prints.
        state: of `RunFolder.load`, to continue from.
        workers: processes that load pictures, 0 = none; without influence on the result.
        backend: of the network's partial convolutions.

    Raises:
        OSError, ValueError, ImportError: what the training needs is not there or does not fit together.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        group: Processes,
        *,
        state: Mapping[str, Any] | None = None,
        workers: int = 0,
        backend: str = "auto",
    ) -> None:
        self.config, self.folder, self.group = config, folder, group
        train, val = datasets(config)
        if group.first and state is None:
            warn_of_common(train, val)
        self.pictures = identities(config, train, val)
        self.batches = Batches(len(train), config.batch_size, config.seed, group.size, group.rank)
        self.loader = loader(train, self.batches, workers, group.device)
        self.train_set, self.val_set = train, val
        self.val_batches: list[list[int]] = []
        self.val_loader = loader(Validation(val), self.val_batches, workers, group.device)
        reached = state["progress"]["epoch"] if state is not None else 0
        # That of the epoch after the last is set up too.
        phases = [config.phase(epoch) for epoch in range(max(config.epochs, reached) + 1)]
        for phase in phases:
            self.batches.check(phase.batch_size)
            check_size(phase, config.phases, config.depth, group.size)
        self.vgg16 = load_vgg16(config.vgg16) if any(needs_vgg16(p.weights) for p in phases) else None
        torch.manual_seed(config.seed)
        self.net = InpaintingNet(**config.net, backend=backend).to(group.device)
        if config.start is not None and state is None:
            _begin_with(self.net, config.start)
        if group.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = running_mean(self.net, config.ema) if config.ema else None
        self.parallel = group.wrap(self.net, sync_batchnorm=config.sync_batchnorm)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = self._scheduler()
        self.phase = Phase(-1, 0, 0, 0, {})
        self._enter(reached)
        self.progress = Progress(0, 0, math.inf, None, self._zeros(), [])
        self.resumed = state is not None
        if state is not None:
            self._restore(state)

    @property
    def finished(self) -> bool:
        done = self.progress.epoch >= self.config.epochs
        return done or stalled(self.config, self.progress.history)

    def run(self) -> bool:
        """Train to the last epoch.

        Returns:
            Whether it got there; False where a signal ended it, with a checkpoint written.

        Raises:
            DivergedError: a loss or weight is not finite; the checkpoint is the last good one.
            OSError: a checkpoint cannot be written.
        """
        root, done = self.folder.root, self._steps_before(self.progress.epoch) + self.progress.step
        if not self.resumed:  # before there is a thread that writes too, and would tell of a full disk again
            self.save(best=False)
        with (
            stop_flag(loud=self.group.first) as stop,
            Report(self.config, root, done, finished=self.finished, first=self.group.first) as report,
        ):
            while not self.finished:
                if not self._epoch(stop, report):
                    return False
        return True

    def _epoch(self, stop: threading.Event, report: Report) -> bool:
        """The rest of the epoch in progress; False where it was interrupted."""
        progress = self.progress
        self._enter(progress.epoch)
        self.train_set.set_epoch(progress.epoch)
        self.batches.epoch, self.batches.start = progress.epoch, progress.step
        self.parallel.train()
        before = self._steps_before(progress.epoch)
        report.begin(progress.epoch, progress.step, before, self.batches)
        for image, mask in self.loader if progress.step < len(self.batches) else ():
            terms = self._step(image, mask)
            if progress.first is None:
                progress.first = self.group.sum(terms.clone())[-1].item() / self.group.size
            progress.sums += terms
            progress.step += 1
            if self.group.size == 1 and stop.is_set():
                self.save(best=False)
                return False
            if progress.step % _REPORT_EVERY == 0 or progress.step == len(self.batches):
                means, stopped = self._agree(stop)
                report.step(progress.step, means)
                if stopped:
                    self.save(best=False)
                    return False
            if progress.step % self.config.save_every == 0 and progress.step < len(self.batches):
                self.save(best=False)
        self._end_epoch(report)
        return True

    def _step(self, image: Tensor, mask: Tensor) -> Tensor:
        """One step of the optimiser; the unweighted loss terms and the total, float64 [terms]."""
        image, mask = self._move(image), self._move(mask)
        self.optimizer.zero_grad()
        with self._autocast():
            terms = self.loss(self.parallel(image, mask), image, mask)
        terms["total"].backward()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.config.clip)
        self.optimizer.step()
        if isinstance(self.scheduler, LambdaLR):
            self.scheduler.step()
        if self.mean is not None:
            self.mean.update_parameters(self.net)
        return self._stack(terms)

    def _agree(self, stop: threading.Event) -> tuple[dict[str, float], bool]:
        """Mean loss terms of this epoch over all processes, and whether any of them is to stop."""
        shared = torch.cat([self.progress.sums, self.progress.sums.new_tensor([float(stop.is_set())])])
        *sums, stopped = self.group.sum(shared).tolist()
        means = [value / self.progress.step / self.group.size for value in sums]
        if not all(map(math.isfinite, means)):
            raise DivergedError(self._diverged("the loss"))
        self._check_growth("the loss", means[-1])
        return dict(zip(self.terms, means, strict=True)), stopped > 0

    def _check_growth(self, what: str, total: float) -> None:
        first = self.progress.first
        if first is None:
            return
        # At least a hundredth of the weights, since terms are near 1: the first holes may be small, or none.
        if total > _DIVERGED * max(first, 0.01 * sum(self.phase.weights.values())):
            raise DivergedError(self._diverged(what, f"is {total:.3g}, at first it was {first:.3g},"))

    def _diverged(self, what: str, grown: str = "is not finite any more") -> str:
        at = f"epoch {self.progress.epoch + 1}, step {self.progress.step}"
        return (
            f"{what} {grown} at {at}: train anew with a smaller {named('lr')} than {self.config.lr} or, with "
            f"bfloat16, {named('precision')} float32; {self.folder.root} holds the last good checkpoint, a "
            f"{named('start')} for that"
        )

    def _end_epoch(self, report: Report) -> None:
        progress = self.progress
        train, _ = self._agree(threading.Event())
        val, shown = self._validate()
        lr = self.optimizer.param_groups[0]["lr"]
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(val["total"])
        best = val["total"] < progress.best
        progress.history.append({"epoch": progress.epoch + 1, "lr": lr, "train": train, "val": val})
        report.end(progress.history[-1], shown)
        lowest, first = min(progress.best, val["total"]), progress.first
        if self._enter(progress.epoch + 1):  # losses of another phase say nothing about those of this
            lowest, first = math.inf, None
        self.progress = Progress(progress.epoch + 1, 0, lowest, first, self._zeros(), progress.history)
        self.save(best=best)

    @torch.no_grad()
    def _validate(self) -> tuple[dict[str, float], list[Tensor]]:
        """Mean loss terms over all validation pictures, and a few (truth, mask, composite) to look at."""
        net = self.saved.eval()
        self.group.share_buffers(net)
        sums = torch.cat([self._zeros(), self._zeros()[:1]])
        shown: list[Tensor] = []
        for image, mask, readable in self.val_loader:
            if not readable.any():
                continue
            image, mask = self._move(image[readable]), self._move(mask[readable])
            with self._autocast():
                output = net(image, mask)
                terms = self._stack(self.loss(output, image, mask))
            sums += torch.cat([terms, terms.new_ones(1)]) * len(image)
            if not shown:
                shown = [tensor[:4] for tensor in (image, mask, composite(output.float(), image, mask))]
        *totals, count = self.group.sum(sums).tolist()
        means = {name: value / count for name, value in zip(self.terms, totals, strict=True)}
        if not math.isfinite(means["total"]):
            raise DivergedError(self._diverged("the validation loss"))
        self._check_growth("the validation loss", means["total"])
        return means, shown

    def save(self, *, best: bool) -> None:
        """Write a checkpoint, in the first process.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
        """
        norms = torch.stack(torch._foreach_norm([*self.net.parameters()]))
        if not torch.isfinite(norms).all():
            raise DivergedError(self._diverged("a weight"))
        sums = self.group.sum(self.progress.sums.clone())
        if not self.group.first:
            return
        progress = replace(self.progress, sums=sums.cpu())
        state = {
            "config": self.config.to_dict(),
            "pictures": self.pictures,
            "progress": vars(progress),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "mean": self.mean and self.mean.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": _cuda_random(self.group.device)},
        }
        summary = {
            "config": self.config.to_dict(),
            "epoch": progress.epoch,
            "step": progress.step,
            "history": progress.history[-1:],
        }
        self.folder.save({"net": self.net.state_dict(), **state}, self.saved, summary, best=best)

    @property
    def saved(self) -> InpaintingNet:
        """The network that is validated and saved: of the running mean, where there is one."""
        return self.net if self.mean is None else cast("InpaintingNet", self.mean.module)

    def _enter(self, epoch: int) -> bool:
        """Set up for an epoch; whether a phase begins with it."""
        before, self.phase = self.phase, self.config.phase(epoch)
        phase, val = self.phase, range(len(self.val_set))
        if phase.weights != before.weights:
            vgg16 = self.vgg16 if needs_vgg16(phase.weights) else None
            loss = InpaintingLoss(vgg16, phase.weights, per_hole=self.config.per_hole)
            self.loss = loss.to(self.group.device)
            if self.group.device.type == "cuda":
                self.loss.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.terms = [*self.loss.weights, "total"]
        self.batches.batch_size = phase.batch_size
        self.train_set.pictures.set_size(phase.size)
        self.val_set.pictures.set_size(phase.val_size)
        shares = [
            val[first : first + phase.batch_size][self.group.rank :: self.group.size]
            for first in range(0, len(val), phase.batch_size)
        ]
        self.val_batches[:] = [list(share) for share in shares if share]
        begins = phase.number != before.number
        if begins and isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler = self._scheduler()
        return begins

    def _scheduler(self) -> Scheduler:
        return scheduler(self.optimizer, self.config, self._steps_before(self.config.epochs))

    def _steps_before(self, epoch: int) -> int:
        """Steps of all epochs before one."""
        return sum(self.batches.count(self.config.phase(e).batch_size) for e in range(epoch))

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; an error where the pictures are others, or it is damaged."""
        try:
            train, val = (state["pictures"][part]["count"] for part in ("train", "val"))
            new_train, new_val = (self.pictures[part]["count"] for part in ("train", "val"))
            if (train, val) != (new_train, new_val):
                raise OtherPicturesError(
                    f"the training in {self.folder.root} was begun with {train} pictures to train and {val} "
                    f"to validate on, got {new_train} and {new_val}"
                )
            if state["pictures"] != self.pictures:
                given = (self.config.data, self.config.val, self.config.masks)
                folders = [folder for folder in given if folder is not None]
                raise OtherPicturesError(
                    f"the training in {self.folder.root} was begun with other pictures: as many, with other "
                    f"names or sizes than those in {' or '.join(folders)}"
                )
            self._take(state)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, OtherPicturesError):
                raise
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise CheckpointError(f"{self.folder.root / STATE} is damaged ({what})") from error

    def _take(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scheduler"].keys() != self.scheduler.state_dict().keys():  # which it would not notice
            raise ValueError("its scheduler is another")
        self.scheduler.load_state_dict(state["scheduler"])
        if self.mean is not None:
            self.mean.load_state_dict(state["mean"])
        self.progress = Progress(**state["progress"])
        # The sums are over all processes: the first continues them, the others begin at 0.
        sums = self.progress.sums.to(self.group.device)
        self.progress.sums = sums if self.group.first else torch.zeros_like(sums)
        torch.set_rng_state(state["random"]["cpu"])
        if self.group.device.type == "cuda" and state["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(state["random"]["cuda"], self.group.device)

    def _move(self, batch: Tensor) -> Tensor:
        device = self.group.device
        layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        return batch.to(device, non_blocking=True, memory_format=layout)

    def _autocast(self) -> torch.autocast:
        device = self.group.device.type
        wanted = self.config.precision
        enabled = wanted == "bfloat16" or (
            wanted == "auto" and device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def _stack(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([terms[name].detach().double() for name in self.terms])

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.terms), dtype=torch.float64, device=self.group.device)


def _begin_with(net: InpaintingNet, file: str) -> None:
    given = load_net(file)
    free = {name: net.config[name] for name in ("mirrored", "ranges", "size")}  # of which no layer depends
    if given.config | free != net.config:
        raise ValueError(
            f"{about('TrainConfig', 'start')} must be a network of {net.config}, {file} holds one of "
            f"{given.config}"
        )
    net.load_state_dict(given.state_dict())


def _cuda_random(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None

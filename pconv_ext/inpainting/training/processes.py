"""One process or, under torchrun, several: who they are, what they sum, how their networks are kept equal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._arguments import named
from .._device import find_device

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """The processes of a training: this one's rank among them, and its device."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def first_alone(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the first process, in all of them.

        Where it fails there, the first process raises its error and the others end without one.
        """
        if self.size == 1:
            return work()
        shared: list[Any] = [None, False]
        error: Exception | None = None
        if self.first:
            try:
                shared = [work(), True]
            except Exception as raised:
                error = raised
        dist.broadcast_object_list(shared, device=self.device)
        if error:
            raise error
        if not shared[1]:
            sys.exit(1)
        return cast("Result", shared[0])

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share_buffers(self, net: nn.Module) -> None:
        """Give every process the first one's buffers, among them running statistics."""
        if self.size > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, net: nn.Module, *, sync_batchnorm: bool) -> nn.Module:
        """The network that averages its gradients over all processes.

        Raises:
            ValueError: synchronised batch normalisation is asked for without GPUs.
        """
        if sync_batchnorm:
            if self.device.type != "cuda":
                raise ValueError(f"{named('sync_batchnorm')} needs GPUs, got the device {self.device}")
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        if self.size == 1:
            return net
        return DistributedDataParallel(net, device_ids=[self.device] if self.device.type == "cuda" else None)


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """The processes that torchrun started, or this one alone.

    Args:
        device: by default a GPU where there is one (under torchrun that of the local rank), else the CPU.

    Raises:
        ValueError: no such device.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if size > 1 and device in (None, "cuda") and torch.cuda.is_available():
        device = f"cuda:{local}"
    chosen = find_device("train", device)
    if size == 1:
        yield Processes(chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Long, because an ablation study is measured by the first process while the others wait.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()

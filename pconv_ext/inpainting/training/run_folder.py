"""The folder of a training: its networks, and the state from which it is continued bit for bit."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from .._files import check_folder, remove_partial, write_atomically
from .._weights import reason
from ..checkpoint import BEST, LAST, CheckpointError, save_net
from ..model import InpaintingNet
from .lock import Lock

STATE = "state.pt"
_FORMAT = 1
_END = b"sha256 of the state:"  # and the checksum follow what torch wrote
_NETWORKS = f"the networks beside it, {LAST} and {BEST}, are files of their own"
_PARTS = {"config", "mean", "net", "optimizer", "pictures", "progress", "random", "scheduler"}


class RunFolder:
    """A training's folder.

    ``last.safetensors`` and ``best.safetensors`` hold networks, ``state.pt`` all that continues the training,
    the network included: it is read alone, so that no moment between two files matters.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._lock: Lock | None = None

    @property
    def begun(self) -> bool:
        """Whether there is a state to continue from."""
        return (self.root / STATE).is_file()

    @property
    def used(self) -> bool:
        """Whether there is anything of a training."""
        return any((self.root / name).exists() for name in (STATE, LAST, BEST))

    def check(self) -> None:
        """Raise OSError or ValueError if the folder is not there and cannot be made, or cannot be written."""
        check_folder("train", "output", self.root)

    def create(self) -> None:
        """Make and hold the folder, and clear it of what a killed process left half-written."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.hold()
        for name in (STATE, LAST, BEST):
            remove_partial(self.root / name)

    def hold(self) -> None:
        """Keep other trainings out of the folder, until `release` or the end of the process.

        Raises:
            FolderInUseError: another training is in it.
        """
        if self._lock is None and self.root.is_dir():
            self._lock = Lock(self.root / ".lock")

    def release(self) -> None:
        """Let other trainings in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def save(self, state: dict[str, Any], net: InpaintingNet, summary: dict[str, Any], *, best: bool) -> None:
        """Write the networks, then the state, each atomically; `summary` goes into the networks' metadata."""
        save_net(net, self.root / LAST, summary)
        if best:
            save_net(net, self.root / BEST, summary)
        stream = io.BytesIO()
        torch.save({"pconv_ext": _FORMAT, **state}, stream)
        content = stream.getvalue()
        write_atomically(self.root / STATE, content + _END + hashlib.sha256(content).digest())

    def load(self) -> dict[str, Any]:
        """The state, on the CPU.

        Raises:
            CheckpointError: the file is damaged, foreign or from another version.
        """
        file = self.root / STATE
        content, end, checksum = file.read_bytes().rpartition(_END)
        if end and hashlib.sha256(content).digest() != checksum:
            raise CheckpointError(f"{file} is damaged, its checksum does not fit; {_NETWORKS}")
        try:
            state = torch.load(io.BytesIO(content or checksum), map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises nearly anything
            raise CheckpointError(
                f"{file} cannot be read, it is damaged or foreign ({reason(error)}); {_NETWORKS}"
            ) from error
        if not isinstance(state, dict) or "pconv_ext" not in state:
            raise CheckpointError(f"{file} is no training state of pconv_ext")
        if state["pconv_ext"] != _FORMAT:
            raise CheckpointError(f"{file} has format {state['pconv_ext']}, this version reads {_FORMAT}")
        missing = _PARTS - state.keys()
        if missing:
            raise CheckpointError(f"{file} is damaged, it lacks {', '.join(sorted(missing))}")
        if not end:  # of these files all have one
            raise CheckpointError(f"{file} is damaged, it lacks its checksum; {_NETWORKS}")
        progress, counted = state["progress"], ("epoch", "step")
        if not isinstance(state["config"], dict) or not isinstance(progress, dict):
            raise CheckpointError(f"{file} is damaged, its settings or progress are no dict")
        if not all(isinstance(progress.get(name), int) and progress[name] >= 0 for name in counted):
            raise CheckpointError(f"{file} is damaged, it does not say the epoch and step")
        return state

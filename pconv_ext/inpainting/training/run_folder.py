"""The folder of a training: its networks, and the state from which it is continued bit for bit."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from .._files import check_folder, write_atomically
from .._weights import reason
from ..checkpoint import BEST, LAST, CheckpointError, save_net
from ..model import InpaintingNet

STATE = "state.pt"
_FORMAT = 1
_PARTS = {"config", "mean", "net", "optimizer", "pictures", "progress", "random", "scheduler"}


class RunFolder:
    """A training's folder.

    ``last.safetensors`` and ``best.safetensors`` hold networks, ``state.pt`` all that continues the training,
    the network included: it is read alone, so that no moment between two files matters.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

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
        """Make the folder, and clear it of what a killed process left half-written."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name in (STATE, LAST, BEST):
            for leftover in self.root.glob(f".{name}.*"):
                leftover.unlink()

    def save(self, state: dict[str, Any], net: InpaintingNet, summary: dict[str, Any], *, best: bool) -> None:
        """Write the networks, then the state, each atomically; `summary` goes into the networks' metadata."""
        save_net(net, self.root / LAST, summary)
        if best:
            save_net(net, self.root / BEST, summary)
        stream = io.BytesIO()
        torch.save({"pconv_ext": _FORMAT, **state}, stream)
        write_atomically(self.root / STATE, stream.getvalue())

    def load(self) -> dict[str, Any]:
        """The state, on the CPU.

        Raises:
            CheckpointError: the file is damaged, foreign or from another version.
        """
        file = self.root / STATE
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file raises nearly anything
            raise CheckpointError(
                f"{file} cannot be read, it is damaged or foreign ({reason(error)})"
            ) from error
        if not isinstance(state, dict) or "pconv_ext" not in state:
            raise CheckpointError(f"{file} is no training state of pconv_ext")
        if state["pconv_ext"] != _FORMAT:
            raise CheckpointError(f"{file} has format {state['pconv_ext']}, this version reads {_FORMAT}")
        missing = _PARTS - state.keys()
        if missing:
            raise CheckpointError(f"{file} is damaged, it lacks {', '.join(sorted(missing))}")
        return state

"""Networks in files: a ``.safetensors`` of `InpaintingNet` with what it was built and trained with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._networks import MODEL, SHIPPED, SHIPPED_FOLDER, CheckpointError, load, read, write
from .model import InpaintingNet

__all__ = ["CheckpointError", "load_net", "load_training", "save_net"]

#: The networks in the folder of a training: of the lowest validation loss, and of its last step.
BEST, LAST = "best.safetensors", "last.safetensors"


def save_net(
    net: InpaintingNet,
    file: str | os.PathLike[str],
    training: Mapping[str, Any] | None = None,
    *,
    half: bool = False,
) -> None:
    """Write a network as safetensors, atomically.

    Args:
        net: parameters and buffers are saved as they are, `net.config` as metadata.
        file: its folder must exist.
        training: what else to keep, of what JSON can hold; `load_training` returns it.
        half: kernels in float16, half the size; all else, scales and statistics of norms among it, as it is.

    Raises:
        ValueError: a kernel has a value that float16 does not.
        OSError: the file cannot be written.
        ImportError: safetensors is missing.
    """
    write(net, Path(file), training or {}, half)


def load_net(file: str | os.PathLike[str], backend: str = "auto") -> InpaintingNet:
    """Return the network in a file, in evaluation mode on the CPU.

    Args:
        file: a ``.safetensors`` of `save_net`, or the folder of a training run, whose best network by
            validation loss it takes (before there is one, the last), or of `InpaintingNet.save_pretrained`;
            "pconv-photos", the network that comes with the package.
        backend: of its partial convolutions.

    Raises:
        FileNotFoundError: there is no such file, no network in the folder.
        CheckpointError: a foreign, truncated or damaged file.
        ImportError: safetensors is missing.
    """
    return load(InpaintingNet, network_file(Path(file)), backend)


def load_training(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `save_net` was told of the training; raises as `load_net` does."""
    metadata, _ = read(network_file(Path(file)), with_tensors=False)
    training: dict[str, Any] = metadata.get("training", {})
    return training


def network_file(path: Path) -> Path:
    """What `load_net` reads; raises FileNotFoundError as it does."""
    if path.is_dir():
        for name in (BEST, LAST, MODEL):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"the folder {path} holds no checkpoint ({BEST}, {LAST} or {MODEL})")
    if not path.exists() and str(path) == SHIPPED:
        return SHIPPED_FOLDER / MODEL
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    return path

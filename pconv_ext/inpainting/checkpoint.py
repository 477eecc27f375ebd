"""Networks in files: a ``.safetensors`` of `InpaintingNet` with what it was built and trained with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ._extras import require
from ._files import write_atomically
from ._weights import reason
from .model import InpaintingNet

__all__ = ["CheckpointError", "load_net", "load_training", "save_net"]

#: The networks in the folder of a training: of the lowest validation loss, and of its last step.
BEST, LAST = "best.safetensors", "last.safetensors"

_KEY = "pconv_ext"  # of the metadata, a JSON object: everything but tensors


class CheckpointError(ValueError):
    """A file that is no checkpoint of this package, or a damaged one; the text names it and says why."""


def save_net(
    net: InpaintingNet, file: str | os.PathLike[str], training: Mapping[str, Any] | None = None
) -> None:
    """Write a network as safetensors, atomically.

    Args:
        net: parameters and buffers are saved as they are, `net.config` as metadata.
        file: its folder must exist.
        training: what else to keep, of what JSON can hold; `load_training` returns it.

    Raises:
        OSError: the file cannot be written.
        ImportError: safetensors is missing.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    metadata = {"format": 1, "net": net.config, "training": dict(training or {})}
    save = require("checkpoint.save_net", "safetensors.torch").save
    write_atomically(file, save(tensors, {_KEY: json.dumps(metadata)}))


def load_net(file: str | os.PathLike[str], backend: str = "auto") -> InpaintingNet:
    """Return the network in a file, in evaluation mode on the CPU.

    Args:
        file: a ``.safetensors`` of `save_net`, or the folder of a training run, whose best network by
            validation loss it takes (before there is one, the last).
        backend: of its partial convolutions.

    Raises:
        FileNotFoundError: there is no such file, no network in the folder.
        CheckpointError: a foreign, truncated or damaged file.
        ImportError: safetensors is missing.
    """
    path = _find(Path(file))
    metadata, tensors = _read(path, with_tensors=True)
    try:
        net = InpaintingNet(**metadata["net"], backend=backend)
        net.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of pconv_ext: {' '.join(str(error).split())[:200]}"
        ) from error
    return net.eval()


def load_training(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `save_net` was told of the training; raises as `load_net` does."""
    metadata, _ = _read(_find(Path(file)), with_tensors=False)
    training: dict[str, Any] = metadata.get("training", {})
    return training


def _find(path: Path) -> Path:
    if path.is_dir():
        for name in (BEST, LAST):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"the folder {path} holds no checkpoint ({BEST} or {LAST})")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    return path


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    safe_open = require("checkpoint.load_net", "safetensors").safe_open
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            names = stream.keys() if with_tensors else ()
            tensors = {name: stream.get_tensor(name) for name in names}
    except Exception as error:  # a damaged file: SafetensorError, OSError, UnicodeDecodeError
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or no safetensors file ({reason(error)})"
        ) from error
    try:
        content = json.loads(metadata[_KEY])
        version = content["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of pconv_ext, it lacks its metadata") from error
    if version != 1:
        raise CheckpointError(
            f"{path} was written by a newer pconv_ext (format {version}), update the package"
        )
    return content, tensors

"""Networks in files: a ``.safetensors`` of `InpaintingNet` with what it was built and trained with."""

from __future__ import annotations

import hashlib
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
#: The network in a folder of `InpaintingNet.save_pretrained`.
MODEL = "model.safetensors"

_KEY = "pconv_ext"  # of the metadata, a JSON object: everything but tensors
_CHECKSUM = "sha256"


class CheckpointError(ValueError):
    """A file that is no checkpoint of this package, or a damaged one; the text names it and says why."""


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
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    if half:
        tensors |= {name: value.half() for name, value in tensors.items() if value.dim() == 4}
        infinite = [name for name, value in tensors.items() if not value.isfinite().all()]
        if infinite:
            raise ValueError(f"checkpoint.save_net: {infinite[0]} has values that float16 cannot hold")
    metadata = json.dumps({"format": 1, "net": net.config, "training": dict(training or {})})
    save = require("checkpoint.save_net", "safetensors.torch").save
    write_atomically(file, save(tensors, {_KEY: metadata, _CHECKSUM: _checksum(metadata, tensors)}))


def load_net(file: str | os.PathLike[str], backend: str = "auto") -> InpaintingNet:
    """Return the network in a file, in evaluation mode on the CPU.

    Args:
        file: a ``.safetensors`` of `save_net`, or the folder of a training run, whose best network by
            validation loss it takes (before there is one, the last), or of `InpaintingNet.save_pretrained`.
        backend: of its partial convolutions.

    Raises:
        FileNotFoundError: there is no such file, no network in the folder.
        CheckpointError: a foreign, truncated or damaged file.
        ImportError: safetensors is missing.
    """
    path = _find(Path(file))
    metadata, tensors = _read(path, with_tensors=True)
    try:
        net = _on_meta(metadata["net"], tensors, backend)
        net.load_state_dict(tensors, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of pconv_ext: {' '.join(str(error).split())[:200]}"
        ) from error
    return net.float().eval()


def _on_meta(config: Any, tensors: Mapping[str, torch.Tensor], backend: str) -> InpaintingNet:
    """The network of a configuration, without memory for what the tensors of the file then bring.

    Nothing is built that has more layers than the file has tensors: what a header says may be anything.
    """
    sizes = config.get("kernel_sizes", ())
    layers = [config.get("depth", 0), len(sizes), *(len(stage) for stage in sizes if isinstance(stage, list))]
    if max(layers) > len(tensors):
        raise ValueError(f"its network has {max(layers)} layers, its tensors are {len(tensors)}")
    with torch.device("meta"):
        net = InpaintingNet(**config, backend=backend)
    for name, expected in net.state_dict().items():
        found = tensors.get(name)
        if (
            found is None
            or found.shape != expected.shape
            or not (found.is_floating_point() or found.dtype == expected.dtype)
        ):
            got = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
            raise ValueError(f"its {name} must be {expected.dtype} {list(expected.shape)}, it {got}")
    return net


def _checksum(metadata: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all that a file holds but of the order of its tensors."""
    checksum = hashlib.sha256(metadata.encode())
    for name, value in sorted(tensors.items()):
        checksum.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        checksum.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def load_training(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what `save_net` was told of the training; raises as `load_net` does."""
    metadata, _ = _read(_find(Path(file)), with_tensors=False)
    training: dict[str, Any] = metadata.get("training", {})
    return training


def _find(path: Path) -> Path:
    if path.is_dir():
        for name in (BEST, LAST, MODEL):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"the folder {path} holds no checkpoint ({BEST}, {LAST} or {MODEL})")
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
        training = content.setdefault("training", {})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of pconv_ext, it lacks its metadata") from error
    if version != 1:
        raise CheckpointError(
            f"{path} was written by a newer pconv_ext (format {version}), update the package"
        )
    if not isinstance(training, dict):
        raise CheckpointError(f"{path} is damaged, what it tells of its training is no object")
    if with_tensors and _checksum(metadata[_KEY], tensors) != metadata.get(_CHECKSUM):
        raise CheckpointError(f"{path} is damaged, its checksum does not fit")
    return content, tensors

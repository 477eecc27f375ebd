"""The files of networks: safetensors, with a network's configuration, training and checksum as metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ._extras import require
from ._files import write_atomically
from ._weights import reason

Network = TypeVar("Network", bound=nn.Module)

#: The network in a folder or repository of the Hugging Face hub's layout.
MODEL = "model.safetensors"

#: The name of the network that comes with the package, and its folder.
SHIPPED = "pconv-photos"
SHIPPED_FOLDER = Path(__file__).parent / "networks" / SHIPPED

_KEY = "pconv_ext"  # of the metadata, a JSON object: everything but tensors
_CHECKSUM = "sha256"


class CheckpointError(ValueError):
    """A file that is no checkpoint of this package, or a damaged one; the text names it and says why."""


def write(net: Any, file: Path, training: Mapping[str, Any], half: bool) -> None:
    """See `pconv_ext.checkpoint.save_net`."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    if half:
        tensors |= {name: value.half() for name, value in tensors.items() if value.dim() == 4}
        infinite = [name for name, value in tensors.items() if not value.isfinite().all()]
        if infinite:
            raise ValueError(f"checkpoint.save_net: {infinite[0]} has values that float16 cannot hold")
    metadata = json.dumps({"format": 1, "net": net.config, "training": dict(training)})
    save = require("checkpoint.save_net", "safetensors.torch").save
    write_atomically(file, save(tensors, {_KEY: metadata, _CHECKSUM: checksum(metadata, tensors)}))


def load(network: type[Network], path: Path, backend: str) -> Network:
    """The network of this class in a file; see `pconv_ext.checkpoint.load_net`."""
    metadata, tensors = read(path, with_tensors=True)
    try:
        net = _on_meta(network, metadata["net"], tensors, backend)
        net.load_state_dict(tensors, assign=True)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of pconv_ext: {' '.join(str(error).split())[:200]}"
        ) from error
    return net.float().eval()


def _on_meta(
    network: type[Network], config: Any, tensors: Mapping[str, torch.Tensor], backend: str
) -> Network:
    """The network of a configuration, without memory for what the tensors of the file then bring.

    Nothing is built that has more layers than the file has tensors: what a header says may be anything.
    """
    sizes = config.get("kernel_sizes", ())
    branches = [len(stage) if isinstance(stage, list) else config.get("msfef_stages", 0) for stage in sizes]
    layers = config.get("depth", 0) + sum(branches)
    if layers > len(tensors):
        raise ValueError(f"its network has {layers} layers, its tensors are {len(tensors)}")
    with torch.device("meta"):
        net = network(**config, backend=backend)
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


def checksum(metadata: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Of all that a file holds but of the order of its tensors."""
    hashed = hashlib.sha256(metadata.encode())
    for name, value in sorted(tensors.items()):
        hashed.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        hashed.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What the metadata of a file tell, and its tensors.

    Raises:
        CheckpointError: a foreign, truncated or damaged file.
    """
    safe_open = require("checkpoint.load_net", "safetensors").safe_open
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            names = stream.keys() if with_tensors else ()
            # Copies: the tensors are of a mapped file, which others may change or cut.
            tensors = {name: stream.get_tensor(name).clone() for name in names}
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
    if with_tensors and checksum(metadata[_KEY], tensors) != metadata.get(_CHECKSUM):
        raise CheckpointError(f"{path} is damaged, its checksum does not fit")
    return content, tensors

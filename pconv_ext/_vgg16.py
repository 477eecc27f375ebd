"""VGG-16's features up to the third pooling layer, and their ImageNet weights.

torchvision and safetensors, of ``pip install 'pconv_ext[train]'``, are imported when weights are downloaded
or read, and not before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Indices of the first three pooling layers among VGG-16's features.
POOLS = (4, 9, 16)

#: Channels of the convolutions, as multiples of the first one's; 0 is a pooling layer.
_LAYOUT = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0)
_TWO_WAYS = (
    "Give a file of VGG-16 weights (--vgg16 FILE, .pth or .safetensors with keys features.N.* or N.*), or no "
    "file to have torchvision download them (VGG16_Weights.IMAGENET1K_V1, kept in torch hub's cache)"
)


def vgg16_features(width: int = 64) -> nn.Sequential:
    """Build VGG-16's features up to the third pooling layer, with random weights.

    The 17 layers and the ``state_dict`` keys (``N.weight``, ``N.bias`` with N = 0, 2, 5, 7, 10, 12, 14) are
    those of ``torchvision.models.vgg16().features[:17]``.

    Args:
        width: channels of the first convolution; 64 is VGG-16, other widths are small stand-ins for it.

    Returns:
        [N, 3, H, W] -> [N, 4 * width, H // 8, W // 8].
    """
    layers: list[nn.Module] = []
    channels = 3
    for multiple in _LAYOUT:
        if multiple:
            layers += [nn.Conv2d(channels, multiple * width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = multiple * width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def load_vgg16(file: str | os.PathLike[str] | None = None) -> nn.Sequential:
    """Return `vgg16_features` with the weights of ImageNet.

    Args:
        file: a ``.safetensors`` or a torch file (``.pth``; tensors only, no code is run) with keys
            ``features.N.*`` or ``N.*``. Convolutions up to N = 14 suffice, a classifier is left out. None
            takes torchvision's IMAGENET1K_V1, downloaded once to torch hub's cache.

    Returns:
        float32 layers on the CPU.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or that holds anything but VGG-16.
        OSError: the download failed.
        ImportError: torchvision or safetensors is needed and not installed, or does not fit torch.
    """
    source = "torchvision's download" if file is None else str(file)
    state = _download() if file is None else _read(Path(file))
    prefix = "features." if any(key.startswith("features.") for key in state) else ""
    layers = vgg16_features()
    found = {}
    for key, value in state.items():
        match = re.fullmatch(rf"{re.escape(prefix)}((\d+)\..+)", key)
        # All keys up to the last layer, so that those of VGG-19 and of batch norm variants show.
        if match and int(match[2]) < len(layers):
            found[match[1]] = value
    expected = layers.state_dict()
    missing, foreign = (sorted(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
    if missing or foreign:
        what = f"lacks {prefix}{missing[0]}" if missing else f"has {prefix}{foreign[0]}, which VGG-16 has not"
        raise ValueError(f"load_vgg16: {source} holds no VGG-16, it {what}. {_TWO_WAYS}")
    for key, like in expected.items():
        value, shape = found[key], list(like.shape)
        if not isinstance(value, Tensor) or not value.is_floating_point() or list(value.shape) != shape:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"load_vgg16: {source} holds no VGG-16, its {prefix}{key} must be floating {shape}, "
                f"got {got}. {_TWO_WAYS}"
            )
    layers.load_state_dict(found)
    return layers


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"load_vgg16: there is no file {file}. {_TWO_WAYS}")
    safe = file.suffix.lower() == ".safetensors"
    if safe:
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(
                f"load_vgg16: reading {file} needs safetensors: pip install 'pconv_ext[train]'. " + _TWO_WAYS
            ) from error
    try:
        state: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything: RuntimeError, EOFError, KeyError, ...
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"load_vgg16: {file} cannot be read ({type(error).__name__}: {reason}). {_TWO_WAYS}"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"load_vgg16: {file} holds no dict of tensors by name. {_TWO_WAYS}")
    return state


def _download() -> Mapping[str, Any]:
    try:
        from torchvision.models import VGG16_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise ImportError(
            f"load_vgg16: downloading the weights needs torchvision, which cannot be imported ({error}): "
            f"pip install 'pconv_ext[train]'. {_TWO_WAYS}"
        ) from error
    try:
        state: Mapping[str, Any] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # no network, a wrong hash, a damaged file in the cache
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"load_vgg16: torchvision's download failed ({type(error).__name__}: {reason}). {_TWO_WAYS}"
        ) from error
    return state

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

from torch import nn

from . import _weights

#: Indices of the first three pooling layers among VGG-16's features.
POOLS = (4, 9, 16)

#: Channels of the convolutions, as multiples of the first one's; 0 is a pooling layer.
_LAYOUT = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0)
_USER = "load_vgg16"
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
    state = _download() if file is None else _weights.read(_USER, Path(file), _TWO_WAYS)
    prefix = "features." if any(key.startswith("features.") for key in state) else ""
    layers = vgg16_features()
    found = {}
    for key, value in state.items():
        match = re.fullmatch(rf"{re.escape(prefix)}(\d+)\..+", key)
        # All keys up to the last layer, so that those of VGG-19 and of batch norm variants show.
        if match and int(match[1]) < len(layers):
            found[key] = value
    expected = {prefix + key: like for key, like in layers.state_dict().items()}
    _weights.check(_USER, source, "VGG-16", found, expected, _TWO_WAYS)
    layers.load_state_dict({key.removeprefix(prefix): value for key, value in found.items()})
    return layers


def _download() -> Mapping[str, Any]:
    try:
        from torchvision.models import VGG16_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise ImportError(
            f"{_USER}: downloading the weights needs torchvision, which cannot be imported ({error}): "
            f"pip install 'pconv_ext[train]'. {_TWO_WAYS}"
        ) from error
    try:
        state: Mapping[str, Any] = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # no network, a wrong hash, a damaged file in the cache
        raise OSError(
            f"{_USER}: torchvision's download failed ({_weights.reason(error)}). {_TWO_WAYS}"
        ) from error
    return state

"""LPIPS on AlexNet: torchmetrics' network, with weights from its download or from a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from . import _weights
from ._extras import require

#: Height and width that AlexNet needs: its second pooling layer has one value left.
LEAST_SIZE = 31

_USER = "load_lpips"
_TWO_WAYS = (
    "Give a file of LPIPS weights (--lpips FILE, .pth or .safetensors with keys features.N.* of AlexNet and "
    "lin0 to lin4), or no file to have torchmetrics download AlexNet (kept in torch hub's cache)"
)


class LPIPS(nn.Module):
    """The distance of images that `load_lpips` returns, in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.eval()

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """Compare images.

        Args:
            one, other: float32 [N, 3, H, W] in [-1, 1], H and W at least 31.

        Returns:
            [N], one distance for each pair.

        Raises:
            ValueError: other shapes.
        """
        if one.shape != other.shape or one.dim() != 4 or one.shape[1] != 3 or min(one.shape[2:]) < LEAST_SIZE:
            raise ValueError(
                f"LPIPS: both images must have one shape [N, 3, H, W] with H and W at least {LEAST_SIZE}, "
                f"got {list(one.shape)} and {list(other.shape)}"
            )
        return self.network(one, other).flatten()


def load_lpips(file: str | os.PathLike[str] | None = None) -> LPIPS:
    """Return LPIPS on AlexNet.

    Args:
        file: a ``.safetensors`` or a torch file (tensors only, no code is run) with the keys
            ``features.N.weight`` and ``features.N.bias``, N = 0, 3, 6, 8, 10, and ``lin0`` to ``lin4`` of
            shape [1, C, 1, 1]; others are left out. None takes torchvision's AlexNet, downloaded once to
            torch hub's cache, and the linear layers that torchmetrics has with it.

    Returns:
        Callable on two float32 [N, 3, H, W] in [-1, 1], H and W at least 31, for the N distances.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or that holds anything but these weights.
        OSError: the download failed.
        ImportError: torchmetrics, torchvision or safetensors is missing or does not fit torch.

    Source: Zhang et al., CVPR 2018, version 0.1.
    """
    state = None if file is None else _weights.read(_USER, Path(file), _TWO_WAYS)
    require(_USER, "torchvision.models")  # torchmetrics imports without it, and fails later
    # The public class always downloads AlexNet.
    network = require(_USER, "torchmetrics.functional.image.lpips")._LPIPS
    if state is None:
        try:
            return LPIPS(network(net="alex"))
        except Exception as error:  # no network, a wrong hash, a damaged file in the cache
            raise OSError(
                f"{_USER}: torchmetrics' download of AlexNet failed ({_weights.reason(error)}). {_TWO_WAYS}"
            ) from error
    with torch.random.fork_rng(devices=[]):  # it draws weights, which are then replaced
        layers: nn.Module = network(pretrained=False, net="alex", pnet_rand=True, use_dropout=False)
    found = {key: value for key, value in state.items() if re.fullmatch(r"features\.\d+\..+|lin\d+", key)}
    like = layers.state_dict()
    expected = {_key(name): value for name, value in like.items()}
    _weights.check(_USER, str(file), "LPIPS on AlexNet", found, expected, _TWO_WAYS)
    layers.load_state_dict({name: found[_key(name)] for name in like})
    return LPIPS(layers)


def _key(name: str) -> str:
    """What a file calls a parameter of torchmetrics' network, which has the linear layers under two names."""
    convolution = re.fullmatch(r"net\.slice\d\.(.+)", name)
    if convolution:
        return f"features.{convolution[1]}"
    return re.sub(r"lins?\.?(\d)\..+", r"lin\1", name)

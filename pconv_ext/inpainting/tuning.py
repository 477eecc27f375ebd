"""What `pconv-ext tune` measures: the layers of a network, or shapes that are named."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._tuning.problems import Problem, hole, of_network
from .model import InpaintingNet

#: By device, where nothing is said: large enough to keep it busy, and the dtypes that networks run in there.
BATCHES = {"cpu": (4, 1), "cuda": (32, 1)}
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.bfloat16, torch.float32)}


def network_problems(net: InpaintingNet, device: torch.device, batches: Sequence[int]) -> list[Problem]:
    """What the layers of a network compute of pictures of its size with a rectangular hole.

    Args:
        net: moved to `device`, in evaluation mode; its backend runs it once for each batch.
        device: where masks are, as the layers before have left them.
        batches: sizes of batches, in whose order the problems come.
    """
    net, size = net.to(device).eval(), net.config["size"]
    problems = []
    for batch in batches:
        image = torch.rand(batch, net.config["channels"], size, size, device=device)
        problems += of_network(net, image, hole(batch, size, size).to(device))
    return problems

"""Weights in files of either kind that the package reads, and their download."""

import torch
from safetensors.torch import save_file

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"
#: Channels out and in and the kernel's size of AlexNet's, by their number.
LPIPS_CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


def save(state, file):
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file


def offline(monkeypatch):
    def download(*args, **options):
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(DOWNLOAD, download)


def lpips_state():
    """Random weights of LPIPS, under the keys of a file."""
    generator = torch.Generator().manual_seed(8)
    state = {}
    for i, (n, (c_out, c_in, k)) in enumerate(LPIPS_CONVOLUTIONS.items()):
        scale = (2 / (c_in * k * k)) ** 0.5
        state[f"features.{n}.weight"] = torch.randn(c_out, c_in, k, k, generator=generator) * scale
        state[f"features.{n}.bias"] = torch.randn(c_out, generator=generator) * 0.1
        state[f"lin{i}"] = torch.rand(1, c_out, 1, 1, generator=generator)
    return state

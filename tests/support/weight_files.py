"""Weights in files of either kind that the package reads, and their download."""

import torch
from safetensors.torch import save_file

DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


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

"""Weights in files of either kind that the package reads."""

import torch
from safetensors.torch import save_file


def save(state, file):
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save(state, file)
    return file

"""Weights of published networks in files: read without running code, and checked against what is expected."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._extras import INSTALL


def read(user: str, file: Path, advice: str) -> Mapping[str, Any]:
    """Return what a ``.safetensors`` or a torch file (tensors only) holds by name.

    Args:
        user: begins every error.
        advice: ends every error, says where weights can be had.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read, or that holds anything but a dict.
        ImportError: safetensors is needed and not installed.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{user}: there is no file {file}. {advice}")
    safe = file.suffix.lower() == ".safetensors"
    if safe:
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise ImportError(f"{user}: reading {file} needs safetensors: {INSTALL}. {advice}") from error
    try:
        with warnings.catch_warnings():
            # What torch warns of, an archive of TorchScript, is refused below.
            warnings.simplefilter("ignore")
            state: Any = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything: RuntimeError, EOFError, KeyError, ...
        raise ValueError(f"{user}: {file} cannot be read ({reason(error)}). {advice}") from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{user}: {file} holds no dict of tensors by name. {advice}")
    return state


def check(
    user: str, source: str, what: str, found: Mapping[str, Any], expected: Mapping[str, Tensor], advice: str
) -> None:
    """ValueError unless `found` has the keys of `expected` and floating tensors of their shapes.

    `source` says where `found` is from and `what` which network it should be.
    """
    missing, foreign = (sorted(a.keys() - b.keys()) for a, b in ((expected, found), (found, expected)))
    if missing or foreign:
        wrong = f"lacks {missing[0]}" if missing else f"has {foreign[0]}, which {what} has not"
        raise ValueError(f"{user}: {source} holds no {what}, it {wrong}. {advice}")
    for key, like in expected.items():
        value, shape = found[key], list(like.shape)
        if not isinstance(value, Tensor) or not value.is_floating_point() or list(value.shape) != shape:
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{user}: {source} holds no {what}, its {key} must be floating {shape}, got {got}. {advice}"
            )


def reason(error: Exception) -> str:
    """Kind and first line of an error of another library, whose text may be long."""
    if isinstance(error, pickle.UnpicklingError):  # torch's own text is advice to run the code in the file
        return "it is no file of torch, or holds more than tensors"
    if "TorchScript" in str(error):  # the same advice
        return "it is a TorchScript archive, which holds code"
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"

"""What the tests of training share: tiny pictures, a tiny training, its command, comparing two of them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pconv_ext import checkpoint
from pconv_ext.inpainting.cli import run
from pconv_ext.inpainting.training.run_folder import RunFolder

#: A training that takes a moment; on pixels alone it needs no VGG-16.
SMALL = {"size": 16, "width": 2, "depth": 3, "msfef_stages": 1, "batch_size": 4, "epochs": 2, "lr": 0.01}
ON_PIXELS = {"perceptual": 0, "style": 0}
#: The same for the command.
OPTIONS = [
    *("--size=16", "--width=2", "--depth=3", "--msfef-stages=1", "--batch-size=4", "--epochs=2", "--lr=0.01"),
    *("--weights=perceptual=0", "--weights=style=0", "--workers=0", "--device=cpu"),
]


def make_pictures(root, count=13):
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).resize((24, 20), Image.Resampling.BILINEAR).save(root / f"{i:02}.png")
    return root


def command(*arguments, module="support.run_command", **options):
    """A process of the command, on one thread."""
    path = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", *module.split(), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def one_line(capsys, *arguments):
    """The one line on standard error of a command that fails."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run([*map(str, arguments)])
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def finish(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def history(folder):
    return RunFolder(folder).load()["progress"]["history"]


def assert_same_training(folder, expected):
    """Two trainings' states and networks are equal to the last bit, and nothing is half-written."""
    _assert_same(RunFolder(folder).load(), RunFolder(expected).load(), "state")
    for name in ("last.safetensors", "best.safetensors"):
        nets = [dict(checkpoint.load_net(root / name).state_dict()) for root in (folder, expected)]
        _assert_same(*nets, name)
    assert not [file for file in os.listdir(folder) if file.startswith(".")]


def _assert_same(actual, expected, path):
    assert type(actual) is type(expected), path
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            _assert_same(actual[key], expected[key], f"{path}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), path
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            _assert_same(a, b, f"{path}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), path
    else:
        assert actual == expected, path

"""`python -m pconv_ext doctor`: whether what is installed computes what it should."""

import math
import os
import subprocess
import sys

import pytest
import torch
from support.cases import every_backend

import pconv_ext
from pconv_ext import doctor, ops

CPU = {(name, dtype) for name in ops.OPERATORS for dtype in ("float64", "float32", "bfloat16", "float16")}


@pytest.fixture(autouse=True)
def the_cpu_alone(monkeypatch):
    """Triton's interpreter, which other tests run in, would take minutes."""
    monkeypatch.setattr(doctor, "backends", lambda: {"cpu": (True, "")})


@every_backend
def test_all_is_well(backend, monkeypatch):
    """With --as-gpu the CUDA kernels, in the emulator."""
    monkeypatch.setattr(doctor, "backends", lambda: {backend: (True, "")})
    found = list(doctor.checks())
    float64 = set() if backend in ("cpu", "dense") else {(name, "float64") for name in ops.OPERATORS}
    assert {(check.operator, check.dtype) for check in found} == CPU - float64
    assert all(check.passed for check in found)
    assert all(check.error > 0 for check in found)  # the same code on both sides would have none


def wrong_by(share, of):
    whole = getattr(pconv_ext.functional, of)

    def wrong(*args, backend="auto", **options):
        out, mask = whole(*args, backend=backend, **options)
        return (out if backend == "reference" else out * (1 + share)), mask

    return wrong


@pytest.mark.parametrize("share", [1e-3, math.nan])
def test_what_is_wrong_is_found(monkeypatch, share):
    monkeypatch.setattr(pconv_ext.functional, "msfef", wrong_by(share, "msfef"))
    text, passed = doctor.report()
    assert not passed
    assert "cpu msfef float32" in text.splitlines()[-1]
    assert "partial_conv2d" not in text.splitlines()[-1]


def test_what_fails_is_told(monkeypatch):
    def broken(*args, backend, **options):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(pconv_ext.functional, "upcat_partial_conv2d", broken)
    text, passed = doctor.report()
    assert not passed
    assert "cpu upcat_partial_conv2d float32" in text
    assert "RuntimeError: no kernel image is available" in text


def test_leaves_the_generator_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(doctor.checks())
    assert torch.equal(torch.rand(3), expected)


def test_command_needs_no_extra(tmp_path):
    """Of which typer is one."""
    (tmp_path / "typer.py").write_text("raise ImportError('no typer')")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['pconv_ext', 'doctor']; "
    code += "runpy.run_module('pconv_ext', run_name='__main__')"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("all ")
    assert "torch  " in done.stdout

"""What a newcomer meets first: make, the build, and one pytest call for tests and benchmarks."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("torch", ["", "torch==2.11.0"])
@pytest.mark.parametrize("version", ["2.14.1+cu130", "2.13.0+cpu", "2.11.0", "2.15.0.dev20261130+cpu"])
def test_the_installed_torch_is_kept_whatever_its_build(version, torch, tmp_path):
    """No index has the part of a version behind a "+"; pip compares the rest with what is installed."""
    bin_folder, site = tmp_path / "venv" / "bin", tmp_path / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    bin_folder.mkdir(parents=True)
    asked = tmp_path / "asked"
    for name, script in {"pip": f'echo "$@" >> {asked}', "python": f'exec {sys.executable} "$@"'}.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin_folder / name).chmod(0o755)
    target = tmp_path / "venv" / ".pconv_ext"
    given = ("TORCH", "PYTHON", "VENV", "ARGS", "MAKEFLAGS", "MAKELEVEL")  # to the make that runs this test
    kept = {name: value for name, value in os.environ.items() if name not in given}
    run = subprocess.run(
        ["make", f"VENV={target.parent}", *([f"TORCH={torch}"] if torch else []), str(target)],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    first, second = asked.read_text().splitlines()
    assert first == f"install {torch or 'torch>=2.11'}"
    assert second == f"install .[test,bench] torch=={version.partition('+')[0]}"


def test_modules_of_tests_and_benchmarks_have_different_names():
    """pytest imports them by name: `pytest tests benchmarks`."""
    files = [file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    outside = [file for file in files if not (file.parent / "__init__.py").exists()]  # of a package
    names = Counter(file.stem for file in outside if file.stem != "conftest")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_test_imports_another():
    """What they share is in tests/support/."""
    files = [*(ROOT / "tests").rglob("*.py")]
    assert len(files) > 50
    pattern = re.compile(r"^\s*(?:import|from) test_", re.MULTILINE)
    assert [file.name for file in files if pattern.search(file.read_text())] == []


@pytest.fixture
def needs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "buildtools"))
    return importlib.import_module("needs")


def test_what_a_build_lacks_is_said(needs, monkeypatch, tmp_path):
    assert needs.missing("/somewhere", "torch>=2.11") == ""
    assert needs.missing(None, "torch>=2.11").startswith("no torch>=2.11 in this environment")
    monkeypatch.setattr(needs.sysconfig, "get_path", lambda name: str(tmp_path))
    assert needs.missing("/somewhere", "torch>=2.11").startswith(
        f"no Python.h in {tmp_path}: install Python's"
    )
    monkeypatch.setenv("CXX", "ccache c++")
    monkeypatch.setattr(needs.shutil, "which", lambda name: None if name == "ccache" else f"/bin/{name}")
    assert needs.missing("/somewhere", "torch>=2.11").startswith("no C++ compiler 'ccache c++': install g++")


def test_no_assertion_on_a_compiler_is_in_the_default_run():
    files = ["tests/machine_code/test_triton_compiled.py", "tests/machine_code/test_cuda_compiled.py"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *files]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 5, run.stdout  # nothing is left to run
    assert "deselected" in run.stdout


@pytest.mark.deep
def test_one_call_collects_tests_and_benchmarks():
    pytest.importorskip("pytest_benchmark", reason="needs the extra: pip install '.[bench]'")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "tests",
        "benchmarks",
        "--benchmark-disable",
        "--collect-only",
        "-q",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:]
    assert "benchmarks/bench_operators.py::test_operator[msfef1" in run.stdout
    assert "tests/operators/test_msfef.py::test_masks[" in run.stdout

"""`benchmarks/gpu.sh tune`, here on the processor: it ends in time and leaves what was measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import wrong_backend

from gpu import tune
from pconv_ext import _machine
from pconv_ext._backends import measured, tables
from pconv_ext._tuning import timing
from pconv_ext._tuning.problems import of_shape

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PROBLEMS = ("partial_conv2d:1x5x9x11:6:3:2", "msfef:1x4x12x14:6:3,5:2")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Its exit code, what it printed and what it wrote."""
    monkeypatch.setenv("PCONV_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "KNOWN", {"": tables.Known()})
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE_MS", {"cpu": 0.01})
    monkeypatch.setattr(tune, "network_problems", lambda *_: [*map(of_shape, PROBLEMS)])
    monkeypatch.setattr(tune, "InpaintingNet", lambda backend: None)

    def run(deadline=60.0):
        results = tmp_path / "tune.json"
        with pytest.raises(SystemExit) as stop:
            tune.tune_on(CPU, results, deadline)
        return (
            stop.value.code,
            capsys.readouterr().out,
            measured.packaged(results) if results.exists() else None,
        )

    return run


def test_all_is_measured(run):
    code, text, (sources, rows) = run()
    assert code == 0
    assert all(problem in text for problem in PROBLEMS)
    assert sources == [_machine.identity(CPU)]
    assert len(rows) == len(tables.of(CPU).rows) == 4


def test_a_wrong_backend(run, monkeypatch):
    wrong_backend.plant(monkeypatch, "msfef", lambda out: out + 1)
    code, text, (_, rows) = run()
    assert code == 1
    assert "banned: cpu msfef float32 error" in text
    assert {row.operator for row in rows if "cpu" in dict(row.times)} == {"partial_conv2d"}


def test_a_run_that_is_stopped_leaves_what_was_measured(run, monkeypatch):
    calls, interleaved = [], timing.interleaved

    def until_time_is_up(*args):
        calls.append(args)
        if len(calls) > 2:  # both directions of the first problem
            raise tune.TimeIsUp
        return interleaved(*args)

    monkeypatch.setattr(timing, "interleaved", until_time_is_up)
    code, text, (_, rows) = run()
    assert code == 0
    assert "stopped after 60 s, before all was measured" in text
    assert {row.operator for row in rows} == {"partial_conv2d"}
    assert len(rows) == 2


def test_a_run_that_measured_nothing(run):
    code, _, written = run(deadline=0.001)
    assert code == "nothing was measured"
    assert written is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would take its ten minutes")
def test_the_stage_needs_a_gpu():
    done = subprocess.run(
        ["benchmarks/gpu.sh", "tune"], cwd=ROOT, env=os.environ | {"PYTHON": sys.executable}
    )
    assert done.returncode == 2

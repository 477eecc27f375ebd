"""The goals of the CPU: which number is whose, and what a run is told."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from names import FORWARD, NAIVE_C, PLAIN, TRAINING
from operators import LAYERS
from report.goals import CPU, CPU_AVX2, DIRECTIONS, GPU, against
from report.verdicts import AVX2, verdicts

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "c1d3f9b35094e690086298f14d0d19e295c0e74c"
OVER_PLAIN = "time over a plain 7x7 convolution"


def timed(milliseconds, **case):
    """A record of one round."""
    forms = {form: {"samples_ms": [ms], "peak_mb": None} for form, ms in milliseconds.items()}
    return {"ours": ["cpu"], "forms": forms, "missing": {}, "sweep": "", **case}


def compared(layer, direction, old, new):
    return {"layer": layer, "direction": direction, "ours": ["cpu"], "old": old, "new": new}


def reached(goals, record, what):
    """Whether the record reaches its goal of that name, one it has."""
    (verdict,) = (verdict for verdict in verdicts(goals, record) if verdict.what == what)
    return verdict.reached


@pytest.mark.parametrize(
    ("layer", "direction", "bar"),
    [
        *(("msfef1", FORWARD, 1.1), ("msfef2", FORWARD, 0.5)),
        *(("msfef3", FORWARD, 0.6), ("msfef4", FORWARD, 0.8)),
        *(("msfef1", TRAINING, 1.25), ("msfef2", TRAINING, 0.5)),
        *(("msfef3", TRAINING, 0.65), ("msfef4", TRAINING, 0.85)),
    ],
)
def test_each_layer_has_its_bar(layer, direction, bar):
    for ours_ms, expected in ((10 * bar - 0.1, True), (10 * bar + 0.1, False)):
        record = timed({"cpu": ours_ms, PLAIN: 10.0}, layer=layer, direction=direction)
        assert reached(CPU, record, OVER_PLAIN) is expected


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_with_avx2_layers_2_to_4_share_one(direction):
    for layer in ("msfef2", "msfef3", "msfef4"):
        for ours_ms, expected in ((7.4, True), (7.6, False)):
            record = timed({"cpu": ours_ms, PLAIN: 10.0}, layer=layer, direction=direction)
            assert reached(CPU_AVX2, record, OVER_PLAIN) is expected
    assert not [*verdicts(CPU_AVX2, timed({"cpu": 1.0, PLAIN: 10.0}, layer="msfef1", direction=direction))]


def test_a_training_step_of_the_papers_network():
    what = "faster than naive, C-channel mask"
    assert reached(CPU, timed({"cpu": 10.0, NAIVE_C: 51.0}, width=64), what)
    assert not reached(CPU, timed({"cpu": 10.0, NAIVE_C: 49.0}, width=64), what)
    assert not reached(CPU, timed({"cpu": 10.0}, width=64), what), "a form that is missing reaches nothing"
    assert not [*verdicts(CPU, timed({"cpu": 10.0, NAIVE_C: 49.0}, width=16))], "a quick look has no goals"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("layer", "commit", "limit"),
    [
        *(("upcat12", BEFORE, 0.7), ("upcat15", BEFORE, 0.7)),
        *(("upcat11", BEFORE, 1.03), ("upcat16", BEFORE, 1.03), ("msfef2", BEFORE, 1.03)),
        ("upcat12", "0" * 40, 1.03),
    ],
)
def test_limits_against_a_commit(layer, commit, limit, direction):
    for new, expected in ((limit - 0.01, True), (limit + 0.01, False)):
        record = compared(layer, direction, [2.0, 0.5, 1.0], [2.0 * new, 0.6, new])
        (verdict,) = verdicts(against(commit), record)
        assert verdict.value == pytest.approx(new), "the median of the rounds"
        assert verdict.reached is expected


@pytest.mark.parametrize("commit", [BEFORE, "0" * 40])
def test_against_a_commit_every_layer_has_one_limit(commit):
    limited = [(name, way) for goal in against(commit) for name in goal.layers for way in goal.bars]
    assert Counter(limited) == Counter((name, direction) for name in LAYERS for direction in DIRECTIONS)


@pytest.mark.parametrize("goal", [*CPU, *CPU_AVX2, *GPU, *against(BEFORE)], ids=lambda goal: goal.what)
def test_numbers_are_as_many_as_layers_and_aims_are_further(goal):
    for bars in goal.bars.values():
        assert len(bars) in (1, len(goal.layers))
    for direction, aims in goal.aims.items():
        assert len(aims) in (1, len(goal.layers))
        for layer in goal.layers:
            assert goal.reached(direction, layer, goal.of(goal.aims, direction, layer))


def goals(tmp_path, capability, *options):
    """The process of `benchmarks goals` over a run with a layer and a training step."""
    layer = timed({"cpu": 7.0, PLAIN: 10.0}, layer="msfef4", direction=TRAINING, mask="quarter")
    step = timed({"cpu": 1.0, NAIVE_C: 6.0}, width=64, resolution=256, batch=4, dtype="float32")
    for form in step["forms"].values():
        form["peak_mb"] = 1.0
    stored = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx512.json").read_text())
    machine = stored["machine"] | {"cpu_capability": capability}
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"machine": machine, "records": [layer], "networks": [step]}))
    command = [sys.executable, ROOT / "benchmarks", "goals", run, *options]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_is_told_about_its_layers_and_its_network(tmp_path):
    """The layer has four goals here, but no naive forms to be faster than, and no peaks."""
    run = goals(tmp_path, "AVX512")
    told = [line for line in run.stdout.splitlines() if "=" in line]
    assert [("ok" in line.split(), line.split()[0]) for line in told] == [
        (False, "msfef4"),
        (False, "msfef4"),
        (True, "msfef4"),
        (False, "msfef4"),
        (True, "network64"),
    ], run.stdout + run.stderr
    assert run.stdout.endswith("2 of 5 goals reached\n")
    assert run.returncode == 1


def test_a_run_with_avx2_is_told_about_that(tmp_path):
    run = goals(tmp_path, "AVX2", "--avx2")
    assert run.stdout.endswith("1 of 1 goals reached\n"), run.stderr
    assert run.returncode == 0
    run = goals(tmp_path, "AVX512", "--avx2")
    assert run.returncode == 2
    assert "--avx2 is about AVX2, this is AVX512" in run.stderr


with_avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="this processor has no AVX2"
)


@with_avx2
def test_avx2_is_what_is_then_measured_with():
    """Of no layer, here."""
    kept = {k: v for k, v in os.environ.items() if k not in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
    command = [sys.executable, ROOT / "benchmarks", "goals", "--avx2", "--only", "of-no-layer"]
    run = subprocess.run(command, capture_output=True, text=True, env=kept)
    assert ", 2 threads, AVX2;" in run.stdout.splitlines()[0], run.stderr
    assert run.returncode == 0


CONVOLUTION = """
import torch
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    torch.conv2d(torch.randn(1, 16, 16, 16), torch.randn(16, 16, 7, 7))
"""


@with_avx2
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_avx2_is_what_the_plain_convolution_then_has():
    command = [sys.executable, "-c", CONVOLUTION]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **AVX2})
    assert "isa:Intel AVX2\n" in run.stdout, run.stdout + run.stderr

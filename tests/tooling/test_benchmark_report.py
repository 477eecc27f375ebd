"""Figures of the documentation come from commits that one can check out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import DOCUMENTS

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- benchmarks -->\nold\n<!-- benchmarks -->\n"


def reported(tmp_path, commit, *options):
    """The process of `benchmarks report` over the stored results, as if of `commit`."""
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx512.json").read_text())
    content["machine"]["commit"] = commit
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content | {"networks": []}))
    command = [sys.executable, ROOT / "benchmarks", "report", results, *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def readme(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(MARKS)
    return file


@pytest.mark.parametrize("commit", ["e219717b8ec8-dirty", "unknown"])
def test_a_run_at_uncommitted_changes_does_not_reach_the_readme(tmp_path, readme, commit):
    run = reported(tmp_path, commit, "--readme", readme)
    assert run.returncode == 2
    assert f"not fit for the README: measured at commit {commit}" in run.stderr
    assert readme.read_text() == MARKS


def test_a_clean_run_does(tmp_path, readme):
    run = reported(tmp_path, "e219717b8ec8", "--readme", readme)
    assert run.returncode == 0, run.stderr
    assert "commit e219717b8ec8;" in readme.read_text()
    assert "old" not in readme.read_text()


def test_nor_do_its_plots(tmp_path):
    run = reported(tmp_path, "e219717b8ec8-dirty", "--plots", tmp_path / "plots")
    assert run.returncode == 2
    assert not (tmp_path / "plots").exists()


def test_no_such_figures_stand_in_the_documentation():
    for file in DOCUMENTS:
        text = (ROOT / file).read_text()
        assert "-dirty" not in text, file
        assert not re.search("@[A-Z]+@", text), f"{file} has a blank"
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        if not file.name.startswith("latest"):  # of a run here, which git ignores
            assert not re.search(r'"commit": "\w+-dirty"', file.read_text()), file


@pytest.mark.parametrize(("ours_ms", "code", "verdict"), [(1.0, 0, "ok"), (2.0, 1, "MISSED")])
def test_goals_of_a_stored_run(tmp_path, ours_ms, code, verdict):
    """A plain partial convolution is to be faster than the naive 1-channel form, which takes 1.5 ms here."""
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx512.json").read_text())
    record = next(r for r in content["records"] if r["layer"] == "pconv5")
    record["forms"]["cpu"]["samples_ms"] = [ours_ms] * 3
    record["forms"]["naive, 1-channel mask"]["samples_ms"] = [1.5] * 3
    run = tmp_path / "run.json"
    run.write_text(json.dumps(content | {"records": [record], "networks": []}))
    command = [sys.executable, ROOT / "benchmarks", "goals", run]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == code, process.stderr
    assert [line.split()[-1] for line in process.stdout.splitlines() if ">=" in line] == [verdict]
    assert f"{1 - code} of 1 goals reached" in process.stdout

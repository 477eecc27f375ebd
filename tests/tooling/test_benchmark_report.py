"""Figures of the documentation come from commits that one can check out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- benchmarks -->\nold\n<!-- benchmarks -->\n"


def reported(tmp_path, commit, *options):
    """The process of report.py over the stored results, as if of `commit`."""
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx512.json").read_text())
    content["machine"]["commit"] = commit
    results = tmp_path / "results.json"
    results.write_text(json.dumps(content | {"networks": []}))
    command = [sys.executable, ROOT / "benchmarks" / "report.py", results, *options]
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
    for file in ("README.md", "CONTRIBUTING.md", "benchmarks/NOTES.md"):
        text = (ROOT / file).read_text()
        assert "-dirty" not in text, file
        assert not re.search("@[A-Z]+@", text), f"{file} has a blank"
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        if not file.name.startswith("latest"):  # of a run here, which git ignores
            assert not re.search(r'"commit": "\w+-dirty"', file.read_text()), file

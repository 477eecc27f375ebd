"""Figures of the documentation come from commits that one can check out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARKS = "<!-- benchmarks -->\nold\n<!-- benchmarks -->\n"


def reported(tmp_path, commit):
    """The README after `report.py --readme` with the stored results, and the process."""
    content = json.loads((ROOT / "benchmarks" / "results" / "cpu-avx512.json").read_text())
    content["machine"]["commit"] = commit
    results, readme = tmp_path / "results.json", tmp_path / "README.md"
    results.write_text(json.dumps(content | {"networks": []}))
    readme.write_text(MARKS)
    command = [sys.executable, ROOT / "benchmarks" / "report.py", results, "--readme", readme]
    return readme.read_text, subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("commit", ["e219717b8ec8-dirty", "unknown"])
def test_a_run_at_uncommitted_changes_does_not_reach_the_readme(tmp_path, commit):
    readme, run = reported(tmp_path, commit)
    assert run.returncode == 2
    assert f"not fit for the README: measured at commit {commit}" in run.stderr
    assert readme() == MARKS


def test_a_clean_run_does(tmp_path):
    readme, run = reported(tmp_path, "e219717b8ec8")
    assert run.returncode == 0, run.stderr
    assert "commit e219717b8ec8;" in readme()
    assert "old" not in readme()


def test_no_such_figures_stand_in_the_documentation():
    for file in ("README.md", "CONTRIBUTING.md", "benchmarks/NOTES.md"):
        assert "-dirty" not in (ROOT / file).read_text(), file

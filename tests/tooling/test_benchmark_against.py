"""`benchmarks against`: turns, ratios, the earlier commit's build, the process that measures a version."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from measure import earlier, sample
from names import FORWARD, PLAIN, TRAINING
from operators import LAYERS
from operators.declaration import Problem
from report.against import HEAD, add_options, compare, layers_of, line, main, sample_in_process, turns
from report.goals import against
from report.verdicts import verdicts

ROOT = Path(__file__).resolve().parents[2]

#: A package with nothing but what every version has; `factor` 1 is right.
OTHER_VERSION = """
import torch
import torch.nn.functional as F

def backends():
    return {"cpu": (True, "")}

def partial_conv2d(x, mask, weight, bias, stride, padding, dilation, groups, *, backend):
    assert (backend, dilation, groups) == ("cpu", 1, 1)
    count = F.conv2d(mask * torch.ones_like(x), torch.ones_like(weight[:1]), None, stride, padding)
    valid = count > 0
    ratio = torch.where(valid, FACTOR * weight[0].numel() / count.clamp(min=1), 0)
    raw = F.conv2d(torch.where(mask != 0, x, 0), weight, None, stride, padding)
    return torch.where(valid, raw * ratio + bias.view(-1, 1, 1), 0), valid.to(mask.dtype)
"""


@pytest.mark.parametrize(
    ("only", "layers"),
    [
        ([], [*LAYERS]),
        (["upcat12"], ["upcat12"]),
        (["upcat15", "msfef1"], ["msfef1", "upcat15"]),
        (["msfef", "msfef2"], ["msfef1", "msfef2", "msfef3", "msfef4"]),
    ],
)
def test_the_layers_that_are_asked_for(only, layers):
    assert layers_of(only) == layers


def test_a_name_of_no_layer():
    with pytest.raises(ValueError, match="no layer has decoder, 99 in its name: msfef1, "):
        layers_of(["decoder", "msfef", "99"])


def test_versions_take_turns():
    """Each is as often first as second."""
    assert turns(4) == [("old", "new"), ("new", "old"), ("old", "new"), ("new", "old")]


def test_rounds_pair_what_ran_next_to_each_other():
    """A machine that slows with every process, for both forms or for one alone."""
    ran = []

    def one(version):
        ran.append(version)
        ours_ms = {"old": 8.0, "new": 6.0}[version] * len(ran)
        forms = {"cpu": {"samples_ms": [ours_ms] * 3}, PLAIN: {"samples_ms": [10.0, 10.0, 20.0]}}
        case = {"layer": "upcat12", "ours": ["cpu"], "forms": forms}
        return [case | {"direction": direction} for direction in (FORWARD, TRAINING)]

    records = compare(one, rounds=3)
    assert ran == ["old", "new", "new", "old", "old", "new"]
    assert [record["direction"] for record in records] == [FORWARD, TRAINING]
    for record in records:
        assert record["old"] == pytest.approx([0.8 * place for place in (1, 4, 5)])
        assert record["new"] == pytest.approx([0.6 * place for place in (2, 3, 6)])
        (verdict,) = verdicts(against("0" * 40), record)
        assert verdict.value == pytest.approx(0.75 * 6 / 5), "median of 2/1, 3/4 and 6/5"
        assert [len(record["processes"][version]) for version in ("old", "new")] == [3, 3]


@pytest.mark.parametrize(("new", "word"), [(0.60, "ok"), (0.63, "MISSED")])
def test_a_line_of_the_table(new, word):
    record = {"layer": "upcat12", "direction": FORWARD, "ours": ["cpu"], "old": [0.8, 0.8], "new": [new, 0.5]}
    (verdict,) = verdicts(against("c1d3f9b" + "0" * 33), record)
    ratio, spread = (new + 0.5) / 1.6, (new - 0.5) / (new + 0.5)
    words = ["upcat12", "forward", "0.800", f"{(new + 0.5) / 2:.3f}", f"{ratio:.3f}", f"{spread:.1%}"]
    assert line(record, verdict).split() == [*words, "<=", "0.70", word, "aim", "0.55"]
    assert line(record, verdict).index(f"{spread:.1%}") + len(f"{spread:.1%}") == len(HEAD)


@pytest.fixture
def problem(tmp_path):
    """The file of a small one, with a hole and windows that have nothing else."""
    mask = torch.ones(2, 1, 9, 9)
    mask[:, :, 2:7, 2:7] = 0
    x, weight, bias = torch.randn(2, 4, 9, 9), torch.randn(6, 4, 3, 3), torch.randn(6)
    file = tmp_path / "problem.pt"
    made = Problem(LAYERS["pconv5"], [x], [mask], [weight], [bias], None)
    sample.write_problem(made.to("cpu", torch.float32), file)
    return file


@pytest.fixture
def other_version(tmp_path):
    """Writes one whose ratios are wrong by `factor`; the folder that has it."""

    def write(factor=1):
        package = tmp_path / "other" / "pconv_ext"
        package.mkdir(parents=True)
        package.joinpath("__init__.py").write_text(OTHER_VERSION.replace("FACTOR", str(factor)))
        return package.parent

    return write


def test_both_versions_are_measured_on_the_same(problem, other_version):
    one = sample_in_process(problem, seconds=0.01, threads=1, earlier=other_version())
    for version in ("old", "new"):
        records = one(version)
        assert [record["direction"] for record in records] == [FORWARD, TRAINING]
        for record in records:
            assert record["layer"] == "pconv5"
            assert {*record["forms"]} == {"cpu", PLAIN}
            assert all(len(form["samples_ms"]) >= 5 for form in record["forms"].values())


def test_a_version_that_is_wrong_is_not_timed(problem, other_version):
    environment = {**os.environ, "PYTHONPATH": str(other_version(1.01))}
    command = [sys.executable, ROOT / "benchmarks", "sample", problem, "--seconds", "0.01", "--threads", "1"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert not run.stdout
    assert "WrongResult: cpu on pconv5" in run.stderr


def test_a_version_is_never_taken_for_the_other(problem, tmp_path):
    one = sample_in_process(problem, seconds=0.01, threads=1, earlier=tmp_path / "nothing")
    with pytest.raises(SystemExit, match="nothing/pconv_ext was to be measured, not another"):
        one("old")


SETUP = """
import os, sys
from pathlib import Path
package = Path(sys.argv[-1].removeprefix("--build-lib="), "pconv_ext")
package.mkdir(parents=True)
package.joinpath("told").write_text(os.environ["PCONV_EXT_CUDA"] + " EDIT")
package.joinpath("_C.abi3.so").touch()
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Stands in for this one; `commit(setup)` makes a commit with that build, and returns its hash."""
    root = tmp_path / "repository"
    monkeypatch.setattr(earlier, "ROOT", root)
    monkeypatch.setattr(earlier, "BUILDS", root / "build" / "earlier")

    def git(*arguments):
        author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        subprocess.run(["git", *author, *arguments], cwd=root, check=True, capture_output=True)

    def commit(setup):
        (root / "setup.py").write_text(setup)
        git("add", "setup.py")
        git("commit", "--no-gpg-sign", "-m", "a commit")
        return earlier.full_hash("HEAD")

    root.mkdir()
    git("init")
    return commit


def test_an_earlier_commit_is_built_once_as_it_was(repository):
    first = repository(SETUP.replace("EDIT", "first"))
    repository(SETUP.replace("EDIT", "second"))
    assert earlier.full_hash("HEAD~1") == first
    folder = earlier.built(first)
    assert (folder / "pconv_ext" / "told").read_text() == "0 first"
    (folder / "kept").touch()
    assert (earlier.built(first) / "kept").exists()
    assert [*earlier.BUILDS.iterdir()] == [folder], "and nothing else is left"


def test_what_cannot_be_built_says_why(repository):
    failing = repository("print('no compiler'); raise SystemExit(3)")
    with pytest.raises(earlier.Unavailable, match=r"setup\.py build .* failed:\nno compiler"):
        earlier.built(failing)
    empty = repository(SETUP.replace("_C.abi3.so", "nothing"))
    with pytest.raises(earlier.Unavailable, match="has no CPU kernels"):
        earlier.built(empty)
    assert not [*earlier.BUILDS.iterdir()]
    with pytest.raises(earlier.Unavailable, match="no commit 'no-such-commit' here"):
        earlier.full_hash("no-such-commit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["HEAD", "--only", "msfef9"], "no layer has msfef9 in its name"),
        (["no-such-commit", "--only", "msfef1"], "no commit 'no-such-commit'"),
        (["HEAD", "--rounds", "0"], "expected at least 1, got 0"),
    ],
)
def test_what_the_command_refuses(options, said, capsys):
    parser = argparse.ArgumentParser()
    add_options(parser)
    with pytest.raises(SystemExit, match="2"):
        main(parser, parser.parse_args(options))
    assert said in capsys.readouterr().err

"""`benchmarks/gpu.sh test`: whatever the tests do, it ends in time and tells how far they came."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

ROOT = Path(__file__).resolve().parents[2]
# Beside each case runs a file of tests/, whose conftest.py has the options that the driver uses.
QUICK = "tests/backends/test_measured.py"
PASSES = "def test_passes():\n    assert True\n"
FAILS = "def test_fails():\n    assert 1 + 1 == 3\n"
SLEEPS = "import time\ndef test_sleeps():\n    time.sleep(600)\n"
HANGS = """
import signal, time
def test_hangs():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)
"""
DIES = "import os\ndef test_dies():\n    os._exit(139)\n"


@pytest.fixture
def driver(tmp_path):
    """Starts it over tests of this text."""

    def start(text, *options):
        file = tmp_path / "test_case.py"
        file.write_text(text)
        return subprocess.Popen(
            [
                *(sys.executable, "benchmarks", "test", "--processes", "2", *options),
                *("--results", tmp_path / "test.json", "--files", file, QUICK),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        )

    return start


def ended(process, tmp_path):
    """Its exit code, what it printed, and its report."""
    printed, _ = process.communicate(timeout=200)
    return process.returncode, printed, json.loads((tmp_path / "test.json").read_text())


def named(tests):
    return [test.split("::")[1] for test in tests]


def test_all_pass(driver, tmp_path):
    code, printed, report = ended(driver(PASSES), tmp_path)
    assert code == 0, printed
    assert report["complete"]
    assert report["not run"] == 0
    assert [process["exit code"] for process in report["processes"]] == [0, 0]
    assert report["outcomes"].keys() == {"passed"}
    assert report["outcomes"]["passed"] == sum(process["selected"] for process in report["processes"])
    assert all((tmp_path / f"test-{i}.xml").stat().st_size for i in range(2))


def test_a_process_that_dies(driver, tmp_path):
    code, printed, report = ended(driver(DIES), tmp_path)
    assert code == 1
    assert not report["complete"]
    assert named(report["running at the end"]) == ["test_dies"]
    assert "RUNNING at the end: " in printed
    assert report["outcomes"]["passed"] > 0


def test_nothing_selected(driver, tmp_path):
    code, printed, _ = ended(driver(PASSES, "-k", "no_such_test"), tmp_path)
    assert code == 1
    assert "nothing ran" in printed


def wait_for(what, tmp_path):
    """Until a process has written it, such as a test that begins."""
    until = time.monotonic() + 100
    while not any(what in file.read_text() for file in tmp_path.glob("*.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_deadline(driver, tmp_path):
    code, _, report = ended(driver(SLEEPS, "--deadline", "5", "--grace", "60"), tmp_path)
    assert code == 1
    assert not report["complete"]


def test_interrupted_processes_write_their_files(driver, tmp_path):
    """The signal that `timeout` sends is a deadline, too."""
    process = driver(FAILS + SLEEPS, "--grace", "100")
    for what in ('"outcome": "failed"', "test_sleeps"):  # of two processes
        wait_for(what, tmp_path)
    process.send_signal(signal.SIGTERM)
    code, printed, report = ended(process, tmp_path)
    assert code == 1
    assert "interrupted" in printed
    assert not report["complete"]
    assert named(report["failed"]) == ["test_fails"]
    assert "test_fails: assert (1 + 1) == 3" in printed
    assert "test_sleeps" in named(report["running at the end"])
    assert 2 in [process["exit code"] for process in report["processes"]]
    assert all((tmp_path / f"test-{i}.xml").stat().st_size for i in range(2))


def test_one_that_cannot_be_interrupted_is_killed(driver, tmp_path):
    process = driver(HANGS, "--grace", "5")
    wait_for("test_hangs", tmp_path)
    process.send_signal(signal.SIGTERM)
    code, _, report = ended(process, tmp_path)
    assert code == 1
    assert "test_hangs" in named(report["running at the end"])
    assert -signal.SIGKILL in [process["exit code"] for process in report["processes"]]


def test_every_test_is_in_its_list():
    code = "import json; from gpu import tests; print(json.dumps(tests.test_files()))"
    files = json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT / "benchmarks"))
    assert len(files) == len(set(files))
    assert all((ROOT / file).is_file() for file in files)
    every = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("test_*.py")}
    folders = ("tests/emulator/", "tests/inpainting/", "tests/machine_code/")
    left_out = {file for file in every if file.startswith(folders)} - {"tests/inpainting/test_model.py"}
    alone = {f"tests/tooling/test_{name}.py" for name in ("gpu_test_driver", "learning")}
    assert every - set(files) == left_out | alone

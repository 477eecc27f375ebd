"""What is published, and the files by which a host of repositories checks and publishes it."""

import re
import zipfile

import pytest
import release
from support.documents import ROOT

CPU = "pconv_ext/_C.abi3.so"
NAME = "pconv_ext-0.1.0-cp310-abi3-manylinux_2_28_x86_64.whl"


@pytest.mark.parametrize(
    ("name", "files", "problem"),
    [
        (NAME, {CPU: 10}, None),
        (NAME, {CPU: 10, release.CUDA: 10}, None),
        (NAME, {release.CUDA: 10}, "the CPU kernels are missing"),
        (NAME, {CPU: 10, "pconv_ext.libs/libc10-1.so": 10}, "libraries of others"),
        (NAME, {CPU: 10, release.CUDA: 200}, "too large"),
        (NAME.replace("manylinux_2_28", "linux"), {CPU: 10}, "no tag of manylinux"),
        (NAME.replace("abi3", "cp310"), {CPU: 10}, "no tag of manylinux and the stable ABI"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(tmp_path, monkeypatch, name, files, problem):
    monkeypatch.setattr(release, "CUDA_LIMIT", 100)
    with zipfile.ZipFile(tmp_path / name, "w") as wheel:
        for file, size in files.items():
            wheel.writestr(file, b"\0" * size)
    found = release.problems(tmp_path / name)
    assert [problem in one for one in found] == ([True] if problem else [])


def test_the_version_is_one():
    versions = {
        file: re.search(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)[1]
        for file, pattern in {
            "pyproject.toml": r'^version = "(.+)"$',
            "CITATION.cff": r"^version: (.+)$",
            "CHANGELOG.md": r"^## ([\d.]+)",
        }.items()
    }
    assert len(set(versions.values())) == 1, versions


def test_workflows_call_targets_that_are_there():
    rules = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    files = [*(ROOT / ".github/workflows").iterdir(), ROOT / ".pre-commit-config.yaml"]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    called = set(re.findall(r"(?:run|entry): make ([\w-]+)", text))
    called |= set(re.search(r"target: \[(.+)\]", text)[1].split(", "))
    assert {"lint", "typecheck", "test", "docs", "release-check"} <= called <= set(rules)


def test_a_bug_report_has_what_the_doctor_says():
    form = (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8")
    assert "label: python -m pconv_ext doctor" in form


def test_the_readme_says_how_to_install_what_is_published():
    """Not before it is: see the first line of the changelog's newest version."""
    released = "not released yet" not in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").split("###")[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ("pip install pconv_ext" in readme) == released

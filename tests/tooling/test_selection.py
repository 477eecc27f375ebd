"""Shares of the tests: every test is in exactly one."""

import argparse
import subprocess
import sys
from collections import Counter

import pytest
from support.selection import in_share, share

NAMES = [f"tests/test_{i % 7}.py::test_{i % 13}[{i}-cuda]" for i in range(2000)]


@pytest.mark.parametrize("parts", [1, 2, 8, 16])
def test_every_test_is_in_one_share(parts):
    shares = [{name for name in NAMES if in_share(name, part, parts)} for part in range(parts)]
    assert Counter(name for names in shares for name in names) == Counter(NAMES)
    assert min(map(len, shares)) > 0.7 * len(NAMES) / parts


def test_consecutive_numbers_are_consecutive_shares():
    assert [share(f"{commit}/4")[0] for commit in (418, 419, 420, 421, 422)] == [2, 3, 0, 1, 2]


@pytest.mark.parametrize("text", ["", "3", "1/0", "1/-2", "a/2", "1/2/3"])
def test_what_is_no_share(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected K/N"):
        share(text)


def test_the_option():
    """The shares of this file have all its tests."""

    def collected(*options):
        command = [sys.executable, "-m", "pytest", "--collect-only", "-q", __file__, *options]
        return {line for line in subprocess.check_output(command, text=True).splitlines() if "::" in line}

    one, other = collected("--share=6/2"), collected("--share=7/2")
    assert one
    assert other
    assert not one & other
    assert one | other == collected()

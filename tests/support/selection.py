"""Shares of a long list of tests: by a hash of their names, so the same in every run and on every machine."""

import argparse
import zlib


def share(text):
    """(K modulo N, N) of "K/N"."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(parts)):
        raise argparse.ArgumentTypeError(f"expected K/N, two whole numbers, got {text!r}")
    return int(part) % int(parts), int(parts)


def in_share(name, part, parts):
    """Whether share `part` of `parts` has the test of this name."""
    return zlib.crc32(name.encode()) % parts == part

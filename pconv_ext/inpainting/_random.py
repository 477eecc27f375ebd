"""Random numbers of data and training: the same whatever the workers, processes and the order of calls."""

from __future__ import annotations

import enum

import numpy as np

#: Seeds and what else a generator is made of are below it.
SEED_LIMIT = 2**64


class Stream(enum.IntEnum):
    """Uses of random numbers that are told apart: the crop of picture 7 has nothing in common with mask 7.

    The values are part of what a seed means, so they stay.
    """

    RECTANGLE = 1
    IRREGULAR = 2
    CROP = 3
    FOLDER_MASK = 4
    ORDER = 5
    MIXED = 6
    FLIP = 7


def generator(stream: Stream, *numbers: int) -> np.random.Generator:
    """A generator that depends on `numbers`, each in [0, 2**64), and on `stream` alone."""
    return np.random.Generator(np.random.PCG64(np.array((stream, *numbers), np.uint64).view(np.uint32)))

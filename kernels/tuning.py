"""Block sizes of the matrix kernels, in Triton and in CUDA, by element type and GPU generation.

What the compiler makes of each configuration (registers, spills, shared memory, instructions) is asserted by
tests/machine_code/test_triton_compiled.py and recorded in benchmarks/results/triton-compiled.json.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from .host.sizes import power_of_two, rounded


class Blocks(NamedTuple):
    """One configuration: rows x columns x depth of the tile, warps of the program, stages of the pipeline."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    def filled(self, channels: int) -> int:
        """`channels` filled up to whole columns of tiles."""
        return rounded(channels, self.n)


@lru_cache(maxsize=1024)
def gather_blocks(rows: int, n_out: int, dtype: torch.dtype, capability: int, precision: str) -> Blocks:
    """Configuration of gather_matmul for `rows` pixels and `n_out` channels.

    `capability` is 80 for sm_80 to sm_89 and 90 from there on; `precision` "ieee" is float32 without tensor
    cores. k, the depth of a step, is that of many channels, see `channel_blocks`.
    """
    wide = dtype == torch.float32
    k = 32 if wide else 64
    n = min(max(power_of_two(n_out), 16), 128)
    if rows * n_out <= 128 * 128 * 96:  # too few tiles for the chip: smaller ones
        return Blocks(64, min(n, 64), k, 4, 4 if capability >= 90 else 3)
    if n < 128:
        if capability < 90:
            return Blocks(64, n, k, 8 if wide and n == 64 else 4, 3)  # four warps spill a register
        return Blocks(64 if precision == "ieee" else 128, n, k, 4, 3)
    return Blocks(128, 128, k, 8, 3)


@lru_cache(maxsize=1024)
def wgrad_blocks(words: int, n_out: int, dtype: torch.dtype, capability: int) -> Blocks:
    """Configuration of tap_matmul: m covers channels (of several taps where they are few), n gradients.

    Two levels of loads feed the addresses' predicates, which costs two of the stages asked for. Windows of
    several `words` have bits for each tap, which fill the shared memory.
    """
    if words > 1:
        return Blocks(64, 32, 32, 4, 2)
    n = min(max(power_of_two(n_out), 16), 128)
    k = 32 if dtype == torch.float32 or capability < 90 else 64
    if n < 128:
        return Blocks(128, n, k, 4 if capability >= 90 else 8, 5)
    return Blocks(128, 128, k, 8, 5)


def channel_blocks(channels: int, dtype: torch.dtype) -> int:
    """Channels of a K step of gather_matmul: all of a few, else a full block.

    Numbers that are no multiple of eight are read element by element, which takes more registers.
    """
    if channels % 8:
        return 16
    return min(max(power_of_two(channels), 16), 32 if dtype == torch.float32 else 64)

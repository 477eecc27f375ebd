"""The CUDA C++ kernels: ``csrc/cuda/*.cu``, compiled into a plain shared library.

Each kernel takes the arguments of its Triton twin (rows.py, gather.py, ...) and computes the same; what is a
constant there is an ordinary argument here. A launch passes its arguments as 64-bit words, see
csrc/cuda/device.h.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .kernel_set import Kernels

ELEMENTS = {
    torch.float32: 0,
    torch.float16: 1,
    torch.bfloat16: 2,
    torch.uint8: 3,
    torch.int8: 4,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.float64: 8,  # of masks
}

#: Constants of each kernel, in the order in which they follow its other arguments.
CONSTANTS = {
    "forward_windows": "KERNELS SH SW DH DW MASK WORDS BLOCK",
    "adjoint_windows": "FIRST_Y FIRST_X STEP_Y STEP_X JUMP_Y JUMP_X KH KW NY NX REACH SH SW DH DW MASK WORDS "
    "BLOCK",
    "upcat_windows": "C_LOW C_SKIP K LOW_MASK SKIP_MASK WORDS_LOW WORDS_SKIP BLOCK",
    "low_adjoint_windows": "K LOW_MASK WORDS BLOCK",
    "compact": "INTS WORDS PAD BLOCK",
    "fold_bias": "NOUT BRANCHES BLOCK",
    "pack_taps": "NOUT CIN KERNELS PHASES SLOTS NP KP ADJOINT HAS_SCALES BT BK",
    "pack_rows": "NOUT CIN KERNELS PHASES FIRST_Y FIRST_X STEP_Y STEP_X NY NX ROW_CHANNELS NP KP ADJOINT "
    "HAS_SCALES BR",
    "fold_low": "K CUT_H CUT_W ADJOINT SLOTS BC BT",
    "finish": "NOUT CIN KH KW OY OX WINDOW_W OWN SLOTS CP GRAD_PITCH ROW_CHANNELS SCALE_ROW HAS_SCALES "
    "LOW SEGMENTS CUT_H CUT_W BO BF",
    "scale_gradient": "NOUT PITCH RATIOS COPIES ALL BP BC",
    "gather_matmul": "SOURCE0 PHASES0 SOURCE1 PHASES1 FIRST_Y FIRST_X WORDS0 NOUT NP RATIOS PLAIN_PHASE "
    "HAS_BIAS BM BN STAGES PRECISION",
    "tap_matmul": "C PITCH CP GRAD_PITCH PHASES SLOTS NX ROW_CHANNELS SOURCE WORDS WORD0 SEGMENTS SHARED BC "
    "BM BN BP STAGES PRECISION",
    "few_inputs": "N C H W NOUT HO WO TOP LEFT SH SW NP KP ROW_CHANNELS PHASES MASK HAS_BIAS PRECISION",
    "few_outputs": "C0 C1 UP MASK0 MASK1 HAS_BIAS PRECISION",
    "few_inputs_gradients": "N C H W NOUT HO WO TOP LEFT SH SW ROW_CHANNELS CP PITCH KERNELS GROUPS JOBS "
    "GROUPS0 GROUPS1 PARTS0 PARTS1 SIZE0 SIZE1 MASK PRECISION",
    "few_outputs_gradients": "KH KW NOUT C ROWS SOURCES SOURCE COUNTED0 COUNTED1 UP0 UP1 MASK0 MASK1 NEEDS_X "
    "NEEDS_WEIGHTS PRECISION",
}
_PRECISIONS = {"tf32": 0, "ieee": 1}


class Kernel:
    """Called as Triton's are, ``kernel[grid](*arguments, **constants)``; compiler options are unused."""

    def __init__(self, library: Any, name: str) -> None:
        self.library, self.name, self.constants = library, name, CONSTANTS[name].split()
        self.function = getattr(library, f"pconv_{name}")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            words = [*grid, *(1,) * (3 - len(grid))]
            for value in arguments:
                if isinstance(value, Tensor):
                    words += (value.data_ptr(), ELEMENTS[value.dtype])
                else:
                    words.append(_bits(value) if isinstance(value, float) else value)
            packed = array("q", words) + _constant_words(tuple(constants[name] for name in self.constants))
            device = next(value.device for value in arguments if isinstance(value, Tensor))
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            error = self.function(ctypes.c_void_p(packed.buffer_info()[0]), ctypes.c_void_p(stream))
            if error:
                raise RuntimeError(f"CUDA kernel {self.name} was not launched: {_text(self.library, error)}")

        return launch


def _bits(value: float) -> int:
    bits: int = struct.unpack("q", struct.pack("d", value))[0]
    return bits


@lru_cache(maxsize=4096)  # a layer has about twenty launches
def _constant_words(values: tuple[Any, ...]) -> array[int]:
    words = array("q")
    for value in values:
        if isinstance(value, tuple):
            words.append(len(value))
            for item in value:
                words.extend(item if isinstance(item, tuple) else (item,))
        else:
            words.append(_PRECISIONS[value] if isinstance(value, str) else value)
    return words


def load(library: Path) -> Kernels:
    """The kernels in a shared library."""
    opened = ctypes.CDLL(str(library))
    return Kernels(*(Kernel(opened, name) for name in Kernels._fields))


def build_of(library: Path) -> tuple[str, int, int]:
    """What it was built for and with, and what the driver knows: architectures, versions of CUDA."""
    opened = ctypes.CDLL(str(library))
    opened.pconv_architectures.restype = ctypes.c_char_p
    return opened.pconv_architectures().decode(), opened.pconv_toolkit(), opened.pconv_driver()


def _text(library: Any, error: int) -> str:
    library.pconv_error.restype = ctypes.c_char_p
    return f"error {error}, {library.pconv_error(error).decode()}"

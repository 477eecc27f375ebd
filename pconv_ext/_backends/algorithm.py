"""Which algorithm the CPU kernels may take: ``set_algorithm``, and PCONV_EXT_ALGORITHM before that."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "PCONV_EXT_ALGORITHM"
_NAMES = ("auto", "direct")


class set_algorithm:
    """Choose what the CPU kernels compute with, from now on or, in a ``with`` statement, for its body::

        pconv_ext.set_algorithm("direct")
        with pconv_ext.set_algorithm("direct"):  # and then what it was before
            ...

    "auto" lets dense parts use Winograd's products, F(4,4) and F(4,3), where features are float32 or have 16
    bits: the error is at most about 1.4e-5 of |y| + rms(y) on features of one scale. It follows a tile of
    4 x 4 outputs and not the window: a value far larger than its neighbours is felt beside its windows.
    "direct" has the smallest error, 2 to 7e-6, and takes up to three times the time.
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016.

    It holds for the whole process, not for a thread, because autograd runs backwards in threads of its own.
    Every run of an operator asks for it, a backward's too: so leave the ``with`` after the backward, not
    before. Functions that torch.compile made obey without being compiled again; in them it breaks the graph,
    so call it outside. It says nothing to other backends, and where the CPU kernels are missing it is
    remembered, to no effect.

    A process begins with what its environment variable PCONV_EXT_ALGORITHM says, "auto" without one. Where
    that is neither name, the backend "cpu" is not available, and `backends()` says why.

    Args:
        algorithm: "auto" or "direct".

    Raises:
        ValueError: `algorithm` is neither.
    """

    def __init__(self, algorithm: str) -> None:
        if algorithm not in _NAMES:
            raise ValueError(f"set_algorithm: {_must_be('algorithm', algorithm)}")
        self._before = current()
        self._algorithm = algorithm
        _keeper.set_algorithm(algorithm)

    def __enter__(self) -> None:
        _keeper.set_algorithm(self._algorithm)

    def __exit__(self, *error: object) -> None:
        _keeper.set_algorithm(self._before)


def current() -> str:
    """What was chosen last, "auto" or "direct"."""
    return str(_keeper.algorithm())


def keep_in(module: Any) -> None:
    """Leave what is chosen to ``pconv_ext._C``, where the kernels read it."""
    global _keeper
    module.set_algorithm(current())
    _keeper = module


def _must_be(name: str, value: object) -> str:
    return f"{name} must be {' or '.join(map(repr, _NAMES))}, got {value!r}"


class _Memory:
    """In the place of ``pconv_ext._C``."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm

    def algorithm(self) -> str:
        return self._algorithm

    def set_algorithm(self, algorithm: str) -> None:
        self._algorithm = algorithm


_asked = os.environ.get(VARIABLE, "auto")
#: Why the environment's choice cannot be followed, "" if it can.
MISTAKE = "" if _asked in _NAMES else _must_be(VARIABLE, _asked)
_keeper: Any = _Memory("auto" if MISTAKE else _asked)

"""The CUDA kernels in a plain shared library: what they tell about themselves, and how they are launched.

Every kernel tells the names and kinds of its arguments (``pconv_NAME_arguments``), which are those of its
Triton twin; what is a constant there is an ordinary argument here. A launch passes all of them by name, as
64-bit words in the order told, see csrc/cuda/arguments.h.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import struct
from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host.kernel_set import Kernels

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
_REAL, _WORD = struct.Struct("d"), struct.Struct("q")
_PRECISIONS = {"tf32": 0, "ieee": 1}

Words = list[Any]
Values = tuple[Any, ...]
Run = tuple[Callable[[Words, Values], None], slice]  # arguments that are written alike


def _put_tensors(words: Words, values: Values) -> None:
    for value in values:
        words += (value.data_ptr(), ELEMENTS[value.dtype])


def _put_reals(words: Words, values: Values) -> None:
    for value in values:
        words += _WORD.unpack(_REAL.pack(value))


def _put_precisions(words: Words, values: Values) -> None:
    words += [_PRECISIONS[value] for value in values]


def _put_tuples(words: Words, values: Values) -> None:
    for value in values:
        words.append(len(value))
        words += value


def _put_rows(width: int) -> Callable[[Words, Values], None]:
    @lru_cache(maxsize=1024)
    def flat(rows: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        if any(len(row) != width for row in rows):
            raise TypeError(f"rows of {width} are needed")
        return (len(rows), *(item for row in rows for item in row))

    def put(words: Words, values: Values) -> None:
        for value in values:
            words += flat(value)

    return put


#: How arguments of a kind are written; numbers as they are.
_PUT: dict[str, Callable[[Words, Values], None]] = {
    "tensor": _put_tensors,
    "int": list.extend,
    "long": list.extend,
    "real": _put_reals,
    "precision": _put_precisions,
    "tuple": _put_tuples,
    **{f"rows{width}": _put_rows(width) for width in (2, 4, 6, 7)},
}


def _words(words: Words, runs: list[Run], values: Values) -> Words:
    """`words`, followed by those of `values`."""
    for put, run in runs:
        put(words, values[run])
    return words


def _is_a(kind: str, value: Any) -> bool:
    if kind in ("int", "long"):
        return isinstance(value, int)
    if kind == "real":
        return isinstance(value, (int, float))
    if kind == "tensor":
        return isinstance(value, Tensor) and value.dtype in ELEMENTS
    if kind == "precision":
        return value in _PRECISIONS
    width = kind.removeprefix("rows")
    if isinstance(value, tuple) and width != kind:
        return all(isinstance(row, tuple) and len(row) == int(width) and _all_ints(row) for row in value)
    return isinstance(value, tuple) and _all_ints(value)


def _all_ints(items: Iterable[Any]) -> bool:
    return all(isinstance(item, int) for item in items)


class Arguments:
    """Names and kinds of what a function of the library reads, in its order."""

    def __init__(self, library: Any, function: str) -> None:
        told = _told(getattr(library, f"{function}_arguments"))
        if not told:
            raise RuntimeError(f"{function} of {library._name} does not tell its arguments")
        self.owner = function.removeprefix("pconv_")
        self.kinds = {name: kind for kind, name in (entry.split() for entry in told.split(","))}
        self._pick = itemgetter(*self.kinds)
        names = list(self.kinds)
        # from the first name in capitals on: sizes, and what is a constant of the twin. They are the same in
        # every launch of a layer, so their words are kept.
        self._first_constant = len(list(itertools.takewhile(lambda name: not name.isupper(), names)))
        self._variables = self._runs(0, self._first_constant)
        constants = self._runs(self._first_constant, len(names))
        self._constant_words = lru_cache(maxsize=1024)(
            lambda values: array("q", _words([], constants, values))
        )

    def _runs(self, begin: int, end: int) -> list[Run]:
        runs = []
        at = 0
        for put, run in itertools.groupby(_PUT[kind] for kind in [*self.kinds.values()][begin:end]):
            count = len(list(run))
            runs.append((put, slice(at, at + count)))
            at += count
        return runs

    def pack(self, first: tuple[int, ...], given: dict[str, Any]) -> array[int]:
        """The words: their number, `first`, the arguments.

        Raises:
            TypeError: an argument is missing, unknown or of another kind.
        """
        try:
            values = self._pick(given)
            packed = array("q", _words([0, *first], self._variables, values))
            packed += self._constant_words(values[self._first_constant :])
        except (KeyError, TypeError, AttributeError) as error:
            raise self._wrong(given) or error from error
        if len(given) != len(values):
            raise self._wrong(given) or AssertionError
        packed[0] = len(packed)
        return packed

    def _wrong(self, given: dict[str, Any]) -> TypeError | None:
        problems = [f"{name} is missing" for name in self.kinds.keys() - given.keys()]
        problems += [f"{name} is none of its arguments" for name in given.keys() - self.kinds.keys()]
        problems += [
            f"{name} must be {kind}, got {given[name]!r:.60}"
            for name, kind in self.kinds.items()
            if name in given and not _is_a(kind, given[name])
        ]
        return TypeError(f"CUDA kernel {self.owner}: {'; '.join(sorted(problems))}") if problems else None


class Kernel:
    """Called as Triton's are, ``kernel[grid](**arguments)``; compiler options are unused."""

    def __init__(self, library: Any, name: str) -> None:
        self.library, self.name = library, name
        self.function = getattr(library, f"pconv_{name}")
        self.arguments = Arguments(library, f"pconv_{name}")
        self._first_tensor = next(name for name, kind in self.arguments.kinds.items() if kind == "tensor")
        if name in Kernels._field_defaults:
            self._plan = getattr(library, f"pconv_{name}_plan")
            self._plan.restype = ctypes.c_char_p
            self._plan_arguments = Arguments(library, f"pconv_{name}_plan")
            self.plan = lru_cache(maxsize=1024)(self._make_plan)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*, num_warps: int = 0, num_stages: int = 0, **given: Any) -> None:
            packed = self.arguments.pack((*grid, *(1,) * (3 - len(grid))), given)
            device = given[self._first_tensor].device
            stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
            error = self.function(ctypes.c_void_p(packed.buffer_info()[0]), ctypes.c_void_p(stream))
            if error:
                raise RuntimeError(f"CUDA kernel {self.name} was not launched: {_text(self.library, error)}")

        return launch

    def _make_plan(self, **sizes: Any) -> Any:
        """What csrc/cuda tells of the problem: ``fits`` and, if it does, ``grid``, ``scratch``, ..."""
        packed = self._plan_arguments.pack((), sizes)
        text = self._plan(ctypes.c_void_p(packed.buffer_info()[0])).decode()
        if not text:
            raise ValueError(f"CUDA kernel {self.name} cannot plan with {sizes}: a number is too large")
        return SimpleNamespace(**{name: _tuples(value) for name, value in json.loads(text).items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load(library: Path) -> Kernels:
    """The kernels in a shared library."""
    opened = ctypes.CDLL(str(library))
    return Kernels(*(Kernel(opened, name) for name in Kernels._fields))


class Limits(NamedTuple):
    """What a call may have at most for these kernels."""

    branches: int
    stride: int


def limits(kernels: Kernels) -> Limits:
    """Those of the library that `kernels` are of."""
    return Limits(**json.loads(_told(kernels.compact.library.pconv_limits)))


def build_of(library: Path) -> tuple[str, int, int]:
    """What it was built for and with, and what the driver knows: architectures, versions of CUDA."""
    opened = ctypes.CDLL(str(library))
    return _told(opened.pconv_architectures), opened.pconv_toolkit(), opened.pconv_driver()


def _told(function: Any, *arguments: Any) -> str:
    function.restype = ctypes.c_char_p
    text: bytes = function(*arguments)
    return text.decode()


def _text(library: Any, error: int) -> str:
    return f"error {error}, {_told(library.pconv_error, error)}"

"""What "auto" knows of the backends on a device: the packaged rows of its kind, and what was measured here.

`pconv-ext tune` writes a table for each GPU (or processor), driver, torch and version of this package, into
the user's cache folder. It is read once for each process and device, by the first call there. A table that
was measured elsewhere, or is damaged, is ignored, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import _machine
from . import measured, rule
from .measured import Row, Table

VARIABLE = "PCONV_EXT_CACHE"
SCHEMA = 1


class Ban(NamedTuple):
    """A backend that computed something wrong: "auto" does not take it for that operator and dtype."""

    backend: str
    operator: str
    dtype: str  # float16 is not bfloat16 here
    reason: str


class Tuned(NamedTuple):
    """What `pconv-ext tune` found on one device."""

    machine: dict[str, str]  # `_machine.identity`
    bans: list[Ban]
    rows: list[Row]


class Known(NamedTuple):
    """What "auto" follows on a device."""

    rows: tuple[Row, ...] = ()
    table: Table = {}  # noqa: RUF012  (nobody writes to it)  of the rows; empty where the rule says the same
    bans: dict[tuple[str, str, str], str] = {}  # noqa: RUF012  (reason by backend, operator and dtype)


class Unusable(ValueError):
    """A table that is not to be used here; the message says why."""


#: By `at`.
KNOWN: dict[str, Known] = {"": Known()}
#: What compiled functions follow, whatever is known later. torch.compile can trace what is read from it.
_TRACED: dict[str, Known] = {}
_reading = threading.RLock()


def at(device_type: str, index: int | None) -> str:
    """Where `KNOWN` has a device, which is read at the first question."""
    if device_type not in ("cpu", "cuda"):
        return ""
    place = device_type if device_type == "cpu" else f"cuda:{index or 0}"
    if place not in KNOWN:
        with _reading:
            if place not in KNOWN:
                KNOWN[place] = _read_all(torch.device(place))
    return place


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _traced(device_type: str, index: int | None) -> str:
    """Where `_TRACED` has what is known of a device now; that entry never changes, so nothing is retraced."""
    known = KNOWN[at(device_type, index)]
    with _reading:
        name = next((name for name, one in _TRACED.items() if one is known), str(len(_TRACED)))
        _TRACED[name] = known
    return name


def of(device: torch.device) -> Known:
    if torch.compiler.is_compiling():
        return _TRACED[_traced(device.type, device.index)]
    return KNOWN[at(device.type, device.index)]


def read_again(device: torch.device) -> None:
    """After the table of a device was written."""
    with _reading:
        KNOWN[at(device.type, device.index)] = _read_all(device)


def add(place: str, one: Row) -> None:
    """Let "auto" follow a row measured in this process, in place of an older one of the same call."""
    with _reading:
        known = KNOWN[place]
        rows = [*(old for old in known.rows if old.call != one.call), one]
        KNOWN[place] = _known(torch.device(place).type, rows, known.bans)


def _read_all(device: torch.device) -> Known:
    """The packaged rows of its kind, and those from here, which replace all of their key."""
    _, rows = measured.packaged()
    if not rows and not files():
        return Known()  # without asking the device
    try:
        machine = _machine.identity(device)
    except (AssertionError, RuntimeError):  # a fake device, or a driver too old for this torch
        return Known()
    rows = [one for one in rows if one.capability == machine["capability"]]
    tuned, complaint = find(machine)
    if complaint:
        warnings.warn(f"pconv_ext: {complaint}", stacklevel=2)
    if tuned is None:
        return _known(device.type, rows, {})
    here = {one[1:4] for one in tuned.rows}
    rows = [*(one for one in rows if one[1:4] not in here), *tuned.rows]
    return _known(device.type, rows, {ban[:3]: ban.reason for ban in tuned.bans})


def _known(device_type: str, rows: Iterable[Row], bans: dict[tuple[str, str, str], str]) -> Known:
    rows = tuple(rows)
    if device_type == "cpu" and all(one.times[0][0] == rule.CPU[0] for one in rows):
        return Known(rows, {}, bans)  # as the rule has it, so that calls need no look
    return Known(rows, measured.table(rows), bans)


def find(machine: dict[str, str]) -> tuple[Tuned | None, str]:
    """The table of a machine, if there is one; else what its user should know of those that are not used."""
    there = files()
    similar = [one for one in there if one.name.startswith(_slug(machine["device"]) + "-")]
    own = path_of(machine) if similar else None
    file = own if own in similar else next(iter(similar), None)
    if file is None:
        return None, ""
    try:
        if file == own:
            return read(file, machine), ""
        complaint = survey(file, machine)
    except (OSError, Unusable) as error:
        complaint = str(error)
    return None, f"{file} is ignored: {complaint}; `pconv-ext tune` measures here"


def survey(file: Path, machine: dict[str, str]) -> str:
    """Why a file is not the table of a machine; "" if it is."""
    try:
        read(file, machine)
    except (OSError, Unusable) as error:
        return str(error)
    return "" if file == path_of(machine) else f"it is named otherwise than {path_of(machine).name}"


def folder() -> Path:
    """$PCONV_EXT_CACHE, else pconv_ext in $XDG_CACHE_HOME, else in ~/.cache."""
    own, common = (os.environ.get(name, "") for name in (VARIABLE, "XDG_CACHE_HOME"))
    if own:
        return Path(own)
    return (Path(common) if os.path.isabs(common) else Path.home() / ".cache") / "pconv_ext"


def files() -> list[Path]:
    """All tables in the folder, usable or not; none where no folder can be read."""
    try:
        return sorted(folder().glob("*.json"))
    except (OSError, RuntimeError):  # of which one says that nobody's home is known
        return []


def path_of(machine: dict[str, str]) -> Path:
    """Where the table of a machine is: one for each driver and version, so that environments share none."""
    digest = hashlib.sha256(_canonical(machine)).hexdigest()[:8]
    return folder() / f"{_slug(machine['device'])}-{digest}.json"


def read(file: Path, machine: dict[str, str]) -> Tuned:
    """The table in a file, if it was measured on `machine`; else Unusable, which says why. OSError too."""
    tuned = loads(file.read_bytes())
    differences = [
        f"{name} {tuned.machine.get(name, 'unknown')}, which is {here} here"
        for name, here in machine.items()
        if tuned.machine.get(name) != here
    ]
    if differences:
        raise Unusable(f"it was measured with {'; '.join(differences)}")
    return tuned


def dumps(tuned: Tuned) -> bytes:
    """Content of a file."""
    content = {
        "schema": SCHEMA,
        "machine": tuned.machine,
        "bans": [ban._asdict() for ban in tuned.bans],
        "rows": [measured.to_json(one) for one in sorted(tuned.rows)],
    }
    return json.dumps(content | {"checksum": _checksum(content)}, indent=1).encode() + b"\n"


def loads(content: bytes) -> Tuned:
    """What `dumps` wrote; Unusable where it is damaged or of another version."""
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
        if found.get("schema") != SCHEMA:
            raise Unusable(f"it has schema {found.get('schema')!r}, this version reads {SCHEMA}")
        if found.pop("checksum", None) != _checksum(found):
            raise ValueError("its checksum is wrong")
        rows = [measured.from_json(one) for one in _list(found["rows"])]
        bans = [Ban(**_texts(one)) for one in _list(found["bans"])]
        if any(ban.backend == "reference" for ban in bans):
            raise ValueError("it bans the reference")
        return Tuned(_texts(found["machine"]), bans, rows)
    except Unusable:
        raise
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise Unusable(f"it is damaged: {' '.join(str(error).split())[:200]}") from None


def _list(found: Any) -> Iterable[Any]:
    if not isinstance(found, list):
        raise ValueError(f"expected a list, got {found!r}")
    return found


def _texts(found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"expected texts by name, got {found!r}")
    return found


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")

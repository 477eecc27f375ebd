"""Writes pconv_ext/dispatch.json, which GPU backend "auto" takes: the one measured faster.

    python benchmarks/gpu_dispatch.py RESULTS [RESULTS ...]

RESULTS are JSON files of `benchmarks/gpu.sh bench`. What they say replaces the table's rows of the same GPU
generation; rows of other generations stay.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import report

from pconv_ext import _dispatch
from pconv_ext._dispatch import Row

BACKENDS = ("triton", "cuda")  # in the order of "auto", which a tie keeps
TIE = 1.02


def rows_of(content: dict[str, Any]) -> list[Row]:
    """A row for each layer, dtype and direction in which both backends were timed; the median over masks."""
    ratios: dict[tuple[Any, ...], list[float]] = {}
    for record in content["records"]:
        ratio = report.ratio(record, *BACKENDS)
        if ratio is None:
            continue
        ratios.setdefault((*_key(record), *_sizes(record)), []).append(ratio)
    rows = []
    for key, values in ratios.items():
        times = statistics.median(values)
        first, second = BACKENDS
        winner, by = (second, times) if times > TIE else (first, 1 / times)
        rows.append(Row(*key, winner, round(by, 2)))
    return rows


def automatic(record: dict[str, Any]) -> str:
    """The backend that "auto" takes for a record's layer."""
    return _dispatch.lookup(_key(record), *_sizes(record)) or BACKENDS[0]


def _key(record: dict[str, Any]) -> _dispatch.Key:
    return record["capability"], record["operator"], record["dtype"], record["direction"]


def _sizes(record: dict[str, Any]) -> tuple[int, int, int]:
    n, _, height, width = record["shapes"][-1]
    return sum(shape[1] for shape in record["shapes"]), record["out_channels"], math.prod((n, height, width))


def source(content: dict[str, Any]) -> dict[str, Any]:
    """Where rows come from, for the reader of the table."""
    machine = content["machine"]
    return {name: machine[name] for name in ("capability", "gpu", "torch", "triton", "cuda", "commit")}


def update(table: Path, contents: list[dict[str, Any]]) -> list[Row]:
    """Rewrite `table`; returns the new rows.

    Raises:
        ValueError: two results time the same call.
    """
    new = [row for content in contents for row in rows_of(content)]
    if len({row[:7] for row in new}) < len(new):
        raise ValueError("two of the results time the same call on the same GPU generation: pass one of them")
    measured = {content["machine"]["capability"] for content in contents}
    old = json.loads(table.read_text())
    rows = [row for row in _dispatch.read(table) if row.capability not in measured] + new
    sources = [one for one in old["sources"] if one["capability"] not in measured]
    sources += [source(content) for content in contents]
    table.write_text(
        '{\n "sources": [\n'
        + ",\n".join(f"  {json.dumps(one)}" for one in sources)
        + '\n ],\n "rows": [\n'
        + ",\n".join(f"  {json.dumps(row._asdict())}" for row in sorted(rows))
        + "\n ]\n}\n"
    )
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    default = Path(__file__).resolve().parents[1] / "pconv_ext" / "dispatch.json"
    parser.add_argument("--table", type=Path, default=default, help="file to rewrite (%(default)s)")
    options = parser.parse_args()
    try:
        new = update(options.table, [json.loads(path.read_text()) for path in options.results])
    except ValueError as error:
        parser.error(str(error))
    for row in sorted(new):
        print(*row)
    print(f"{len(new)} rows written to {options.table}")


if __name__ == "__main__":
    main()

"""Writes pconv_ext/_backends/measured.json, which GPU backend "auto" takes: the one measured faster.

    python tools/write_measured.py RUN [RUN ...]

A RUN is a JSON file of `benchmarks/gpu.sh bench`. What it says replaces the table's rows of the same GPU
generation; rows of other generations stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from pconv_ext._backends import measured
from pconv_ext._backends.measured import Row

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))  # which know what results hold
from names import GPU_BACKENDS
from report.records import measured_call, ratio

TABLE = Path(__file__).resolve().parents[1] / "pconv_ext" / "_backends" / "measured.json"
TIE = 1.02  # keeps the order of "auto"


def rows_of(content: dict[str, Any]) -> list[Row]:
    """A row for each layer, dtype and direction in which both backends were timed; the median over masks."""
    ratios: dict[tuple[Any, ...], list[float]] = {}
    for record in content["records"]:
        times = ratio(record, *GPU_BACKENDS)
        if times is None:
            continue
        key, *sizes = measured_call(record)
        ratios.setdefault((*key, *sizes), []).append(times)
    rows = []
    for key, values in ratios.items():
        times = statistics.median(values)
        first, second = GPU_BACKENDS
        winner, by = (second, times) if times > TIE else (first, 1 / times)
        rows.append(Row(*key, winner, round(by, 2)))
    return rows


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
    new_generations = {content["machine"]["capability"] for content in contents}
    old = json.loads(table.read_text())
    rows = [row for row in measured.read(table) if row.capability not in new_generations] + new
    sources = [one for one in old["sources"] if one["capability"] not in new_generations]
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
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--table", type=Path, default=TABLE, help="file to rewrite (%(default)s)")
    options = parser.parse_args()
    try:
        new = update(options.table, [json.loads(path.read_text()) for path in options.runs])
    except ValueError as error:
        parser.error(str(error))
    for row in sorted(new):
        print(*row)
    print(f"{len(new)} rows written to {options.table}")


if __name__ == "__main__":
    main()

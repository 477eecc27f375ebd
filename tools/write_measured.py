"""Writes pconv_ext/_backends/measured.json, the table of GPUs that comes with the package.

    python tools/write_measured.py TABLE [TABLE ...]

A TABLE is what `pconv-ext tune --export` printed, or `benchmarks/gpu.sh tune` left. What it says replaces the
rows of the same GPU generation; rows of other generations stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pconv_ext._backends import measured
from pconv_ext._backends.measured import Row

FILE = Path(__file__).resolve().parents[1] / "pconv_ext" / "_backends" / "measured.json"


def update(file: Path, tables: list[Path]) -> list[Row]:
    """Rewrite `file`; returns the new rows.

    Raises:
        ValueError: two tables time the same call, or one has none.
    """
    sources, rows = [], []
    for table in tables:
        its_sources, its_rows = measured.packaged(table)
        if not its_rows or any("driver" not in source for source in its_sources):
            raise ValueError(f"{table} must have rows of a GPU, it has {len(its_rows)}, of {its_sources}")
        sources += its_sources
        rows += its_rows
    if len({row.call for row in rows}) < len(rows):
        raise ValueError("two of the tables time the same call on the same GPU generation: pass one of them")
    new_generations = {source["capability"] for source in sources}
    old_sources, old_rows = measured.packaged(file)
    kept = [row for row in old_rows if row.capability not in new_generations]
    kept_sources = [source for source in old_sources if source["capability"] not in new_generations]
    file.write_text(measured.to_package(kept_sources + sources, kept + rows))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="+", type=Path, metavar="TABLE")
    parser.add_argument("--file", type=Path, default=FILE, help="to rewrite (%(default)s)")
    options = parser.parse_args()
    try:
        new = update(options.file, options.tables)
    except ValueError as error:
        parser.error(str(error))
    for row in sorted(new):
        print(*row)
    print(f"{len(new)} rows written to {options.file}")


if __name__ == "__main__":
    main()

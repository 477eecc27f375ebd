"""How any table is laid out: cells and the best of them, on screen, in Markdown and CSV.

rich, of ``pip install 'pconv_ext[train]'``, is imported by the function that uses it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ._extras import require

if TYPE_CHECKING:
    from rich.table import Table

NONE, SEE_NOTE = "–", "see note"  # cells without a number: no images in the bin, no LPIPS


class Cell(NamedTuple):
    """Text of a table."""

    text: str
    #: Whether it is the best of those that it is compared with.
    best: bool = False


def mark_best(table: Sequence[Sequence[str]], higher: Sequence[bool]) -> list[list[Cell]]:
    """Compare the rows of `table`, column by column, as the digits shown decide; equal ones are all best.

    Args:
        table: numbers, or what stands in for them.
        higher: of each column, whether the highest is the best.
    """
    columns = []
    for cells, highest in zip(zip(*table, strict=True), higher, strict=True):
        numbers = [cell for cell in cells if cell not in (NONE, SEE_NOTE, "nan")]
        best = (max if highest else min)(numbers, key=float) if numbers else None
        columns.append([Cell(cell, cell == best) for cell in cells])
    return [list(row) for row in zip(*columns, strict=True)]


def screen(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    notes: Sequence[str],
    left: int = 1,
    section: int = 0,
) -> Table:
    """The first `left` columns are words, the others numbers.

    In sections, of so many rows each with a gap behind, words stay whole where there is little room.
    """
    user = "the table on screen"
    text = require(user, "rich.text").Text  # in which brackets are no markup
    table: Table = require(user, "rich.table").Table(
        caption=text("\n".join(notes)),
        caption_justify="left",
        box=require(user, "rich.box").SIMPLE,
        padding=0,  # narrow, since the widest has to fit into 80 columns
        show_edge=False,
    )
    for i, title in enumerate(header):
        justify: Literal["left", "right"] = "left" if i < left else "right"
        table.add_column(text(title), justify=justify, no_wrap=section > 0 and i < left)
    for i, row in enumerate(rows, 1):
        cells = (text(cell.text, style="bold" if cell.best else "") for cell in row)
        table.add_row(*cells, end_section=bool(section) and i % section == 0)
    return table


def bold(row: Iterable[Cell]) -> list[str]:
    """Cells in Markdown."""
    return [f"**{cell.text}**" if cell.best else cell.text for cell in row]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of Markdown; the first `left` columns are words, the others numbers."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def page(table: Iterable[str], notes: Iterable[str], settings: Sequence[str] = ()) -> str:
    """A file of Markdown: a table, notes as paragraphs, settings as a list."""
    lines = [*table, *(f"\n{note}" for note in notes), *([""] if settings else [])]
    return "\n".join([*lines, *(f"- {one}" for one in settings)]) + "\n"


def csv_text(lines: Iterable[Iterable[Any]]) -> str:
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(lines)
    return content.getvalue()


def shared(lines: Mapping[str, Iterable[str]]) -> list[str]:
    """Each line once, with the names of those that have it where not all do."""
    names: dict[str, list[str]] = {}
    for name, some in lines.items():
        for one in some:
            names.setdefault(one, []).append(name)
    return [one if len(some) == len(lines) else f"{', '.join(some)}: {one}" for one, some in names.items()]


def line(text: str) -> str:
    """`text` as one line, without a full stop."""
    return " ".join(text.split()).rstrip(".")

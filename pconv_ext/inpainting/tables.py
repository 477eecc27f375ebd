"""Reports as tables, on screen and in files, and the paper's table of an ablation study with a plot.

rich and matplotlib, of ``pip install 'pconv_ext[train]'``, are imported by the functions that use them.
"""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._extras import require
from ._files import write_atomically
from .evaluation import BinMetrics, Report

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ablation_csv",
    "ablation_json",
    "ablation_markdown",
    "ablation_plot",
    "ablation_screen",
    "report_csv",
    "report_markdown",
    "report_screen",
    "write_ablation",
    "write_report",
]


class _Metric(NamedTuple):
    title: str
    name: str  # of the attribute of `BinMetrics`
    higher_is_better: bool


_METRICS = (
    _Metric("L2", "l2", False),
    _Metric("SSIM", "ssim", True),
    _Metric("PSNR", "psnr", True),
    _Metric("PSNR of mean L2", "psnr_pooled", True),
    _Metric("LPIPS", "lpips", False),
    _Metric("Hole PSNR", "psnr_holes", True),
    _Metric("Pooled hole PSNR", "psnr_holes_pooled", True),
)
#: The rows of the paper's table; its PSNR is that of the mean L2.
_PAPER = (*_METRICS[:2], _METRICS[3]._replace(title="PSNR"), _METRICS[4])
#: The rows of ours.
_ABLATION = (*_PAPER, _METRICS[6])

_MEANING = (
    "L2 is the mean squared error of values in [0, 1]. L2, SSIM, PSNR and LPIPS are means over images; PSNR "
    "in dB; low is good for L2 and LPIPS, high for SSIM and PSNR. Hole PSNR is over hole pixels alone: the "
    "mean of the images', and pooled that of the mean squared error over the hole pixels of all images."
)
_PAPER_NOTE = (
    "Best values are bold, equal ones all: the lowest L2 and LPIPS, the highest SSIM and PSNR. PSNR is that "
    "of the mean L2 of all images of a column, in dB, which is what the paper's table fits; the mean of the "
    "images' PSNR is in the CSV. Pooled hole PSNR, which the paper does not have, is over the hole pixels of "
    "all images of a column alone."
)

_CSV_HEADER = ["holes", "low", "high", "images", *(metric.name for metric in _METRICS)]

_NONE, _SEE_NOTE = "–", "see note"  # cells without a number: no images in the bin, no LPIPS

# Okabe and Ito's colours, which can be told apart with any colour vision, and markers for print in grey.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
_MARKERS = "osD^vXP"


def report_screen(report: Report) -> Table:
    """Return a ``rich.table.Table`` of a report, with its notes."""
    header, rows = _report_cells(report)
    return _screen(header, [[(cell, False) for cell in row] for row in rows], _notes(report))


def report_markdown(report: Report) -> str:
    """Return a report as Markdown: the table, what it means, and the settings."""
    header, rows = _report_cells(report)
    notes = [*_notes(report), _MEANING]
    settings = [f"- {key}: {value}" for key, value in report.settings.items()]
    return "\n".join([*_markdown(header, rows), *(f"\n{note}" for note in notes), "", *settings]) + "\n"


def report_csv(report: Report) -> str:
    """Return a report as CSV, a line for each bin, numbers in full.

    A value that was not measured is empty, and so are the ratios of rectangles, which have any; a missing
    LPIPS says why.
    """
    return _csv([_CSV_HEADER, *(_csv_line(report, one) for one in report.bins)])


def write_report(report: Report, folder: Path) -> None:
    """Write ``metrics.csv``, ``metrics.md`` and ``metrics.json`` into an existing folder, each atomically."""
    files = {
        "metrics.csv": report_csv(report).encode(),
        "metrics.md": report_markdown(report).encode(),
        "metrics.json": report.to_json().encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)


def ablation_screen(reports: Mapping[str, Report]) -> Table:
    """Return the table of `ablation_markdown` as a ``rich.table.Table``."""
    header, rows = _ablation_cells(reports)
    return _screen(header, [[(title, False), *cells] for title, cells in rows], _ablation_notes(reports))


def ablation_markdown(reports: Mapping[str, Report]) -> str:
    """Return the paper's table 1 as Markdown: configurations by metric, hole ratios across, the best bold.

    What is best is decided by the digits shown.

    Args:
        reports: by the name of the configuration, in the order of the rows; all of the same bins.

    Raises:
        ValueError: no reports, or of different bins.
    """
    header, rows = _ablation_cells(reports)
    table = [[title, *(f"**{cell}**" if best else cell for cell, best in cells)] for title, cells in rows]
    notes = [_PAPER_NOTE, *_ablation_notes(reports)]
    return "\n".join([*_markdown(header, table), *(f"\n{note}" for note in notes)]) + "\n"


def ablation_csv(reports: Mapping[str, Report]) -> str:
    """Return an ablation study as CSV: metric, configuration, and a column for each bin, numbers in full.

    A missing LPIPS says why. Raises as `ablation_markdown`.
    """
    lines: list[list[Any]] = [["metric", "configuration", *_common_titles(reports)]]
    for metric in _METRICS:
        for name, report in reports.items():
            values = (_exact(report, one, metric.name) for one in report.bins)
            lines.append([metric.name, name, *values])
    return _csv(lines)


def ablation_json(reports: Mapping[str, Report]) -> str:
    """Return an ablation study as JSON: an object of `Report.to_json` by configuration, in their order."""
    _common_titles(reports)
    content = {name: json.loads(report.to_json()) for name, report in reports.items()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def ablation_plot(reports: Mapping[str, Report]) -> bytes:
    """Return a PNG with a panel for each metric of the table, over the bins, a line for each configuration.

    Raises as `ablation_markdown`, and ImportError where matplotlib is missing.
    """
    titles = _common_titles(reports)
    figure = require("ablation_plot", "matplotlib.figure").Figure(figsize=(11, 8.5), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, metric in zip(panels, _PAPER, strict=True):
        axes.set_title(f"{metric.title} ({'higher' if metric.higher_is_better else 'lower'} is better)")
        axes.set_xlabel("hole ratio")
        axes.set_xticks(range(len(titles)), titles)
        axes.set_xlim(-0.3, len(titles) - 0.7)
        axes.grid(alpha=0.3)
        for i, (name, report) in enumerate(reports.items()):
            values = (getattr(one, metric.name) for one in report.bins)
            axes.plot(
                range(len(titles)),
                [math.nan if value is None else value for value in values],
                label=name,
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
                linewidth=1.8,
                alpha=0.9,
            )
        missing = dict.fromkeys(_line(report.lpips_missing) for report in reports.values())
        if metric.name == "lpips" and "" not in missing:
            axes.set_yticks([])
            why = textwrap.fill(f"Missing: {'; '.join(missing)}.", 50)
            axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes, parse_math=False)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(3, len(names)))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def write_ablation(reports: Mapping[str, Report], folder: Path) -> None:
    """Write ``ablation.png``, ``.csv``, ``.md`` and ``.json`` into an existing folder, each atomically."""
    files = {
        "ablation.png": ablation_plot(reports),
        "ablation.csv": ablation_csv(reports).encode(),
        "ablation.md": ablation_markdown(reports).encode(),
        "ablation.json": ablation_json(reports).encode(),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)


def _report_cells(report: Report) -> tuple[list[str], list[list[str]]]:
    header = ["holes", "images", *(metric.title for metric in _METRICS)]
    rows = [
        [one.title, str(one.images), *(_cell(report, one, metric.name) for metric in _METRICS)]
        for one in report.bins
    ]
    return header, rows


def _ablation_cells(
    reports: Mapping[str, Report],
) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """The header, and rows of a title and of cells (text, whether it is the best of its metric and bin)."""
    titles = _common_titles(reports)
    rows: list[tuple[str, list[tuple[str, bool]]]] = []
    for metric in _ABLATION:
        table = [[_cell(report, one, metric.name) for one in report.bins] for report in reports.values()]
        best = [_best(column, metric.higher_is_better) for column in zip(*table, strict=True)]
        for name, cells in zip(reports, table, strict=True):
            marked = [(cell, cell == top) for cell, top in zip(cells, best, strict=True)]
            rows.append((f"{metric.title} ({name})", marked))
    return ["metric", *titles], rows


def _best(cells: Iterable[str], higher: bool) -> str | None:
    numbers = [cell for cell in cells if cell not in (_NONE, _SEE_NOTE, "nan")]
    return (max if higher else min)(numbers, key=float) if numbers else None


def _common_titles(reports: Mapping[str, Report]) -> list[str]:
    """Of the bins, which all reports have."""
    if not reports:
        raise ValueError("ablation: reports must have a configuration, got none")
    titles = {name: [one.title for one in report.bins] for name, report in reports.items()}
    first, *others = titles
    for name in others:
        if titles[name] != titles[first]:
            raise ValueError(f"ablation: reports must have the same bins, {name!r} has others than {first!r}")
    return titles[first]


def _notes(report: Report) -> list[str]:
    notes = ["Of the network's output." if report.raw else "Of the composite: the truth outside of holes."]
    if report.lpips_missing:
        notes.append(f"LPIPS is missing: {_line(report.lpips_missing)}.")
    if report.unreadable:
        notes.append(f"Left out: {report.unreadable} pictures that could not be read.")
    if report.outside:
        notes.append(f"Left out: {report.outside} images whose mask has a hole ratio in none of the bins.")
    return notes


def _ablation_notes(reports: Mapping[str, Report]) -> list[str]:
    """What `_notes` says, once if it holds for all configurations."""
    notes: dict[str, list[str]] = {}
    for name, report in reports.items():
        for note in _notes(report):
            notes.setdefault(note, []).append(name)
    return [
        note if len(names) == len(reports) else f"{', '.join(names)}: {note}" for note, names in notes.items()
    ]


def _screen(header: Sequence[str], rows: Iterable[Sequence[tuple[str, bool]]], notes: Sequence[str]) -> Table:
    user = "the table on screen"
    text = require(user, "rich.text").Text
    table: Table = require(user, "rich.table").Table(caption=text("\n".join(notes)), caption_justify="left")
    for i, title in enumerate(header):
        table.add_column(text(title), justify="right" if i else "left")  # Text: brackets are no markup
    for row in rows:
        table.add_row(*(text(cell, style="bold" if best else "") for cell, best in row))
    return table


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _csv(lines: Iterable[Iterable[Any]]) -> str:
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(lines)
    return content.getvalue()


def _csv_line(report: Report, one: BinMetrics) -> list[Any]:
    edges = ("", "") if one.holes else (one.low, one.high)
    return [one.title, *edges, one.images, *(_exact(report, one, metric.name) for metric in _METRICS)]


def _exact(report: Report, one: BinMetrics, name: str) -> Any:
    return _line(report.lpips_missing) if name == "lpips" and report.lpips_missing else getattr(one, name)


def _cell(report: Report, one: BinMetrics, name: str) -> str:
    value = getattr(one, name)
    if value is None:
        return _SEE_NOTE if name == "lpips" and report.lpips_missing else _NONE
    return f"{value:.4f}"  # as many digits as the paper has


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")

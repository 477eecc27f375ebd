"""Reports as tables, on screen and in files: of a network, of a network beside others, and the paper's table
of an ablation study with a plot.

rich and matplotlib, of ``pip install 'pconv_ext[train]'``, are imported by the functions that use them.
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._extras import require
from ._files import write_atomically
from ._layout import NONE, SEE_NOTE, Cell, bold, csv_text, line, mark_best, markdown, page, screen, shared
from .evaluation import BinMetrics, Report

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ablation_csv",
    "ablation_json",
    "ablation_markdown",
    "ablation_plot",
    "ablation_screen",
    "comparison_csv",
    "comparison_json",
    "comparison_markdown",
    "comparison_screen",
    "report_csv",
    "report_markdown",
    "report_screen",
    "write_ablation",
    "write_comparison",
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
_BEST = "Best values are bold, equal ones all: the lowest L2 and LPIPS, the highest SSIM and PSNR."
_PAPER_NOTE = (
    f"{_BEST} PSNR is that of the mean L2 of all images of a column, in dB, which is what the paper's table "
    "fits; the mean of the images' PSNR is in the CSV. Pooled hole PSNR, which the paper does not have, is "
    "over the hole pixels of all images of a column alone."
)

_CSV_HEADER = ["holes", "low", "high", "images", *(metric.name for metric in _METRICS)]

# Okabe and Ito's colours, which can be told apart with any colour vision, and markers for print in grey.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2")
_MARKERS = "osD^vXP"


def report_screen(report: Report) -> Table:
    """Return a ``rich.table.Table`` of a report, with its notes."""
    header, rows = _report_cells(report)
    return screen(header, [list(map(Cell, row)) for row in rows], _notes(report))


def report_markdown(report: Report) -> str:
    """Return a report as Markdown: the table, what it means, and the settings."""
    header, rows = _report_cells(report)
    return page(markdown(header, rows), [*_notes(report), _MEANING], _settings(report))


def report_csv(report: Report) -> str:
    """Return a report as CSV, a line for each bin, numbers in full.

    A value that was not measured is empty, and so are the ratios of rectangles, which have any; a missing
    LPIPS says why.
    """
    return csv_text([_CSV_HEADER, *(_csv_line(report, one) for one in report.bins)])


def write_report(report: Report, folder: Path) -> None:
    """Write ``metrics.csv``, ``metrics.md`` and ``metrics.json`` into an existing folder, each atomically."""
    _write_metrics(folder, report_csv(report), report_markdown(report), report.to_json())


def comparison_screen(reports: Mapping[str, Report]) -> Table:
    """Return the table of `comparison_markdown` as a ``rich.table.Table`` that fits into 80 columns."""
    header, rows = _comparison_cells(reports)
    del header[2]
    for i, row in enumerate(rows):
        images, method = row.pop(2).text, i % len(reports)
        if method:  # holes are said once, and the images below them, which spares a column
            row[0] = Cell(f"{images} images" if method == 1 else "")
    return screen(header, rows, _shared_notes(reports), left=2, section=len(reports))


def comparison_markdown(reports: Mapping[str, Report]) -> str:
    """Return the reports of several methods as one table in Markdown, rows being holes by method.

    The best of each metric and holes is bold, as the digits shown decide. Below are what the table means and
    the settings, those that not all have with whose they are.

    Args:
        reports: by the name of the method, in the order of the rows; all of the same bins.

    Raises:
        ValueError: no reports, or of different bins.
    """
    header, rows = _comparison_cells(reports)
    settings = {
        name: [one for one in _settings(report) if one != f"opponent: {name}"]  # the prefix says so
        for name, report in reports.items()
    }
    table = markdown(header, map(bold, rows), left=2)
    return page(table, [_BEST, *_shared_notes(reports), _MEANING], shared(settings))


def comparison_csv(reports: Mapping[str, Report]) -> str:
    """Return the reports of several methods as the CSV of `report_csv`, with the method before it.

    Raises as `comparison_markdown`.
    """
    bins = range(len(_common_titles("comparison", reports)))
    lines = ([name, *_csv_line(report, report.bins[i])] for i in bins for name, report in reports.items())
    return csv_text([["method", *_CSV_HEADER], *lines])


def comparison_json(reports: Mapping[str, Report]) -> str:
    """Return the reports of several methods as JSON: an object of `Report.to_json` by method, in their order.

    Raises as `comparison_markdown`.
    """
    return _json("comparison", reports)


def write_comparison(reports: Mapping[str, Report], folder: Path) -> None:
    """Write what `write_report` writes, of several methods."""
    _write_metrics(folder, comparison_csv(reports), comparison_markdown(reports), comparison_json(reports))


def ablation_screen(reports: Mapping[str, Report]) -> Table:
    """Return the table of `ablation_markdown` as a ``rich.table.Table``."""
    header, rows = _ablation_cells(reports)
    return screen(header, rows, _shared_notes(reports))


def ablation_markdown(reports: Mapping[str, Report]) -> str:
    """Return the paper's table 1 as Markdown: configurations by metric, hole ratios across, the best bold.

    What is best is decided by the digits shown.

    Args:
        reports: by the name of the configuration, in the order of the rows; all of the same bins.

    Raises:
        ValueError: no reports, or of different bins.
    """
    header, rows = _ablation_cells(reports)
    table = markdown(header, map(bold, rows))
    return page(table, [_PAPER_NOTE, *_shared_notes(reports)])


def ablation_csv(reports: Mapping[str, Report]) -> str:
    """Return an ablation study as CSV: metric, configuration, and a column for each bin, numbers in full.

    A missing LPIPS says why. Raises as `ablation_markdown`.
    """
    lines: list[list[Any]] = [["metric", "configuration", *_common_titles("ablation", reports)]]
    for metric in _METRICS:
        for name, report in reports.items():
            values = (_exact(report, one, metric.name) for one in report.bins)
            lines.append([metric.name, name, *values])
    return csv_text(lines)


def ablation_json(reports: Mapping[str, Report]) -> str:
    """Return an ablation study as JSON: an object of `Report.to_json` by configuration, in their order."""
    return _json("ablation", reports)


def ablation_plot(reports: Mapping[str, Report]) -> bytes:
    """Return a PNG with a panel for each metric of the table, over the bins, a line for each configuration.

    Raises as `ablation_markdown`, and ImportError where matplotlib is missing.
    """
    titles = _common_titles("ablation", reports)
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
        missing = dict.fromkeys(line(report.lpips_missing) for report in reports.values())
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


def _ablation_cells(reports: Mapping[str, Report]) -> tuple[list[str], list[list[Cell]]]:
    titles = _common_titles("ablation", reports)
    rows: list[list[Cell]] = []
    for metric in _ABLATION:
        table = [[_cell(report, one, metric.name) for one in report.bins] for report in reports.values()]
        marked = mark_best(table, [metric.higher_is_better] * len(titles))
        rows += [
            [Cell(f"{metric.title} ({name})"), *cells] for name, cells in zip(reports, marked, strict=True)
        ]
    return ["metric", *titles], rows


def _comparison_cells(reports: Mapping[str, Report]) -> tuple[list[str], list[list[Cell]]]:
    """A row is holes, method, images and the metrics."""
    rows: list[list[Cell]] = []
    for i, title in enumerate(_common_titles("comparison", reports)):
        table = [[_cell(one, one.bins[i], metric.name) for metric in _METRICS] for one in reports.values()]
        marked = mark_best(table, [metric.higher_is_better for metric in _METRICS])
        for (name, report), cells in zip(reports.items(), marked, strict=True):
            rows.append([Cell(title), Cell(name), Cell(str(report.bins[i].images)), *cells])
    return ["holes", "method", "images", *(metric.title for metric in _METRICS)], rows


def _common_titles(user: str, reports: Mapping[str, Report]) -> list[str]:
    """Of the bins, which all reports have."""
    if not reports:
        raise ValueError(f"{user}: reports must be at least one, got none")
    titles = {name: [one.title for one in report.bins] for name, report in reports.items()}
    first, *others = titles
    for name in others:
        if titles[name] != titles[first]:
            raise ValueError(f"{user}: reports must have the same bins, {name!r} has others than {first!r}")
    return titles[first]


def _notes(report: Report) -> list[str]:
    notes = ["Of the network's output." if report.raw else "Of the composite: the truth outside of holes."]
    for setting, chosen in report.settings.items():
        if isinstance(chosen, Mapping):  # by the title of the bin, see `opponents.compete`
            titles: dict[Any, list[str]] = {}
            for title, value in chosen.items():
                titles.setdefault(value, []).append(title)
            text = "; ".join(f"{value} for {', '.join(some)}" for value, some in titles.items())
            notes.append(f"The better {setting} for each row, by pooled hole PSNR: {text}.")
    if report.lpips_missing:
        notes.append(f"LPIPS is missing: {line(report.lpips_missing)}.")
    if report.unreadable:
        notes.append(f"Left out: {report.unreadable} pictures that could not be read.")
    if report.outside:
        notes.append(f"Left out: {report.outside} images whose mask has a hole ratio in none of the bins.")
    return notes


def _settings(report: Report) -> list[str]:
    """But for those by bin, of which `_notes` speaks."""
    return [f"{key}: {value}" for key, value in report.settings.items() if not isinstance(value, Mapping)]


def _shared_notes(reports: Mapping[str, Report]) -> list[str]:
    return shared({name: _notes(report) for name, report in reports.items()})


def _json(user: str, reports: Mapping[str, Report]) -> str:
    _common_titles(user, reports)
    content = {name: json.loads(report.to_json()) for name, report in reports.items()}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write_metrics(folder: Path, table: str, text: str, content: str) -> None:
    files = {"metrics.csv": table, "metrics.md": text, "metrics.json": content}
    for name, one in files.items():
        write_atomically(folder / name, one.encode())


def _csv_line(report: Report, one: BinMetrics) -> list[Any]:
    edges = ("", "") if one.holes else (one.low, one.high)
    return [one.title, *edges, one.images, *(_exact(report, one, metric.name) for metric in _METRICS)]


def _exact(report: Report, one: BinMetrics, name: str) -> Any:
    return line(report.lpips_missing) if name == "lpips" and report.lpips_missing else getattr(one, name)


def _cell(report: Report, one: BinMetrics, name: str) -> str:
    value = getattr(one, name)
    if value is None:
        return SEE_NOTE if name == "lpips" and report.lpips_missing else NONE
    return f"{value:.4f}"  # as many digits as the paper has

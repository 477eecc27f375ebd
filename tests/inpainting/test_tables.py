"""Tables, plots and figures of evaluations, to the character and the pixel."""

import csv
import dataclasses
import io
import json
import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pconv_ext.evaluation import BinMetrics, Report
from pconv_ext.inpainting import figures, tables

BINS = ((0.01, 0.1), (0.1, 0.2))


def report(*values, **options):
    """Of values (l2, ssim, psnr, psnr_pooled, lpips, psnr_holes, psnr_holes_pooled) for each bin."""
    bins = (
        BinMetrics(*edges, 3 if row else 0, *(row or ())) for edges, row in zip(BINS, values, strict=True)
    )
    return Report(tuple(bins), **options)


FULL = report(
    (0.00141, 0.95, 28.0, 28.5, 0.15, 16.0, 15.5),
    (0.0046, 0.88, math.inf, 23.4, 0.2, math.inf, 14.0),
    settings={"size": 8, "seed": 1},
)
EQUAL = report((0.00142, 0.96, 29.0, 28.4, 0.25, 15.0, 15.6), (0.0047, 0.87, 22.0, 23.4, 0.1, 13.0, 13.5))
NO_LPIPS = report((0.2, 0.1, 7.0, 6.9), None, lpips_missing="no route\nto [host].", raw=True, outside=4)


def test_report_as_markdown():
    assert tables.report_markdown(FULL) == (
        "| holes | images | L2 | SSIM | PSNR | PSNR of mean L2 | LPIPS | Hole PSNR | Pooled hole PSNR |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| [0.01, 0.1) | 3 | 0.0014 | 0.9500 | 28.0000 | 28.5000 | 0.1500 | 16.0000 | 15.5000 |\n"
        "| [0.1, 0.2) | 3 | 0.0046 | 0.8800 | inf | 23.4000 | 0.2000 | inf | 14.0000 |\n"
        "\n"
        "Of the composite: the truth outside of holes.\n"
        "\n"
        "L2 is the mean squared error of values in [0, 1]. L2, SSIM, PSNR and LPIPS are means over images; "
        "PSNR in dB; low is good for L2 and LPIPS, high for SSIM and PSNR. Hole PSNR is over hole pixels "
        "alone: the mean of the images', and pooled that of the mean squared error over the hole pixels of "
        "all images.\n"
        "\n"
        "- size: 8\n"
        "- seed: 1\n"
    )
    lines = tables.report_markdown(NO_LPIPS).splitlines()
    assert lines[2:4] == [
        "| [0.01, 0.1) | 3 | 0.2000 | 0.1000 | 7.0000 | 6.9000 | see note | – | – |",
        "| [0.1, 0.2) | 0 | – | – | – | – | see note | – | – |",
    ]
    assert lines[5:10:2] == [
        "Of the network's output.",
        "LPIPS is missing: no route to [host].",
        "Left out: 4 images whose mask has a hole ratio in none of the bins.",
    ]


def test_report_as_csv():
    assert tables.report_csv(FULL) == (
        "holes,low,high,images,l2,ssim,psnr,psnr_pooled,lpips,psnr_holes,psnr_holes_pooled\n"
        '"[0.01, 0.1)",0.01,0.1,3,0.00141,0.95,28.0,28.5,0.15,16.0,15.5\n'
        '"[0.1, 0.2)",0.1,0.2,3,0.0046,0.88,inf,23.4,0.2,inf,14.0\n'
    )
    assert tables.report_csv(NO_LPIPS).splitlines()[1:] == [
        '"[0.01, 0.1)",0.01,0.1,3,0.2,0.1,7.0,6.9,no route to [host],,',
        '"[0.1, 0.2)",0.1,0.2,0,,,,,no route to [host],,',
    ]


def test_rectangles_have_a_name_in_place_of_ratios():
    rectangle = dataclasses.replace(FULL.bins[0], low=0.0, high=1.0, holes="rectangle")
    both = dataclasses.replace(FULL, bins=(rectangle, *FULL.bins))
    assert tables.report_csv(both).splitlines()[1].startswith("rectangle,,,3,0.00141,")
    lines = tables.report_markdown(both).splitlines()
    assert lines[2].startswith("| rectangle | 3 | 0.0014 |")
    assert lines[3:5] == tables.report_markdown(FULL).splitlines()[2:4]
    assert Report.from_json(both.to_json()) == both
    header = tables.ablation_markdown({"all": both}).splitlines()[0]
    assert header == "| metric | rectangle | [0.01, 0.1) | [0.1, 0.2) |"


def shown(table, width=120):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(table)
    return console.file.getvalue()


def test_report_on_screen():
    text = shown(tables.report_screen(NO_LPIPS))
    for part in (
        "[0.01, 0.1)",
        "PSNR of mean L2",
        "0.2000",
        "see note",
        "LPIPS is missing: no route to [host].",
    ):
        assert part in text
    bold = re.findall(r"\x1b\[1m *([\d.]+)", shown(tables.ablation_screen({"a": FULL, "b": EQUAL})))
    assert (
        " ".join(bold)
        == "0.0014 0.0046 0.0014 0.8800 0.9600 28.5000 23.4000 23.4000 0.1500 0.1000 14.0000 15.6000"
    )


def test_report_in_files(tmp_path):
    tables.write_report(FULL, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.json", "metrics.md"]
    assert Report.from_json((tmp_path / "metrics.json").read_text()) == FULL
    assert (tmp_path / "metrics.csv").read_text() == tables.report_csv(FULL)
    assert (tmp_path / "metrics.md").read_text() == tables.report_markdown(FULL)


#: As `opponents.compete` describes it.
OPPONENT = dataclasses.replace(
    EQUAL,
    settings={"size": 8, "opponent": "telea | ns", "radius": {"[0.01, 0.1)": 3, "[0.1, 0.2)": 10}},
)
COMPARED = {"network": FULL, "telea | ns": OPPONENT}


def test_comparison_as_markdown():
    """Rows are holes by method; the best of each metric and holes is bold, also of equal ones."""
    lines = tables.comparison_markdown(COMPARED).splitlines()
    assert lines[:2] == [
        "| holes | method | images "
        "| L2 | SSIM | PSNR | PSNR of mean L2 | LPIPS | Hole PSNR | Pooled hole PSNR |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    assert lines[2:6] == [
        "| [0.01, 0.1) | network | 3 "
        "| **0.0014** | 0.9500 | 28.0000 | **28.5000** | **0.1500** | **16.0000** | 15.5000 |",
        r"| [0.01, 0.1) | telea \| ns | 3 "
        "| **0.0014** | **0.9600** | **29.0000** | 28.4000 | 0.2500 | 15.0000 | **15.6000** |",
        "| [0.1, 0.2) | network | 3 "
        "| **0.0046** | **0.8800** | **inf** | **23.4000** | 0.2000 | **inf** | **14.0000** |",
        r"| [0.1, 0.2) | telea \| ns | 3 "
        "| 0.0047 | 0.8700 | 22.0000 | **23.4000** | **0.1000** | 13.0000 | 13.5000 |",
    ]
    radius = "The better radius for each row, by pooled hole PSNR: 3 for [0.01, 0.1); 10 for [0.1, 0.2)."
    assert lines[6:] == [
        *("", "Best values are bold, equal ones all: the lowest L2 and LPIPS, the highest SSIM and PSNR."),
        *("", "Of the composite: the truth outside of holes."),
        *("", f"telea | ns: {radius}"),
        *("", tables._MEANING),
        *("", "- size: 8", "- network: seed: 1"),
    ]


def test_comparison_as_csv_and_json():
    rows = list(csv.DictReader(io.StringIO(tables.comparison_csv(COMPARED))))
    assert [(row["method"], row["holes"]) for row in rows] == [
        ("network", "[0.01, 0.1)"),
        ("telea | ns", "[0.01, 0.1)"),
        ("network", "[0.1, 0.2)"),
        ("telea | ns", "[0.1, 0.2)"),
    ]
    assert [row["psnr_holes_pooled"] for row in rows] == ["15.5", "15.6", "14.0", "13.5"]
    single = list(csv.DictReader(io.StringIO(tables.report_csv(FULL))))
    assert rows[::2] == [{"method": "network", **row} for row in single]
    content = json.loads(tables.comparison_json(COMPARED), parse_constant=pytest.fail)
    assert list(content) == [*COMPARED]
    assert {name: Report.from_json(json.dumps(value)) for name, value in content.items()} == COMPARED
    with pytest.raises(ValueError, match="must be the JSON of a report"):
        Report.from_json(json.dumps(content))


def test_comparison_on_screen():
    """Numbers, holes and methods are whole in 80 columns, and the best are bold."""
    long = {"network": FULL, "navier-stokes": OPPONENT, "biharmonic": NO_LPIPS}
    text = shown(tables.comparison_screen(long), 80)
    lines = [" ".join(line.split()) for line in re.sub(r"\x1b\[\d*m", "", text).splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("[0.01, 0.1) network"))
    assert lines[start : start + 7] == [
        "[0.01, 0.1) network 0.0014 0.9500 28.0000 28.5000 0.1500 16.0000 15.5000",
        "3 images navier-stokes 0.0014 0.9600 29.0000 28.4000 0.2500 15.0000 15.6000",
        "biharmonic 0.2000 0.1000 7.0000 6.9000 see – –",
        "note",
        "",
        "[0.1, 0.2) network 0.0046 0.8800 inf 23.4000 0.2000 inf 14.0000",
        "3 images navier-stokes 0.0047 0.8700 22.0000 23.4000 0.1000 13.0000 13.5000",
    ]
    bold = re.findall(r"\x1b\[1m *([\d.]+)", text)
    assert bold[:7] == ["0.0014", "28.5000", "0.1500", "16.0000", "0.0014", "0.9600", "29.0000"]
    assert "The better radius for each row" in text


def test_comparison_in_files(tmp_path):
    tables.write_comparison(COMPARED, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "metrics.json", "metrics.md"]
    assert (tmp_path / "metrics.json").read_text() == tables.comparison_json(COMPARED)
    assert (tmp_path / "metrics.csv").read_text() == tables.comparison_csv(COMPARED)
    assert (tmp_path / "metrics.md").read_text() == tables.comparison_markdown(COMPARED)


def test_ablation_as_markdown():
    """Ties, also those that only rounding makes, are bold; PSNR is the pooled one; `|` is no column."""
    text = tables.ablation_markdown({"all": FULL, "no | style": EQUAL})
    assert text.splitlines()[:12] == [
        "| metric | [0.01, 0.1) | [0.1, 0.2) |",
        "| --- | ---: | ---: |",
        "| L2 (all) | **0.0014** | **0.0046** |",
        r"| L2 (no \| style) | **0.0014** | 0.0047 |",
        "| SSIM (all) | 0.9500 | **0.8800** |",
        r"| SSIM (no \| style) | **0.9600** | 0.8700 |",
        "| PSNR (all) | **28.5000** | **23.4000** |",
        r"| PSNR (no \| style) | 28.4000 | **23.4000** |",
        "| LPIPS (all) | **0.1500** | 0.2000 |",
        r"| LPIPS (no \| style) | 0.2500 | **0.1000** |",
        "| Pooled hole PSNR (all) | 15.5000 | **14.0000** |",
        r"| Pooled hole PSNR (no \| style) | **15.6000** | 13.5000 |",
    ]
    assert "PSNR is that of the mean L2 of all images of a column" in text
    assert text.endswith("\n\nOf the composite: the truth outside of holes.\n")


def test_ablation_without_some_values():
    broken = report((math.nan,) * 7, (0.001, 0.5, math.inf, math.inf, 0.5, math.inf, math.inf))
    lines = tables.ablation_markdown({"all": FULL, "none": NO_LPIPS, "broken": broken}).splitlines()
    assert lines[2:5] == [
        "| L2 (all) | **0.0014** | 0.0046 |",
        "| L2 (none) | 0.2000 | – |",
        "| L2 (broken) | nan | **0.0010** |",
    ]
    assert lines[10] == "| PSNR (broken) | nan | **inf** |"
    assert lines[11:14] == [
        "| LPIPS (all) | **0.1500** | **0.2000** |",
        "| LPIPS (none) | see note | see note |",
        "| LPIPS (broken) | nan | 0.5000 |",
    ]
    assert "none: LPIPS is missing: no route to [host]." in lines
    assert "all, broken: Of the composite: the truth outside of holes." in lines


def test_ablation_as_csv_and_json():
    reports = {"all": FULL, "none": NO_LPIPS}
    rows = list(csv.reader(io.StringIO(tables.ablation_csv(reports))))
    assert rows[0] == ["metric", "configuration", "[0.01, 0.1)", "[0.1, 0.2)"]
    assert rows[1:3] == [["l2", "all", "0.00141", "0.0046"], ["l2", "none", "0.2", ""]]
    names = ["l2", "ssim", "psnr", "psnr_pooled", "lpips", "psnr_holes", "psnr_holes_pooled"]
    assert [row[0] for row in rows[1::2]] == names
    assert rows[5] == ["psnr", "all", "28.0", "inf"]
    assert rows[-2:] == [["psnr_holes_pooled", "all", "15.5", "14.0"], ["psnr_holes_pooled", "none", "", ""]]
    assert rows[10] == ["lpips", "none", "no route to [host]", "no route to [host]"]
    content = json.loads(tables.ablation_json(reports), parse_constant=pytest.fail)
    assert list(content) == ["all", "none"]
    assert {name: Report.from_json(json.dumps(value)) for name, value in content.items()} == reports


@pytest.mark.parametrize(
    "name",
    [
        *(f"ablation_{form}" for form in ("csv", "json", "markdown", "plot", "screen")),
        *(f"comparison_{form}" for form in ("csv", "json", "markdown", "screen")),
    ],
)
def test_reports_that_do_not_go_together(name):
    user, function = name.partition("_")[0], getattr(tables, name)
    with pytest.raises(ValueError, match=f"^{user}: reports must be at least one, got none"):
        function({})
    other = dataclasses.replace(FULL, bins=FULL.bins[:1])
    with pytest.raises(
        ValueError, match=f"^{user}: reports must have the same bins, 'one' has others than 'all'"
    ):
        function({"all": FULL, "one": other})


def opened(png):
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_ablation_plot():
    one = opened(tables.ablation_plot({"all": FULL}))
    height, width, _ = one.shape
    assert 800 < height < width < 2000
    two = opened(tables.ablation_plot({"all": FULL, "other": EQUAL}))
    orange = np.abs(two - (0xE6, 0x9F, 0)).sum(-1) < 30
    assert not (np.abs(one - (0xE6, 0x9F, 0)).sum(-1) < 30).any()
    for rows in (slice(None, height // 2), slice(height // 2, None)):
        for columns in (slice(None, width // 2), slice(width // 2, None)):
            assert orange[rows, columns].sum() > 100  # a line in every panel
    # what cannot be drawn is left out, and a reason with signs of formulas is text
    odd = dataclasses.replace(NO_LPIPS, lpips_missing=r"$\no{ $ \formula")
    assert opened(tables.ablation_plot({"all | $x": odd})).shape == one.shape


def test_ablation_in_files(tmp_path):
    tables.write_ablation({"all": FULL}, tmp_path)
    names = ["ablation.csv", "ablation.json", "ablation.md", "ablation.png"]
    assert sorted(os.listdir(tmp_path)) == names
    opened((tmp_path / "ablation.png").read_bytes())


def test_figures():
    truth = torch.rand(2, 3, 5, 7)
    mask = (torch.rand(2, 1, 5, 7) > 0.5).to(torch.uint8)
    output = torch.randn(2, 3, 5, 7)
    output[0, :, 0, 0] = math.nan
    rows = [figures.triptych(*row) for row in zip(truth, mask, output, strict=True)]
    image = figures.grid(rows)
    assert image.mode == "RGB"
    assert image.size == (3 * 7 + 2 * 4, 2 * 5 + 4)
    pixels = np.asarray(image)
    gaps = np.ones(pixels.shape[:2], bool)
    for i in range(2):
        masked = truth[i] * mask[i] + (1 - mask[i])
        for j, expected in enumerate((truth[i], masked, output[i].nan_to_num(0).clamp(0, 1))):
            place = slice(9 * i, 9 * i + 5), slice(11 * j, 11 * j + 7)
            assert (pixels[place] == (expected * 255).round().permute(1, 2, 0).numpy()).all()
            gaps[place] = False
    assert (pixels[gaps] == 255).all()
    assert torch.equal(figures.tile(rows)[:, :5, :7], truth[0])


@pytest.mark.parametrize("rows", [[], [[]], [[torch.ones(3, 2, 2)], [torch.ones(3, 2, 2)] * 2]])
def test_figures_that_do_not_fit(rows):
    with pytest.raises(ValueError, match="rows must have the same number of pictures, all of one shape"):
        figures.tile(rows)
    with pytest.raises(ValueError, match=r"shapes \[\(3, 2, 2\), \(3, 2, 3\)\]"):
        figures.grid([[torch.ones(3, 2, 2), torch.ones(3, 2, 3)]])


def test_titles_of_figures():
    """They stand above their columns, black on white, and run into none of the others."""
    pictures = [[torch.rand(3, 30, 40) for _ in range(3)] for _ in range(2)]
    plain, titled = figures.grid(pictures), figures.grid(pictures, ["truth", "", "navier-stokes, at length"])
    assert titled.size == (plain.width, plain.height + figures.TITLE)
    pixels = np.asarray(titled)
    assert (pixels[figures.TITLE :] == np.asarray(plain)).all()
    title = pixels[: figures.TITLE]
    assert (title == title[..., :1]).all()
    dark = title[..., 0] < 128
    assert [dark[:, left : left + 40].any() for left in (0, 44, 88)] == [True, False, True]
    assert not dark[:, 40:44].any()
    assert not dark[:, 84:88].any()
    assert not dark[-2:].any()
    with pytest.raises(ValueError, match=r"titles must be one for each of 3 columns, got \['a', 'b'\]"):
        figures.grid(pictures, ["a", "b"])

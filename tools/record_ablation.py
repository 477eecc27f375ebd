"""Record an ablation study that was run with several seeds: record_ablation.py FOLDER ...

The first folder is of `pconv-ext ablate` with all configurations, the others with another ``--seed`` and
maybe ``--only`` some. ``benchmarks/results/ablation.json`` gets the settings, histories and figures of all,
``ablation.md`` and ``.png`` are the table and plot of the first, and the README's table has the means over
the bins of hole ratios and, of configurations trained with several seeds, mean and standard deviation.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pconv_ext.ablation import CONFIGURATIONS  # noqa: E402
from pconv_ext.evaluation import Report  # noqa: E402
from pconv_ext.inpainting.training.run_folder import RunFolder  # noqa: E402

RESULTS, README, _PLACE = ROOT / "benchmarks" / "results", ROOT / "README.md", "<!-- ablation -->"
_PATHS = ("data", "val", "start", "vgg16")  # of one machine
_METRICS = {
    "psnr_holes_pooled": ("PSNR in holes", 2),
    "psnr": ("PSNR", 2),
    "ssim": ("SSIM", 4),
    "l2": ("L2", 5),
    "lpips": ("LPIPS", 4),
}
_WITH, _WITHOUT = "all", "no-msfef"


def trainings(folder: Path) -> dict[str, dict[str, Any]]:
    """Settings, history and report of each configuration in the folder of a study."""
    found = {}
    for one in CONFIGURATIONS:
        metrics = folder / one.folder / "metrics.json"
        if metrics.is_file():
            state = RunFolder(folder / one.folder).load()
            found[one.folder] = {
                "settings": {name: value for name, value in state["config"].items() if name not in _PATHS},
                "history": state["progress"]["history"],
                "report": json.loads(Report.from_json(metrics.read_text(encoding="utf-8")).to_json()),
            }
    return found


def values(training: dict[str, Any], metric: str) -> list[float]:
    """Of each bin."""
    return [one[metric] for one in training["report"]["bins"]]


def spread(several: list[float], digits: int) -> str:
    """Mean and, of several, standard deviation."""
    text = f"{statistics.mean(several):.{digits}f}"
    return f"{text} ± {statistics.stdev(several):.{digits}f}" if len(several) > 1 else text


def table(studies: list[dict[str, dict[str, Any]]]) -> str:
    """The configurations by the means of their bins."""
    lines = [
        f"| | seeds | epochs | {' | '.join(title for title, _ in _METRICS.values())} |",
        "|---" * (3 + len(_METRICS)) + "|",
    ]
    for one in CONFIGURATIONS:
        several = [study[one.folder] for study in studies if one.folder in study]
        cells = [one.title, str(len(several)), ", ".join(str(len(each["history"])) for each in several)]
        for metric, (_, digits) in _METRICS.items():
            cells.append(spread([statistics.mean(values(each, metric)) for each in several], digits))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(studies: list[dict[str, dict[str, Any]]]) -> str:
    """What MSFEF gains over single partial convolutions, bin by bin, seed against seed."""
    pairs = [(study[_WITH], study[_WITHOUT]) for study in studies if {_WITH, _WITHOUT} <= study.keys()]
    bins = pairs[0][0]["report"]["bins"]
    lines = [
        f"| with MSFEF less without | {' | '.join('[{low:g}, {high:g})'.format(**one) for one in bins)} |",
        "|---" * (1 + len(bins)) + "|",
    ]
    for metric, (title, digits) in _METRICS.items():
        rows = [
            [more - less for more, less in zip(values(a, metric), values(b, metric), strict=True)]
            for a, b in pairs
        ]
        cells = [spread(list(column), digits) for column in zip(*rows, strict=True)]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    folders = parser.parse_args().folders
    studies = [trainings(folder) for folder in folders]
    for name in ("ablation.md", "ablation.png"):
        shutil.copyfile(folders[0] / name, RESULTS / name)
    (RESULTS / "ablation.json").write_text(json.dumps(studies, indent=1) + "\n", encoding="utf-8")
    before, _, after = README.read_text(encoding="utf-8").split(_PLACE)
    text = f"{table(studies)}\n\n{differences(studies)}"
    README.write_text(f"{before}{_PLACE}\n{text}\n{_PLACE}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()

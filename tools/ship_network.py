"""Make the network that comes with the package of finished trainings: ship_network.py TRAINING ...

The network is that of the last step of the last training (of the running mean of its weights), written in
half precision into ``pconv_ext/inpainting/networks/pconv-photos``. Settings and histories of all trainings,
in their order, go into ``benchmarks/results/pconv-photos.json``, and the pictures that they saw, with authors
and licences, into the model card, which ``pconv_photos.md`` is the form of. What `pconv-ext evaluate
--against` measured is added to the card and to the README by ``--metrics SIZE FOLDER``, once for each size;
measure the shipped file.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pconv_ext.checkpoint import LAST, load_net  # noqa: E402
from pconv_ext.inpainting._networks import SHIPPED, SHIPPED_FOLDER  # noqa: E402
from pconv_ext.inpainting.training.run_folder import RunFolder  # noqa: E402

TARGET = SHIPPED_FOLDER
RECORD = ROOT / "benchmarks" / "results" / f"{SHIPPED}.json"
PICTURES, CARD = (ROOT / "tools" / f"pconv_photos{end}" for end in (".csv", ".md"))
README, _PLACE = ROOT / "README.md", "<!-- shipped -->"
_PATHS = ("data", "val", "start", "vgg16")  # of one machine


def card(folders: list[Path], metrics: list[list[str]]) -> str:
    """The model card."""
    with PICTURES.open(newline="", encoding="utf-8") as lines:
        pictures = list(csv.DictReader(lines))
    net = load_net(TARGET)
    states = [RunFolder(folder).load() for folder in folders]
    steps = [
        f"{len(state['progress']['history'])} epochs of {state['config']['size']}x{state['config']['size']}"
        + "".join(
            f", from epoch {phase['epoch']} {' and '.join(map(str, phase['size']))}"
            for phase in state["config"]["phases"]
            if "size" in phase and phase["epoch"] <= len(state["progress"]["history"])
        )
        for state in states
    ]
    measured = ""
    for size, folder in metrics:
        lines = Path(folder, "metrics.md").read_text(encoding="utf-8").splitlines(keepends=True)
        table = "".join(line for line in lines if not line.startswith("- "))  # paths of a machine among them
        measured += f"\n## Measured at {size}x{size}, on photographs it was not trained on\n\n{table}"
    return CARD.read_text(encoding="utf-8").format(
        parameters=sum(value.numel() for value in net.parameters()) / 1e6,
        megabytes=(TARGET / "model.safetensors").stat().st_size / 1e6,
        pictures=len(pictures),
        arguments=", ".join(f"{name}={value}" for name, value in net.config.items()),
        steps="; ".join(steps),
        measured=measured,
        rows="\n".join("| " + " | ".join(row.values()) + " |" for row in pictures),
    )


def summary(metrics: list[list[str]]) -> str:
    """The table of the README: the network beside the best of all opponents, by two metrics."""
    sizes = " | ".join(f"PSNR in holes, {size}x{size} | LPIPS" for size, _ in metrics)
    lines = [f"| holes | {sizes} |", "|---" * (1 + 2 * len(metrics)) + "|"]
    reports = [json.loads(Path(folder, "metrics.json").read_text(encoding="utf-8")) for _, folder in metrics]
    for i, one in enumerate(reports[0]["network"]["bins"]):
        low, high = one["low"], one["high"]
        cells = [f"strokes, {low:.0%} to {high:.0%}" if low else "rectangles, sides of 10 to 25 %"]
        for report in reports:
            rows = {name: method["bins"][i] for name, method in report.items() if "bins" in method}
            own = rows.pop("network")
            psnr = max((row["psnr_holes_pooled"], name) for name, row in rows.items())
            lpips = min((row["lpips"], name) for name, row in rows.items())
            cells.append(f"{own['psnr_holes_pooled']:.2f} ({psnr[0]:.2f} {psnr[1]})")
            cells.append(f"{own['lpips']:.4f} ({lpips[0]:.4f} {lpips[1]})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_readme(text: str) -> str:
    """The README with the table in its place."""
    before, _, after = README.read_text(encoding="utf-8").split(_PLACE)
    return f"{before}{_PLACE}\n{text}\n{_PLACE}{after}"


def record(folders: list[Path]) -> str:
    """Settings and history of all trainings, as JSON."""
    trainings = []
    for folder in folders:
        state = RunFolder(folder).load()
        settings = {name: value for name, value in state["config"].items() if name not in _PATHS}
        trainings.append({"settings": settings, "history": state["progress"]["history"]})
    return json.dumps(trainings, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainings", type=Path, nargs="+")
    parser.add_argument("--size", type=int, required=True, help="near which Inpainter brings larger pictures")
    parser.add_argument("--metrics", nargs=2, action="append", default=[], metavar=("SIZE", "FOLDER"))
    arguments = parser.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    net = load_net(arguments.trainings[-1] / LAST)
    net.config |= {"mirrored": True, "size": arguments.size}
    net.save_pretrained(TARGET, half=True)
    (TARGET / "README.md").write_text(card(arguments.trainings, arguments.metrics), encoding="utf-8")
    if arguments.metrics:
        README.write_text(in_readme(summary(arguments.metrics)), encoding="utf-8")
    RECORD.write_text(record(arguments.trainings), encoding="utf-8")
    print(f"{TARGET}: {(TARGET / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

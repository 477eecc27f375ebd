"""Make the network that comes with the package of finished trainings: ship_network.py TRAINING ...

The network is that of the last step of the last training (of the running mean of its weights), written in half
precision into ``pconv_ext/inpainting/networks/pconv-photos``. The command lines, settings and histories of all
trainings, in their order, go into ``benchmarks/results/pconv-photos.json``, and the pictures that they saw, with
authors and licences, into the model card. What `pconv-ext evaluate --against` measured is added to the card by
``--metrics SIZE FOLDER``, once for each size; measure the shipped file, not the training's.
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
from pconv_ext.inpainting.pretrained import SHIPPED  # noqa: E402
from pconv_ext.inpainting.training.run_folder import RunFolder  # noqa: E402

TARGET = ROOT / "pconv_ext" / "inpainting" / "networks" / SHIPPED
RECORD = ROOT / "benchmarks" / "results" / f"{SHIPPED}.json"
PICTURES = ROOT / "tools" / "pconv_photos.csv"
_PATHS = ("data", "val", "start", "vgg16")  # of one machine

_HEAD = """---
library_name: pconv_ext
license: bsd-3-clause
pipeline_tag: image-to-image
tags:
- inpainting
- partial-convolution
---

# pconv-photos

Fills holes of photographs: what `pconv_ext.Inpainter()` and `pconv-ext inpaint` take by default. A small network
({parameters:.1f} million parameters, {megabytes:.1f} MB) that a CPU trained in some hours on {pictures} photographs; it continues
colours, edges and gradients into holes, and does not invent objects. Use it on scratches, wires, dates, stains, and
on objects before a calm background. Sizes near 128x128 and 256x256 are what it has seen: scale a larger picture down,
or its hole will be smoother than what surrounds it.

`InpaintingNet({arguments})`: the network corrects a smooth filling of the holes.

## Training

`python tools/training_pictures.py` makes its pictures, and `pconv-ext train` with the settings in
`benchmarks/results/pconv-photos.json` trains it, one run after another: {steps}. On one thread and processor of a kind
the result is the same to the last bit.
"""

_CREDITS = """
## Photographs

Trained on these {pictures}, under the licences that the packages they come from state for them. The network holds no
picture; thanks to all who gave theirs away.

| file | author | licence | source |
|---|---|---|---|
"""


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
            if "size" in phase
        )
        for state in states
    ]
    text = _HEAD.format(
        parameters=sum(value.numel() for value in net.parameters()) / 1e6,
        megabytes=(TARGET / "model.safetensors").stat().st_size / 1e6,
        pictures=len(pictures),
        arguments=", ".join(f"{name}={value}" for name, value in net.config.items()),
        steps="; ".join(steps),
    )
    for size, folder in metrics:
        table = Path(folder, "metrics.md").read_text(encoding="utf-8")
        text += f"\n## Measured at {size}x{size}, on photographs it was not trained on\n\n{table}"
    rows = ["| " + " | ".join(row.values()).replace("\n", " ") + " |" for row in pictures]
    return text + _CREDITS.format(pictures=len(pictures)) + "\n".join(rows) + "\n"


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
    parser.add_argument("--metrics", nargs=2, action="append", default=[], metavar=("SIZE", "FOLDER"))
    arguments = parser.parse_args()
    TARGET.mkdir(parents=True, exist_ok=True)
    net = load_net(arguments.trainings[-1] / LAST)
    net.save_pretrained(TARGET, half=True)
    (TARGET / "README.md").write_text(card(arguments.trainings, arguments.metrics), encoding="utf-8")
    RECORD.write_text(record(arguments.trainings), encoding="utf-8")
    print(f"{TARGET}: {(TARGET / 'model.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

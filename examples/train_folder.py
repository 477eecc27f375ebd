"""Train a small network on a folder of photographs, and fill a hole of one of them with it.

    python examples/train_folder.py PHOTOS OUTPUT

Every tenth photograph is left out of the training and judges it. Started again, it goes on where it was.
Needs `pip install '.[train]'`.
"""

import argparse
from pathlib import Path

from PIL import Image

from pconv_ext import Inpainter, masks
from pconv_ext.training import train

SETTINGS = {
    "size": 64,
    "width": 16,
    "depth": 5,
    "msfef_stages": 2,
    "kernel_sizes": (3, 5),
    "batch_size": 8,
    "lr": 0.001,
    "holes": "mixed",
    "residual": True,  # corrects a smooth filling, which a short training does not have to find out first
    "weights": {"perceptual": 0, "style": 0},  # the losses that need a VGG-16
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small network on a folder of photographs.")
    parser.add_argument("photos", type=Path, help="folder, searched recursively")
    parser.add_argument("output", type=Path, help="folder of the training")
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()

    settings = SETTINGS | {"data": str(arguments.photos), "epochs": arguments.epochs}
    if not train(settings, arguments.output, resume=True):
        return  # interrupted, with a checkpoint

    size = SETTINGS["size"]
    extensions = (".jpg", ".jpeg", ".png")
    first = min(path for path in arguments.photos.rglob("*") if path.suffix.lower() in extensions)
    photo = Image.open(first).convert("RGB").resize((size, size))
    mask = masks.irregular(size, size, 0.1, 0.2, seed=0, index=0)
    filled = Inpainter(arguments.output)(photo, mask)
    filled.save(arguments.output / "filled.png")
    print(f"{first.name} with a hole filled: {arguments.output / 'filled.png'}")


if __name__ == "__main__":
    main()

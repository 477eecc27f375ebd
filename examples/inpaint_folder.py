"""Fill the holes of every picture in a folder.

    python examples/inpaint_folder.py PICTURES MASKS OUTPUT

A mask has the name of its picture, with any extension, or with "_mask" behind it; dark is a hole. Needs
`pip install '.[inpaint]'`.
"""

import argparse
from pathlib import Path

from pconv_ext import Inpainter
from pconv_ext.batch import inpaint_files
from pconv_ext.inpainter import FillOptions


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the holes of every picture in a folder.")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("masks", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--network", default="pconv-photos", help="folder of a training, or a .safetensors")
    arguments = parser.parse_args()

    inpainter = Inpainter(arguments.network)
    options = FillOptions(dilate=1)  # a pixel more, for what shines through at the edge of a mask
    done = inpaint_files(inpainter, arguments.pictures, arguments.masks, arguments.output, options)
    print(f"{len(done.written)} filled, {len(done.there)} there before, {len(done.left_out)} left out")


if __name__ == "__main__":
    main()

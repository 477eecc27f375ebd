"""Make `import torchvision` possible where its binary is for a torch with CUDA and the torch here has none.

The package registry has the former alone. Data sets and models do not use the operators; only the import asks
for their schemas.
"""

import importlib

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library = None


def make_importable():
    global _library
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            _library.define(schema)
        importlib.import_module("torchvision")

"""Networks by name: the one that comes with the package, a folder, or a repository of the Hugging Face hub.

A folder or repository has ``config.json``, the arguments of `pconv_ext.InpaintingNet`,
``model.safetensors`` and a ``README.md`` with metadata, as the hub has it.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ._files import write_atomically
from .checkpoint import MODEL, CheckpointError, load_net, load_training, save_net
from .model import InpaintingNet

#: The name of the network that comes with the package.
SHIPPED = "pconv-photos"

_CONFIG, _CARD = "config.json", "README.md"
_SHIPPED = Path(__file__).parent / "networks" / SHIPPED
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

_TEXT = """---
library_name: pconv_ext
pipeline_tag: image-to-image
tags:
- inpainting
- partial-convolution
---

An inpainting network of partial convolutions for [pconv_ext](https://pypi.org/project/pconv_ext):

```python
from pconv_ext import Inpainter, InpaintingNet

inpainter = Inpainter(InpaintingNet.from_pretrained("{name}"))
filled = inpainter(picture, mask)
```
"""


def load(name: str | os.PathLike[str], revision: str | None = None, backend: str = "auto") -> InpaintingNet:
    """See `InpaintingNet.from_pretrained`."""
    folder = find(name, revision)
    net = load_net(folder / MODEL, backend)
    file = folder / _CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
    if {key: config.get(key) for key in net.config} != net.config:
        raise CheckpointError(f"{file} is of another network than {folder / MODEL}")
    return net


def find(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder of a network; files of a repository are downloaded into the hub's cache.

    Raises:
        FileNotFoundError: no such network or folder, a folder without a network.
        ImportError: a repository is named and huggingface_hub is missing.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / MODEL).is_file():
            raise FileNotFoundError(f"from_pretrained: the folder {folder} holds no {MODEL}")
        return folder
    if name == SHIPPED:
        return _SHIPPED
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"from_pretrained: name must be {SHIPPED!r}, a folder, or a repository such as 'owner/name', got "
            f"{os.fspath(name)!r}"
        )
    download = _hub().hf_hub_download
    files = [Path(download(name, file, revision=revision)) for file in (_CONFIG, MODEL)]
    return files[1].parent


def save(net: InpaintingNet, folder: str | os.PathLike[str], half: bool, name: str = "") -> None:
    """See `InpaintingNet.save_pretrained`."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    save_net(net, target / MODEL, half=half)
    write_atomically(target / _CONFIG, (json.dumps(net.config, indent=2) + "\n").encode())
    if not (target / _CARD).exists():
        write_atomically(target / _CARD, _TEXT.format(name=name or target).encode())


def push(net: InpaintingNet, repository: str, half: bool, private: bool, revision: str | None) -> str:
    """See `InpaintingNet.push_to_hub`."""
    hub = _hub().HfApi()
    hub.create_repo(repository, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(net, folder, half, repository)
        commit: Any = hub.upload_folder(repo_id=repository, folder_path=folder, revision=revision)
    return str(commit)


def description(name: str | os.PathLike[str]) -> dict[str, Any]:
    """What the file of a network tells of its training."""
    return load_training(find(name) / MODEL)


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            "a repository of the Hugging Face hub needs huggingface_hub: pip install huggingface_hub"
        ) from error

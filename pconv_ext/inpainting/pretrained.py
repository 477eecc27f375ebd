"""Networks by name: the one that comes with the package, a folder, or a repository of the hub.

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
from typing import TYPE_CHECKING, Any

from torch import nn

from ._files import write_atomically
from ._networks import MODEL, SHIPPED, SHIPPED_FOLDER, CheckpointError, load, write

if TYPE_CHECKING:
    from typing_extensions import Self

_CONFIG, _CARD = "config.json", "README.md"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

_ADDED = {"channels": 3, "ranges": None}  # to the arguments, after networks were published
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


class Pretrained(nn.Module):
    """What a network has to come from and go to folders and the hub; it has a `config`."""

    config: dict[str, Any]

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, backend: str = "auto"
    ) -> Self:
        """Return a trained network, in evaluation mode on the CPU.

        Args:
            name: "pconv-photos", which comes with the package; a folder of `save_pretrained`; or a repository
                of the Hugging Face hub, "owner/name".
            revision: of the repository.
            backend: of the partial convolutions.

        Raises:
            FileNotFoundError: no such name, folder or file.
            CheckpointError: a ValueError; a foreign or damaged file.
            ImportError: safetensors is missing, or for a repository huggingface_hub.
        """
        folder = _find(name, revision)
        net = load(cls, folder / MODEL, backend)
        file = folder / _CONFIG
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
        if not isinstance(config, dict) or _with_added(config, net) != net.config:
            raise CheckpointError(f"{file} is of another network than {folder / MODEL}")
        return net

    def save_pretrained(self, folder: str | os.PathLike[str], *, half: bool = False) -> None:
        """Write ``config.json``, ``model.safetensors`` and, where there is none, ``README.md`` with metadata.

        Args:
            folder: made if it is missing.
            half: kernels in float16, see `pconv_ext.checkpoint.save_net`.

        Raises:
            OSError: a file cannot be written.
            ValueError: a kernel has a value that float16 does not.
        """
        _save(self, folder, half)

    def push_to_hub(
        self, repository: str, *, half: bool = False, private: bool = False, revision: str | None = None
    ) -> str:
        """Write what `save_pretrained` does into a repository of the Hugging Face hub.

        Args:
            repository: "owner/name", made if it is missing.
            half: as for `save_pretrained`.
            private: whether a repository that is made is.
            revision: the branch.

        Returns:
            The address of the commit.

        Raises:
            ImportError: huggingface_hub is missing; and what that raises.
        """
        hub = _hub().HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            _save(self, folder, half, repository)
            return str(hub.upload_folder(repo_id=repository, folder_path=folder, revision=revision))


def _find(name: str | os.PathLike[str], revision: str | None = None) -> Path:
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
        return SHIPPED_FOLDER
    if not isinstance(name, str) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(
            f"from_pretrained: name must be {SHIPPED!r}, a folder, or a repository such as 'owner/name', got "
            f"{os.fspath(name)!r}"
        )
    download = _hub().hf_hub_download
    files = [Path(download(name, file, revision=revision)) for file in (_CONFIG, MODEL)]
    return files[1].parent


def _with_added(config: dict[str, Any], net: Pretrained) -> dict[str, Any]:
    """What a ``config.json`` says of the arguments of a network, in files of before some of them too."""
    return {name: config.get(name, _ADDED.get(name)) for name in net.config}


def _save(net: Any, folder: str | os.PathLike[str], half: bool, name: str = "") -> None:
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    write(net, target / MODEL, {}, half)
    write_atomically(target / _CONFIG, (json.dumps(net.config, indent=2) + "\n").encode())
    if not (target / _CARD).exists():
        write_atomically(target / _CARD, _TEXT.format(name=name or target).encode())


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            "a repository of the Hugging Face hub needs huggingface_hub: pip install huggingface_hub"
        ) from error

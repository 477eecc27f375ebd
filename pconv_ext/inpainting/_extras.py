"""Optional dependencies, imported when they are first used: `import pconv_ext` needs none of them."""

from __future__ import annotations

import importlib
from typing import Any

INSTALL = "pip install 'pconv_ext[train]'"

#: Packages that are imported by another name.
_PACKAGES = {
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
    "pillow_heif": "pillow-heif",
    "skimage": "scikit-image",
}


def require(user: str, module: str, extra: str = "train") -> Any:
    """Import `module` of the optional dependencies `extra` and return it.

    Raises:
        ImportError: it is missing or does not fit this environment; names `user`, what needs it, and the
            command that installs it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch: RuntimeError
        top = module.partition(".")[0]
        install = INSTALL.replace("train", extra)
        raise ImportError(
            f"{user} needs {_PACKAGES.get(top, top)}: {install} (importing {module} failed: {error})"
        ) from error

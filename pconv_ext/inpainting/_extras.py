"""Optional dependencies, imported when they are first used: `import pconv_ext` needs none of them."""

from __future__ import annotations

import importlib
from typing import Any

INSTALL = "pip install 'pconv_ext[train]'"


def require(user: str, module: str) -> Any:
    """Import `module` and return it.

    Raises:
        ImportError: it is missing or does not fit this environment; names `user`, what needs it, and the
            command that installs it.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # torchvision built for another torch: RuntimeError
        package = module.partition(".")[0].replace("PIL", "Pillow")
        raise ImportError(
            f"{user} needs {package}: {INSTALL} (importing {module} failed: {error})"
        ) from error

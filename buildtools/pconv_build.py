"""In-tree build backend: setuptools', plus torch as a build requirement where none is installed.

pip builds in an isolated environment that does not see the packages of the environment it installs into.
Listing torch under ``[build-system] requires`` would download it (several GB) for every install, though the
binary is the same whichever torch >= 2.11 it was compiled against. So torch is required only where the target
environment has none.
"""

import importlib.util
import re
import site
import sys
import sysconfig
from pathlib import Path

from setuptools import build_meta as _setuptools
from setuptools.build_meta import *  # noqa: F403  (a backend's hooks are its module's functions)

MIN_TORCH = (2, 11)
TORCH_REQUIREMENT = "torch>=" + ".".join(map(str, MIN_TORCH))


def find_torch() -> str | None:
    """Folder with a torch >= 2.11: the importable one's, else one of the environment being installed into."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if sys.prefix == sys.base_prefix:  # a virtual environment does not see the user's folder
        folders.append(site.getusersitepackages())
    spec = importlib.util.find_spec("torch")
    if spec and spec.origin:
        folders.insert(0, str(Path(spec.origin).parents[1]))
    for folder in folders:
        version_file = Path(folder, "torch", "version.py")
        if version_file.is_file():
            version = re.search(r"__version__ = ['\"](\d+)\.(\d+)", version_file.read_text())
            if version and tuple(map(int, version.groups())) >= MIN_TORCH:
                return folder
    return None


def _torch_if_missing() -> list[str]:
    return [] if find_torch() else [TORCH_REQUIREMENT]


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return _setuptools.get_requires_for_build_wheel(config_settings) + _torch_if_missing()


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return _setuptools.get_requires_for_build_editable(config_settings) + _torch_if_missing()

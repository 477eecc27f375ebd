"""What a build of ``pconv_ext`` needs of the machine."""

import os
import shlex
import shutil
import sysconfig
from pathlib import Path


def missing(torch_folder: str | None, torch_requirement: str) -> str:
    """What a build does not find, and where to get it; "" if all is there."""
    compiler, headers = os.environ.get("CXX", "c++"), sysconfig.get_path("include")
    if not shutil.which((shlex.split(compiler) or [""])[0]):
        return f"no C++ compiler {compiler!r}: install g++ (Debian, Ubuntu: apt install g++), or set CXX"
    if not Path(headers, "Python.h").is_file():
        return f"no Python.h in {headers}: install Python's headers (Debian, Ubuntu: apt install python3-dev)"
    if torch_folder is None:
        return (
            f"no {torch_requirement} in this environment, which it is compiled against: install it first, or "
            "leave out --no-build-isolation"
        )
    return ""

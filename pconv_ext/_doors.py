"""Documented modules of `pconv_ext` whose home is `pconv_ext.inpainting`: two names of one module.

``pconv_ext/masks.py`` is such a door: importing `pconv_ext.masks` imports `pconv_ext.inpainting.masks`, and
gives it the shorter name. The ``import *`` in a door tells type checkers what they find.
"""

import sys


def open_door(name: str) -> None:
    """Call the module of this name in `pconv_ext.inpainting`, and those in it (it loads all), by `name` too.

    Called by a module of that name as its last act: what `import` then finds is the other.
    """
    package, _, last = name.rpartition(".")
    home = f"{package}.inpainting.{last}"
    for found in [*sys.modules]:
        if found == home or found.startswith(f"{home}."):
            sys.modules[name + found.removeprefix(home)] = sys.modules[found]

"""Where `pconv_ext.set_autotune` leaves what measures a call before "auto" chooses for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ops.call import Call

#: Of the checked arguments of an operator, and the `Call` that they are; None: nothing is measured.
measure: Callable[[tuple[Any, ...], Call], None] | None = None

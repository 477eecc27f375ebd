"""What every backend tells about itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..ops.call import Call


class Backend(NamedTuple):
    """One implementation of the operators."""

    device_type: str | None  # of the tensors it takes; None = any
    operators: Any  # the torch.ops namespace, None for the reference
    reason: str  # why it is not available, "" if it is or only a device can tell
    refusal: Callable[[Call], str] = lambda call: ""  # why it cannot compute a call, "" if it can
    device_reason: Callable[[], str] | None = None  # as reason, with a look at the devices; None: the same

    def unavailable(self) -> str:
        """Why it cannot be used here, in one line; "" if it can."""
        return self.reason if self.device_reason is None else self.device_reason()

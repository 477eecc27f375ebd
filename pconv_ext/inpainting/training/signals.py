"""The signals that end a training: after a checkpoint, and not in the processes that load pictures."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ignore_signals(worker: int) -> None:
    """Ctrl-C, and what ends a job, reach all processes of a group; the main one decides."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_flag(*, loud: bool) -> Iterator[threading.Event]:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets; a second one ends the process as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    # What is ignored stays so, as SIGHUP is under nohup.
    handlers = {n: signal.getsignal(n) for n in _STOPPING}
    before: dict[int, Any] = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}

    def handle(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])
        if loud:  # not by print, which a signal may have interrupted
            os.write(2, b"stopping after this step; the same again ends without a checkpoint\n")

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""What requests pass before anything of them is read: from where, how large, how many, how slow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True)
class Limits:
    """Of a server.

    Attributes:
        body: bytes of a request.
        pixels: of a picture.
        waiting: requests with a picture at a time, the one that is filled among them.
        pause: seconds between two parts of a request or an answer.
        upload: seconds for a whole request.
    """

    body: int = 64 << 20
    pixels: int = 50_000_000
    waiting: int = 4
    pause: float = 10.0
    upload: float = 120.0


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Gate:
    """ASGI middleware. POST requests from other origins, too large, too slow or too many get no further.

    A request is refused with its body unread: 403 from another origin, 411 or 413 by the size it declares,
    413 as soon as it is larger, 408 where it stalls, 503 with Retry-After where `Limits.waiting` others are
    there. Its place is free again as its answer begins, however slowly that is read.
    """

    def __init__(self, app: App, limits: Limits) -> None:
        self.app, self.limits = app, limits
        self.waiting = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, self.limits.pause)
        try:
            with contextlib.ExitStack() as place:
                if scope["method"] == "POST":
                    self._check(scope)
                    place.enter_context(self._place())
                    answer.begins = place.close
                    receive = _Body(receive, self.limits, answer).receive
                await self.app(scope, receive, answer.send)
        except _RefusedError as error:
            if not answer.begun:
                await answer.refuse(error.status, str(error))

    def _check(self, scope: Message) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin, host = headers.get(b"origin"), headers.get(b"host", "")
        other = origin is not None and origin != f"{scope.get('scheme', 'http')}://{host}"
        if other or headers.get(b"sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise _RefusedError(403, "requests from other origins are not answered")
        size = headers.get(b"content-length", "0")
        if not size.isdecimal() or int(size) > self.limits.body:
            raise _RefusedError(413, f"the request must have at most {self.limits.body} bytes, it has {size}")

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self.waiting >= self.limits.waiting:
            raise _RefusedError(503, f"{self.waiting} pictures are waiting already, try again")
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1


class _Body:
    """The body of a request, counted and timed; what is wrong with it goes before any other answer."""

    def __init__(self, receive: Receive, limits: Limits, answer: _Answer) -> None:
        self.whole, self.limits, self.answer = receive, limits, answer
        self.read, self.complete = 0, False
        self.until = asyncio.get_running_loop().time() + limits.upload

    async def receive(self) -> Message:
        if self.complete:  # what comes now is the end of the connection
            return await self.whole()
        left = self.until - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self.whole(), max(0.0, min(self.limits.pause, left)))
        except asyncio.TimeoutError:
            raise self._refused(408, "the request came too slowly") from None
        self.read += len(message.get("body", b""))
        if self.read > self.limits.body:
            raise self._refused(413, f"the request must have at most {self.limits.body} bytes, it has more")
        self.complete = not message.get("more_body", False)
        return message

    def _refused(self, status: int, detail: str) -> _RefusedError:
        self.answer.refused = _RefusedError(status, detail)
        return self.answer.refused


class _Answer:
    """The answer to a request, with the headers that all have."""

    def __init__(self, send: Send, pause: float) -> None:
        self.whole, self.pause = send, pause
        self.begun = False
        self.begins: Callable[[], None] = lambda: None
        self.refused: _RefusedError | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self.refused is not None:
                raise self.refused
            self.begun = True
            self.begins()
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        try:
            await asyncio.wait_for(self.whole(message), self.pause)
        except asyncio.TimeoutError:
            raise _RefusedError(408, "the answer is not read") from None

    async def refuse(self, status: int, detail: str) -> None:
        content = json.dumps({"detail": detail}).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            "connection": "close",
            **({"retry-after": "5"} if status == 503 else {}),
        }
        self.refused = None
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": content})

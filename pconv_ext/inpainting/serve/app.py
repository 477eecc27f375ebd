"""The application: the page, ``POST /inpaint`` and ``GET /health``."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import ImageOps
from starlette.formparsers import MultiPartParser
from starlette.middleware.trustedhost import TrustedHostMiddleware

from ... import _machine
from .. import _picture_files, _pictures
from ..inpainter import FillOptions, Inpainter
from .gate import Gate, Limits

_PAGE = Path(__file__).parent / "page"
_PNG = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The form cannot be read."},
    403: {"description": "The request is from another origin."},
    408: {"description": "The request came too slowly."},
    413: {"description": "The request or a picture is too large."},
    415: {"description": "A picture that cannot be read, or not be filled without loss."},
    422: {"description": "The mask has no holes or another size than the picture, or a field is missing."},
    503: {"description": "Too many pictures are waiting; Retry-After says when to come again."},
}


def make_app(inpainter: Inpainter, hosts: list[str], limits: Limits = Limits()) -> FastAPI:  # noqa: B008
    """The application.

    Args:
        inpainter: fills the holes, one picture at a time.
        hosts: names by which the server may be called; others get 400.
        limits: what is refused.
    """
    # Or the parts of a request that are larger than 1 MB would be written to the disk.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, limits.body)
    version = _machine.version("pconv_ext")
    app = FastAPI(title="pconv_ext", version=version, docs_url=None, redoc_url=None)
    app.add_middleware(Gate, limits=limits)  # type: ignore[arg-type]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    worker = ThreadPoolExecutor(1)
    filling: dict[str, _Progress] = {}  # by the names that requests have given themselves

    @app.post("/inpaint", response_class=Response, responses={200: _PNG, **_ERRORS})
    async def inpaint(
        image: Annotated[UploadFile, File(description="A picture: JPEG, PNG, WebP, TIFF, ...")],
        mask: Annotated[UploadFile, File(description="Its mask: dark or transparent = hole, light = valid.")],
        name: Annotated[str, Form(max_length=64, description="By which to ask for its progress.")] = "",
    ) -> Response:
        """Fill the holes of a picture: a PNG of its size, upright, with its colour profile."""
        contents = await image.read(), await mask.read()
        progress = filling[name] = _Progress()
        try:
            loop = asyncio.get_running_loop()
            filled = await loop.run_in_executor(worker, _fill, *contents, progress.tell)
        finally:
            if filling.get(name) is progress:
                del filling[name]
        return Response(filled, media_type="image/png")

    def _fill(image: bytes, mask: bytes, tell: Callable[[int, int], None]) -> bytes:
        original = ImageOps.exif_transpose(_read(image, "the picture", limits, _picture_files.check_whole))
        grey = _lightness(_read(mask, "the mask", limits))
        if grey.size != original.size:
            sizes = ["x".join(map(str, one.size)) for one in (grey, original)]
            raise HTTPException(422, f"the mask is {sizes[0]}, the picture {sizes[1]}")
        if cast("int", grey.getextrema()[0]) > FillOptions.threshold:
            raise HTTPException(422, "the mask has no holes, there is nothing to fill")
        try:
            filled = inpainter.fill("inpaint", original, grey, FillOptions(), tell)
            return _picture_files.encode(filled, original, "PNG", "the picture", compress_level=1)
        except ValueError as error:
            raise HTTPException(415, str(error)) from error

    @app.get("/progress/{name}")
    async def progress(name: str) -> dict[str, int]:
        """How many holes, done and all, the picture has that was sent by this name; 0 and 0 of none."""
        return vars(filling.get(name, _Progress()))

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the server is there."""
        return {"status": "ok", "version": version}

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/page", StaticFiles(directory=_PAGE))
    return app


@dataclass
class _Progress:
    """How many holes of a picture are filled, and of how many."""

    done: int = 0
    total: int = 0

    def tell(self, done: int, total: int) -> None:
        self.done, self.total = done, total


def _read(content: bytes, name: str, limits: Limits, check: Any = lambda picture: None) -> Any:
    """The picture that bytes hold, unless it has too many pixels, of which then none is decoded."""

    def check_size(picture: Any) -> None:
        if picture.width * picture.height > limits.pixels:
            raise _TooLargeError(
                f"{name} must have at most {limits.pixels} pixels, it is {picture.width}x{picture.height}"
            )
        check(picture)

    try:
        return _pictures.decode(lambda: content, name, check_size)
    except ImportError as error:
        raise HTTPException(415, str(error)) from error
    except _pictures.UnreadablePictureError as error:
        if isinstance(error.__cause__, _TooLargeError):
            raise HTTPException(413, str(error.__cause__)) from error
        raise HTTPException(415, str(error)) from error


def _lightness(mask: Any) -> Any:
    try:
        return _pictures.lightness(mask)
    except ValueError as error:
        raise HTTPException(415, f"the mask: {error}") from error


class _TooLargeError(ValueError):
    pass

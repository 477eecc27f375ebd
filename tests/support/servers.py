"""`pconv-ext serve` in a thread of the tests."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from pconv_ext.inpainting.serve.app import make_app
from pconv_ext.inpainting.serve.gate import Limits


@contextmanager
def served(inpainter, **limits):
    """The address of a server in a thread of its own."""
    app = make_app(inpainter, ["127.0.0.1"], Limits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_keep_alive=1))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = server.force_exit = True
        thread.join(30)
        listening.close()

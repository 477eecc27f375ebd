"""`pconv-ext serve` in a thread of the tests, and requests to it."""

import http.client
import io
import json
import socket
import threading
from contextlib import contextmanager

import uvicorn

from pconv_ext.inpainting.serve.app import make_app
from pconv_ext.inpainting.serve.gate import Limits

BOUNDARY = "part"


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


def content_of(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def form(**fields):
    """A body with files of bytes and fields of text."""
    parts = []
    for name, content in fields.items():
        told = f'Content-Disposition: form-data; name="{name}"'
        if isinstance(content, str):
            content = content.encode()
        else:
            told += f'; filename="{name}.png"'
        parts.append(f"--{BOUNDARY}\r\n{told}\r\n\r\n".encode() + content + b"\r\n")
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def head(length):
    """How a request begins that is sent by hand."""
    lines = ("POST /inpaint HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {length}")
    return "\r\n".join((*lines, f"Content-Type: multipart/form-data; boundary={BOUNDARY}", "", "")).encode()


def ask(address, method="POST", path="/inpaint", body=b"", chunked=False, **headers):
    """The status, headers and content of an answer."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if method == "POST":
        headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"} | headers
    try:
        pieces = (body[i : i + 4096] for i in range(0, len(body), 4096)) if chunked else body
        connection.request(method, path, pieces, headers, encode_chunked=chunked)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has answered already
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def detail(answer):
    return json.loads(answer[2])["detail"]

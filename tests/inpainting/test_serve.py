"""`pconv-ext serve` over real connections: what it fills, and what it refuses, before or while it is read."""

import io
import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.inpainters import PIXELS, VALID, expected, make_net
from support.servers import BOUNDARY, ask, content_of, detail, form, head, served

import pconv_ext


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def inpainter(net):
    return pconv_ext.Inpainter(net, device="cpu")


@pytest.fixture(scope="module")
def server(inpainter):
    with served(inpainter, body=200_000, pixels=5000, pause=1, upload=3, waiting=2) as address:
        yield address


PICTURE, MASK = content_of(Image.fromarray(PIXELS)), content_of(Image.fromarray(VALID))
TOO_BRIGHT = content_of(Image.fromarray(np.where(VALID, 255, 0).astype(np.float32)), "TIFF")


class TestFills:
    @pytest.mark.parametrize("chunked", [False, True])
    def test_a_picture(self, server, net, chunked):
        headers = {"transfer_encoding": "chunked"} if chunked else {}
        status, headers, content = ask(
            server, body=form(image=PICTURE, mask=MASK), chunked=chunked, **headers
        )
        assert (status, headers["content-type"]) == (200, "image/png")
        assert_array_equal(np.array(Image.open(io.BytesIO(content))), expected(net, PIXELS))

    def test_upright_and_with_its_profile(self, server, net):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "maker"
        turned = content_of(Image.fromarray(np.rot90(PIXELS)), exif=exif, icc_profile=b"profile")
        status, _, content = ask(server, body=form(image=turned, mask=MASK))
        picture = Image.open(io.BytesIO(content))
        assert status == 200
        assert picture.info["icc_profile"] == b"profile"
        assert dict(picture.getexif()) == {0x010F: "maker"}
        assert_array_equal(np.array(picture), expected(net, PIXELS))

    def test_one_bad_picture_does_not_end_it(self, server):
        for _ in range(3):
            assert ask(server, body=form(image=PICTURE[:200], mask=MASK))[0] == 415
            assert ask(server, body=form(image=PICTURE, mask=MASK))[0] == 200

    def test_progress(self, net):
        """Of seven holes, one after another, asked for while they are filled."""
        picture, mask = np.full((300, 900, 3), 99, np.uint8), np.full((300, 900), 255, np.uint8)
        mask[100:110, 100::110] = 0
        files = {"image": content_of(Image.fromarray(picture)), "mask": content_of(Image.fromarray(mask))}
        body = form(**files, name="me")
        slow, seen = pconv_ext.Inpainter(net, device="cpu"), set()
        slow.net.config["size"] = 32
        reach = slow.net.reach
        slow.net.reach = lambda *args: (time.sleep(0.05), reach(*args))[1]
        with served(slow) as address, ThreadPoolExecutor(1) as client:
            answer = client.submit(ask, address, body=body)
            while not answer.done():
                progress = json.loads(ask(address, "GET", "/progress/me")[2])
                assert progress["done"] <= progress["total"]
                seen.add((progress["done"], progress["total"]))
            assert answer.result()[0] == 200
            assert len(seen & {(done, 8) for done in range(1, 8)}) >= 3
            assert json.loads(ask(address, "GET", "/progress/me")[2]) == {"done": 0, "total": 0}

    def test_health_and_description(self, server):
        assert json.loads(ask(server, "GET", "/health")[2])["status"] == "ok"
        described = json.loads(ask(server, "GET", "/openapi.json")[2])
        assert {*described["paths"]} == {"/inpaint", "/progress/{name}", "/health"}
        answers = described["paths"]["/inpaint"]["post"]["responses"]
        assert {"200", "403", "408", "413", "415", "422", "503"} <= answers.keys()


class TestRefuses:
    @pytest.mark.parametrize(
        ("fields", "status", "expected"),
        [
            ({"image": PICTURE, "mask": content_of(Image.new("L", (30, 21), 255))}, 422, "mask has no holes"),
            (
                {"image": PICTURE, "mask": content_of(Image.new("L", (30, 20)))},
                422,
                "mask is 30x20, the picture",
            ),
            (
                {"image": b"%!PS-Adobe", "mask": MASK},
                415,
                "cannot read picture the picture: it is empty or in",
            ),
            ({"image": PICTURE, "mask": b""}, 415, "cannot read picture the mask"),
            ({"image": PICTURE, "mask": TOO_BRIGHT}, 415, "the mask: the values of a picture of mode F must"),
            ({"image": content_of(Image.new("CMYK", (30, 21)), "TIFF"), "mask": MASK}, 415, "no place for a"),
            (
                {"image": content_of(Image.new("1", (300, 300))), "mask": MASK},
                413,
                "at most 5000 pixels, it is 300x300",
            ),
            (
                {"image": PICTURE, "mask": content_of(Image.new("1", (9999, 9999)))},
                413,
                "at most 5000 pixels",
            ),
        ],
    )
    def test_pictures(self, server, fields, status, expected):
        answer = ask(server, body=form(**fields))
        assert answer[0] == status
        assert expected in detail(answer)

    def test_a_missing_field(self, server):
        answer = ask(server, body=form(image=PICTURE))
        assert answer[0] == 422
        assert detail(answer)[0]["loc"] == ["body", "mask"]

    def test_what_declares_too_much(self, server):
        """Without waiting for the body, which never comes."""
        with socket.create_connection(server, 10) as connection:
            connection.sendall(head(200_001))
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")

    def test_what_turns_out_to_be_too_much(self, server):
        body = form(image=PICTURE, mask=bytes(300_000))
        answer = ask(server, body=body, chunked=True, transfer_encoding="chunked")
        assert answer[0] == 413
        assert "at most 200000 bytes, it has more" in detail(answer)

    def test_what_stalls_or_drips(self, server):
        begun = form(image=b"")[: -len(BOUNDARY) - 8]  # what follows is of the picture
        for drips in (False, True):
            with socket.create_connection(server, 20) as connection:
                connection.sendall(head(9999) + begun)
                began = time.monotonic()
                connection.settimeout(0.3)
                answer = b""
                for _ in range(30):
                    try:
                        answer = connection.recv(100)
                        break
                    except TimeoutError:
                        if drips:
                            connection.sendall(b"x")
                assert answer.startswith(b"HTTP/1.1 408 ")
                assert time.monotonic() - began < 6

    def test_too_many_at_a_time(self, server):
        slow = [socket.create_connection(server, 10) for _ in range(2)]
        for one in slow:
            one.sendall(head(9999))
        time.sleep(0.3)
        answer = ask(server, body=form(image=PICTURE, mask=MASK))
        assert answer[0] == 503
        assert answer[1]["retry-after"] == "5"
        assert ask(server, "GET", "/health")[0] == 200
        for one in slow:
            one.close()
        time.sleep(0.3)
        assert ask(server, body=form(image=PICTURE, mask=MASK))[0] == 200  # their places are free again

    def test_an_answer_that_is_not_read_holds_no_place(self, inpainter):
        large = np.random.default_rng().integers(0, 256, (900, 900, 3), np.uint8)
        mask = np.full((900, 900), 255, np.uint8)
        mask[10:20, 10:20] = 0
        body = form(image=content_of(Image.fromarray(large)), mask=content_of(Image.fromarray(mask)))
        with served(inpainter, waiting=1, pause=3) as address:
            stalled = socket.socket()
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(address)
            stalled.sendall(head(len(body)) + body)
            stalled.recv(10)
            assert ask(address, body=form(image=PICTURE, mask=MASK))[0] == 200
            stalled.close()

    @pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
    def test_other_hosts(self, server, host):
        assert ask(server, "GET", "/", host=host)[0] == 400
        assert ask(server, body=form(image=PICTURE, mask=MASK), host=host)[0] == 400

    def test_other_origins(self, server):
        body = form(image=PICTURE, mask=MASK)
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": "null"},
            {"origin": f"https://127.0.0.1:{server[1]}"},
            {"sec_fetch_site": "cross-site"},
        ):
            answer = ask(server, body=body, **headers)
            assert (answer[0], detail(answer)) == (403, "requests from other origins are not answered")
        assert (
            ask(server, body=body, origin=f"http://127.0.0.1:{server[1]}", sec_fetch_site="same-origin")[0]
            == 200
        )


def test_every_answer_is_closed_to_the_outside(server):
    paths = [
        ("GET", "/"),
        ("GET", "/page/page.js"),
        ("GET", "/nothing"),
        ("POST", "/inpaint"),
        ("GET", "/health"),
    ]
    for method, path in paths:
        _, headers, content = ask(server, method, path)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert b"//" not in content.replace(b"http://www.w3.org", b"") or path == "/page/page.js"
    assert ask(server, "GET", "/docs")[0] == 404


def test_nothing_is_written(inpainter, tmp_path, monkeypatch):
    """Parts over a megabyte would go to the disk, if it were up to the parser of forms."""
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    noise = np.random.default_rng().integers(0, 256, (900, 900, 3), np.uint8)
    mask = Image.fromarray(np.eye(900) == 0)
    body = form(image=content_of(Image.fromarray(noise)), mask=content_of(mask))
    assert len(body) > 2_000_000
    with served(inpainter) as address:
        assert ask(address, body=body)[0] == 200


class TestCommand:
    def test_listens_on_this_machine_alone(self, inpainter, tmp_path):
        pconv_ext.checkpoint.save_net(inpainter.net, tmp_path / "net.safetensors")
        command = [
            sys.executable,
            "-m",
            "pconv_ext",
            "serve",
            "-c",
            "net.safetensors",
            "--device=cpu",
            "--port=0",
        ]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        try:
            address = process.stdout.readline().split()[0]
            port = int(address.rstrip("/").rpartition(":")[2])
            assert address == f"http://127.0.0.1:{port}/"
            assert ask(("127.0.0.1", port), "GET", "/health")[0] == 200
            taken = subprocess.run(
                [*command[:-1], f"--port={port}"], cwd=tmp_path, capture_output=True, text=True, check=False
            )
            assert taken.returncode == 1
            assert f"--port must be one that is free at 127.0.0.1, {port} is not" in taken.stderr
        finally:
            process.terminate()
            process.communicate(timeout=30)
        assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]

    def test_the_package_imports_no_server(self):
        script = (
            "import sys, pconv_ext.inpainting.cli\n"
            "print(*sorted({'fastapi', 'uvicorn', 'starlette'} & {*sys.modules}))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""

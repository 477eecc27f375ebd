"""`pconv-ext serve` with many clients at a time."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.inpainters import make_net
from support.servers import ask, content_of, form

import pconv_ext

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
VALID = np.ones((300, 400), bool)
VALID[30:50, 40:60] = False
BODY = form(image=content_of(Image.fromarray(PIXELS)), mask=content_of(Image.fromarray(VALID)))
GROWTH = 16  # MB; a picture left behind by each of 150 requests would be 50


def until_filled(address):
    """Comes again as it is told; the content."""
    for _ in range(200):
        status, headers, content = ask(address, body=BODY)
        if status != 503:
            assert status == 200
            return content
        assert headers["retry-after"].isdecimal()
        time.sleep(0.05)
    raise AssertionError("it was never filled")


def memory(process):
    """Of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_200_requests_of_8_clients_in_flat_memory(tmp_path):
    pconv_ext.checkpoint.save_net(make_net(), tmp_path / "net.safetensors")
    options = ["-c", "net.safetensors", "--device=cpu", "--port=0"]
    command = [sys.executable, "-m", "pconv_ext", "serve", *options]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        port = int(process.stdout.readline().split()[0].rstrip("/").rpartition(":")[2])
        address, used = ("127.0.0.1", port), []
        with ThreadPoolExecutor(8) as clients:
            expected = until_filled(address)
            for _ in range(4):
                answers = [*clients.map(lambda _: until_filled(address), range(50))]
                assert all(content == expected for content in answers)
                used.append(memory(process.pid))
        assert max(used[1:]) - used[0] < GROWTH, used
    finally:
        process.terminate()
        process.communicate(timeout=30)

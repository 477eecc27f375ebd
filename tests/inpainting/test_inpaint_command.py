"""`inpaint_files` and ``pconv-ext inpaint``; comparisons as in test_inpainter.py."""

import os
import re
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import save_file
from support.files import fail, tree
from support.inpainters import PIXELS, VALID, expected, make_net

import pconv_ext
from pconv_ext import checkpoint
from pconv_ext.batch import Outcome, inpaint_files
from pconv_ext.inpainting.cli import run

Inpainter = partial(pconv_ext.Inpainter, device="cpu")


@pytest.fixture
def net():
    return make_net()


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.fixture
def files(net, tmp_path):
    """A network, a picture, its mask, folders with pairs of the same paths, and bad files."""
    checkpoint.save_net(net, tmp_path / "net.safetensors")
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    Image.fromarray(VALID).save(tmp_path / "mask.png")
    for folder in ("photos/sub", "masks/sub", "twice"):
        (tmp_path / folder).mkdir(parents=True)
    for i, name in enumerate(("x.v1.png", "sub/y.bmp", "z.png")):
        Image.fromarray(np.roll(PIXELS, i, 0)).save(tmp_path / "photos" / name)
        Image.fromarray(np.roll(VALID, i, 0)).save((tmp_path / "masks" / name).with_suffix(".gif"))
    for name in ("twice/t.png", "twice/t.gif", "y.bmp"):
        Image.fromarray(PIXELS).save(tmp_path / name)
    save_file({"weight": torch.ones(3)}, tmp_path / "foreign.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-100])
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    (tmp_path / "text").write_text("neither a picture nor a network")
    return tmp_path


FILE = ("@a.png", "@mask.png", "-c", "@net.safetensors", "-o", "@out.png", "--device", "cpu")


FOLDER = ("@photos", "@masks", "-c", "@net.safetensors", "-o", "@out", "--device", "cpu")


def command(files, *arguments):
    """Exit code of ``pconv-ext inpaint``; an argument that begins with "@" is a path in `files`."""
    paths = [str(files / argument[1:]) if argument[:1] == "@" else argument for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        run(["inpaint", *paths])
    return caught.value.code or 0


def change(arguments, position, value):
    return (*arguments[:position], value, *arguments[position + 1 :])


def test_command_for_a_file(net, files, capsys):
    before, out = tree(files), files / "out.png"
    for options, raw in (((), False), (("--raw",), True)):
        assert command(files, *FILE, *options) == 0
        assert capsys.readouterr() == (f"{out}\n", "")
        assert_array_equal(read(out), expected(net, PIXELS, raw=raw))
    assert tree(files).keys() == before.keys() | {out}
    assert command(files, *FILE, "--invert-mask") == 0
    assert re.fullmatch(r"pconv-ext: warning: .*a.png .*: holes cover 83.5% .*\n", capsys.readouterr().err)
    assert_array_equal(read(out), expected(net, PIXELS, ~VALID))
    assert command(files, *change(FILE, 5, "@out.webp")) == 0
    assert_array_equal(read(files / "out.webp")[VALID], PIXELS[VALID])


@pytest.mark.parametrize("masks", ["masks", "mask.png"])
def test_folders(net, files, masks):
    steps, out = [], files / "out"
    outcome = inpaint_files(
        Inpainter(net), files / "photos", files / masks, out, progress=lambda *step: steps.append(step)
    )
    written = outcome.written
    assert outcome == Outcome(written, [], [])
    assert written == [out / "sub/y.bmp", out / "x.v1.png", out / "z.png"]
    assert {path for path in out.rglob("*") if path.is_file()} == set(written)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for path, i in zip(written, (1, 0, 2), strict=True):
        valid = np.roll(VALID, i, 0) if masks == "masks" else VALID
        assert_array_equal(read(path), expected(net, np.roll(PIXELS, i, 0), valid))


def test_folders_with_unreadable_pictures(files, capsys):
    (files / "cut.png").replace(files / "photos/z.png")
    (files / "masks/x.v1.gif").write_text("no picture")
    assert command(files, *FOLDER) == 3
    out, err = capsys.readouterr()
    assert out == f"{files / 'out/sub/y.bmp'}\n1 written to {files / 'out'}\n"
    first = r"pconv-ext: warning: left out: .*masks/x.v1.gif: .*\n"
    assert re.fullmatch(first + r"pconv-ext: warning: left out: .*photos/z.png: .*\n", err)
    (files / "photos/sub/y.bmp").write_bytes(b"")
    assert command(files, *change(FOLDER, 5, "@none")) == 1
    assert "none of the 3 pictures" in capsys.readouterr().err.splitlines()[-1]
    assert not (files / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (change(FILE, 3, "@no.safetensors"), "there is no checkpoint .*no.safetensors"),
        (change(FILE, 3, "@foreign.safetensors"), "foreign.safetensors is no checkpoint .* its metadata"),
        (change(FILE, 3, "@cut.safetensors"), "cut.safetensors cannot be read, it is damaged"),
        (change(FILE, 3, "@text"), "text cannot be read, it is damaged or no safetensors file"),
        (change(FILE, 7, "gpu"), "device must be one that torch can use here, got 'gpu'"),
        (change(FILE, 0, "@no.png"), "image must be a file or a folder, there is no .*no.png"),
        (change(FILE, 0, "@text"), "cannot read picture .*text: .*none of the formats"),
        (change(FILE, 0, "@cut.png"), "cannot read picture .*cut.png"),
        (change(FILE, 1, "@no.png"), "mask must be a file or a folder, there is no .*no.png"),
        (change(FILE, 1, "@text"), "cannot read picture .*text"),
        (change(FILE, 1, "@masks"), "mask must be a file, .*got the folder"),
        (change(FILE, 5, "@photos"), "output must be a file, .*got the folder"),
        (("@text", *FILE[1:5], "@out.txt"), "output must have the extension .*out.txt"),  # found first
        (change(FILE, 5, "@a.png/out.png"), "the folder of output must be a folder, .*a.png is a file"),
        (change(FILE, 0, ""), "an argument must not be empty"),
        (change(FILE, 1, ""), "an argument must not be empty"),
        (change(FILE, 5, ""), "-o must not be empty"),
        ((*FILE, "--output="), "--output must not be empty"),
        (change(FILE, 3, ""), "-c must not be empty"),
        ((*FILE, "--threshold=256"), r"threshold must be an int in \[0, 256\), got 256"),
        ((*FILE, "--large=tile"), "--large must be one of 'crop', 'resize', 'whole', got 'tile'"),
        (change(FILE, 5, "@a.png"), "output must be apart from the image"),
        (change(FILE, 5, "@photos/../mask.png"), "output must be apart from the image"),
        (change(FOLDER, 0, "@masks/sub"), r"1 of 1 have none: .*y.gif"),
        (change(FOLDER, 1, "@photos/sub"), r"3 of 3 have none: .*photos/sub/y.bmp, .*x.v1.png"),
        (change(FOLDER, 1, "@text"), "cannot read picture .*text"),
        (change(FOLDER, 5, "@a.png"), "output must be a folder, .*a.png is a file"),
        (change(FOLDER, 5, "@photos/out"), "output must be apart from the image"),
        (("@photos/sub", "@y.bmp", *FOLDER[2:5], "@."), "must not replace an image or a mask, .*y.bmp is"),
    ],
)
def test_command_errors(files, capsys, arguments, match):
    before = tree(files)
    assert command(files, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(f"pconv-ext: .*{match}.*\n", err), err  # one line
    assert tree(files) == before


def test_write_errors(files, capsys, monkeypatch):
    before = tree(files)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert command(files, *FILE) == 1
    assert capsys.readouterr().err == f"pconv-ext: cannot write {files / 'out.png'}: disk full\n"
    assert tree(files) == before
    monkeypatch.setattr(os, "access", lambda path, mode: path != files)  # root may write everywhere
    assert command(files, *FOLDER) == 1
    assert capsys.readouterr().err.endswith(f"a folder that can be written, {files} cannot\n")
    assert tree(files) == before


def test_process(net, files):
    call = partial(subprocess.run, cwd=files, capture_output=True, text=True)
    program = (sys.executable, "-m", "pconv_ext", "inpaint")
    helped = call([*program, "--help"])
    text = re.sub(r"[\s│|]+", " ", helped.stdout)
    assert helped.returncode == 0, helped.stderr
    for words in (
        *("white (1) = valid", "black (0) or transparent = hole", "--invert-mask", "--checkpoint"),
        *("Valid pixels are kept", "bit for bit, but that a JPEG is compressed again", "so is an AVIF"),
    ):
        assert words in text
    done = call([*program, *(argument.removeprefix("@") for argument in FILE)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png\n", "")
    assert_array_equal(read(files / "out.png"), expected(net, PIXELS))


@pytest.mark.parametrize("command", ["train", "evaluate", "ablate", "serve"])
def test_an_empty_path_is_not_the_working_folder(tmp_path, monkeypatch, capsys, command):
    """As of a variable that is not set."""
    monkeypatch.chdir(tmp_path)
    for arguments in (["", "-o", "out"], ["-o", ""], ["--masks", "", "-o", "out", "in"]):
        with pytest.raises(SystemExit) as caught:
            run([command, *arguments])
        assert caught.value.code == 1
        err = capsys.readouterr().err
        assert re.fullmatch(rf"pconv-ext: {command}: (an argument|-o|--masks) must not be empty\n", err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", range(3))
def test_an_empty_path_in_python(net, files, monkeypatch, place):
    monkeypatch.chdir(files)
    paths = ["photos", "masks", "out"]
    paths[place] = ""
    with pytest.raises(ValueError, match=r"inpaint: (image|mask|output) must be a path, got an empty one"):
        inpaint_files(Inpainter(net), *paths)


@pytest.mark.parametrize(
    ("name", "encoding"), [("ö.png", "ascii:strict"), ("\udcff.png", "utf-8:strict"), ("→.png", "latin-1")]
)
def test_names_that_an_encoding_lacks(net, files, name, encoding):
    """What is written is no failure, whether or not its name can be printed."""
    program = (sys.executable, "-m", "pconv_ext", "inpaint", *(one.removeprefix("@") for one in FILE))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(change(program, 9, name), cwd=files, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert_array_equal(read(files / name), expected(net, PIXELS))


def test_links(net, files, capsys):
    """What they lead to is written, if it can be."""
    for target, code in (("there.png", 0), ("sub/there.png", 1)):
        (files / "link.png").symlink_to(target)
        assert command(files, *change(FILE, 5, "@link.png")) == code
        assert (files / "link.png").is_symlink()
        assert (files / target).exists() == (code == 0)
        (files / "link.png").unlink()
    err = capsys.readouterr().err
    assert err == f"pconv-ext: cannot write {files / 'sub/there.png'}: No such file or directory\n"


def test_what_files_tell_is_printed_without_its_escapes(files, capsys):
    """Of their names and their contents."""
    weights = {"weight": torch.ones(3)}
    told = '{"format": "\\u001b[31m\\u0007", "net": {}, "training": {}}'
    save_file(weights, files / "\x1b[31m.safetensors", {"pconv_ext": told, "\x1b[31m": "\x1b[31m"})
    (files / "\x1b]0;.png").write_bytes(b"\x1b[31m")
    for arguments in (change(FILE, 3, "@\x1b[31m.safetensors"), change(FILE, 0, "@\x1b]0;.png")):
        assert command(files, *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert all(line.isprintable() for line in err.splitlines())
    assert err.count("\\x1b") >= 2

"""`pconv_ext.Inpainter`, `inpaint_files` and the command, and networks in files.

Comparisons are exact unless they say otherwise: the same network on the same numbers gives the same bits on
the CPU, and valid pixels are selected, not computed.
"""

import os
import re
import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.torch import save_file

import pconv_ext
from pconv_ext import InpaintingNet, checkpoint
from pconv_ext.inpainter import inpaint_files
from pconv_ext.inpainting.cli import run

H, W = 21, 30
VALID = np.ones((H, W), bool)
VALID[4:12, 7:20] = False
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)
GREY = PIXELS[..., [0, 0, 0]]
TWO = torch.zeros(2, 3, H, W)
Inpainter = partial(pconv_ext.Inpainter, device="cpu")


@pytest.fixture
def net():
    """Tiny, with statistics as after a training and an output around the middle of [0, 1]."""
    net = InpaintingNet(width=4, msfef_stages=1, depth=3)
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    net.decoder[-1].conv.bias.data.fill_(0.5)
    return net.eval()


@pytest.fixture
def white(net):
    """Fills holes with white: in a black picture that shows where they were."""
    net.decoder[-1].conv.weight.data.zero_()
    net.decoder[-1].conv.bias.data.fill_(2.0)  # clamped
    return Inpainter(net)


def output_of(net, image, valid):
    """Of a float [N, 3, H, W]."""
    with torch.no_grad():
        return net(image.float(), torch.tensor(valid).float()[None, None]).clamp(0, 1).to(image.dtype)


def expected(net, pixels, valid=VALID, raw=False):
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    output = (output_of(net, image, valid)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return output if raw else np.where(valid[..., None], pixels, output)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def tree(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def fail(*_):
    raise OSError(28, "disk full")


@pytest.mark.parametrize("raw", [False, True])
def test_bytes(net, raw):
    truth = expected(net, PIXELS, raw=raw)
    assert (truth[~VALID] != PIXELS[~VALID]).mean() > 0.9
    assert len(np.unique(truth[~VALID])) > 10  # not all clamped
    fill = partial(Inpainter(net), mask=Image.fromarray(VALID), raw=raw)
    picture = fill(Image.fromarray(PIXELS))
    assert (type(picture), picture.mode) == (Image.Image, "RGB")
    assert_array_equal(picture, truth)
    backwards = np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1]
    backwards.flags.writeable = False
    for array in (PIXELS, backwards):
        result = fill(array)
        assert result.dtype == np.uint8
        assert_array_equal(result, truth)
    assert_array_equal(fill(PIXELS[..., 0]), expected(net, GREY, raw=raw))
    tensor = torch.tensor(PIXELS).permute(2, 0, 1)
    assert torch.equal(fill(tensor), torch.tensor(truth).permute(2, 0, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_floats(net, dtype):
    inpainter, valid = Inpainter(net), torch.tensor(VALID)
    image = torch.rand(2, 3, H, W).to(dtype)
    holed = image.where(valid, torch.full_like(image, float("nan"))).requires_grad_()
    one, two = output_of(net, image[:1], VALID)[0], output_of(net, image, VALID)
    for result, truth in (
        (inpainter(holed, valid), image.where(valid, two)),
        (inpainter(holed, valid, raw=True), two),
        (inpainter(holed[0], valid), image[0].where(valid, one)),
    ):
        assert result.dtype == dtype
        assert not result.requires_grad
        assert torch.equal(result, truth)
    if dtype != torch.bfloat16:  # NumPy has none
        array = inpainter(holed[0].detach().permute(1, 2, 0).numpy(), VALID)
        assert array.dtype == str(dtype).removeprefix("torch.")
        assert_array_equal(array, image[0].where(valid, one).permute(1, 2, 0))


def test_kinds_of_masks(net):
    inpainter = Inpainter(net)
    image = torch.rand(2, 3, H, W)
    truth = inpainter(image, VALID)
    grey = np.where(VALID, 128, 127).astype(np.uint8)
    alike = [VALID.astype(np.uint8), grey, VALID[None], VALID * np.float32(0.2), torch.tensor(VALID)]
    alike += [torch.tensor(VALID).double()[None, None], torch.tensor(grey).expand(2, 1, H, W)]
    alike += [Image.fromarray(grey), Image.fromarray(VALID), Image.fromarray(grey).convert("RGB")]
    for mask in alike:
        assert torch.equal(inpainter(image, mask), truth)
    for mask in (~VALID, Image.fromarray(~VALID)):
        assert torch.equal(inpainter(image, mask, invert_mask=True), truth)
    two = torch.tensor(np.stack((VALID, VALID[::-1]))[:, None])
    each = torch.stack([inpainter(image[i], two[i]) for i in range(2)])
    # One image and two may be summed in another order: 1e-5 is some eps of float32.
    torch.testing.assert_close(inpainter(image, two), each, rtol=0, atol=1e-5)


def test_modes_of_pictures(net):
    inpainter, mask = Inpainter(net), Image.fromarray(VALID)
    alpha = np.where(PIXELS[..., :1] < 50, 0, 255).astype(np.uint8)
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    turned = Image.fromarray(np.rot90(PIXELS))
    turned.getexif()[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    for picture, pixels in (
        (Image.fromarray(np.dstack((PIXELS, alpha))), np.where(alpha, PIXELS, np.uint8(255))),
        (cmyk, np.asarray(cmyk.convert("RGB"))),
        (Image.fromarray(PIXELS[..., 0]), GREY),
        (Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), GREY),
        (turned, PIXELS),
    ):
        assert_array_equal(inpainter(picture, mask), expected(net, pixels))


@pytest.mark.parametrize("size", [(8, 12), (6, 9), (3, 4), (40, 60)], ids=str)
@pytest.mark.filterwarnings("error")  # 3:4 differs from 8:12 no more than rounding does
def test_masks_are_resized_by_nearest_neighbour(white, size):
    h, w = 8, 12
    light = np.random.default_rng(1).random(size) < 0.7
    rows = ((np.arange(h) + 0.5) * size[0] / h).astype(int)
    columns = ((np.arange(w) + 0.5) * size[1] / w).astype(int)
    result = white(np.zeros((h, w), np.uint8), Image.fromarray(light))
    assert_array_equal(result == 0, light[rows][:, columns, None].repeat(3, 2))


def test_warnings(white):
    black, mask, fifth = np.zeros((20, 30), np.uint8), np.ones((20, 30), bool), np.ones((30, 20), bool)
    mask[:, :15] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        white(black, mask)  # no more than one half
        white(black[:3, :4], Image.fromarray(mask))  # 20x30 rounds to 3x4
    mask[0, 15], fifth[:6] = False, False
    for kind, match in (
        (np.ones_like(mask), "no holes"),
        (mask, r"50\.2% of .* invert_mask=True or --invert-mask"),
        (Image.fromarray(fifth), "is 30x20 .*, the image 20x30"),
    ):
        with pytest.warns(UserWarning, match=match) as caught:
            white(black, kind)
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (8, 8), (37, 50)], ids=str)
@pytest.mark.filterwarnings("ignore:.*no holes")
def test_sizes(net, size):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    valid = np.random.default_rng(3).random(size) < 0.8
    valid[0, 0] = True
    assert_array_equal(Inpainter(net)(pixels, valid), expected(net, pixels, valid))


def test_leaves_everything_as_it_was(net):
    truth = expected(net, PIXELS)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    inpainter = Inpainter(net, backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(inpainter(PIXELS, VALID), truth)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert not any(module.training for module in inpainter.net.modules())
    assert {module.backend for module in inpainter.net.modules() if hasattr(module, "backend")} == {"cpu"}
    net.decoder[-1].conv.bias.data.zero_()
    assert_array_equal(inpainter(PIXELS, VALID), truth)  # a copy
    weight = torch.ones((), requires_grad=True)
    for raw in (False, True):  # fails for tensors of inference mode
        (inpainter(torch.rand(3, H, W), VALID, raw=raw) * weight).sum().backward()


@pytest.mark.parametrize(
    ("image", "mask", "error", "match"),
    [
        (PIXELS, VALID[:, 1:], ValueError, r"\[21, 30\].* 21x30 image, got \[21, 29\]"),
        (TWO, np.ones((3, 1, H, W)), ValueError, r"\[2 or 1, 1, 21, 30\] .*, got \[3, 1, 21, 30\]"),
        (TWO, np.ones((2, H, W)), ValueError, r"mask must have shape .*, got \[2, 21, 30\]"),
        (PIXELS, VALID.astype(np.int64), TypeError, "mask must be bool, uint8 or floating, got torch.int64"),
        (PIXELS, VALID.tolist(), TypeError, "mask must be a PIL image, .* got list"),
        ("a.png", VALID, TypeError, "image must be a PIL image, .* got str"),
        (PIXELS.astype(np.int32), VALID, TypeError, "image must be uint8 or floating .*int32"),
        (PIXELS.transpose(2, 0, 1), VALID, ValueError, r"\[H, W, 3\] or \[H, W\], got shape \[3, 21, 30\]"),
        (torch.rand(H, W, 3), VALID, ValueError, r"tensor \[3, H, W\] or .* got shape \[21, 30, 3\]"),
        (torch.rand(3, 0, W), VALID[:0], ValueError, r"got shape \[3, 0, 30\]"),
        (np.full((H, W), 200.0), VALID, ValueError, r"in \[0, 1\] where it is valid, got 200"),
        (np.full((H, W), np.nan), VALID, ValueError, r"in \[0, 1\] where it is valid, got nan"),
    ],
)
def test_errors(net, image, mask, error, match):
    with pytest.raises(error, match=match):
        Inpainter(net)(image, mask)


def test_errors_at_the_start(net):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device must be one .*got '{device}'"):
            Inpainter(net, device=device)
    with pytest.raises(ValueError, match=r"Inpainter: backend must be .* got 'fast'"):
        Inpainter(net, backend="fast")
    with pytest.raises(TypeError, match="checkpoint must be a path or an InpaintingNet, got Linear"):
        Inpainter(torch.nn.Linear(1, 1))


def test_networks_in_files(net, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint \(best.safetensors or last.safetensors"):
        checkpoint.load_net(tmp_path)
    other = InpaintingNet(width=2, msfef_stages=2, kernel_sizes=((3, 7), (1, 5)), depth=2)
    checkpoint.save_net(other, tmp_path / "last.safetensors", {"step": 7})
    assert checkpoint.load_net(tmp_path).config == other.config
    assert checkpoint.load_training(tmp_path) == {"step": 7}
    best = tmp_path / "best.safetensors"
    checkpoint.save_net(net, best)
    loaded, state = checkpoint.load_net(tmp_path, backend="reference"), net.state_dict()
    assert (loaded.training, loaded.config) == (False, net.config)
    assert loaded.encoder[1].conv.backend == "reference"
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert_array_equal(Inpainter(tmp_path)(PIXELS, VALID), expected(net, PIXELS))
    before = tree(tmp_path)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                checkpoint.save_net(other, best)
        assert tree(tmp_path) == before


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
    for name in ("twice/t.png", "twice/t.gif", "y.png"):
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
    paths = [str(files / argument[1:]) if argument[0] == "@" else argument for argument in arguments]
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
    written = inpaint_files(
        Inpainter(net), files / "photos", files / masks, out, progress=lambda *step: steps.append(step)
    )
    assert written == [out / "sub/y.png", out / "x.v1.png", out / "z.png"]
    assert {path for path in out.rglob("*") if path.is_file()} == set(written)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for path, i in zip(written, (1, 0, 2), strict=True):
        valid = np.roll(VALID, i, 0) if masks == "masks" else VALID
        assert_array_equal(read(path), expected(net, np.roll(PIXELS, i, 0), valid))


def test_folders_with_unreadable_pictures(files, capsys):
    (files / "cut.png").replace(files / "photos/z.png")
    (files / "masks/x.v1.gif").write_text("no picture")
    assert command(files, *FOLDER) == 0
    out, err = capsys.readouterr()
    assert out == f"{files / 'out/sub/y.png'}\n1 pictures written to {files / 'out'}\n"
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
        (change(FILE, 0, "@text"), "cannot read picture .*text: .*no format"),
        (change(FILE, 0, "@cut.png"), "cannot read picture .*cut.png"),
        (change(FILE, 1, "@no.png"), "mask must be a file or a folder, there is no .*no.png"),
        (change(FILE, 1, "@text"), "cannot read picture .*text"),
        (change(FILE, 1, "@masks"), "mask must be a file, .*got the folder"),
        (change(FILE, 5, "@photos"), "output must be a file, .*got the folder"),
        (("@text", *FILE[1:5], "@out.txt"), "output must have the extension .*out.txt"),  # found first
        (change(FILE, 5, "@no/out.png"), "output must go into an existing folder, .*no is none"),
        (change(FILE, 5, "@a.png"), "output must be apart from the image"),
        (change(FILE, 5, "@photos/../mask.png"), "output must be apart from the image"),
        (change(FOLDER, 0, "@twice"), "must differ in more than the extension, got .*t.gif and .*t.png"),
        (change(FOLDER, 0, "@masks/sub"), r"1 of 1 have none: .*y.gif"),
        (change(FOLDER, 1, "@photos/sub"), r"3 of 3 have none: .*photos/sub/y.bmp, .*x.v1.png"),
        (change(FOLDER, 1, "@text"), "cannot read picture .*text"),
        (change(FOLDER, 5, "@a.png"), "output must be a folder, .*a.png is a file"),
        (change(FOLDER, 5, "@photos/out"), "output must be apart from the image"),
        (("@photos/sub", "@y.png", *FOLDER[2:5], "@."), "must not replace an image or a mask, .*y.png is"),
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
    for words in ("white (1) = valid", "black (0) = hole", "--invert-mask", "--checkpoint"):
        assert words in text
    done = call([*program, *(argument.removeprefix("@") for argument in FILE)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png\n", "")
    assert_array_equal(read(files / "out.png"), expected(net, PIXELS))

"""Every code block of the documentation: Python runs, commands are taken by their programs."""

import doctest
import shlex

import pytest
import torch
from support import commands, rasters, torchvision_without_ops
from support.documents import DOCUMENTS, ROOT, blocks
from support.inpainters import make_net
from support.peers import nvidia
from support.trainings import make_pictures

import pconv_ext
from pconv_ext.checkpoint import save_net
from pconv_ext.inpainting.cli import run

torchvision_without_ops.make_importable()

#: Here commands run too, and a block goes on with what those before it made, as a newcomer does.
GETTING_STARTED = "docs/getting-started.md"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder as a reader's: photographs, pictures to train with, networks."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/photos").symlink_to(ROOT / "benchmarks/photos")
    for name in ("photos/train", "photos/val", "runs/first", "runs/sst"):
        (tmp_path / name).mkdir(parents=True)
    make_pictures(tmp_path / "photos/train")
    make_pictures(tmp_path / "photos/val")
    save_net(make_net(), tmp_path / "runs/first/best.safetensors")
    save_net(rasters.make_net(1), tmp_path / "runs/sst/best.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names():
    """What blocks use and do not make: arguments of the operators, a network, pictures."""
    mask = torch.ones(2, 1, 16, 16)
    mask[:, :, 2:8, 3:12] = 0
    model = torch.nn.Sequential(nvidia()(3, 4, 3))
    field = torch.full((1, 16, 16), 280.0)
    field[:, 4:6, 5:9] = torch.nan
    return {
        "torch": torch,
        "F": torch.nn.functional,
        "pconv_ext": pconv_ext,
        "InpaintingNet": pconv_ext.InpaintingNet,
        "x": torch.rand(2, 3, 16, 16),
        "mask": mask,
        "weight": torch.rand(4, 3, 3, 3),
        "bias": torch.rand(4),
        "stride": 1,
        "padding": 1,
        "weights": [torch.rand(4, 3, k, k) for k in (3, 5, 7)],
        "biases": [torch.rand(4) for _ in range(3)],
        "scales": torch.rand(3, 4),
        "x_low": torch.rand(2, 1, 8, 8),
        "mask_low": torch.ones(2, 1, 8, 8),
        "skip": torch.rand(2, 2, 16, 16),
        "mask_skip": mask,
        "net": torch.nn.Sequential(pconv_ext.PartialConv2d(3, 4, 3)),
        "model": model,
        "checkpoint": model.state_dict(),
        "image": torch.rand(2, 3, 16, 16),
        "picture": torch.rand(2, 3, 16, 16),
        "field": field,
    }


def run_command(line, capsys):
    with pytest.raises(SystemExit) as end:
        run(shlex.split(line)[1:])
    assert not end.value.code, capsys.readouterr().err


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document)])
def test_blocks(document, place, capsys):
    namespace = names()
    for block in blocks(document):
        if document != GETTING_STARTED:
            namespace = names()
        where = f"{document}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.code, document, "exec"), namespace)
        elif block.language == "pycon":
            test = doctest.DocTestParser().get_doctest(block.code, namespace, document, where, block.line)
            results = doctest.DocTestRunner().run(test, clear_globs=False)
            assert results.failed == 0, capsys.readouterr().out
        else:
            assert block.language == "", where
            for line in filter(None, block.code.replace("\\\n", " ").splitlines()):
                commands.check(line)
                if document == GETTING_STARTED and line.startswith("pconv-ext "):
                    run_command(line, capsys)


def test_the_naive_form_of_the_readme_is_equivalent():
    namespace = names()
    naive = next(block for block in blocks("README.md") if "naive_partial_conv2d" in block.code)
    exec(naive.code, namespace)
    arguments = [namespace[name] for name in ("x", "mask", "weight", "bias", "stride", "padding")]
    out, new_mask = namespace["naive_partial_conv2d"](*arguments)
    torch.testing.assert_close(namespace["out"], out, rtol=1e-4, atol=1e-5)
    assert torch.equal(namespace["new_mask"], new_mask)

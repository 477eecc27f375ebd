"""Networks and states in files: what is damaged, altered or asks for too much is refused, in one line."""

import json
import time
import zipfile

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from support.trainings import OPTIONS, one_line

from pconv_ext import Inpainter, InpaintingNet, checkpoint
from pconv_ext.checkpoint import CheckpointError
from pconv_ext.inpainting import _networks
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.training import train


class TestHugeHeaders:
    """A file of some bytes asks for no memory or time that its tensors do not account for."""

    @pytest.mark.parametrize(
        "config",
        [{"width": 1500}, {"kernel_sizes": [list(range(1, 801, 2))] * 4}, {"depth": 10**6}, {"width": 10**9}],
        ids=["wide", "many kernels", "deep", "wider than memory"],
    )
    def test_are_refused_at_once(self, tmp_path, config):
        net = InpaintingNet(4, 1, (3,), 3)
        file = tmp_path / "net.safetensors"
        checkpoint.save_net(net, file)
        rewrite(file, lambda content: content["net"].update(config))
        began = time.process_time()
        with pytest.raises(CheckpointError, match="is no checkpoint of pconv_ext: "):
            Inpainter(file, device="cpu")
        assert time.process_time() - began < 5

    def test_of_many_stages_with_many_kernels(self, tmp_path):
        net = InpaintingNet(4, 1, (3,), 3)
        file = tmp_path / "net.safetensors"
        checkpoint.save_net(net, file)
        many = len(net.state_dict()) // 2
        stages = [list(range(1, 2 * many, 2))] * many
        config = {"depth": many, "msfef_stages": many, "kernel_sizes": stages}
        rewrite(file, lambda content: content["net"].update(config))
        with pytest.raises(CheckpointError, match=rf"has {many + many**2} layers, its tensors are \d+"):
            Inpainter(file, device="cpu")


def rewrite(file, change):
    """Change the metadata of a network and its checksum with them."""
    tensors = load_file(file)
    with safetensors.safe_open(file, "pt") as stream:
        content = json.loads(stream.metadata()["pconv_ext"])
    replaced = change(content)
    text = replaced if isinstance(replaced, str) else json.dumps(content)
    save_file(tensors, file, {"pconv_ext": text, "sha256": _networks.checksum(text, tensors)})


def flipped(whole, first=0):
    """The same with one bit flipped somewhere from byte `first` on, thirty times."""
    rng = np.random.default_rng()
    for place, bit in zip(rng.integers(first, len(whole), 30), rng.integers(8, size=30), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(bit)
        yield damaged


class TestDamage:
    def test_a_loaded_network_does_not_hang_on_its_file(self, tmp_path):
        file = tmp_path / "net.safetensors"
        net = InpaintingNet(4, 1, (3,), 3)
        checkpoint.save_net(net, file)
        loaded = checkpoint.load_net(file)
        with file.open("r+b") as stream:  # in place
            stream.write(bytes(file.stat().st_size))
        for name, value in loaded.state_dict().items():
            assert torch.equal(value, net.state_dict()[name]), name

    def test_a_flipped_bit_in_a_network(self, tmp_path):
        file = tmp_path / "net.safetensors"
        checkpoint.save_net(InpaintingNet(4, 1, (3,), 3), file)
        whole = file.read_bytes()
        for damaged in flipped(whole, 8):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"damaged|checkpoint"):
                checkpoint.load_net(file)
        file.write_bytes(whole)
        checkpoint.load_net(file)

    def test_a_flipped_bit_in_a_state(self, settings, tmp_path):
        train(settings, tmp_path)
        file = tmp_path / "state.pt"
        whole = file.read_bytes()
        for damaged in flipped(whole):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"state\.pt (is damaged|cannot be read)"):
                RunFolder(tmp_path).load()

    def test_a_flipped_bit_where_the_checksum_begins(self, settings, tmp_path):
        train(settings, tmp_path)
        file = tmp_path / "state.pt"
        damaged = bytearray(file.read_bytes())
        damaged[-33] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"state\.pt is damaged, it lacks its checksum"):
            RunFolder(tmp_path).load()

    @pytest.mark.parametrize("training", [[1], None, "text", 3])
    def test_odd_metadata(self, tmp_path, training):
        file = tmp_path / "net.safetensors"
        checkpoint.save_net(InpaintingNet(4, 1, (3,), 3), file)
        rewrite(file, lambda content: content.update(training=training))
        for load in (checkpoint.load_net, checkpoint.load_training):
            with pytest.raises(CheckpointError, match="what it tells of its training is no object"):
                load(file)

    def test_deep_metadata(self, tmp_path):
        file = tmp_path / "net.safetensors"
        checkpoint.save_net(InpaintingNet(4, 1, (3,), 3), file)
        rewrite(file, lambda content: "[" * 100_000 + "]" * 100_000)
        with pytest.raises(CheckpointError, match="lacks its metadata"):
            checkpoint.load_net(file)

    def test_altered_states(self, settings, pictures, tmp_path, capsys):
        """Written by this format, with a checksum that fits, and still wrong."""
        folder = RunFolder(tmp_path / "run")
        train(settings, folder.root)
        whole = folder.load()
        net = checkpoint.load_net(folder.root)
        wrong = [
            *({name: value} for name in whole.keys() - {"pconv_ext", "mean"} for value in (None, 3, [1], {})),
            {"config": whole["config"] | {"width": "wide"}},
            {"config": whole["config"] | {"unknown": 1}},
            {"progress": whole["progress"] | {"epoch": "1"}},
            {"progress": whole["progress"] | {"step": -1}},
            {"progress": {"epoch": 1, "step": 0}},
            {"net": dict(list(whole["net"].items())[1:])},
            {"optimizer": {"state": {}, "param_groups": []}},
        ]
        for change in wrong:
            folder.save(whole | change, net, {}, best=False)
            message = one_line(capsys, "train", "--resume", "--epochs=3", "-o", folder.root)
            assert f"{folder.root / 'state.pt'} is damaged" in message, change

    def test_torchscript_is_no_weights(self, settings, tmp_path, capsys):
        file = tmp_path / "script.pth"
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file)
        assert zipfile.is_zipfile(file)
        arguments = ["--weights=style=1", "--vgg16", file, "-o", tmp_path / "run"]
        message = one_line(capsys, "train", settings["data"], *OPTIONS, *arguments)
        assert "script.pth" in message
        assert "weights_only" not in message

"""Networks by name: the shipped one, folders, and repositories of a hub that needs no network."""

import json
import shutil
import sys
import types

import pytest
import torch

from pconv_ext import Inpainter, InpaintingNet, checkpoint
from pconv_ext.checkpoint import CheckpointError
from pconv_ext.inpainting._networks import SHIPPED_FOLDER


def small():
    net = InpaintingNet(4, 2, ((3, 5), (3,)), 3)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 1)
    return net.eval()


def assert_equal(net, other, half=False):
    assert net.config == other.config
    for name, value in net.state_dict().items():
        expected = value.half().float() if half and value.dim() == 4 else value
        assert torch.equal(other.state_dict()[name], expected), name


class Hub(types.ModuleType):
    """What is used of huggingface_hub, on a folder."""

    def __init__(self, root):
        super().__init__("huggingface_hub")
        self.root, self.calls = root, []
        hub = self

        class HfApi:
            def create_repo(self, repo_id, *, private, exist_ok):
                hub.calls.append(("create", repo_id, private, exist_ok))
                (root / repo_id).mkdir(parents=True, exist_ok=True)

            def upload_folder(self, *, repo_id, folder_path, revision):
                hub.calls.append(("upload", repo_id, revision))
                shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
                return f"https://hub/{repo_id}/commit/1"

        self.HfApi = HfApi

    def hf_hub_download(self, repo_id, filename, *, revision=None):
        self.calls.append(("download", repo_id, filename, revision))
        return str(self.root / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


@pytest.mark.parametrize("half", [False, True])
def test_folders(tmp_path, half):
    net, folder = small(), tmp_path / "new" / "net"
    net.save_pretrained(folder, half=half)
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text()) == net.config
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: pconv_ext\n")
    loaded = InpaintingNet.from_pretrained(folder, backend="reference")
    assert_equal(net, loaded, half)
    assert (loaded.training, loaded.encoder[0].conv.backend) == (False, "reference")
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert_equal(net, Inpainter(folder, device="cpu").net, half)
    (folder / "README.md").write_text("my card")
    net.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my card"


def test_half_is_half_the_size(tmp_path):
    net = InpaintingNet(16, 2, (3, 5), 3)
    for half in (False, True):
        net.save_pretrained(tmp_path / str(half), half=half)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("False", "True")]
    assert 0.5 < sizes[1] / sizes[0] < 0.53
    with torch.no_grad():
        net.encoder[0].conv.branches[0].weight[0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match="has values that float16 cannot hold"):
        net.save_pretrained(tmp_path / "large", half=True)
    assert not (tmp_path / "large" / "model.safetensors").exists()


def test_repositories(hub):
    net = small()
    assert net.push_to_hub("me/net", half=True, private=True) == "https://hub/me/net/commit/1"
    assert_equal(net, InpaintingNet.from_pretrained("me/net", revision="v1"), half=True)
    assert hub.calls == [
        ("create", "me/net", True, True),
        ("upload", "me/net", None),
        ("download", "me/net", "config.json", "v1"),
        ("download", "me/net", "model.safetensors", "v1"),
    ]
    assert 'from_pretrained("me/net")' in (hub.root / "me/net/README.md").read_text()


def test_without_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: InpaintingNet.from_pretrained("me/net"), lambda: small().push_to_hub("me/net")):
        with pytest.raises(ImportError, match="needs huggingface_hub: pip install huggingface_hub"):
            call()


def test_errors(tmp_path):
    for name in ("absent", "a/b/c", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="name must be 'pconv-photos', a folder, or a repository"):
            InpaintingNet.from_pretrained(name)
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        InpaintingNet.from_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config.json is of another network"):
        InpaintingNet.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        InpaintingNet.from_pretrained(tmp_path)


def test_a_folder_of_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = small()
    net.save_pretrained("pconv-photos")
    assert_equal(net, InpaintingNet.from_pretrained("pconv-photos"))
    assert_equal(net, Inpainter("pconv-photos", device="cpu").net)


class TestShipped:
    folder = SHIPPED_FOLDER

    def test_is_there_and_small(self):
        assert (self.folder / "model.safetensors").stat().st_size <= 12_000_000
        card = (self.folder / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\n")
        assert "license:" in card.split("---")[1]

    def test_is_what_is_taken_by_default(self):
        net = InpaintingNet.from_pretrained("pconv-photos")
        assert_equal(net, Inpainter(device="cpu").net)
        halves = checkpoint.load_net(self.folder)
        assert_equal(net, halves)

    def test_fills_a_hole_better_than_its_mean(self):
        """A gradient of colours, which every mean misses."""
        ramp = torch.linspace(0.2, 0.8, 128)
        image = torch.stack([ramp.expand(128, 128), ramp.expand(128, 128).T, ramp.flip(0).expand(128, 128)])
        mask = torch.ones(1, 128, 128, dtype=torch.uint8)
        mask[:, 40:72, 20:60] = 0
        holes = (mask == 0).expand_as(image)
        filled = Inpainter(device="cpu")(image, mask)
        assert torch.equal(filled[~holes], image[~holes])
        mean = image.masked_fill(holes, 0).sum((1, 2)) / mask.sum()
        errors = [
            (filled - image)[holes].square().mean(),
            (mean[:, None, None] - image)[holes].square().mean(),
        ]
        assert errors[0] < errors[1] / 10

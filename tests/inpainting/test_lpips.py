"""LPIPS against its formula, written by hand in float64, alone and in a report; its weights."""

import pytest
import torch
import torch.nn.functional as F
from support import torchvision_without_ops
from support.pictures import save_smooth
from support.weight_files import DOWNLOAD, LPIPS_CONVOLUTIONS, offline, save
from support.weight_files import lpips_state as random_state
from torch import nn

from pconv_ext import data
from pconv_ext.evaluation import evaluate, load_lpips

torchvision_without_ops.make_importable()


class Guess(nn.Module):
    def forward(self, image, mask):
        return image.flip(3) * 1.3 - 0.1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return data.PictureDataset(data.folder(save_smooth(tmp_path_factory.mktemp("photos"))), (40, 48))


@pytest.fixture(scope="module")
def lpips_state():
    return random_state()


@pytest.fixture(scope="module")
def lpips_file(lpips_state, tmp_path_factory):
    return save(lpips_state, tmp_path_factory.mktemp("weights") / "lpips.safetensors")


def lpips_by_hand(state, one, other):
    def features(x):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x.double() - shift.double()[:, None, None]) / scale.double()[:, None, None]
        for n in LPIPS_CONVOLUTIONS:
            weight, bias = (state[f"features.{n}.{name}"].double() for name in ("weight", "bias"))
            if n in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(x, weight, bias, 4 if n == 0 else 1, {0: 2, 3: 2}.get(n, 1)).relu()
            yield x / (1e-8 + x.square().sum(1, keepdim=True)).sqrt()

    layers = enumerate(zip(features(one), features(other), strict=True))
    return sum((state[f"lin{i}"].double() * (a - b) ** 2).sum(1).mean((1, 2)) for i, (a, b) in layers)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [(31, 31), (64, 50)])
def test_lpips_equals_the_formula_written_by_hand(lpips_state, tmp_path, suffix, size):
    extra = {"classifier.1.weight": torch.ones(2, 2)}  # left out
    metric = load_lpips(save(lpips_state | extra, tmp_path / f"lpips{suffix}"))
    assert not any(module.training for module in metric.modules())
    one, other = torch.rand(2, 3, 3, *size) * 2 - 1
    with torch.no_grad():
        distances = metric(one, other)
    assert distances.shape == (3,)
    # float32 sums of up to 3456 products in five layers; another epsilon or padding shows above 1e-3
    torch.testing.assert_close(distances.double(), lpips_by_hand(lpips_state, one, other), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"H and W at least 31, got \[1, 3, 30, 31\]"):
        metric(torch.zeros(1, 3, 30, 31), torch.zeros(1, 3, 30, 31))


def test_lpips_in_a_report(pictures, lpips_state, lpips_file):
    pairs = []
    report = evaluate(
        Guess(),
        pictures,
        bins=((0.4, 0.5),),
        lpips=load_lpips(lpips_file),
        visit=lambda _, truth, mask, result: pairs.append((result * 2 - 1, truth * 2 - 1)),
    )
    expected = lpips_by_hand(lpips_state, *map(torch.stack, zip(*pairs, strict=True))).mean().item()
    assert report.bins[0].lpips == pytest.approx(expected, rel=1e-4)
    assert report.lpips_missing == ""


BAD_STATES = {
    "incomplete": (lambda s: {k: s[k] for k in s if k != "lin4"}, "it lacks lin4"),
    "another network": (
        lambda s: {**s, "features.7.weight": torch.ones(2)},
        "it has features.7.weight, which",
    ),
    "another shape": (
        lambda s: {**s, "lin0": s["lin0"].flatten()},
        r"its lin0 must be floating \[1, 64, 1, 1\], got torch.float32 \[64\]",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_foreign_weights(lpips_state, tmp_path, case):
    change, message = BAD_STATES[case]
    file = save(change(lpips_state), tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=rf"^load_lpips: .*foreign.pth holds no LPIPS.*, {message}.*--lpips"):
        load_lpips(file)


def test_damaged_and_missing_weights(lpips_file, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(lpips_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^load_lpips: .* cannot be read \(.*--lpips FILE.*download"):
        load_lpips(damaged)
    with pytest.raises(FileNotFoundError, match=r"^load_lpips: there is no file .*--lpips FILE.*download"):
        load_lpips(tmp_path / "nowhere.pth")


def test_weights_of_the_download(monkeypatch, lpips_state):
    from torchvision.models import alexnet

    state = alexnet(weights=None).state_dict()
    state |= {key: value for key, value in lpips_state.items() if key in state}
    monkeypatch.setattr(DOWNLOAD, lambda url, **options: state if "alexnet" in url else pytest.fail(url))
    metric = load_lpips()
    # torchmetrics brings the linear layers, behind a dropout
    lins = {f"lin{i}": metric.network.state_dict()[f"lin{i}.model.1.weight"] for i in range(5)}
    one, other = torch.rand(2, 2, 3, 40, 40) * 2 - 1
    expected = lpips_by_hand(lpips_state | lins, one, other)
    torch.testing.assert_close(metric(one, other).double(), expected, rtol=1e-4, atol=0)
    offline(monkeypatch)
    with pytest.raises(
        OSError, match=r"download of AlexNet failed \(OSError: no route to host\).*--lpips FILE"
    ):
        load_lpips()

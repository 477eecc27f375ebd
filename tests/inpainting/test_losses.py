"""The losses against their formulas, written by hand in float64; VGG-16's weights from good and bad files."""

import copy
import pickle
import subprocess
import sys
import types

import pytest
import torch
from support.cases import MASK_DTYPES, laid_out, mask_of
from support.weight_files import save
from torch import nn

from pconv_ext import losses
from pconv_ext.losses import WEIGHTS, InpaintingLoss, gram_matrix, load_vgg16, vgg16_features

TERMS = ["avail", "missing", "perceptual", "style"]
#: float64 on both sides; the largest difference in 60 seeds is 3e-15 of a term, a wrong formula shows 1e-3.
EXACT = {"rtol": 1e-12, "atol": 1e-15}


def phi_by_hand(stack, image):
    """The outputs of the three pooling layers for one `image` [3, H, W], shift by shift of the kernel."""
    # The module keeps the constants of ImageNet in float32.
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = torch.stack([(image[c] - mean[c].item()) / std[c].item() for c in range(3)])
    outputs = []
    for convolutions in ((0, 2), (5, 7), (10, 12, 14)):
        for index in convolutions:
            weight, bias = stack[index].weight.detach().double(), stack[index].bias.detach().double()
            h, w = x.shape[1:]
            padded = x.new_zeros(x.shape[0], h + 2, w + 2)
            padded[:, 1:-1, 1:-1] = x
            x = bias[:, None, None].expand(-1, h, w)
            for i in range(3):
                for j in range(3):
                    window = padded[:, i : i + h, j : j + w]
                    x = x + torch.einsum("oc,chw->ohw", weight[:, :, i, j], window)
            x = x * (x > 0)
        h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
        rows = torch.maximum(x[:, 0:h:2], x[:, 1:h:2])
        x = torch.maximum(rows[:, :, 0:w:2], rows[:, :, 1:w:2])
        outputs.append(x)
    return outputs


def by_hand(stack, output, target, mask):
    """The four terms and the total of the paper, image by image."""
    sums = dict.fromkeys(TERMS, 0.0)
    for n in range(len(output)):
        y_out, y_gt = output[n].double(), target[n].double()
        m = (mask[n if len(mask) > 1 else 0] != 0).double()
        y_comp = m * y_gt + (1 - m) * y_out
        sums["avail"] += ((m * (y_out - y_gt)) ** 2).sum() / y_gt.numel()
        sums["missing"] += (((1 - m) * (y_out - y_gt)) ** 2).sum() / y_gt.numel()
        for y in (y_out, y_comp):
            for phi, phi_gt in zip(phi_by_hand(stack, y), phi_by_hand(stack, y_gt), strict=True):
                c, h, w = phi.shape
                sums["perceptual"] += (phi - phi_gt).abs().sum() / phi.numel()
                f, f_gt = phi.reshape(c, h * w).T, phi_gt.reshape(c, h * w).T  # [H W, C], as in the paper
                sums["style"] += ((f.T @ f - f_gt.T @ f_gt) / (h * w * c)).abs().sum() / c**2
    terms = {name: value / len(output) for name, value in sums.items()}
    total = terms["avail"] + 6 * terms["missing"] + 0.01 * terms["perceptual"] + 120 * terms["style"]
    return {**terms, "total": total}


def inputs(n=2, h=17, w=26, dtype=torch.float64, mask_dtype=torch.bool):
    """An output with gradient, a target in [0, 1] and a mask."""
    output, target = torch.rand(2, n, 3, h, w, dtype=dtype)
    return output.requires_grad_(), target, mask_of("rectangle", target, mask_dtype)


@pytest.fixture
def stack():
    """A narrow stand-in for VGG-16."""
    return vgg16_features(4).double()


@pytest.mark.parametrize(("width", "size"), [(4, (17, 26)), (2, (8, 9)), (64, (16, 16))], ids=str)
def test_losses_equal_the_formulas_written_by_hand(width, size):
    stack = vgg16_features(width).double()
    output, target, mask = inputs(2, *size)
    terms = InpaintingLoss(stack)(output, target, mask)
    expected = by_hand(stack, output, target, mask)
    assert list(terms) == list(expected)
    for name, value in expected.items():
        assert terms[name].shape == ()
        torch.testing.assert_close(terms[name], value, **EXACT, msg=lambda m, name=name: f"{name}: {m}")
        ours, theirs = (torch.autograd.grad(t[name], output, retain_graph=True)[0] for t in (terms, expected))
        torch.testing.assert_close(ours, theirs, **EXACT, msg=lambda m, name=name: f"grad {name}: {m}")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.bool) for kind in ("valid", "holes", "one_for_all")] + [("random", d) for d in MASK_DTYPES],
    ids=str,
)
def test_masks(stack, kind, dtype):
    output, target, _ = inputs(2, 8, 9)
    mask = mask_of(kind, target, dtype)
    terms, expected = InpaintingLoss(stack)(output, target, mask), by_hand(stack, output, target, mask)
    torch.testing.assert_close(terms, expected, **EXACT)
    assert (terms["missing"] == 0) == (kind == "valid")
    assert (terms["avail"] == 0) == (kind == "holes")


def test_a_batch_is_the_mean_of_its_images(stack):
    output, target, _ = inputs(n=3)
    mask = mask_of("random", target)
    loss = InpaintingLoss(stack)
    single = [loss(output[i : i + 1], target[i : i + 1], mask[i : i + 1]) for i in range(3)]
    for name, value in loss(output, target, mask).items():
        torch.testing.assert_close(value, torch.stack([terms[name] for terms in single]).mean(), **EXACT)


def test_layouts_agree(stack):
    output, target, mask = inputs()
    expected = InpaintingLoss(stack)(output, target, mask)
    grad = torch.autograd.grad(expected["total"], output)[0]
    for layout in ("channels_last", "strided"):
        loss = InpaintingLoss(stack)
        if layout == "channels_last":
            loss = loss.to(memory_format=torch.channels_last)
        x = laid_out(output.detach(), layout).requires_grad_()
        terms = loss(x, laid_out(target, layout), mask)
        torch.testing.assert_close(terms, expected, **EXACT)
        torch.testing.assert_close(torch.autograd.grad(terms["total"], x)[0], grad, **EXACT)


def test_the_target_gets_no_gradient_and_holes_of_nan_do_not_spread(stack):
    output, target, mask = inputs(n=1)
    spoilt = torch.where(mask, output.detach(), torch.nan).requires_grad_()
    terms = InpaintingLoss(stack, {"perceptual": 0, "style": 0, "missing": 0})(
        spoilt, target.requires_grad_(), mask
    )
    terms["total"].backward()
    assert target.grad is None
    assert terms["avail"].isfinite()
    assert spoilt.grad.isfinite().all()


class Calls:
    """Counts the images that pass a module."""

    def __init__(self, module):
        self.batches = []
        module.register_forward_hook(
            lambda module, args, out: self.batches.append((len(out), out.requires_grad))
        )


def test_a_weight_of_zero_skips_the_work(stack, monkeypatch):
    output, target, mask = inputs()
    full = InpaintingLoss(stack)(output, target, mask)
    grams = []
    monkeypatch.setattr(losses, "gram_matrix", lambda phi: grams.append(phi) or gram_matrix(phi))
    for dropped in (("avail",), ("missing",), ("perceptual",), ("style",), ("avail", "missing")):
        loss = InpaintingLoss(stack, dict.fromkeys(dropped, 0))
        calls = Calls(loss.features[0])
        grams.clear()
        terms = loss(output, target, mask)
        kept = [name for name in TERMS if name not in dropped]
        assert list(terms) == [*kept, "total"]
        for name in kept:
            torch.testing.assert_close(terms[name], full[name], **EXACT)
        torch.testing.assert_close(terms["total"], sum(WEIGHTS[n] * full[n] for n in kept), **EXACT)
        assert calls.batches == [(2, False), (4, True)]  # the target once, without gradient; out and comp
        assert len(grams) == (0 if "style" in dropped else 6)
    for vgg16 in (None, stack):
        loss = InpaintingLoss(vgg16, {"perceptual": 0, "style": 0.0})
        assert loss.features is None
        terms = loss(output[..., :5, :5], target[..., :5, :5], mask[..., :5, :5])
        assert list(terms) == ["avail", "missing", "total"]


def test_weights_are_configurable(stack):
    output, target, mask = inputs()
    terms = InpaintingLoss(stack, {"style": 7, "avail": 0.5})(output, target, mask)
    expected = 0.5 * terms["avail"] + 6 * terms["missing"] + 0.01 * terms["perceptual"] + 7 * terms["style"]
    torch.testing.assert_close(terms["total"], expected, **EXACT)


def test_vgg16_is_frozen_and_not_saved(stack):
    before = copy.deepcopy(stack.state_dict())
    loss = InpaintingLoss(stack)
    assert next(stack.parameters()).requires_grad  # the caller's is left alone
    model = nn.ModuleDict({"net": nn.Conv2d(3, 3, 1).double(), "loss": loss}).train()
    assert loss.training
    assert not any(layer.training for layer in loss.features.modules())
    assert list(model.state_dict()) == ["net.weight", "net.bias"]
    assert [name for name, _ in model.named_parameters()] == ["net.weight", "net.bias"]
    model.load_state_dict(model.state_dict())
    output, target, mask = inputs()
    terms = loss(output, target, mask)
    terms["total"].backward()
    assert all(torch.equal(value, before[key]) for key, value in stack.state_dict().items())
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(twin(output, target, mask), terms, **EXACT)
    single = loss.float()(output.detach().float(), target.float(), mask)
    assert all(value.dtype == torch.float32 for value in single.values())
    torch.testing.assert_close({k: v.double() for k, v in single.items()}, terms, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gram_matrices_do_not_overflow(dtype):
    phi = torch.rand(2, 8, 32, 32) * 500
    with torch.autocast("cpu", dtype):
        rows = phi.flatten(2)
        naive = rows @ rows.mT
        ours = gram_matrix(phi.to(dtype))
    assert naive.dtype == dtype
    assert naive.isinf().any() == (dtype == torch.float16)
    rows = phi.to(dtype).double().flatten(2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), rows @ rows.mT / (8 * 32 * 32), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype):
    stack = vgg16_features(4)
    with torch.no_grad():
        for layer in stack:
            if isinstance(layer, nn.Conv2d):  # so that a Gram matrix overflows float16
                layer.weight.mul_(350 if layer.in_channels == 3 else 3.5)
    output, target, mask = inputs(h=64, w=64, dtype=torch.float32)
    phi = phi_by_hand(stack, target[0].double())[0].flatten(1).to(dtype)
    assert (phi @ phi.mT).isinf().any() == (dtype == torch.float16)
    expected = by_hand(stack, output, target, mask)
    with torch.autocast("cpu", dtype):
        terms = InpaintingLoss(stack)(output.to(dtype), target, mask)
    assert all(value.dtype == torch.float32 for value in terms.values())
    # Seven convolutions rounded to 2^-8 or 2^-11 each, averaged: in 60 seeds at most 1.4e-2 off.
    torch.testing.assert_close({k: v.double() for k, v in terms.items()}, expected, rtol=0.05, atol=0)
    # With features this large the gradient itself leaves float16: scaled down, as a GradScaler does.
    (grad,) = torch.autograd.grad(terms["total"], output, torch.tensor(2.0**-10))
    assert grad.isfinite().all()
    (exact,) = torch.autograd.grad(expected["total"], output, torch.tensor(2.0**-10).double())
    cosine = torch.nn.functional.cosine_similarity(grad.double().flatten(), exact.double().flatten(), dim=0)
    assert cosine > 0.8  # roundings move the kinks of ReLU, pooling and |.|; the least in 60 seeds is 0.95


ZEROS = torch.zeros(2, 3, 8, 8)
#: The arguments that are wrong, the error, its message after the module's name.
WRONG = [
    ({"output": 1}, TypeError, r"output must be a tensor \[N, C, H, W\], got int"),
    ({"output": ZEROS.int()}, TypeError, "output must be one of float64, .* got torch.int32"),
    ({"output": ZEROS[:, :1]}, ValueError, r"target must have the shape of output, \[2, 1, 8, 8\], got"),
    ({"output": ZEROS[:0]}, ValueError, "output must have shape .* with N of at least 1"),
    ({"target": ZEROS[0]}, ValueError, r"target must have 4 dimensions"),
    ({"target": ZEROS[:1]}, ValueError, r"target must have the shape of output, .* got \[1, 3, 8, 8\]"),
    ({"target": ZEROS.to("meta")}, ValueError, "target must be on the device of output, cpu, got meta"),
    ({"mask": None}, TypeError, r"mask must be a tensor \[N, 1, H, W\], got NoneType"),
    ({"mask": ZEROS.long()}, TypeError, "mask must be one of bool, .* got torch.int64"),
    ({"mask": ZEROS}, ValueError, r"mask must have shape \[2 or 1, 1, 8, 8\] .* got \[2, 3, 8, 8\]"),
    ({"mask": ZEROS[:, :1].to("meta")}, ValueError, "mask must be on the device of output"),
    (
        {"output": ZEROS[..., :7], "target": ZEROS[..., :7], "mask": ZEROS[:, :1, :, :7]},
        ValueError,
        r"output must have H and W of at least 8 for VGG-16, got \[2, 3, 8, 7\]",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=[message[:40] for *_, message in WRONG])
def test_wrong_arguments(change, error, message):
    arguments = {"output": ZEROS, "target": ZEROS, "mask": ZEROS[:, :1], **change}
    with pytest.raises(error, match=f"^InpaintingLoss: {message}"):
        InpaintingLoss(vgg16_features(1))(**arguments)


def test_wrong_settings(stack):
    everything = dict.fromkeys(TERMS, 0)
    for arguments, error, message in [
        ((None,), ValueError, "vgg16 may be None only where"),
        ((lambda x: x,), TypeError, "vgg16 must be an nn.Sequential .* got function"),
        ((stack[:16],), ValueError, "vgg16 must begin with the 17 layers"),
        ((nn.Sequential(*stack[:4], *stack),), ValueError, "vgg16 must begin with the 17 layers"),
        ((stack, {"gram": 1}), ValueError, r"weights may have the names avail, .* got \['gram'\]"),
        ((stack, {"style": -1}), ValueError, "weights must be finite, at least 0 and not all 0"),
        ((stack, {"style": float("nan")}), ValueError, "weights must be finite"),
        ((stack, everything), ValueError, "weights must be finite, at least 0 and not all 0"),
    ]:
        with pytest.raises(error, match=f"^InpaintingLoss: {message}"):
            InpaintingLoss(*arguments)
    loss = InpaintingLoss(stack).to("meta")
    with pytest.raises(ValueError, match="output must be on the device of the loss, meta, got cpu"):
        loss(ZEROS, ZEROS, ZEROS[:, :1])


@pytest.fixture(scope="module")
def weights():
    """A ``state_dict`` of VGG-16's features, random."""
    return vgg16_features().state_dict()


@pytest.mark.parametrize("prefix", ["", "features."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(weights, tmp_path, prefix, suffix):
    state = {prefix + key: value for key, value in weights.items()}
    state[prefix + "17.weight"] = torch.ones(8, 4, 3, 3)  # what follows the third pooling layer is left out
    state["classifier.0.weight"] = torch.ones(2, 2)
    loaded = load_vgg16(save(state, tmp_path / f"vgg{suffix}"))
    torch.testing.assert_close(loaded.state_dict(), weights, rtol=0, atol=0)


BAD_STATES = {
    "another network": (lambda s: {"layer1.weight": s["0.weight"]}, "it lacks 0.bias"),
    "too short": (lambda s: {k: s[k] for k in s if "14." not in k}, "it lacks 14.bias"),
    "VGG-19": (lambda s: {**s, "16.weight": s["14.weight"] + 0}, "it has 16.weight, which VGG"),
    "with batch norm": (lambda s: {**s, "1.weight": torch.ones(64)}, "it has 1.weight, which VGG"),
    "narrower": (
        lambda s: vgg16_features(2).state_dict(),
        r"its 0.weight must be floating \[64, 3, 3, 3\], got torch.float32 \[2, 3, 3, 3\]",
    ),
    "quantised": (lambda s: {**s, "0.bias": torch.ones(64, dtype=torch.int8)}, "its 0.bias must be floating"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("case", BAD_STATES)
def test_foreign_weights(weights, tmp_path, case, suffix):
    change, message = BAD_STATES[case]
    file = save(change(weights), tmp_path / f"vgg{suffix}")
    with pytest.raises(ValueError, match=rf"^load_vgg16: .*vgg{suffix} holds no VGG-16, {message}") as caught:
        load_vgg16(file)
    assert_names_both_ways(caught)


def assert_names_both_ways(caught):
    assert "--vgg16 FILE" in str(caught.value)
    assert "torchvision download" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_and_missing_files(weights, tmp_path, suffix):
    whole = save(weights, tmp_path / f"whole{suffix}").read_bytes()
    file = tmp_path / f"damaged{suffix}"
    for content in (whole[: len(whole) // 2], whole[:4], b"", b"<html>not found</html>" * 100):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"^load_vgg16: .*damaged.* cannot be read \(") as caught:
            load_vgg16(str(file))
        assert_names_both_ways(caught)
    for path in (tmp_path / f"nowhere{suffix}", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"^load_vgg16: there is no file") as caught:
            load_vgg16(path)
        assert_names_both_ways(caught)


def test_a_file_of_something_else(tmp_path):
    for number, content in enumerate((torch.ones(3), [torch.ones(3)], {1: torch.ones(3)})):
        file = tmp_path / f"{number}.pth"
        torch.save(content, file)
        with pytest.raises(ValueError, match="holds no dict of tensors by name") as caught:
            load_vgg16(file)
        assert_names_both_ways(caught)
    torch.save({"0.weight": types.SimpleNamespace()}, file)  # a pickle may run code, so only tensors are read
    with pytest.raises(ValueError, match="or holds more than tensors"):
        load_vgg16(file)


def fake_torchvision(monkeypatch, get_state_dict):
    models = types.ModuleType("torchvision.models")
    member = types.SimpleNamespace(get_state_dict=get_state_dict)
    models.VGG16_Weights = types.SimpleNamespace(IMAGENET1K_V1=member)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def test_weights_of_torchvision(weights, monkeypatch):
    state = {"features." + key: value for key, value in weights.items()}
    fake_torchvision(monkeypatch, lambda progress, check_hash: state)
    torch.testing.assert_close(load_vgg16().state_dict(), weights, rtol=0, atol=0)

    def offline(progress, check_hash):
        raise OSError("no route to host")

    fake_torchvision(monkeypatch, offline)
    with pytest.raises(OSError, match=r"download failed \(OSError: no route to host\)") as caught:
        load_vgg16()
    assert_names_both_ways(caught)


def test_optional_libraries(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    file = tmp_path / "vgg.safetensors"
    file.touch()
    for argument, library in ((None, "torchvision"), (file, "safetensors")):
        with pytest.raises(
            ImportError, match=rf"needs {library}.*: pip install 'pconv_ext\[train\]'"
        ) as caught:
            load_vgg16(argument)
        assert_names_both_ways(caught)


def test_importing_imports_no_optional_library():
    code = "import sys, pconv_ext.losses; print({'torchvision', 'safetensors'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

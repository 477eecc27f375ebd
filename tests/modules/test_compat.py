"""Loading checkpoints of other implementations and replacing their layers: look-alikes of support.peers."""

import copy
import warnings

import pytest
import torch
from support.cases import mask_of
from support.peers import LAYERS, UNSCALED
from torch import nn

import pconv_ext
from pconv_ext import PartialConv2d, replace_partial_convs
from pconv_ext.compat import convert_state_dict

X = (2, 4, 9, 8)
every_layer = pytest.mark.parametrize("peer", LAYERS)


def instance(peer):
    """A fresh copy of the layer in float64, with random parameters."""
    layer, planes = LAYERS[peer]
    layer = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return layer, planes


def scaled_by_window(peer):
    """What `convert_state_dict` has to be told."""
    return True if peer.startswith("3d-photo") else False if peer.startswith(UNSCALED) else None


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def assert_equal_results(actual, expected):
    assert type(actual) is type(expected)
    for one, other in zip(as_tuple(actual), as_tuple(expected), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@every_layer
def test_replaced_layer_computes_and_returns_the_same(peer):
    old, planes = instance(peer)
    x = torch.randn(X, dtype=torch.float64)
    mask = mask_of(planes, x).double()
    model = replace_partial_convs(nn.Sequential(copy.deepcopy(old)))
    new = model[0]
    assert isinstance(new, PartialConv2d)
    assert_equal_results(new(x, mask), old(x, mask))
    if peer.startswith(("nvidia", "mmagic")):
        assert_equal_results(new(x), old(x))
    if peer.startswith("mmagic"):
        assert_equal_results(new(x, mask, return_mask=False), old(x, mask, return_mask=False))
        assert_equal_results(new(x, mask=mask), old(x, mask=mask))


@every_layer
def test_converted_state_dict_loads(peer):
    old, planes = instance(peer)
    x = torch.randn(X, dtype=torch.float64)
    mask = mask_of(planes, x).double()
    state = {f"encoder.0.{key}": value for key, value in old.state_dict().items()}
    state["head.conv.weight"] = torch.ones(1)
    before = {key: value.clone() for key, value in state.items()}
    converted = convert_state_dict(state, scaled_by_window=scaled_by_window(peer))
    assert all(torch.equal(state[key], value) for key, value in before.items()), (
        "the argument is not modified"
    )
    assert converted.pop("head.conv.weight") is state["head.conv.weight"]
    assert convert_state_dict(converted).keys() == converted.keys()

    new = replace_partial_convs(nn.ModuleDict({"encoder": nn.Sequential(instance(peer)[0])}))
    new.load_state_dict(converted)
    assert_equal_results(new["encoder"][0](x, mask), old(x, mask))


def test_state_dict_at_the_root_and_in_our_own_layer():
    old, _ = instance("naoto0804")
    x = torch.randn(X, dtype=torch.float64)
    mask = mask_of("channels", x).double()
    layer = PartialConv2d(4, 6, 5, 2, 2, multi_channel=True, return_mask=True).double()
    converted = convert_state_dict(old.state_dict(), scaled_by_window=False)
    assert list(converted) == ["weight", "bias"]
    layer.load_state_dict(converted)
    assert_equal_results(layer(x, mask), old(x, mask))


def test_keys_of_whole_networks():
    one = torch.ones(2, 3, 5, 5)
    converted = convert_state_dict(
        {
            "enc_1.conv.input_conv.weight": one,
            "enc_1.conv.input_conv.bias": one,
            "enc_1.conv.mask_conv.weight": one,
            "enc_2.bn.weight": one,
            "encoder1.conv.weight": one,
            "encoder1.bias": one,
            "encoder1.mask_conv_weight": one,
            "encoder1.norm.running_mean": one,
            "decoder1.partial_conv.conv.weight": one,
            "decoder1.partial_conv.bias": one,
            "decoder1.partial_conv.mask_conv_weight": one,
            "generator.enc.enc1.conv.weight": one,
            "generator.enc.enc1.conv.weight_mask_updater": one,
            "up.weight": one,
            "up._bias_view": one,
        },
        scaled_by_window=False,
    )
    assert list(converted) == [
        "enc_1.conv.weight",
        "enc_1.conv.bias",
        "enc_2.bn.weight",
        "encoder1.weight",
        "encoder1.bias",
        "encoder1.norm.running_mean",
        "decoder1.partial_conv.weight",
        "decoder1.partial_conv.bias",
        "generator.enc.enc1.conv.weight",
        "up.weight",
    ]
    assert torch.equal(converted.pop("enc_1.conv.weight"), one / (3 * 5 * 5))
    assert all(value is one for value in converted.values())


@every_layer
def test_replacing_keeps_parameters_mode_and_grad_flags(peer):
    old, _ = instance(peer)
    old.eval()
    weight = next(parameter for parameter in old.parameters() if parameter.dim() == 4)
    weight.requires_grad_(False)
    others = [p for p in old.parameters() if p.requires_grad]
    new = replace_partial_convs(nn.Sequential(old))[0]
    assert not new.training
    assert not new.weight.requires_grad
    assert new.weight.dtype == torch.float64
    assert new.weight.device == weight.device
    kept = others if peer.startswith(UNSCALED) else [weight, *others]
    assert {id(parameter) for parameter in kept} <= {id(parameter) for parameter in new.parameters()}


def test_replacing_in_a_model():
    nvidia_layer, shared = instance("nvidia")[0], instance("nvidia, channels")[0]
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.ReLU(), nvidia_layer), "b": shared, "c": shared, "d": nn.Conv2d(2, 2, 1)}
    )
    ours = model["e"] = PartialConv2d(2, 2, 1)
    conv = model["d"]
    keys = list(model.state_dict())
    assert replace_partial_convs(model, backend="reference") is model
    assert type(model["a"][1]) is PartialConv2d
    assert model["a"][1].backend == "reference"
    assert model["b"] is model["c"], "a shared layer stays shared"
    assert model["d"] is conv
    assert model["e"] is ours
    assert list(model.state_dict()) == keys


def test_a_model_that_is_a_layer_is_returned_replaced():
    old, _ = instance("nvidia")
    new = replace_partial_convs(old)
    assert type(new) is PartialConv2d
    assert new.weight is old.weight


@every_layer
def test_replacing_is_silent_and_draws_no_random_numbers(peer):
    model = nn.Sequential(instance(peer)[0])
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_partial_convs(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert pconv_ext.replace_partial_convs(model) is model, "twice is no error"


def test_replacing_keeps_the_modes_of_frozen_norms():
    model = nn.Sequential(instance("climate, norm")[0])
    model[0].bn.eval()
    norm = model[0].bn
    replace_partial_convs(model)
    assert model[0].training
    assert model[0].bn is norm
    assert not norm.training


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_replacing_keeps_dtypes(peer, dtype):
    old = instance(peer)[0].to(dtype)
    if dtype != torch.float32 and peer.startswith(UNSCALED):
        with pytest.warns(UserWarning, match=rf"weights in {dtype} lose digits when they are divided by \d+"):
            assert replace_partial_convs(nn.Sequential(old))[0] is old
        return
    new = replace_partial_convs(nn.Sequential(old))[0]
    assert isinstance(new, PartialConv2d)
    assert {tensor.dtype for tensor in new.state_dict().values()} <= {dtype, torch.int64}


@every_layer
def test_replacing_leaves_the_old_layer_as_it_was(peer):
    old, planes = instance(peer)
    x = torch.randn(X, dtype=torch.float64)
    old(x, mask_of(planes, x).double())  # fills caches
    state = {key: value.clone() for key, value in old.state_dict().items()}
    attributes = {name: value for name, value in vars(old).items() if not name.startswith("_")}
    with torch.autocast("cpu", torch.bfloat16):
        replace_partial_convs(nn.Sequential(old))
    assert all(torch.equal(old.state_dict()[key], value) for key, value in state.items())
    assert all(vars(old)[name] is value for name, value in attributes.items())
    assert torch.is_grad_enabled()


class TwoStages(nn.Module):
    """Convolve, and convolve again under the updated mask; the layers are of the same peer."""

    def __init__(self, peer):
        super().__init__()
        self.first = copy.deepcopy(LAYERS[peer][0])
        self.second = copy.deepcopy(self.first)
        self.between = nn.Conv2d(6, 4, 1)

    def forward(self, x, mask):
        x, mask = self.first(x, mask)
        return self.second(self.between(x), mask[:, :4])


@pytest.mark.parametrize("peer", [peer for peer in LAYERS if peer != "nvidia, no mask returned"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_model_computes_the_same_before_and_after(peer, training):
    model = TwoStages(peer).train(training)
    x = torch.randn(3, 4, 33, 31)
    mask = mask_of(LAYERS[peer][1], x).float()
    mask[0, :, :25] = 0
    mask[1] = 1
    before = copy.deepcopy(model)(x, mask)
    after = replace_partial_convs(model)(x, mask)
    assert isinstance(model.second, PartialConv2d)
    assert torch.equal(after[1], before[1])
    assert (after[0] - before[0]).abs().max() <= 1e-5 * before[0].abs().max()


def test_unknown_backend():
    with pytest.raises(ValueError, match="replace_partial_convs: backend must be"):
        replace_partial_convs(nn.Sequential(instance("nvidia")[0]), backend="fast")


def test_scaling_of_a_state_dict_is_asked_for():
    keys = ("weight", "bias")
    scaled, unscaled = instance("3d-photo")[0].state_dict(), instance("naoto0804")[0].state_dict()
    assert [*scaled] == [*unscaled], "which is why it has to ask"
    state = {f"net.{i}.{key}": value for i in (1, 2) for key, value in scaled.items()}
    with pytest.raises(ValueError, match=r"'net\.1\.input_conv\.weight' \(and of 1 more\).*slide_winsize"):
        convert_state_dict(state)
    weight = scaled["input_conv.weight"]
    kept = convert_state_dict(state, scaled_by_window=True)
    assert [*kept] == [f"net.{i}.{key}" for i in (1, 2) for key in keys]
    assert kept["net.1.weight"] is weight
    divided = convert_state_dict(state, scaled_by_window=False)
    assert torch.equal(divided["net.1.weight"], weight / (4 * 3 * 3))
    assert divided["net.1.bias"] is kept["net.1.bias"]


def test_a_state_dict_without_such_layers_needs_no_choice():
    for choice in (None, False, True):
        state = instance("xyfJASON, norm")[0].state_dict()
        assert convert_state_dict(state, scaled_by_window=choice)["weight"] is state["conv.weight"]


@pytest.mark.parametrize(
    "mask", [torch.randn(2, 3, 3, 3), torch.ones(2, 3, 3, 3, 3)], ids=["gated", "three dimensions"]
)
def test_convolutions_of_these_names_that_are_something_else_are_left_alone(mask):
    state = {"a.input_conv.weight": torch.ones_like(mask), "a.mask_conv.weight": mask}
    assert convert_state_dict(state) == state

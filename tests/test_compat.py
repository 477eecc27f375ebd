"""Loading checkpoints of other implementations and replacing their layers.

The classes below are look-alikes: the names, keys and calling conventions of the public ones, the
computation ours.
"""

import copy
import warnings

import pytest
import torch
from cases import mask_of
from published import published_partial_conv2d
from torch import nn

import pconv_ext
from pconv_ext import PartialConv2d, replace_partial_convs
from pconv_ext.compat import convert_state_dict


def nvidia():
    class PartialConv2d(nn.Conv2d):
        def __init__(self, *args, multi_channel=False, return_mask=False, **kwargs):
            super().__init__(*args, **kwargs)
            self.multi_channel, self.return_mask = multi_channel, return_mask

        def forward(self, input, mask_in=None):
            result = published_partial_conv2d(
                input, mask_in, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
                multi_channel=self.multi_channel,
            )  # fmt: skip
            return result if self.return_mask else result[0]

    return PartialConv2d


def mmagic():
    class PartialConv2d(nn.Conv2d):
        def __init__(self, *args, multi_channel=False, eps=1e-8, **kwargs):
            super().__init__(*args, **kwargs)
            self.multi_channel, self.eps = multi_channel, eps
            planes = (self.out_channels, self.in_channels) if multi_channel else (1, 1)
            self.register_buffer("weight_mask_updater", torch.ones(*planes, *self.kernel_size))

        def forward(self, input, mask=None, return_mask=True):
            if mask is None:
                return super().forward(input)
            result = published_partial_conv2d(
                input, mask, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
                multi_channel=self.multi_channel,
            )  # fmt: skip
            return result if return_mask else result[0]

    return PartialConv2d


def naoto(name, conv, mask_conv):
    def __init__(self, c_in, c_out, k, stride=1, padding=0):
        nn.Module.__init__(self)
        setattr(self, conv, nn.Conv2d(c_in, c_out, k, stride, padding))
        setattr(self, mask_conv, nn.Conv2d(c_in, c_out, k, stride, padding, bias=name == "PConv2d"))
        getattr(self, mask_conv).requires_grad_(False).weight.fill_(1)

    def forward(self, input, mask):
        features, ones = getattr(self, conv), getattr(self, mask_conv).weight
        weight = features.weight / ones[0].numel()  # 1 / sum(M) instead of sum(1) / sum(M)
        return published_partial_conv2d(
            input, mask, weight, features.bias, features.stride, features.padding, multi_channel=True
        )

    return type(name, (nn.Module,), {"__init__": __init__, "forward": forward})


def xyf():
    class PartialConv2d(nn.Module):
        def __init__(self, c_in, c_out, k, stride=1, padding=0, norm=None, activation=None):
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, k, stride, padding, bias=False)
            self.bias = nn.Parameter(torch.randn(c_out))
            self.register_buffer("mask_conv_weight", torch.ones(c_out, c_in, k, k))
            self.norm = nn.BatchNorm2d(c_out) if norm else None
            self.activation = nn.LeakyReLU(0.2) if activation else None

        def forward(self, X, mask):
            out, new_mask = published_partial_conv2d(
                X, mask, self.conv.weight, self.bias, self.conv.stride, self.conv.padding, multi_channel=True
            )
            for layer in (self.norm, self.activation):
                out = out if layer is None else layer(out)
            return out, new_mask

    return PartialConv2d


NAOTO_OLD = naoto("PartialConv", "input_conv", "mask_conv")
NAOTO_NEW = naoto("PConv2d", "conv2d", "mask2d")
X = (2, 4, 9, 8)

#: peer, layer, kind of mask
LAYERS = {
    "nvidia": (nvidia()(4, 6, 3, 2, 1, return_mask=True), "random"),
    "nvidia, no mask returned": (nvidia()(4, 6, (3, 5), padding=(1, 2), bias=False, groups=2), "random"),
    "nvidia, channels": (nvidia()(4, 6, 3, dilation=2, multi_channel=True, return_mask=True), "channels"),
    "mmagic": (mmagic()(4, 6, 3, 2, 1), "random"),
    "mmagic, channels": (mmagic()(4, 6, 3, 2, 1, bias=False, multi_channel=True), "channels"),
    "naoto0804": (NAOTO_OLD(4, 6, 5, 2, 2), "channels"),
    "naoto0804, later": (NAOTO_NEW(4, 6, 3, 1, 1), "channels"),
    "xyfJASON": (xyf()(4, 6, 3, 2, 1), "channels"),
    "xyfJASON, norm": (xyf()(4, 6, 3, 2, 1, norm="bn", activation="leakyrelu"), "channels"),
}
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
    converted = convert_state_dict(state)
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
    converted = convert_state_dict(old.state_dict())
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
        }
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
    kept = [weight, *others] if not peer.startswith("naoto") else others
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


def test_unknown_layers_of_these_names_stay_with_a_warning():
    class PConv(nn.Conv2d):
        """FasterNet's, for one, is something else."""

    model = nn.Sequential(PConv(2, 2, 3))
    layer = model[0]
    with pytest.warns(UserWarning, match="0: PConv left as it is, not recognised"):
        replace_partial_convs(model)
    assert model[0] is layer


def test_layers_with_hooks_stay_with_a_warning():
    model = nn.Sequential(instance("nvidia")[0])
    layer = model[0]
    layer.register_forward_hook(lambda *args: None)
    with pytest.warns(UserWarning, match="0: PartialConv2d left as it is, it carries hooks"):
        replace_partial_convs(model)
    assert model[0] is layer


def test_nothing_is_replaced_if_one_layer_cannot_be():
    model = nn.Sequential(instance("nvidia")[0], nvidia()(2, 2, 3, padding=1, padding_mode="reflect"))
    layers = list(model)
    with pytest.raises(ValueError, match="padding_mode"):
        replace_partial_convs(model)
    assert list(model) == layers


@every_layer
def test_replacing_is_silent_and_draws_no_random_numbers(peer):
    model = nn.Sequential(instance(peer)[0])
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_partial_convs(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert pconv_ext.replace_partial_convs(model) is model, "twice is no error"

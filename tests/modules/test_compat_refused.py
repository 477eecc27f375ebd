"""Layers that `replace_partial_convs` has to leave as they are, and say why; look-alikes of support.peers."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from support.peers import (
    LAYERS,
    NAOTO_OLD,
    PConvBlock,
    changed,
    circular,
    mask_sum_conv2d,
    mmagic,
    nvidia,
    ones_like_conv,
    with_,
    xyf,
)
from support.replacements import assert_stays
from torch import nn
from torch.nn.utils import parametrizations

from pconv_ext import PartialConv2d, replace_partial_convs
from pconv_ext.compat import convert_state_dict

NVIDIA = nvidia()


def three_dimensional():
    layer = NAOTO_OLD(2, 2, 3)
    layer.input_conv = nn.Conv3d(2, 2, 3)
    layer.mask_conv = ones_like_conv(nn.Conv3d(2, 2, 3, bias=False))
    return layer


def normed(conv):
    return lambda *args: with_(NAOTO_OLD(*args), input_conv=conv(nn.Conv2d(*args)))


def inner_reflection():
    return with_(NAOTO_OLD(2, 2, 3, 1, 1), input_conv=nn.Conv2d(2, 2, 3, 1, 1, padding_mode="reflect"))


#: What a layer has that is not understood: the layer, what the warning names.
NOT_RECOGNISED = {
    "another class of that name": (type("PConv", (nn.Conv2d,), {})(2, 2, 3), "weight, bias"),
    "an empty layer": (type("PConv", (nn.Module,), {})(), "nothing"),
    "three dimensions": (three_dimensional(), "input_conv (Conv3d), mask_conv (Conv3d)"),
    "another padding mode": (NVIDIA(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
    "that of the inner convolution": (inner_reflection(), "input_conv.padding_mode='reflect'"),
    "padding around the globe": (PConvBlock(2, 2, 3, 1, (1, 1), trans_pad=circular), "trans_pad (circular)"),
    "other padding on the left": (PConvBlock(2, 2, (5, 3), 1, (2, 1)), "padding=(2, 1, 2, 1)"),
    "dropout": (PConvBlock(2, 2, 3, dropout=0.5), "dropout (Dropout)"),
    "a submodule": (with_(NAOTO_OLD(2, 2, 3), attention=nn.Conv2d(2, 2, 1)), "attention"),
    "a submodule in NVIDIA's": (with_(NVIDIA(2, 2, 3), bn=nn.BatchNorm2d(2)), "bn"),
    "a parameter": (with_(NAOTO_OLD(2, 2, 3), gain=nn.Parameter(torch.ones(1))), "gain"),
    "an attribute": (with_(NVIDIA(2, 2, 3), gain=1), "gain"),
    "an attribute of mmagic's": (with_(mmagic()(2, 2, 3), gain=1), "gain"),
    "an attribute of xyfJASON's": (with_(xyf()(2, 2, 3), gain=1), "gain"),
    "an activation that is no module": (with_(NAOTO_OLD(2, 2, 3), activation=F.relu), "activation (relu)"),
    "a forward of the instance": (
        with_(NVIDIA(2, 2, 3), forward=NVIDIA(2, 2, 3).forward),
        "forward (forward)",
    ),
    "an attribute of the class": (changed(NVIDIA, gain=1)(2, 2, 3), "PartialConv2d.gain"),
    "its own train": (changed(NAOTO_OLD, train=lambda self, mode=True: self)(2, 2, 3), "PartialConv.train"),
    "its own way of loading": (
        changed(NAOTO_OLD, _load_from_state_dict=lambda self, *args: None)(2, 2, 3),
        "PartialConv._load_from_state_dict",
    ),
    "extra state": (
        changed(NAOTO_OLD, get_extra_state=lambda self: 1, set_extra_state=lambda self, state: None)(2, 2, 3),
        "PartialConv.get_extra_state, PartialConv.set_extra_state",
    ),
    "a forward of the inner convolution": (
        with_(NAOTO_OLD(2, 2, 3), input_conv=with_(nn.Conv2d(2, 2, 3), forward=lambda x: x)),
        "input_conv.forward",
    ),
    "a normed weight inside": (
        normed(parametrizations.spectral_norm)(2, 2, 3),
        "input_conv (ParametrizedConv2d)",
    ),
    "a normed weight": (parametrizations.weight_norm(NVIDIA(2, 2, 3)), "parametrizations"),
    "a window that is a tensor": (
        with_(NAOTO_OLD(2, 2, 3), slide_winsize=torch.tensor(18)),
        "slide_winsize=tensor(18)",
    ),
    "a scaling by nothing": (with_(NAOTO_OLD(2, 2, 3), slide_winsize=0), "slide_winsize=0"),
}


@pytest.mark.parametrize("case", NOT_RECOGNISED)
def test_what_is_not_understood(case):
    layer, named = NOT_RECOGNISED[case]
    assert_stays(layer, "not recognised: ")
    assert_stays(layer, named)


def leaves_the_bias(self, input, mask):
    """Dead windows hold the bias, not zero."""
    out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)
    return torch.where(new_mask > 0, out, self.input_conv.bias.view(1, -1, 1, 1)), new_mask


def scales(self, input, mask):
    """By sum(1), which no attribute tells."""
    return mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask, self.input_conv.weight[0].numel())


def noisy_in_training(self, input, mask):
    out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)
    return F.dropout(out, 0.5, self.training), new_mask


def forgets_the_mask(self, input, mask):
    return mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)[0], mask


def three_results(self, input, mask):
    return *mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask), None


def a_list(self, input, mask):
    return list(mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask))


def nan(self, input, mask):
    out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)
    return out * float("nan"), new_mask


def takes_a_list(self, inputs):
    return mask_sum_conv2d(self.input_conv, self.mask_conv, *inputs)


def large_epsilon(self, input, mask, return_mask=True):
    count = F.conv2d(mask, self.weight_mask_updater)
    out = F.conv2d(input * mask, self.weight) * self.mask_kernel_numel / (count + 0.1)
    out = (out + self.bias.view(1, -1, 1, 1)) * count.clamp(0, 1)
    return (out, count.clamp(0, 1)) if return_mask else out


def norm_after_activation(self, input, mask):
    out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)
    return self.bn(self.activation(out)), new_mask


def norm_not_applied(self, input, mask):
    return mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)


def with_norm(forward):
    return with_(changed(NAOTO_OLD, forward=forward)(2, 2, 3), bn=nn.BatchNorm2d(2), activation=nn.ReLU())


def silent(layer):
    """Without anything that would show in a fresh layer."""
    nn.init.zeros_(layer.input_conv.bias)
    return layer


#: Layers that look like a known one and compute something else.
DIFFERENT = {
    "bias in dead windows": (silent(changed(NAOTO_OLD, forward=leaves_the_bias)(2, 3, 3)), "output by"),
    "scaled, without slide_winsize": (changed(NAOTO_OLD, forward=scales)(2, 2, 3), "output by"),
    "not scaled, with slide_winsize": (
        with_(NAOTO_OLD(2, 2, 3), slide_winsize=18),
        "with a mask of all channels, in evaluation mode: output by",
    ),
    "in training only": (
        changed(NAOTO_OLD, forward=noisy_in_training)(2, 2, 3),
        "in training mode: output by",
    ),
    "its mask": (changed(NAOTO_OLD, forward=forgets_the_mask)(2, 2, 3, 1, 1), "mask by 1, of at most 1"),
    "the shape of its mask": (changed(NAOTO_OLD, forward=forgets_the_mask)(2, 3, 3, 2), "mask [3, 3, "),
    "three results": (changed(NAOTO_OLD, forward=three_results)(2, 2, 3), "return 2 values, not 3"),
    "a list": (changed(NAOTO_OLD, forward=a_list)(2, 2, 3), "return a tuple, not a list"),
    "nan": (changed(NAOTO_OLD, forward=nan)(2, 2, 3), "output by nan"),
    "groups with masks of their own": (NAOTO_OLD(4, 2, 3, groups=2), "output by"),
    "mask weights": (with_(NAOTO_OLD(2, 2, 3), mask_conv=nn.Conv2d(2, 2, 3, bias=False)), "would differ"),
    "the order of norm and activation": (with_norm(norm_after_activation), "output by"),
    "a fresh norm that is not applied": (with_norm(norm_not_applied).eval(), "in evaluation mode: output by"),
    "padding that is not applied": (with_(NAOTO_OLD(2, 2, 3), padding=1), "output [3, 2, "),
    "an epsilon that counts": (changed(mmagic(), forward=large_epsilon)(2, 2, 3), "output by"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_computes_something_else(case):
    layer, difference = DIFFERENT[case]
    assert_stays(layer, "its replacement would differ")
    assert_stays(layer, difference)


def raises(self, input, mask):
    raise RuntimeError("no such luck")


NOT_COMPARED = {
    "it raises": (changed(NAOTO_OLD, forward=raises)(2, 2, 3), "RuntimeError: no such luck"),
    "it is called otherwise": (changed(NAOTO_OLD, forward=takes_a_list)(2, 2, 3), "TypeError: "),
    "it cannot be copied": (
        with_(NVIDIA(2, 2, 3), mask_ratio=torch.ones(1, requires_grad=True) * 2),
        "RuntimeError: Only Tensors created explicitly by the user",
    ),
    "it has no values": (NVIDIA(2, 2, 3, device="meta"), "no single device that computes"),
}


@pytest.mark.parametrize("case", NOT_COMPARED)
def test_what_cannot_be_compared(case):
    layer, reason = NOT_COMPARED[case]
    assert_stays(layer, "it cannot be compared with its replacement: ")
    assert_stays(layer, reason)


def test_a_subclass_of_another_name_is_looked_at():
    layer = type("Mine", (changed(NAOTO_OLD, forward=scales),), {})(2, 2, 3)
    assert_stays(layer, "its replacement would differ", name="Mine")


def test_the_layer_that_is_the_model():
    layer = NOT_RECOGNISED["dropout"][0]
    with pytest.warns(UserWarning, match="^model: PConvBlock left as it is"):
        assert replace_partial_convs(layer) is layer


def test_warnings_as_errors_leave_the_model_whole():
    model = nn.Sequential(copy.deepcopy(LAYERS["nvidia"][0]), NOT_RECOGNISED["dropout"][0])
    layers = list(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="dropout"):
            replace_partial_convs(model)
    assert list(model) == layers


def warns(self, input, mask):
    warnings.warn("slow", stacklevel=1)
    out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input, mask)
    return self.activation(out), new_mask


def test_the_comparison_neither_warns_nor_draws():
    layer = with_(changed(NAOTO_OLD, forward=warns)(2, 2, 3), activation=nn.RReLU())
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = replace_partial_convs(nn.Sequential(layer))
    assert isinstance(model[0], PartialConv2d)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_dtype_does_not_matter():
    layers = [copy.deepcopy(LAYERS[peer][0]) for peer in ("nvidia", "climate, norm")]
    torch.set_default_dtype(torch.float16)
    try:
        model = replace_partial_convs(nn.Sequential(*layers))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(isinstance(layer, PartialConv2d) for layer in model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_in_half_precision_is_not_divided(dtype):
    state = NAOTO_OLD(4, 2, 3).to(dtype).state_dict()
    with pytest.raises(
        ValueError, match=rf"input_conv.weight: weights in {dtype} lose digits .* by 36; convert"
    ):
        convert_state_dict(state, scaled_by_window=False)
    assert convert_state_dict(state, scaled_by_window=True)["weight"] is state["input_conv.weight"]


def test_a_layer_that_was_called_with_the_inputs_of_the_comparison():
    """It remembers their size, and would go on with the mask of then."""

    def forward(self, input, mask_in=None):
        if mask_in is None and self.last_size == tuple(input.shape):
            mask_in = torch.zeros_like(input[:, :1])
        return NVIDIA.forward(self, input, mask_in)

    layer = changed(NVIDIA, forward=forward)(2, 2, 3)
    layer.last_size = (3, 2, 5, 6)
    assert not layer(torch.randn(3, 2, 5, 6)).any()
    layer.last_size = (3, 2, 5, 6)
    assert isinstance(replace_partial_convs(nn.Sequential(layer))[0], PartialConv2d)

"""Layers that `replace_partial_convs` leaves as they are, because something holds them or their weights."""

import copy
import re

import pytest
import torch
import torch.distributed as dist
from support.peers import LAYERS, NAOTO_OLD, PHOTO_3D, nvidia
from support.replacements import assert_stays
from torch import nn

from pconv_ext import PartialConv2d, replace_partial_convs


def nothing(*args):
    return None


HOOKS = {
    "_forward_hooks": lambda module: module.register_forward_hook(nothing),
    "_forward_pre_hooks": lambda module: module.register_forward_pre_hook(nothing),
    "_backward_hooks": lambda module: module.register_full_backward_hook(nothing),
    "_backward_pre_hooks": lambda module: module.register_full_backward_pre_hook(nothing),
    "_state_dict_hooks": lambda module: module._register_state_dict_hook(nothing),
    "_state_dict_pre_hooks": lambda module: module.register_state_dict_pre_hook(nothing),
    "_load_state_dict_pre_hooks": lambda module: module.register_load_state_dict_pre_hook(nothing),
    "_load_state_dict_post_hooks": lambda module: module.register_load_state_dict_post_hook(nothing),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks(kind):
    layer = copy.deepcopy(LAYERS["nvidia"][0])
    HOOKS[kind](layer)
    assert_stays(layer, f"it carries hooks: {kind}")
    outer = copy.deepcopy(LAYERS["xyfJASON"][0])
    HOOKS[kind](outer.conv)
    assert_stays(outer, f"it carries hooks: conv.{kind}")


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_of_a_weight_that_is_rescaled(register):
    layer, kept = NAOTO_OLD(2, 2, 3), PHOTO_3D(2, 2, 3)
    for each in (layer, kept):
        getattr(each.input_conv.weight, register)(nothing)
    assert_stays(layer, "it carries hooks: input_conv.weight")
    assert isinstance(replace_partial_convs(nn.Sequential(kept))[0], PartialConv2d), (
        "the weight stays the same"
    )


@pytest.mark.parametrize("shared", ["weight", "module"])
def test_shared_weights(shared):
    """A weight that is rescaled cannot be shared with a layer that needs it as it is."""
    for peer, stays in ((NAOTO_OLD, True), (PHOTO_3D, False)):
        first, second = peer(2, 2, 3), peer(2, 2, 3)
        if shared == "module":
            second.input_conv = first.input_conv
        else:
            second.input_conv.weight = first.input_conv.weight
        model = nn.Sequential(first, second)
        if stays:
            with pytest.warns(UserWarning, match=re.escape("left as it is, its input_conv.weight is shared")):
                replace_partial_convs(model)
            assert list(model) == [first, second]
        else:
            replace_partial_convs(model)
            assert model[0].weight is model[1].weight


def assert_held(model, layer, reason):
    """`layer`, the only one in `model` of these names, is not replaced, for this reason."""
    with pytest.warns(UserWarning, match=f"left as it is, {re.escape(reason)}"):
        replace_partial_convs(model)
    assert any(module is layer for module in model.modules())


def test_compiled_layers():
    layer = nvidia()(2, 2, 3)
    assert_held(nn.Sequential(torch.compile(layer)), layer, "it is compiled")
    layer.compile()
    assert_held(nn.Sequential(layer), layer, "it is compiled")


@pytest.mark.parametrize(
    "hold",
    [lambda layer: layer, lambda layer: [layer], lambda layer: {"first": layer}],
    ids=["attribute", "list", "dict"],
)
def test_layers_that_are_held_twice(hold):
    """A list, say, would go on with the old one."""
    model = nn.Sequential(nvidia()(2, 2, 3))
    model.__dict__["others"] = hold(model[0])
    assert_held(model, model[0], "model.others holds it, too")


def test_rescaled_weights_under_data_parallel(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Sequential(NAOTO_OLD(2, 2, 3), nvidia()(2, 2, 3)))
        assert_held(model, model.module[0], "its input_conv.weight is shared and would be another")
    finally:
        dist.destroy_process_group()
    assert isinstance(model.module[1], PartialConv2d), "which keeps its weight"

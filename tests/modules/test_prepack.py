"""`prepack`: the same results, and dropped by whatever can be noticed.

That packed weights are used is seen where they are stale: an edit through `.data` bumps no version counter.
"""

import copy
import io
import pickle
import weakref

import pytest
import torch
from support.cases import mask_of
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.fusion import fuse_conv_bn_eval

import pconv_ext
from pconv_ext import MSFEF, InpaintingNet, PartialConv2d, prepack, set_algorithm

SHAPES = {
    "msfef": lambda: MSFEF(16, 24),
    "msfef, stride 1": lambda: MSFEF(16, 50, (3, 1), 1),
    "one kernel": lambda: MSFEF(20, 16, (3,), (1, 1), bias=False),
    "3x3": lambda: PartialConv2d(16, 40, 3, padding=1),
    "stride 2": lambda: PartialConv2d(24, 16, 5, 2, 2, bias=False),
    "groups": lambda: PartialConv2d(32, 48, 4, padding=2, groups=2),
    "channels": lambda: PartialConv2d(16, 16, 3, padding="same", multi_channel=True),
}


@pytest.fixture(autouse=True)
def inference():
    torch.manual_seed(0)
    with torch.no_grad(), set_algorithm("auto"):
        yield


@pytest.fixture
def layer():
    return prepack(MSFEF(16, 24).eval())


X = torch.randn(2, 16, 24, 20, generator=torch.Generator().manual_seed(0))
MASK = mask_of("rectangle", X)


def first(result):
    return result[0] if isinstance(result, tuple) else result


def is_kept(layer):
    return layer._packed is not None


def edit_unseen(layer):
    for parameter in layer.parameters():
        if parameter.dim() == 4:
            parameter.data.mul_(2)


def assert_kept_is_used(layer, *inputs):
    """By a call whose weights have been edited in a way that no one can notice."""
    before = first(layer(*inputs)).clone()
    edit_unseen(layer)
    assert torch.equal(first(layer(*inputs)), before), "weights were packed again"


def assert_nothing_is_kept(layer, x=X, mask=MASK):
    assert not is_kept(layer)
    expected = first(copy.deepcopy(layer)(x, mask))
    assert torch.equal(first(layer(x, mask)), expected)
    edit_unseen(layer)
    assert not torch.allclose(first(layer(x, mask)), expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["none", "rectangle", "random", "sparse", "blobs"])
@pytest.mark.parametrize("name", SHAPES)
def test_results_are_those_without(name, kind):
    layer = SHAPES[name]().eval()
    kept = prepack(copy.deepcopy(layer))
    assert is_kept(kept)
    channels = 20 if name == "one kernel" else {"stride 2": 24, "groups": 32}.get(name, 16)
    for n, h, w in ((1, 9, 11), (3, 32, 17), (1, 64, 64), (2, 2, 2), (0, 8, 8)):
        x = torch.randn(n, channels, h, w)
        mask = mask_of(kind, x)
        for form in (x, x.to(memory_format=torch.channels_last)):
            ours, theirs = first(kept(form, mask)), first(layer(form, mask))
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)
    x = torch.randn(2, channels, 40, 40)  # where packed weights are shared: the same sums in the same order
    assert torch.equal(first(kept(x)), first(layer(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kept_weights_are_used(dtype):
    layer = MSFEF(16, 24).eval().to(dtype)
    kept = prepack(copy.deepcopy(layer))
    torch.testing.assert_close(kept(X.to(dtype), MASK)[0], layer(X.to(dtype), MASK)[0])
    assert_kept_is_used(kept, X.to(dtype), MASK)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MSFEF(16, 24).double(),
        lambda: MSFEF(16, 24, backend="reference"),
        lambda: PartialConv2d(3, 64, 3),
        lambda: PartialConv2d(16, 16, 3, dilation=100),
        lambda: PartialConv2d(16, 16, 3, stride=10**6),
        lambda: PartialConv2d(16, 16, 3, stride=2),
    ],
    ids=["double", "reference", "few channels", "dilation", "stride", "F(m, 2)"],
)
def test_nothing_is_kept_where_nothing_is_gained(make):
    assert not is_kept(prepack(make().eval()))


def test_the_network_has_them_in_every_large_layer():
    net = InpaintingNet(width=16, depth=5).eval()
    image = torch.rand(1, 3, 128, 128)
    mask = mask_of("rectangle", image)
    truth = net(image, mask)
    keys = list(net.state_dict())
    assert prepack(net) is net
    kept = [layer for layer in net.modules() if getattr(layer, "_packed", None) is not None]
    assert len(kept) == 7, "all but the first and last encoder and the last decoder stage"
    torch.testing.assert_close(net(image, mask), truth, rtol=1e-4, atol=1e-4)
    assert list(net.state_dict()) == keys
    assert len(list(net.parameters())) == len(list(InpaintingNet(width=16, depth=5).parameters()))
    prepack(net, False)
    assert not any(getattr(layer, "_packed", None) for layer in net.modules())
    assert torch.equal(net(image, mask), truth)


def test_the_branches_of_a_layer_keep_none_of_their_own(layer):
    assert not any(map(is_kept, layer.branches))
    copied = copy.deepcopy(layer.branches[1])
    assert torch.equal(layer.branches[1](X, MASK)[0], copied(X, MASK)[0])


def state_dict_of(layer):
    return {name: value.clone() for name, value in layer.state_dict().items()}


AT_ONCE = {
    "undone": lambda layer: prepack(layer, False),
    "train": lambda layer: layer.train().eval(),
    "train of a parent": lambda layer: nn.Sequential(layer).train().eval(),
    "to": lambda layer: layer.to("cpu"),
    "half and back": lambda layer: layer.half().float(),
    "share_memory": lambda layer: layer.share_memory(),
    "double and back, in a parent": lambda layer: nn.Sequential(layer).double().float(),
    "load_state_dict": lambda layer: layer.load_state_dict(state_dict_of(layer)),
    "assign": lambda layer: layer.load_state_dict(state_dict_of(layer), assign=True),
    "load_state_dict of a parent": lambda layer: nn.Sequential(layer).load_state_dict(
        state_dict_of(nn.Sequential(layer))
    ),
}


@pytest.mark.parametrize("way", AT_ONCE)
def test_dropped_at_once(layer, way):
    memory = weakref.ref(layer._packed.weights)
    AT_ONCE[way](layer)
    assert memory() is None, "the memory is free"
    assert_nothing_is_kept(layer)


def optimise(layer):
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.scales.mul_(2)


class Halve(nn.Module):
    def forward(self, weight):
        return weight / 2


IN_THE_NEXT_CALL = {
    "in place": lambda layer: layer.branches[0].weight.mul_(2),
    "scales": lambda layer: layer.scales.fill_(1),
    "through a view": lambda layer: layer.branches[2].weight[0, 0].zero_(),
    "through detach": lambda layer: layer.branches[2].weight.detach().zero_(),
    "in inference mode": in_inference_mode,
    "initialised": lambda layer: nn.init.zeros_(layer.branches[1].weight),
    "optimiser": optimise,
    "storage": lambda layer: setattr(layer.scales, "data", torch.ones_like(layer.scales)),
    "set_": lambda layer: layer.scales.set_(torch.ones_like(layer.scales)),
    "swapped": lambda layer: torch.utils.swap_tensors(layer.scales, nn.Parameter(layer.scales + 1)),
    "replaced": lambda layer: setattr(layer, "scales", nn.Parameter(torch.ones_like(layer.scales))),
    "load_state_dict of a part": lambda layer: layer.branches[0].load_state_dict(
        state_dict_of(layer.branches[1].__class__(16, 24, 3))
    ),
    "pruned": lambda layer: prune.l1_unstructured(layer.branches[0], "weight", 0.5),
    "parametrised": lambda layer: parametrize.register_parametrization(layer.branches[0], "weight", Halve()),
    "weight norm": lambda layer: nn.utils.parametrizations.weight_norm(layer.branches[0]),
    "functional_call": lambda layer: torch.func.functional_call(
        layer, {"scales": torch.ones_like(layer.scales)}, (X, MASK)
    ),
}


@pytest.mark.parametrize("way", IN_THE_NEXT_CALL)
def test_dropped_in_the_next_call(layer, way):
    memory = weakref.ref(layer._packed.weights)
    IN_THE_NEXT_CALL[way](layer)
    assert torch.equal(layer(X, MASK)[0], copy.deepcopy(layer)(X, MASK)[0])
    assert memory() is None, "the memory is free"
    assert not is_kept(layer)
    assert torch.equal(layer(X, MASK)[0], copy.deepcopy(layer)(X, MASK)[0])


def test_eval_and_requires_grad_drop_nothing(layer):
    layer.eval().requires_grad_(False)
    assert is_kept(layer)
    with torch.enable_grad():
        assert_kept_is_used(layer, X, MASK)


def test_a_parametrised_weight_is_not_kept():
    layer = MSFEF(16, 24).eval()
    parametrize.register_parametrization(layer.branches[0], "weight", Halve())
    assert not is_kept(prepack(layer))


def test_prepack_again_after_an_edit(layer):
    layer.scales.mul_(3)
    layer(X, MASK)
    expected = copy.deepcopy(layer)(X, MASK)[0]
    assert is_kept(prepack(layer))
    torch.testing.assert_close(layer(X, MASK)[0], expected, rtol=0, atol=3e-6)


def test_gradients_are_those_without(layer):
    other = copy.deepcopy(layer)
    with torch.enable_grad():
        for one in (layer, other):
            one(X, MASK)[0].square().sum().backward()
        x = X.clone().requires_grad_()
        (grad,) = torch.autograd.grad(layer(x, MASK)[0].sum(), x)
    assert grad.abs().max() > 0
    for ours, theirs in zip(layer.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)
    assert is_kept(layer)


def assert_packs_again(layer, compute):
    """`compute` sees an edit that leaves the packed weights as they are."""
    before = compute(layer).clone()
    edit_unseen(layer)
    expected = compute(prepack(copy.deepcopy(layer), False))
    assert is_kept(layer)
    assert torch.equal(compute(layer), expected)
    assert not torch.allclose(compute(layer), before, atol=1e-2)


def direct(layer):
    with set_algorithm("direct"):
        return layer(X, MASK)[0]


def autocast(layer):
    with torch.autocast("cpu", torch.bfloat16):
        return layer(X, MASK)[0]


def two_by_two(layer):
    return layer(X.repeat(5, 1, 1, 1)[:, :, :4, :4])[0]


def reference(layer):
    layer.backend = "reference"
    return layer(X, MASK)[0]


def mapped(layer):
    return torch.vmap(lambda x: layer(x[None], MASK[:1])[0])(X)


def traced(layer):
    return torch.jit.trace(layer, (X, MASK))(X, MASK)[0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compute", [direct, autocast, two_by_two, reference, mapped, traced])
def test_calls_that_do_not_fit_pack_again(layer, compute):
    assert_packs_again(layer, compute)


def test_packed_weights_of_another_layer_are_refused_unread(layer):
    """Below the modules: the header of the buffer decides, never its length alone."""
    expected = copy.deepcopy(layer)(X, MASK)[0]
    packed = layer._packed.weights
    others = [prepack(make().eval())._packed.weights for make in SHAPES.values()][1:]
    others += [prepack(MSFEF(16, n).eval())._packed.weights for n in (16, 32)]
    for wrong in (*others, packed[:-1], packed[:8], torch.empty(0), torch.cat([packed, packed])):
        layer._packed.weights = wrong
        assert torch.equal(layer(X, MASK)[0], expected)


def test_values_too_large_for_winograd_products(layer):
    x = X * 1e20
    assert torch.equal(layer(x, MASK)[0], copy.deepcopy(layer)(x, MASK)[0])
    layer.branches[0].weight[0, 0, 0, 0] = float("inf")
    assert not is_kept(prepack(layer))


def test_copies_and_pickles_have_none(layer):
    expected = layer(X, MASK)[0]
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
        assert is_kept(layer)
        torch.testing.assert_close(other(X, MASK)[0], expected, rtol=0, atol=3e-6)
        assert_nothing_is_kept(other)
    plain = MSFEF(16, 24).eval()
    assert len(pickle.dumps(layer)) < len(pickle.dumps(plain)) + 200
    with pytest.raises(TypeError, match="fuse_conv_bn_eval cannot fuse"):
        fuse_conv_bn_eval(prepack(PartialConv2d(16, 16, 3).eval()), nn.BatchNorm2d(16).eval())


def test_a_shallow_copy_shares_parameters_and_what_is_made_of_them(layer):
    other = copy.copy(layer)
    layer.scales.mul_(2)
    expected = copy.deepcopy(layer)(X, MASK)[0]
    for one in (other, layer):
        assert torch.equal(one(X, MASK)[0], expected)


def test_nothing_is_kept_without():
    layer = MSFEF(16, 24).eval()
    layer(X, MASK)
    assert_nothing_is_kept(layer)
    assert_nothing_is_kept(PartialConv2d(16, 24, 3).eval())


@pytest.mark.parametrize("packed_first", [True, False])
def test_compiled_functions_pack_in_every_call(packed_first):
    layer = MSFEF(16, 24).eval()
    truth = copy.deepcopy(layer)
    if packed_first:
        prepack(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(X, MASK)[0], truth(X, MASK)[0])
    assert is_kept(prepack(layer))
    for edit in (edit_unseen, lambda layer: layer.scales.mul_(2)):
        for one in (layer, truth):
            edit(one)
        assert torch.equal(compiled(X, MASK)[0], truth(X, MASK)[0])


def test_exported_programs_hold_no_packed_weights(layer):
    program = torch.export.export(layer, (X, MASK))
    assert torch.equal(program.module()(X, MASK)[0], copy.deepcopy(layer)(X, MASK)[0])
    assert sorted(program.state_dict) == sorted(layer.state_dict())
    assert not program.constants


def test_the_inpainter_uses_it():
    net = InpaintingNet(width=16, depth=4).eval()
    inpainter = pconv_ext.Inpainter(net, device="cpu")
    assert is_kept(inpainter.net.encoder[1].conv)
    assert not is_kept(net.encoder[1].conv)


@pytest.mark.parametrize("wrong", [None, 3, torch.zeros(2), {"a": 1}, MSFEF], ids=repr)
def test_another_argument(wrong):
    with pytest.raises(TypeError, match=r"prepack: module must be a torch\.nn\.Module, got "):
        prepack(wrong)


def test_a_module_in_training_mode():
    net = InpaintingNet(width=16, depth=4).eval()
    prepack(net)
    net.decoder[0].train()
    with pytest.raises(
        ValueError, match=r"must be in evaluation mode, call eval\(\): decoder\.0 is in train"
    ):
        prepack(net)
    assert is_kept(net.encoder[1].conv), "an error changes nothing"
    assert prepack(net, False) is net
    assert not is_kept(net.encoder[1].conv)
    with pytest.raises(ValueError, match="MSFEF is in training mode"):
        prepack(MSFEF(16, 16))


def test_a_module_without_partial_convolutions():
    module = nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU()).train()
    assert prepack(module) is module

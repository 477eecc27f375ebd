"""The transforms of ``torch.func``: what they make of a backend equals what they make of the reference."""

import pytest
import torch
from support import arguments
from support.cases import DTYPE_OF, every_backend
from support.tolerances import assert_close
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

import pconv_ext
from pconv_ext import PartialConv2d

OPERATORS = {
    "partial_conv2d": (arguments.partial_conv2d, {"stride": (2, 1), "padding": 1}),
    "msfef": (arguments.msfef, {}),
    "upcat_partial_conv2d": (arguments.upcat_partial_conv2d, {}),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def case(name, backend):
    """out(wanted, masks, backend), and by name the tensors with a gradient and the masks."""
    make, constants = OPERATORS[name]
    args = make(backend, **constants)
    masks = {key: value for key, value in args.items() if key.startswith("mask")}
    others = {key: value for key, value in args.items() if key in (*constants, "stride")}
    wanted = {key: value for key, value in args.items() if key not in masks and key not in others}

    def out(wanted, masks, backend):
        return getattr(pconv_ext, name)(**wanted, **masks, **others, backend=backend)[0]

    return out, wanted, masks


def compare(transformed, name, backend, wanted, masks):
    """``transformed(backend)(wanted, masks)`` of a backend with that of the reference in float64."""
    actual = transformed(backend)(wanted, masks)
    expected = transformed("reference")(tree_map(torch.Tensor.double, wanted), masks)
    actual, expected = tree_leaves(actual), tree_leaves(expected)
    assert len(actual) == len(expected) > 0
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert_close(one, other, DTYPE_OF[backend], name, backend)


@every_backend
@every_operator
def test_grad(backend, name):
    out, *args = case(name, backend)
    compare(lambda b: grad(lambda w, m: out(w, m, b).square().mean()), name, backend, *args)


@every_backend
@every_operator
def test_jacrev(backend, name):
    out, *args = case(name, backend)
    compare(lambda b: jacrev(lambda w, m: out(w, m, b).mean((0, 3))), name, backend, *args)


def batches(tensors):
    """Features and masks with a dimension of two more, the second; and by name where it is."""
    features = {"x", "x_low", "skip", "mask", "mask_low", "mask_skip"}
    moved = {
        key: torch.stack([value, value.flip(3)], 1) if key in features else value
        for key, value in tensors.items()
    }
    dims = {key: 1 if key in features else tree_map(lambda _: None, moved[key]) for key in moved}
    return moved, dims


@every_backend
@every_operator
@pytest.mark.parametrize("of_gradient", [False, True], ids=["results", "gradients"])
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_vmap(backend, name, of_gradient, chunk_size):
    out, wanted, masks = case(name, backend)
    (wanted, *dims), (masks, *mask_dims) = batches(wanted), batches(masks)

    def transformed(backend):
        def one(wanted, masks):
            return out(wanted, masks, backend)

        def loss(wanted, masks):
            return one(wanted, masks).square().mean()

        return vmap(grad(loss) if of_gradient else one, in_dims=(*dims, *mask_dims), chunk_size=chunk_size)

    compare(transformed, name, backend, wanted, masks)


@every_backend
def test_vmap_over_the_parameters(backend):
    """An ensemble of layers."""
    out, wanted, masks = case("msfef", backend)
    layers = {key: tree_map(lambda t: torch.stack([t, -2 * t]), wanted[key]) for key in wanted if key != "x"}
    dims = {"x": None, **tree_map(lambda _: 0, layers)}

    def transformed(backend):
        gradient = grad(lambda w, m: out(w, m, backend).square().mean())
        return vmap(gradient, in_dims=(dims, None))

    compare(transformed, "msfef", backend, {"x": wanted["x"], **layers}, masks)


@every_backend
def test_vmap_of_vmap(backend):
    out, wanted, masks = case("upcat_partial_conv2d", backend)
    scales = torch.tensor([1.0, -3.0], dtype=DTYPE_OF[backend], device=wanted["skip"].device)

    def transformed(backend):
        def gradient(wanted, masks):
            def one(a, b):
                return grad(lambda w: (out(w, masks, backend) * (a * b)).square().mean())(wanted)

            return vmap(vmap(one, in_dims=(None, 0)), in_dims=(0, None))(scales, scales)

        return gradient

    compare(transformed, "upcat_partial_conv2d", backend, wanted, masks)


@every_backend
def test_gradients_of_a_layer_for_each_picture(backend):
    """The recipe of torch's own tutorial: functional_call under grad under vmap."""
    layer = PartialConv2d(3, 4, 3, padding=1, backend=backend).to(arguments.DEVICE_OF[backend])
    weights = {key: value.detach() for key, value in layer.named_parameters()}
    x = torch.randn(3, 3, 8, 9, device=layer.weight.device)
    mask = (torch.rand(3, 1, 8, 9) < 0.6).to(x.device)

    def loss(weights, x, mask):
        return functional_call(layer, weights, (x[None], mask[None])).square().sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, mask)
    for i in range(len(x)):
        layer.zero_grad()
        layer(x[i : i + 1], mask[i : i + 1]).square().sum().backward()
        for key, parameter in layer.named_parameters():
            assert_close(each[key][i], parameter.grad.double(), torch.float32, key, backend)


@every_backend
@every_operator
def test_what_there_is_no_formula_for_says_what_to_do(backend, name):
    out, wanted, masks = case(name, backend)

    def loss(wanted):
        return out(wanted, masks, backend).square().mean()

    def gradient_size(wanted):
        return sum(g.square().sum() for g in tree_leaves(grad(loss)(wanted)))

    with pytest.raises(RuntimeError, match=rf'{name} is not twice differentiable.*backend="reference"'):
        grad(gradient_size)(wanted)
    with pytest.raises(RuntimeError, match=rf'{name} has no forward-mode.*backend="reference"'):
        jvp(loss, (wanted,), (tree_map(torch.ones_like, wanted),))


@every_backend
@every_operator
def test_forward_over_reverse_says_what_to_do(backend, name):
    out, wanted, masks = case(name, backend)
    with pytest.raises(RuntimeError, match=rf'{name} has no forward-mode.*backend="reference"'):
        hessian(lambda w: out(w, masks, backend).square().mean())(wanted)


def test_vmap_over_nothing():
    x, weight = torch.ones(0, 1, 3, 5, 5), torch.ones(2, 3, 3, 3)
    with pytest.raises(ValueError, match="partial_conv2d cannot be mapped over a dimension of size 0"):
        vmap(lambda x: pconv_ext.partial_conv2d(x, None, weight)[0])(x)

"""The layers: equal to the published class, and good citizens of torch.nn."""

import _thread
import copy
import io
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.cases import DEVICE_OF, DTYPE_OF, every_backend, mask_of, randn, refused
from support.published import assert_equals_published, published_partial_conv2d
from support.tolerances import assert_close
from torch import nn

from pconv_ext import MSFEF, PartialConv2d


def of(backend):
    """Where and in what its tests compute."""
    return {"dtype": DTYPE_OF[backend], "device": DEVICE_OF[backend]}


def assert_layer_equals(layer, x, mask, expected, leaves, backend):
    """Result and gradients of `layer` are those of `expected`, in float64 from `leaves`."""

    def check(ours, theirs, what):
        if ours.dtype == torch.float64:
            assert_equals_published(ours, theirs)
        else:
            assert_close(ours, theirs, ours.dtype, what, backend)

    out, new_mask = layer(x, mask)
    check(out, expected[0], "out")
    assert new_mask.shape == expected[1].shape
    assert torch.equal(new_mask.double(), expected[1])
    grad = torch.randn_like(out)
    ours = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    theirs = torch.autograd.grad(expected[0], leaves, grad.double())
    for i, pair in enumerate(zip(ours, theirs, strict=True)):
        check(*pair, f"gradient {i}")


@every_backend
@pytest.mark.parametrize("multi_channel", [False, True], ids=["plane", "channels"])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7])
def test_partial_conv2d_equals_the_published_class(backend, size, stride, dilation, multi_channel):
    for padding, groups, bias in ((0, 1, True), (size // 2, 2, True), (size, 1, False), ((1, size), 1, True)):
        layer = PartialConv2d(
            4, 6, size, stride, padding, dilation, groups, bias,
            multi_channel=multi_channel, return_mask=True, backend=backend,
        ).to(**of(backend))  # fmt: skip
        x = randn(2, 4, 15, 16, **of(backend)).requires_grad_()
        mask = mask_of("channels" if multi_channel else "random", x, torch.bool).to(x.dtype)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        call = {"x": x, "mask": mask, "weight": layer.weight, "bias": layer.bias, **options}
        if refused("partial_conv2d", backend, call):
            continue
        wide, wide_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
        expected = published_partial_conv2d(
            wide_x, mask.double(), wide.weight, wide.bias, **options, multi_channel=multi_channel
        )
        assert_layer_equals(layer, x, mask, expected, [wide_x, *wide.parameters()], backend)


@every_backend
@pytest.mark.parametrize("sizes", [(3, 5, 7), (7, 3), (5,), (1, 5, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_msfef_equals_the_composition_of_published_layers(backend, sizes, stride):
    layer = MSFEF(3, 8, sizes, stride, backend=backend).to(**of(backend))
    nn.init.normal_(layer.scales)
    x = randn(2, 3, 17, 14, **of(backend)).requires_grad_()
    mask = mask_of("sparse", x).to(x.dtype)
    wide, wide_x = copy.deepcopy(layer).double(), x.detach().double().requires_grad_()
    branches = [
        published_partial_conv2d(wide_x, mask.double(), branch.weight, None, stride, k // 2)
        for branch, k in zip(wide.branches, sizes, strict=True)
    ]
    smallest = branches[sizes.index(min(sizes))][1]
    expected = 0
    for scale, (value, _), branch in zip(wide.scales, branches, wide.branches, strict=True):
        expected = expected + scale.view(1, -1, 1, 1) * (value + branch.bias.view(1, -1, 1, 1)) * smallest
    assert_layer_equals(layer, x, mask, (expected, smallest), [wide_x, *wide.parameters()], backend)


def test_partial_conv2d_takes_the_arguments_of_conv2d():
    ours = PartialConv2d(4, 6, (3, 5), stride=2, padding=(1, 2), dilation=1, groups=2, bias=False)
    conv = nn.Conv2d(4, 6, (3, 5), stride=2, padding=(1, 2), dilation=1, groups=2, bias=False)
    assert isinstance(ours, nn.Conv2d)
    assert list(ours.state_dict()) == list(conv.state_dict()) == ["weight"]
    ours.load_state_dict(conv.state_dict())
    inside = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(ours(inside)[..., 1:-1, 1:-1], conv(inside)[..., 1:-1, 1:-1])


def test_partial_conv2d_returns():
    x = torch.randn(2, 4, 8, 8)
    mask = mask_of("random", x, torch.float32)
    assert isinstance(PartialConv2d(4, 6, 3)(x, mask), torch.Tensor)
    _, new_mask = PartialConv2d(4, 6, 3, return_mask=True)(x, mask)
    assert new_mask.shape == (2, 1, 6, 6)
    layer = PartialConv2d(4, 6, 3, return_mask=True, multi_channel=True)
    per_channel = mask_of("channels", x, torch.uint8)
    _, new_mask = layer(x, per_channel)
    assert new_mask.shape == (2, 6, 6, 6)
    assert new_mask.stride(1) == 0, "an expanded view"
    assert new_mask.dtype == torch.uint8
    _, new_mask = layer(x)
    assert new_mask.shape == (2, 6, 6, 6)
    torch.testing.assert_close(layer(x, mask)[0], layer(x, mask.expand(-1, 4, -1, -1).contiguous())[0])


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # of nn.Conv2d, beside ours
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    x = torch.randn(1, 2, 9, 8)
    layer = PartialConv2d(2, 3, (4, 3), padding=padding, dilation=(1, 2))
    conv = nn.Conv2d(2, 3, (4, 3), padding=padding, dilation=(1, 2))
    conv.load_state_dict(layer.state_dict())
    out = layer(x)
    assert out.shape == conv(x).shape
    torch.testing.assert_close(out[..., 2:-2, 2:-2], conv(x)[..., 2:-2, 2:-2])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_padding_modes_are_refused(mode):
    with pytest.raises(ValueError, match=f"padding_mode must be 'zeros', got '{mode}'"):
        PartialConv2d(2, 3, 3, padding=1, padding_mode=mode)


def test_channel_masks_need_multi_channel():
    with pytest.raises(ValueError, match=r"mask_in must have shape .* unless multi_channel=True"):
        PartialConv2d(2, 3, 3)(torch.randn(1, 2, 8, 8), torch.ones(1, 2, 8, 8))


def test_unbatched_input_is_refused():
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        PartialConv2d(2, 3, 3)(torch.randn(2, 8, 8))
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        MSFEF(2, 3)(torch.randn(2, 8, 8))


def test_no_mask_is_remembered():
    """NVIDIA's class reuses the ratio of the last mask in a call without one (its issue 14)."""
    layer = PartialConv2d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 8, 8)
    before = layer(x)
    layer(x, mask_of("sparse", x))
    assert torch.equal(layer(x), before)


def test_msfef_attributes():
    layer = MSFEF(3, 8, kernel_sizes=[7, 3, 5], stride=2)
    assert [type(branch) for branch in layer.branches] == [PartialConv2d] * 3
    assert [branch.kernel_size for branch in layer.branches] == [(7, 7), (3, 3), (5, 5)]
    assert torch.equal(layer.scales, torch.full((3, 8), 1 / 3))
    assert isinstance(layer.scales, nn.Parameter)
    assert list(layer.state_dict()) == ["scales"] + [
        f"branches.{i}.{name}" for i in range(3) for name in ("weight", "bias")
    ]
    assert "bias" not in " ".join(MSFEF(3, 8, bias=False).state_dict())
    out, new_mask = layer(torch.randn(2, 3, 9, 8))
    assert out.shape == (2, 8, 5, 4)
    assert new_mask.shape == (2, 1, 5, 4)


@pytest.mark.parametrize("sizes", [(), (2,), (3, 4), (3, 3), (0, 3), (-1,)], ids=str)
def test_msfef_kernel_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match="kernel_sizes must be distinct odd ints"):
        MSFEF(3, 8, kernel_sizes=sizes)


def test_repr_shows_what_matters():
    layer = PartialConv2d(3, 8, 3, stride=2, multi_channel=True, backend="reference")
    for part in ("3, 8, kernel_size=(3, 3)", "stride=(2, 2)", "multi_channel=True", "return_mask=False"):
        assert part in repr(layer)
    assert "backend='reference'" in repr(layer)
    assert "3, 8, kernel_sizes=(3, 5), stride=1" in repr(MSFEF(3, 8, (3, 5), 1))


LAYERS = {
    "PartialConv2d": lambda: PartialConv2d(3, 8, 3, 2, 1, return_mask=True),
    "MSFEF": lambda: MSFEF(3, 8),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


@every_layer
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
def test_copies(make, duplicate):
    layer = make()
    x = torch.randn(2, 3, 9, 9)
    mask = mask_of("random", x)
    expected = layer(x, mask)
    twin = duplicate(layer)
    assert torch.equal(twin(x, mask)[0], expected[0])
    with torch.no_grad():
        next(iter(layer.parameters())).zero_()
    assert torch.equal(twin(x, mask)[0], expected[0]), "it shares no parameters"


@every_layer
def test_saving_and_loading(make):
    layer, other = make(), make()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 3, 9, 9)
    assert torch.equal(layer(x)[0], other(x)[0])


@every_layer
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_conversion(make, dtype):
    layer = make().to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 9).to(dtype=dtype, memory_format=torch.channels_last)
    out, new_mask = layer(x)
    assert out.dtype == new_mask.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@every_layer
def test_training(make):
    layer = make()
    x = torch.randn(4, 3, 16, 16)
    mask = mask_of("random", x)
    target = make()(x, mask)[0].detach()
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (layer(x, mask)[0] - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_layer
def test_distributed_data_parallel(make, process_group):
    layer = make()
    x = torch.randn(2, 3, 9, 9)
    mask = mask_of("random", x)
    layer(x, mask)[0].square().sum().backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    nn.parallel.DistributedDataParallel(layer)(x, mask)[0].square().sum().backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_kernels_are_part_of_the_package():
    import pconv_ext.kernels

    assert pconv_ext.kernels.__doc__


def test_no_fusion_with_a_batch_normalisation():
    """It would be wrong in dead windows, whose zeros a normalisation shifts and a bias does not reach."""
    layer, norm = PartialConv2d(3, 4, 3).eval(), nn.BatchNorm2d(4).eval()
    with pytest.raises(TypeError, match="PartialConv2d: fuse_conv_bn_eval cannot fuse it with a batch norm"):
        nn.utils.fuse_conv_bn_eval(layer, norm)
    plain = nn.utils.fuse_conv_bn_eval(nn.Conv2d(3, 4, 3).eval(), norm)
    assert type(copy.deepcopy(layer)) is PartialConv2d
    assert type(plain) is nn.Conv2d
    copies = []
    done = threading.Event()
    _thread.start_new_thread(lambda: (copies.append(pickle.dumps(layer)), done.set()), ())
    assert done.wait(60), "a stack with next to no frames"
    assert type(pickle.loads(copies[0])) is PartialConv2d


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_backend
def test_traced(backend):
    """torch.jit.trace goes on working: the trace calls the operators."""
    x = randn(2, 3, 9, 10, **of(backend))
    mask = mask_of("random", x)
    for layer in (PartialConv2d(3, 4, 3, return_mask=True, backend=backend), MSFEF(3, 4, backend=backend)):
        layer = layer.to(x)
        traced = torch.jit.trace(layer, (x, mask))
        other = x.flip(3)
        for one, expected in zip(traced(other, mask), layer(other, mask), strict=True):
            assert torch.equal(one, expected)


@every_backend
def test_numbers_of_numpy(backend):
    """Strides, paddings and dilations as nn.Conv2d takes them."""
    x = randn(1, 4, 9, 10, **of(backend))
    options = {"stride": (2, 1), "padding": 1, "dilation": 2, "groups": 1}
    numbers = {"stride": (np.int64(2), np.int32(1)), **{k: np.int64(options[k]) for k in [*options][1:]}}
    layer = PartialConv2d(4, 4, 3, **options, backend=backend).to(x)
    other = PartialConv2d(4, 4, 3, **numbers, backend=backend).to(x)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x), other(x))
    block = MSFEF(4, 4, stride=np.int64(2), backend=backend).to(x)
    assert block(x)[0].shape == (1, 4, 5, 5)

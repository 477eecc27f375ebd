"""`pconv_ext.InpaintingNet` against the same network written with the naive composition of the reference."""

import pytest
import torch
import torch.nn.functional as F
from support.cases import mask_of
from torch import nn

import pconv_ext
from pconv_ext import InpaintingNet, composite, reference


def naive(net, image, mask):
    """Encoder, up-sampled and concatenated features and masks: every tensor that the fast path leaves out."""
    x, skips = image, []
    mask = mask.to(image.dtype)
    for stage in net.encoder:
        skips.append((x, mask))
        if isinstance(stage.conv, pconv_ext.MSFEF):
            branches = stage.conv.branches
            outs = [
                reference.partial_conv2d(x, mask, b.weight, b.bias, b.stride, b.padding) for b in branches
            ]
            smallest = min(range(len(branches)), key=lambda i: branches[i].kernel_size[0])
            mask = outs[smallest][1]
            x = mask * sum(
                scale.view(1, -1, 1, 1) * out for scale, (out, _) in zip(stage.conv.scales, outs, strict=True)
            )
        else:
            x, mask = reference.partial_conv2d(x, mask, stage.conv.weight, stage.conv.bias, 2, 1)
        if not (isinstance(stage.norm, nn.InstanceNorm2d) and x.shape[2] * x.shape[3] == 1):
            x = stage.norm(x)
        x = x.relu()
    for stage in net.decoder:
        skip, mask_skip = skips.pop()
        h, w = skip.shape[2:]
        up = F.interpolate(x, scale_factor=2)[..., :h, :w]
        mask_up = F.interpolate(mask, scale_factor=2)[..., :h, :w]
        x = torch.cat([up, skip], 1)
        masks = torch.cat([mask_up.expand_as(up), mask_skip.expand_as(skip)], 1)
        x, mask = reference.partial_conv2d(x, masks, stage.conv.weight, stage.conv.bias, 1, 1)
        x = stage.activation(stage.norm(x))
    return x


@pytest.mark.parametrize("size", [(32, 32), (37, 50), (16, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"msfef_stages": 0}, {"kernel_sizes": ((3, 7), (1, 5))}], ids=str)
def test_equals_the_naive_network(size, options):
    net = InpaintingNet(**({"width": 4, "depth": 4, "msfef_stages": 2} | options)).double()
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    mask = mask_of("rectangle", image)
    out = net(image.where(mask, torch.full_like(image, float("nan"))), mask)
    expected = naive(net, image, mask)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(out)
    parameters = list(net.parameters())
    for one, other in zip(
        torch.autograd.grad(out, parameters, grad),
        torch.autograd.grad(expected, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-8 * max(1.0, other.abs().max().item()))


def test_table_2():
    """Channels, kernels and normalisations of the paper's table."""
    net = InpaintingNet()
    down = [(64, "InstanceNorm2d"), (128, "InstanceNorm2d"), (256, "InstanceNorm2d")]
    down += [(512, "InstanceNorm2d")] * 4 + [(512, "BatchNorm2d")]
    for i, (stage, (channels, norm)) in enumerate(zip(net.encoder, down, strict=True)):
        convs = stage.conv.branches if i < 4 else [stage.conv]
        assert [c.kernel_size[0] for c in convs] == ([3, 5, 7] if i < 4 else [3])
        assert {c.out_channels for c in convs} == {channels}
        assert all(c.stride == (2, 2) for c in convs)
        assert type(stage.norm).__name__ == norm
        assert stage.norm.weight is not None
        assert isinstance(stage.activation, nn.ReLU)
    up = [(1024, 512)] * 4 + [(768, 256), (384, 128), (192, 64), (67, 3)]
    assert [(s.conv.in_channels, s.conv.out_channels) for s in net.decoder] == up
    for stage in net.decoder[:-1]:
        assert type(stage.norm).__name__ == "BatchNorm2d"
        assert stage.activation.negative_slope == 0.2
    assert isinstance(net.decoder[-1].norm, nn.Identity)
    assert isinstance(net.decoder[-1].activation, nn.Identity)


@pytest.mark.parametrize("size", [(256, 256), (61, 130), (1, 1), (3, 257)], ids=str)
def test_any_size_comes_back(size):
    net = InpaintingNet(width=2).eval()
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        out = net(image, mask_of("random", image))
    assert out.shape == image.shape
    assert out.isfinite().all()


def test_width_scales_all_channels():
    count = sum(p.numel() for p in InpaintingNet(width=8).parameters())
    double = sum(p.numel() for p in InpaintingNet(width=16).parameters())
    assert 3.5 < double / count < 4


def test_batch_normalisation_of_one_value():
    net = InpaintingNet(width=2, depth=3, msfef_stages=1)
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"1x1 map in a batch of 1 .*larger batch or image, .* or \.eval\(\)"
    ):
        net(image, None)
    assert net.eval()(image, None).shape == image.shape
    assert net.train()(torch.rand(2, 3, 8, 8), None).shape == (2, 3, 8, 8)


def test_nothing_outside_the_mask_shows():
    """What the holes of the picture hold reaches neither the output nor a gradient."""
    net = InpaintingNet(width=4, depth=3, msfef_stages=2)
    image = torch.rand(2, 3, 24, 24)
    mask = mask_of("rectangle", image)
    broken = image.where(mask, torch.full_like(image, float("inf")))
    assert torch.equal(net(image, mask), net(broken, mask))
    net(broken, mask).sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": 1}, "depth must be at least 2 .* got depth 1"),
        ({"depth": 3}, "msfef_stages from 0 to depth, got depth 3, msfef_stages 4"),
        ({"kernel_sizes": ((3,), (5,))}, "one sequence of ints for each of the 4 msfef_stages"),
        ({"kernel_sizes": (3, 4)}, "distinct odd ints"),
        ({"backend": "gpu"}, "backend must be"),
    ],
    ids=str,
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        InpaintingNet(**options)


def test_bad_inputs():
    net = InpaintingNet(width=2, depth=2, msfef_stages=0)
    with pytest.raises(ValueError, match=r"image must have shape \[N, 3, H, W\], got \[1, 1, 8, 8\]"):
        net(torch.rand(1, 1, 8, 8), None)
    with pytest.raises(ValueError, match="mask must have shape"):
        net(torch.rand(2, 3, 8, 8), torch.ones(2, 1, 8, 9))


def test_composite_selects():
    image, output = torch.rand(2, 3, 5, 6), torch.rand(2, 3, 5, 6)
    mask = mask_of("random", image, torch.float32)
    image[(mask == 0).expand_as(image)] = float("nan")
    result = composite(output, image, mask)
    valid = (mask != 0).expand_as(image)
    assert torch.equal(result[valid], image[valid])
    assert torch.equal(result[~valid], output[~valid])


def test_mirrored_is_the_mean_of_both_ways():
    plain = InpaintingNet(width=4, msfef_stages=1, depth=3)
    both = InpaintingNet(width=4, msfef_stages=1, depth=3, mirrored=True)
    both.load_state_dict(plain.state_dict())
    image, mask = torch.rand(2, 3, 21, 30), (torch.rand(1, 1, 21, 30) > 0.2).float()
    assert torch.equal(plain(image, mask), both(image, mask))  # in training
    plain.eval(), both.eval()
    for one in (mask, None):
        there, back = plain(image, one), plain(image.flip(-1), None if one is None else one.flip(-1)).flip(-1)
        torch.testing.assert_close(both(image, one), (there + back) / 2)
        mirrored = both(image.flip(-1), None if one is None else one.flip(-1)).flip(-1)
        torch.testing.assert_close(both(image, one), mirrored)

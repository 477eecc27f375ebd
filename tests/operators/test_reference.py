"""The reference itself, against the published formulas written out independently."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support.cases import mask_of, randn
from support.published import published_partial_conv2d

from pconv_ext import reference


def window_by_window(x, mask, weight, bias, stride, padding):
    """Equations (1) and (2) of Liu et al. 2018 as loops over output positions."""
    n, c, h, w = x.shape
    c_out, _, k, _ = weight.shape
    size = [(d + 2 * padding - k) // stride + 1 for d in (h, w)]
    out, new_mask = torch.zeros(n, c_out, *size, dtype=x.dtype), torch.zeros(n, 1, *size, dtype=x.dtype)
    for i, row, col in itertools.product(range(n), range(size[0]), range(size[1])):
        total, valid, entries = torch.zeros(c_out, dtype=x.dtype), 0, 0
        for dy, dx, channel in itertools.product(range(k), range(k), range(c)):
            entries += 1
            r, s = row * stride - padding + dy, col * stride - padding + dx
            if 0 <= r < h and 0 <= s < w and mask[i, channel % mask.shape[1], r, s] != 0:
                valid += 1
                total = total + weight[:, channel, dy, dx] * x[i, channel, r, s]
        if valid:
            out[i, :, row, col] = total * entries / valid + bias
            new_mask[i, 0, row, col] = 1
    return out, new_mask


@pytest.mark.parametrize("planes", ["random", "sparse", "channels"])
def test_partial_conv2d_window_by_window(planes):
    x = randn(2, 2, 5, 6)
    mask, weight, bias = mask_of(planes, x), randn(3, 2, 3, 3), randn(3)
    expected, expected_mask = window_by_window(x, mask, weight, bias, 2, 1)
    out, new_mask = reference.partial_conv2d(x, mask, weight, bias, 2, 1)
    torch.testing.assert_close(out, expected)
    assert torch.equal(new_mask, expected_mask > 0)


@pytest.mark.parametrize("planes", ["none", "random", "channels"])
def test_partial_conv2d_is_the_published_one(planes):
    x = randn(2, 4, 9, 8)
    mask, weight, bias = mask_of(planes, x), randn(6, 2, 3, 3), randn(6)
    expected, expected_mask = published_partial_conv2d(
        x, mask, weight, bias, stride=2, padding=1, groups=2, multi_channel=planes == "channels"
    )
    out, new_mask = reference.partial_conv2d(x, mask, weight, bias, 2, 1, groups=2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    assert torch.equal((new_mask != 0).expand_as(expected_mask[:, :1]), expected_mask[:, :1] != 0)


def test_counts_are_exact_where_floats_are_not():
    """2601 entries in a window, one of them invalid, in float16, which counts no further than 2048."""
    x = torch.ones(1, 1, 51, 51, dtype=torch.float16)
    mask = torch.ones(1, 1, 51, 51, dtype=torch.float16)
    mask[..., 0, 0] = 0
    out, new_mask = reference.partial_conv2d(x, mask, torch.full((1, 1, 51, 51), 1 / 64).half())
    assert new_mask.item() == 1
    expected = (51 * 51 - 1) / 64 * (51 * 51 / (51 * 51 - 1))
    assert abs(out.item() - expected) <= expected * 2**-11


def test_msfef_is_the_scaled_sum_of_partial_convolutions():
    x = randn(2, 3, 12, 11)
    mask = mask_of("sparse", x)
    sizes = (5, 3, 7)
    weights, biases, scales = [randn(4, 3, k, k) for k in sizes], [randn(4) for _ in sizes], randn(3, 4)
    branches = [
        reference.partial_conv2d(x, mask, w, b, 2, k // 2)
        for w, b, k in zip(weights, biases, sizes, strict=True)
    ]
    smallest = branches[1][1]
    expected = sum(
        scale.view(1, -1, 1, 1) * torch.where(new_mask, out, bias.view(1, -1, 1, 1))
        for scale, (out, new_mask), bias in zip(scales, branches, biases, strict=True)
    )
    out, new_mask = reference.msfef(x, mask, weights, biases, scales, 2)
    torch.testing.assert_close(out, torch.where(smallest, expected, 0))
    assert torch.equal(new_mask, smallest)


@pytest.mark.parametrize("size", [(10, 12), (9, 11)], ids=str)
def test_upcat_is_up_sampling_concatenation_and_partial_convolution(size):
    x_low, skip, weight, bias = randn(2, 3, 5, 6), randn(2, 2, *size), randn(4, 5, 3, 3), randn(4)
    mask_low, mask_skip = mask_of("random", x_low), mask_of("random", skip)

    def up(t):
        return F.interpolate(t, scale_factor=2, mode="nearest")[:, :, : size[0], : size[1]]

    x = torch.cat([up(x_low), skip], 1)
    mask = torch.cat(
        [up(mask_low.double()).expand(-1, 3, -1, -1), mask_skip.double().expand(-1, 2, -1, -1)], 1
    )
    expected, expected_mask = reference.partial_conv2d(x, mask, weight, bias, padding=1)
    out, new_mask = reference.upcat_partial_conv2d(x_low, mask_low, skip, mask_skip, weight, bias)
    torch.testing.assert_close(out, expected)
    assert torch.equal(new_mask, expected_mask != 0)


def test_second_derivatives():
    x, weight = randn(1, 2, 4, 4).requires_grad_(), randn(2, 2, 3, 3).requires_grad_()
    mask = mask_of("random", x)
    assert torch.autograd.gradgradcheck(
        lambda x, weight: reference.partial_conv2d(x, mask, weight, padding=1)[0], (x, weight)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_float32_rounded_once(dtype):
    x, weight = randn(1, 8, 9, 9, dtype=dtype), randn(4, 8, 3, 3, dtype=dtype)
    mask = mask_of("random", x)
    out, _ = reference.partial_conv2d(x, mask, weight)
    exact, _ = reference.partial_conv2d(x.float(), mask, weight.float())
    assert torch.equal(out, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_an_up_sampled_map_are_rounded_once(dtype):
    """Not for each of a pixel's copies."""
    x_low, skip = randn(2, 3, 5, 6, dtype=dtype), randn(2, 2, 9, 12, dtype=dtype)
    weight = randn(4, 5, 3, 3, dtype=dtype)
    masks = mask_of("random", x_low), mask_of("random", skip)

    def gradient(to):
        x = x_low.to(to).requires_grad_()
        out, _ = reference.upcat_partial_conv2d(x, masks[0], skip.to(to), masks[1], weight.to(to))
        return torch.autograd.grad(out, x, torch.ones_like(out))[0]

    assert torch.equal(gradient(dtype), gradient(torch.float32).to(dtype))

"""The partial convolution as it is published and usually composed, written from its formula."""

import torch
import torch.nn.functional as F


def published_partial_conv2d(
    x, mask, weight, bias, stride=1, padding=0, dilation=1, groups=1, *, multi_channel=False
):
    """The composition with a convolved mask: sum(M) by a kernel of ones, an epsilon, the mask as a product.

    Liu et al. 2018, section 3.1; the epsilon and the mask of one or C_in channels as in NVIDIA's class.
    """
    c_in, (c_out, _, kh, kw) = x.shape[1], weight.shape
    ones = torch.ones(c_out if multi_channel else 1, c_in if multi_channel else 1, kh, kw).to(x)
    mask = torch.ones_like(x[:, : ones.shape[1]]) if mask is None else mask.to(x.dtype)
    where = {"stride": stride, "padding": padding, "dilation": dilation}
    count = F.conv2d(mask, ones, **where)
    new_mask = count.clamp(0, 1)
    ratio = ones[0].numel() / (count + 1e-8) * new_mask
    out = F.conv2d(x * mask, weight, **where, groups=groups) * ratio
    if bias is not None:
        out = out + bias.view(1, -1, 1, 1)
    return out * new_mask, new_mask


def assert_equals_published(ours, theirs):
    """To 1e-6 of the largest value: the published epsilon is an error of 1e-8 in every term of a sum, and the
    terms of a gradient cancel."""
    assert ours.shape == theirs.shape
    error, largest = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= 1e-6 * max(1.0, largest), f"differs by {error:.2e}, largest value {largest:.2e}"

"""Look-alikes of the public layers: their names, keys and calling conventions, the computation ours."""

import torch
import torch.nn.functional as F
from support.published import published_partial_conv2d
from torch import nn


def nvidia():
    class PartialConv2d(nn.Conv2d):
        def __init__(self, *args, multi_channel=False, return_mask=False, **kwargs):
            super().__init__(*args, **kwargs)
            self.multi_channel, self.return_mask = multi_channel, return_mask
            planes = (self.out_channels, self.in_channels) if multi_channel else (1, 1)
            self.weight_maskUpdater = torch.ones(*planes, *self.kernel_size)
            self.slide_winsize = self.weight_maskUpdater[0].numel()
            self.last_size, self.update_mask, self.mask_ratio = (None,) * 4, None, None

        def forward(self, input, mask_in=None):
            result = published_partial_conv2d(
                input, mask_in, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
                multi_channel=self.multi_channel,
            )  # fmt: skip
            self.last_size, self.update_mask = tuple(input.shape), result[1]
            return result if self.return_mask else result[0]

    return PartialConv2d


def mmagic():
    class PartialConv2d(nn.Conv2d):
        def __init__(self, *args, multi_channel=False, eps=1e-8, **kwargs):
            super().__init__(*args, **kwargs)
            self.multi_channel, self.eps = multi_channel, eps
            planes = (self.out_channels, self.in_channels) if multi_channel else (1, 1)
            self.register_buffer("weight_mask_updater", torch.ones(*planes, *self.kernel_size))
            self.mask_kernel_numel = self.weight_mask_updater[0].numel()

        def forward(self, input, mask=None, return_mask=True):
            if mask is None:
                return super().forward(input)
            result = published_partial_conv2d(
                input, mask, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
                multi_channel=self.multi_channel,
            )  # fmt: skip
            return result if return_mask else result[0]

    return PartialConv2d


def pair(name, conv, mask_conv, *, scaled=False):
    """naoto0804's layer, without sum(1); `scaled`, that of 3d-photo-inpainting, which multiplies by it."""

    def __init__(self, c_in, c_out, k, stride=1, padding=0, dilation=1, groups=1, bias=True):
        nn.Module.__init__(self)
        where = (stride, padding, dilation, groups)
        setattr(self, conv, nn.Conv2d(c_in, c_out, k, *where, bias=bias))
        setattr(self, mask_conv, ones_like_conv(nn.Conv2d(c_in, c_out, k, *where, bias=name == "PConv2d")))
        if scaled:
            self.slide_winsize = c_in * k * k

    def forward(self, input, mask):
        factor = self.slide_winsize if scaled else 1
        return mask_sum_conv2d(getattr(self, conv), getattr(self, mask_conv), input, mask, factor)

    return type(name, (nn.Module,), {"__init__": __init__, "forward": forward})


def ones_like_conv(conv):
    """`conv` as one that sums a mask."""
    conv.requires_grad_(False).weight.fill_(1)
    if conv.bias is not None:
        conv.bias.zero_()
    return conv


def mask_sum_conv2d(conv, mask_conv, input, mask, factor=1):
    """(out, new_mask) of the convolution of the valid inputs, times `factor` over the sum of the mask."""
    with torch.no_grad():
        count = mask_conv(mask)
    alive = (count > 0).to(input.dtype)
    out = F.conv2d(input * mask, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    out = out * factor / count.clamp(min=1)
    if conv.bias is not None:
        out = out + conv.bias.view(1, -1, 1, 1)
    return out * alive, alive


def circular(input, padding):
    """Zeros above and below; left and right the other end, as on a globe."""
    left, right, top, bottom = padding
    return F.pad(F.pad(input, (0, 0, top, bottom)), (left, right, 0, 0), mode="circular")


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch statistics of valid pixels only; in evaluation like any other."""

    def forward(self, input, mask=None):
        if not self.training:
            return super().forward(input)
        count = mask.sum((0, 2, 3)).view(1, -1, 1, 1)
        mean = (input * mask).sum((0, 2, 3), keepdim=True) / count
        variance = ((input - mean) ** 2 * mask).sum((0, 2, 3), keepdim=True) / count
        out = (input - mean) / (variance + self.eps).sqrt()
        return out * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class PConvBlock(nn.Module):
    """climatereconstructionAI's: padding before the convolution, no sum(1), norm and activation after it."""

    def __init__(
        self, c_in, c_out, k, stride=1, padding=(0, 0), bias=True, *, bn=False, activation=None,
        masked_bn=False, trans_pad=F.pad, dropout=None,
    ):  # fmt: skip
        super().__init__()
        self.masked_bn = masked_bn
        self.padding = 2 * padding
        self.trans_pad = trans_pad
        self.input_conv = nn.Conv2d(c_in, c_out, k, stride, bias=bias)
        self.mask_conv = ones_like_conv(nn.Conv2d(c_in, c_out, k, stride, bias=False))
        if bn:
            self.bn = (MaskedBatchNorm2d if masked_bn else nn.BatchNorm2d)(c_out)
        if activation is not None:
            self.activation = activation
        if dropout is not None:
            self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, input, mask):
        padded = [self.trans_pad(tensor, self.padding) for tensor in (input, mask)]
        out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, *padded)
        if hasattr(self, "bn"):
            out = self.bn(out, new_mask) if self.masked_bn else self.bn(out)
        for name in ("activation", "dropout"):
            out = getattr(self, name)(out) if hasattr(self, name) else out
        return out, new_mask


class PartialConvLayer(nn.Module):
    """bobqywei's: no sum(1); bn tells whether there is a norm."""

    def __init__(self, c_in, c_out, k, stride=1, padding=0, bn=True):
        super().__init__()
        self.bn = bn
        self.input_conv = nn.Conv2d(c_in, c_out, k, stride, padding, bias=False)
        self.mask_conv = ones_like_conv(nn.Conv2d(c_in, c_out, k, stride, padding, bias=False))
        if bn:
            self.batch_normalization = nn.BatchNorm2d(c_out)
        self.activation = nn.ReLU()

    def forward(self, input_x, mask):
        out, new_mask = mask_sum_conv2d(self.input_conv, self.mask_conv, input_x, mask)
        return self.activation(self.batch_normalization(out) if self.bn else out), new_mask


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


#: naoto0804's layer as a block.
NAOTO_BLOCK = type("PartialConv", (PConvBlock,), {})
NAOTO_OLD = pair("PartialConv", "input_conv", "mask_conv")
NAOTO_NEW = pair("PConv2d", "conv2d", "mask2d")
PHOTO_3D = pair("PartialConv", "input_conv", "mask_conv", scaled=True)

#: peer, layer, kind of mask
LAYERS = {
    "nvidia": (nvidia()(4, 6, 3, 2, 1, return_mask=True), "random"),
    "nvidia, no mask returned": (nvidia()(4, 6, (3, 5), padding=(1, 2), bias=False, groups=2), "random"),
    "nvidia, channels": (nvidia()(4, 6, 3, dilation=2, multi_channel=True, return_mask=True), "channels"),
    "mmagic": (mmagic()(4, 6, 3, 2, 1), "random"),
    "mmagic, channels": (mmagic()(4, 6, 3, 2, 1, bias=False, multi_channel=True), "channels"),
    "naoto0804": (NAOTO_OLD(4, 6, 5, 2, 2), "channels"),
    "naoto0804, later": (NAOTO_NEW(4, 6, 3, 1, 1), "channels"),
    "naoto0804, norm inside": (NAOTO_BLOCK(4, 6, 3, bn=True), "channels"),
    "naoto0804, padding outside": (NAOTO_BLOCK(4, 6, 5, 2, (2, 2)), "channels"),
    "3d-photo": (PHOTO_3D(4, 6, 3, 2, 1), "channels"),
    "3d-photo, no bias": (PHOTO_3D(4, 6, 5, 1, 4, dilation=2, bias=False), "channels"),
    "climate": (PConvBlock(4, 6, 5, 2, (2, 2)), "channels"),
    "climate, norm": (PConvBlock(4, 6, 3, 1, (1, 1), bn=True, activation=nn.ReLU(), dropout=0), "channels"),
    "climate, masked norm": (PConvBlock(4, 6, 3, 2, (1, 1), False, bn=True, masked_bn=True), "channels"),
    "climate, conv": (pair("PConvBlock", "conv", "mask_conv")(4, 6, 3, 2, 1), "channels"),
    "bobqywei": (PartialConvLayer(4, 6, 5, 2, 2), "channels"),
    "bobqywei, no norm": (PartialConvLayer(4, 6, 3, 1, 1, bn=False), "channels"),
    "xyfJASON": (xyf()(4, 6, 3, 2, 1), "channels"),
    "xyfJASON, norm": (xyf()(4, 6, 3, 2, 1, norm="bn", activation="leakyrelu"), "channels"),
}
#: Layers that leave out sum(1), so that their weights are rescaled.
UNSCALED = ("naoto0804", "climate", "bobqywei")


def with_(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def changed(base, **members):
    """A subclass of `base` of the same name."""
    return type(base.__name__, (base,), members)

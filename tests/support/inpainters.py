"""A picture, its mask, a tiny network, and what an `Inpainter` must make of them."""

import numpy as np
import torch

from pconv_ext import InpaintingNet

H, W = 21, 30
VALID = np.ones((H, W), bool)
VALID[4:12, 7:20] = False
PIXELS = np.random.default_rng(0).integers(0, 256, (H, W, 3), np.uint8)


def make_net():
    """A tiny network, with statistics as after a training and an output around the middle of [0, 1]."""
    net = InpaintingNet(width=4, msfef_stages=1, depth=3)
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    net.decoder[-1].conv.bias.data.fill_(0.5)
    return net.eval()


def output_of(net, image, valid):
    """Of a float [N, 3, H, W]."""
    with torch.no_grad():
        return net(image.float(), torch.tensor(valid).float()[None, None]).clamp(0, 1).to(image.dtype)


def expected(net, pixels, valid=VALID, raw=False):
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    output = (output_of(net, image, valid)[0] * 255).round().byte().permute(1, 2, 0).numpy()
    return output if raw else np.where(valid[..., None], pixels, output)

"""Rasters with gaps, files of them, and tiny networks for them."""

import numpy as np
import torch

from pconv_ext import InpaintingNet, checkpoint

H, W = 21, 30


def smooth(channels=2, items=(), seed=0, height=H, width=W):
    """Smooth fields, [*items, C, H, W] float32, of other ranges in each channel, with NaN in gaps."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    count = int(np.prod(items, dtype=int)) * channels
    a, b, c = rng.uniform(2, 6, (3, count))
    waves = [np.sin(x * a[i] + c[i]) * np.cos(y * b[i]) for i in range(count)]
    values = np.stack(waves).reshape(*items, channels, height, width).astype(np.float32)
    values = values * np.float32(10) + np.arange(280, 280 + 10 * channels, 10, np.float32)[:, None, None]
    values[..., 5:12, 8:17] = np.nan
    return values


def make_net(channels=2, ranges=None, **options):
    """A tiny network, with statistics as after a training and an output around the middle of its ranges."""
    ranges = ranges or [[270.0 + 10 * c, 290.0 + 10 * c] for c in range(channels)]
    torch.manual_seed(1)
    net = InpaintingNet(
        width=4, msfef_stages=1, depth=3, channels=channels, ranges=ranges, size=16, **options
    )
    for name, value in net.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    net.decoder[-1].conv.bias.data.fill_(0.5)
    return net.eval()


def save_net(folder, net):
    file = folder / "net.safetensors"
    checkpoint.save_net(net, file)
    return file


def save_rasters(root):
    """Eight rasters of two channels, with gaps, in files of three formats."""
    (root / "below").mkdir(parents=True)
    for i in range(5):
        np.save(root / f"{i}.npy", smooth(2, seed=i))
    np.savez(root / "below" / "a.npz", fields=smooth(2, (2,), seed=5))
    u, v = smooth(2, seed=7)
    np.savez(root / "b.npz", u=u, v=v)
    return root

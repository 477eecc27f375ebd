"""Swap layers of an existing network: a ResNet whose convolutions take holes, and padding, for missing.

    python examples/swap_layer.py

Needs torchvision, `pip install '.[train]'`.
"""

import torch
from torch import nn
from torchvision.models import resnet18

from pconv_ext import PartialConv2d


def swap(network: nn.Module) -> int:
    """Put a `PartialConv2d` with the same weights in the place of each padded convolution, and count them."""
    swapped = 0
    for parent in [*network.modules()]:
        for name, conv in [*parent.named_children()]:
            if type(conv) is nn.Conv2d and any(conv.padding):
                partial = PartialConv2d(
                    conv.in_channels,
                    conv.out_channels,
                    conv.kernel_size,
                    stride=conv.stride,
                    padding=conv.padding,
                    dilation=conv.dilation,
                    groups=conv.groups,
                    bias=conv.bias is not None,
                )
                partial.load_state_dict(conv.state_dict())
                setattr(parent, name, partial)
                swapped += 1
    return swapped


def main() -> None:
    network = resnet18().eval()
    before = network.state_dict()
    print(f"{swap(network)} layers swapped")
    assert network.state_dict().keys() == before.keys()  # so a trained one keeps its weights

    # Without a mask the padding alone is missing: "partial convolution based padding".
    image = torch.rand(1, 3, 224, 224)
    print("classes:", list(network(image).shape))

    # With one, the first layer looks past a hole, whatever is in it.
    mask = torch.ones(1, 1, 224, 224)
    mask[:, :, 80:120, 90:150] = 0  # 1 = valid, 0 = hole
    first, network.conv1 = network.conv1, nn.Identity()
    results = [network(first(image.masked_fill(mask == 0, hole), mask)) for hole in (0.0, float("nan"))]
    assert torch.equal(*results)
    print("a hole of NaN changes nothing, the largest output is", round(float(results[1].max()), 3))


if __name__ == "__main__":
    with torch.inference_mode():
        main()

"""A network of all operators, and its results and gradients."""

import torch
from support.cases import kernel

import pconv_ext
from pconv_ext import MSFEF, PartialConv2d


class Network(torch.nn.Module):
    """All three operators, as a small network uses them."""

    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.encoder = MSFEF(3, 8, backend=backend)
        self.middle = PartialConv2d(
            8, 8, 3, padding="same", return_mask=True, multi_channel=True, backend=backend
        )
        self.weight = torch.nn.Parameter(kernel(5, 11, 3, dtype=torch.float32))

    def forward(self, x, mask):
        low, mask_low = self.encoder(x, mask)
        low, mask_low = self.middle(low.relu(), mask_low)
        return pconv_ext.upcat_partial_conv2d(
            low, mask_low[:, :1], x, mask, self.weight, backend=self.backend
        )


def run(network, x, mask):
    network.zero_grad()
    x = x.detach().requires_grad_()
    out, new_mask = network(x, mask)
    out.square().sum().backward()
    return [out, new_mask, x.grad, *(parameter.grad for parameter in network.parameters())]

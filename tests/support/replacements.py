"""What it means that `replace_partial_convs` leaves a layer as it is."""

import copy
import re

import pytest
import torch
from support.peers import LAYERS
from torch import nn

from pconv_ext import PartialConv2d, replace_partial_convs


def assert_stays(layer, reason, *, name=None):
    """It stays with a warning that has `reason` in it, and the layer beside it is replaced."""
    model = nn.Sequential(layer, copy.deepcopy(LAYERS["nvidia"][0]))
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=re.escape(reason)) as caught:
        replace_partial_convs(model)
    assert torch.equal(torch.get_rng_state(), state)
    message = str(caught[0].message)
    assert message.startswith(f"0: {name or type(layer).__name__} left as it is, "), message
    assert len(caught) == 1
    assert model[0] is layer
    assert isinstance(model[1], PartialConv2d)
    assert caught[0].filename == __file__

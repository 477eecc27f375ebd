"""The terms of the loss that are not the paper's, against their formulas in float64."""

import pytest
import torch

from pconv_ext.losses import WEIGHTS, InpaintingLoss

EXACT = {"rtol": 1e-12, "atol": 1e-15}


@pytest.mark.parametrize("per_hole", [False, True])
@pytest.mark.parametrize("mask_n", [1, 3])
def test_pixel_terms_of_ours(per_hole, mask_n):
    """Absolute differences, and holes counted by their own pixels; NaN where the other term looks."""
    output, target = torch.rand(2, 3, 3, 9, 7, dtype=torch.float64)
    mask = (torch.rand(mask_n, 1, 9, 7) > 0.3).to(torch.uint8)
    if mask_n > 1:
        mask[1] = 1  # no hole
        mask[2] = 0
    weights = {"perceptual": 0, "style": 0, "avail_l1": 0.5, "missing_l1": 2}
    terms = InpaintingLoss(None, weights, per_hole=per_hole)(output, target, mask)
    expected = dict.fromkeys(("avail", "missing", "avail_l1", "missing_l1"), 0.0)
    for n in range(3):
        m = mask[n if mask_n > 1 else 0].expand(3, 9, 7) != 0
        difference = output[n] - target[n]
        holes = max(1, int((~m).sum())) if per_hole else m.numel()
        for suffix, distances in (("", difference**2), ("_l1", difference.abs())):
            expected[f"avail{suffix}"] += distances[m].sum() / m.numel() / 3
            expected[f"missing{suffix}"] += distances[~m].sum() / holes / 3
    expected["total"] = sum({**WEIGHTS, **weights}[name] * value for name, value in expected.items())
    assert {*terms} == {*expected}
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, **EXACT)

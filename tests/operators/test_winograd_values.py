"""NaN, Inf and huge values where Winograd would be taken: they reach what the formula says, and no more.

A tile of Winograd's products mixes what up to 10 x 10 pixels hold, so a pass that meets such a value goes the
direct way as a whole. Hence "exactly": a pass that the value enters gives the direct form's bits, one that it
does not enter those of the call without it; and the reference tells which results NaN and Inf reach. Of
zero times NaN, where padding, holes and the border of grad_out meet it, the reference has some and the
kernels have others, by either algorithm.
"""

import math

import pytest
import torch
from support import arguments
from support.tolerances import error_of
from support.winograd import expected_results, gradient_for, results, same_bits

import pconv_ext

#: Beyond 2^40 the transforms might overflow; 3e38 times a weight often does.
VALUES = [math.nan, math.inf, -math.inf, 1e30, -3e38, 2.0**50]
LIMIT = 3e-5  # of F(4, 4) in small layers, see test_winograd.py

#: The passes that an argument enters as a factor.
ENTERS = {
    "x": ("forward", "grad_weight"),
    "x_low": ("forward", "grad_weight"),
    "skip": ("forward", "grad_weight"),
    "weight": ("forward", "grad_input"),
    "weights": ("forward", "grad_input"),
    "scales": ("forward", "grad_input"),
    "grad_out": ("grad_input", "grad_weight"),
}


def pass_of(result):
    name = result.split("[")[0]
    return {"out": "forward", "x": "grad_input", "x_low": "grad_input", "skip": "grad_input"}.get(
        name, "grad_weight"
    )


def a_call(operator, mask="rectangle", dtype=torch.float32):
    """Arguments, and a gradient of the output, with a hole from the middle of the image on."""
    if operator == "partial_conv2d":
        args = arguments.partial_conv2d("cpu", (2, 16, 22, 25), 32, 3, mask, dtype=dtype, padding=1)
    elif operator == "msfef":
        args = arguments.msfef("cpu", (2, 16, 22, 25), 32, mask=mask, dtype=dtype)
        args["scales"] = (0.5 + torch.rand(args["scales"].shape)).to(dtype)
    else:
        args = arguments.upcat_partial_conv2d(
            "cpu", (2, 24, 11, 13), 16, (22, 25), 32, masks=(mask, mask), dtype=dtype
        )
    return args, gradient_for(operator, args)


def with_value(args, grad_out, where, index, value):
    """Copies of both, with `value` at `index` of the argument `where`."""
    args, grad_out = dict(args), grad_out.clone()
    if where == "grad_out":
        grad_out[index] = value
    elif where == "weights":
        args[where] = [weight.clone() for weight in args[where]]
        args[where][1][index] = value
    else:
        args[where] = args[where].clone()
        args[where][index] = value
    return args, grad_out


#: A corner, where the window is cut and the ratio largest, and a pixel between two tiles.
CORNER, INSIDE = (0, 3, 0, 0), (1, 5, 4, 3)
PLACES = [
    ("partial_conv2d", "x", CORNER),
    ("partial_conv2d", "x", INSIDE),
    ("partial_conv2d", "weight", (17, 3, 1, 2)),
    ("partial_conv2d", "grad_out", CORNER),
    ("partial_conv2d", "grad_out", INSIDE),
    ("msfef", "x", CORNER),
    ("msfef", "x", INSIDE),
    ("msfef", "weights", (17, 3, 0, 4)),
    ("msfef", "scales", (2, 11)),
    ("msfef", "grad_out", INSIDE),
    ("upcat_partial_conv2d", "x_low", CORNER),
    ("upcat_partial_conv2d", "x_low", INSIDE),
    ("upcat_partial_conv2d", "skip", INSIDE),
    ("upcat_partial_conv2d", "weight", (9, 30, 2, 2)),
    ("upcat_partial_conv2d", "grad_out", CORNER),
]
places = pytest.mark.parametrize(
    ("operator", "where", "index"), PLACES, ids=[f"{place[0]}-{place[1]}-{place[2]}" for place in PLACES]
)


@places
def test_values_reach_what_they_reach_in_the_reference(operator, where, index):
    args, grad_out = a_call(operator)
    clean = results(operator, args, grad_out)
    expected = expected_results(operator, *with_value(args, grad_out, where, index, math.nan))
    reached = {name: result.isnan() for name, result in expected.items()}
    assert any(mask.any() for mask in reached.values())
    of_weights = where in ("weight", "weights", "scales")
    meets_zeros = of_weights or (where, index) == ("grad_out", CORNER)
    if of_weights:  # which meet zeros anywhere in a channel
        for name in ("out", "x", "x_low", "skip"):
            if name in reached:
                reached[name] = reached[name].any(0).any((1, 2), keepdim=True)[None].expand_as(reached[name])
    for value in VALUES:
        call = with_value(args, grad_out, where, index, value)
        auto, direct = results(operator, *call), results(operator, *call, "direct")
        for name, result in auto.items():
            what = f"{name} with {value}"
            others = ~reached[name]
            if pass_of(name) in ENTERS[where] and reached[name].any():
                assert same_bits(result, direct[name]), f"{what}: not the direct form's bits"
            elif "bias" not in name:  # whose sums are split in another way
                assert same_bits(result[others], clean[name][others]), (
                    f"{what}: reaches what it does not enter"
                )
            assert result[others].isfinite().all(), what
            assert error_of(result[others], expected[name][others]) <= LIMIT, what
            if not math.isfinite(value) and reached[name].any():
                unreached = result[~others].isfinite()
                assert not (unreached.all() if meets_zeros else unreached.any()), (
                    f"{what}: has too little of it"
                )
            if operator == "partial_conv2d" and not meets_zeros and "weight" not in name:
                kind = expected_results(operator, *call, dtype=torch.float32)[name]
                assert torch.equal(result.isnan(), kind.isnan()), what
                assert torch.equal(result.isinf(), kind.isinf()), what


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("where", ["x", "grad_out"])
def test_where_ratios_are_above_the_limit(where, value):
    """There the pass that meets the value may be Winograd's elsewhere: it stays where it is."""
    args, grad_out = a_call("partial_conv2d", "sparse")
    args["mask"][1, :, 6:18, 8:20] = False
    args["mask"][1, :, 12, 14] = True  # alone in its windows
    args["mask"][0] = True
    index = (1, 5, 12, 14)
    expected = expected_results("partial_conv2d", *with_value(args, grad_out, where, index, math.nan))
    actual = results("partial_conv2d", *with_value(args, grad_out, where, index, value))
    direct = results("partial_conv2d", args, grad_out, "direct")
    assert not torch.equal(results("partial_conv2d", args, grad_out)["out"], direct["out"])
    for name, result in actual.items():
        reached = expected[name].isnan()
        assert result[~reached].isfinite().all(), name
        assert error_of(result[~reached], expected[name][~reached]) <= LIMIT, name
        assert math.isfinite(value) or not result[reached].isfinite().any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("where", ["x", "weight", "grad_out"])
def test_half_precision(where, dtype):
    args, grad_out = a_call("partial_conv2d", dtype=dtype)
    for value in (math.nan, -math.inf):
        call = with_value(args, grad_out, where, INSIDE if where != "weight" else (17, 3, 1, 2), value)
        auto = results("partial_conv2d", *call)
        direct = results("partial_conv2d", *call, "direct")
        expected = expected_results("partial_conv2d", *call, dtype=torch.float32)
        for name, result in auto.items():
            assert torch.equal(result.isfinite(), direct[name].isfinite()), name
            if where != "weight":
                assert torch.equal(result.isfinite(), expected[name].isfinite()), name


def test_large_values_do_not_overflow():
    """Below 2^40, ratios and all, products are Winograd's, and nothing overflows on their way."""
    args, grad_out = a_call("partial_conv2d")
    args["bias"] = None
    for tensor in (args["x"], args["weight"], grad_out):
        tensor.mul_(2.0**38 / tensor.abs().max())
    auto = results("partial_conv2d", args, grad_out)
    direct = results("partial_conv2d", args, grad_out, "direct")
    expected = expected_results("partial_conv2d", args, grad_out)
    for name, result in auto.items():
        assert not torch.equal(result, direct[name]), f"{name} took the direct way"
        assert result.isfinite().all(), name
        assert error_of(result, expected[name]) <= LIMIT, name


def test_many_values_in_a_large_batch():
    """In one image alone: the others keep the direct form's bits, as all of the call does."""
    args, grad_out = a_call("msfef", "none")
    args["x"][1, ::5, ::7, ::3] = math.nan
    auto, direct = results("msfef", args, grad_out), results("msfef", args, grad_out, "direct")
    assert auto["out"][0].isfinite().all()
    assert auto["out"][1].isnan().all()
    assert same_bits(auto["out"], direct["out"])
    assert auto["x"].isfinite().all()
    with pconv_ext.set_algorithm("auto"):
        out, _ = pconv_ext.msfef(**args)
    assert same_bits(out, auto["out"])

"""Winograd's products of the CPU's kernels against the float64 reference, by pass and shape."""

import pytest
import torch
from support import arguments
from support.cases import LAYOUTS, check_against_reference, holes_of, laid_out, mask_of, rubbish
from support.winograd import WINDOWS, gradient_for, results, same_bits

import pconv_ext

#: Of |expected| + rms, by the taps of a residue of the stride. The largest measured in layers as small as
#: these are 0.9, 1.2 and 2.3e-5: F(4, 4) has the largest numbers. The direct form has at most 7e-6 in all.
LIMITS = {2: 1.4e-5, 3: 1.4e-5, 4: 3e-5}
DENSE = ["none", "rectangle", "blobs", "random"]
#: Ratios up to 49 in windows of 7 x 7; nothing at all. Most go the direct way, by the limit of all tests.
THIN = ["sparse", "few", "holes"]


@pytest.fixture(autouse=True)
def from_auto():
    with pconv_ext.set_algorithm("auto"):
        yield


def case(operator, *given, dtype=torch.float32, relu=False, **options):
    args = getattr(arguments, operator)("cpu", *given, dtype=dtype, **options)
    if "scales" in args:  # of one order: gradients of weights, which they scale, are measured as a whole
        args["scales"] = (0.5 + torch.rand(args["scales"].shape)).to(dtype)
    for name in ("x", "x_low", "skip"):
        if relu and name in args:
            args[name] = args[name].relu()
    return args


def limit_of(args):
    weights = args["weights"] if "weights" in args else [args["weight"]]
    return LIMITS[-(-max(max(weight.shape[2:]) for weight in weights) // args.get("stride", 1))]


def check(operator, args, mask="none", **options):
    limit = None if mask in THIN else limit_of(args)
    check_against_reference(operator, "cpu", args, limit=limit, **options)


@pytest.mark.parametrize("mask", [*DENSE, *THIN])
@pytest.mark.parametrize(("size", "stride"), WINDOWS)
def test_windows(size, stride, mask):
    """No size is a multiple of a tile in both directions; every padding cuts other windows."""
    shapes = [((1, 40, 21, 18), 72), ((3, 16, 18, 23), 16), ((2, 24, 15, 25), 32)]
    for (shape, c_out), padding in zip(shapes, (size // 2, 0, (size + 1, size - 1)), strict=True):
        args = case("partial_conv2d", shape, c_out, size, mask, stride=stride, relu=shape[0] == 1)
        check("partial_conv2d", args | {"padding": padding}, mask)


@pytest.mark.parametrize("mask", ["none", "rectangle", "few"])
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 6), (6, 5)], ids=str)
def test_windows_that_are_not_square(size, mask):
    """With stride 2 they have residues of as many taps in both directions, one direction a tap less."""
    args = case("partial_conv2d", (2, 24, 19, 22), 40, size, mask, stride=2, padding=(1, 2))
    check("partial_conv2d", args, mask)


@pytest.mark.parametrize("height", range(5, 14))
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (4, 2), (7, 2)])
def test_every_rest_of_a_tile(size, stride, height):
    """Sizes one by one, over more than the period of the largest tile."""
    shape = (2, 16, height, 31 - height)
    args = case("partial_conv2d", shape, 24, size, "rectangle", stride=stride, padding=size // 2)
    check("partial_conv2d", args, "rectangle")


@pytest.mark.parametrize("mask", ["none", "random", "few", "channels"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 2), (7, 2)])
def test_groups(size, stride, mask):
    args = case("partial_conv2d", (2, 64, 17, 22), 40, size, mask, stride=stride, groups=2, padding=1)
    check("partial_conv2d", args, mask)


@pytest.mark.parametrize("mask", ["channels", "channels_one_for_all", "channels_expanded"])
@pytest.mark.parametrize(("size", "stride"), [(2, 1), (3, 1), (3, 2), (6, 2)])
def test_masks_per_channel(size, stride, mask):
    args = case("partial_conv2d", (2, 24, 18, 21), 32, size, mask, stride=stride, padding=size // 2)
    check("partial_conv2d", args, mask)


@pytest.mark.parametrize("mask", [*DENSE, *THIN])
@pytest.mark.parametrize("sizes", [(3, 5, 7), (7, 3), (5,), (3,)], ids=str)
def test_msfef(sizes, mask):
    for shape, c_out in (((2, 24, 23, 26), 40), ((1, 64, 18, 17), 16)):
        args = case("msfef", shape, c_out, sizes, mask, stride=2, relu=shape[0] == 1)
        check("msfef", args, mask)
    check("msfef", case("msfef", (4, 16, 15, 18), 24, (3,), mask, stride=1), mask)


@pytest.mark.parametrize("mask_low", [*DENSE, *THIN])
@pytest.mark.parametrize("mask_skip", [*DENSE, *THIN])
def test_upcat(mask_low, mask_skip):
    masks = (mask_low, mask_skip)
    thin = [mask for mask in masks if mask in THIN]
    size, relu = ((18, 22), False) if mask_low < mask_skip else ((17, 21), True)
    args = case("upcat_partial_conv2d", (2, 24, 9, 11), 16, size, 32, 3, masks=masks, relu=relu)
    check("upcat_partial_conv2d", args, thin[0] if thin else mask_low)


@pytest.mark.parametrize("shape", ["weights outweigh", "features outweigh", "several bands"])
@pytest.mark.parametrize(
    "masks", [("none", "none"), ("rectangle", "random"), ("few", "holes"), ("none", "sparse")]
)
def test_upcat_of_many_tiles(masks, shape):
    """Even sizes: taps fall on stored pixels, in tiles of 8 x 8, of which no size is a multiple."""
    low, c_skip, c_out = {
        "weights outweigh": ((2, 40, 18, 22), 24, 136),
        "features outweigh": ((3, 16, 17, 21), 40, 24),
        "several bands": ((1, 24, 70, 67), 16, 40),
    }[shape]
    size, relu = (2 * low[2], 2 * low[3]), shape.startswith("features")
    args = case("upcat_partial_conv2d", low, c_skip, size, c_out, 3, masks=masks, relu=relu)
    check("upcat_partial_conv2d", args, next((mask for mask in masks if mask in THIN), masks[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mask", ["rectangle", "none"])
def test_upcat_of_many_tiles_by_layout(mask, dtype):
    args = case("upcat_partial_conv2d", (2, 24, 18, 22), 16, (36, 44), 32, masks=(mask, mask), dtype=dtype)
    for name in ("x_low", "skip"):
        args[name] = laid_out(args[name], "channels_last")
    limit = limit_of(args) if dtype == torch.float32 else None
    check_against_reference("upcat_partial_conv2d", "cpu", args, grad_layout="channels_last", limit=limit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("mask", ["none", "rectangle", "few"])
def test_dtypes(mask, dtype):
    """Half precision is computed in float32, float64 directly; by the limits of all tests."""
    args = case("partial_conv2d", (2, 24, 19, 22), 40, 3, mask, dtype=dtype, padding=1)
    check_against_reference("partial_conv2d", "cpu", args)
    check_against_reference("msfef", "cpu", case("msfef", (2, 24, 19, 22), 16, mask=mask, dtype=dtype))
    args = case("upcat_partial_conv2d", (1, 16, 9, 11), 24, (18, 21), 32, masks=(mask, mask), dtype=dtype)
    check_against_reference("upcat_partial_conv2d", "cpu", args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype):
    args = case("partial_conv2d", (2, 24, 17, 22), 40, 5, "rectangle", dtype=dtype, stride=2, padding=2)
    for name in ("x", "mask", "weight"):
        args[name] = laid_out(args[name], layout)
    limit = limit_of(args) if dtype == torch.float32 else None
    check_against_reference("partial_conv2d", "cpu", args, grad_layout=layout, limit=limit)
    masks = ("rectangle", "none")
    args = case("upcat_partial_conv2d", (2, 16, 9, 11), 24, (17, 22), 32, masks=masks, dtype=dtype)
    for name in ("x_low", "mask_low", "skip", "weight"):
        args[name] = laid_out(args[name], layout)
    check_against_reference("upcat_partial_conv2d", "cpu", args, grad_layout=layout, limit=limit)


@pytest.mark.parametrize("mask", ["none", "random"])
def test_an_empty_batch(mask):
    check("partial_conv2d", case("partial_conv2d", (0, 24, 17, 18), 32, 3, mask, padding=1))
    check("msfef", case("msfef", (0, 24, 17, 18), 32, mask=mask))
    check("upcat_partial_conv2d", case("upcat_partial_conv2d", (0, 16, 9, 9), 16, (18, 17), 32))


@pytest.mark.parametrize("of", ["weights that outweigh", "features that outweigh"])
def test_more_channels_than_a_visit_takes(of):
    """Chunks of channels, panels of outputs, bands of rows: more than one of each."""
    shape, c_out = ((1, 304, 11, 13), 136) if of.startswith("weights") else ((2, 48, 70, 66), 40)
    check("partial_conv2d", case("partial_conv2d", shape, c_out, 3, "rectangle", padding=1), "rectangle")
    check("msfef", case("msfef", shape, c_out, (3, 5), "rectangle"), "rectangle")


@pytest.mark.parametrize("holes", ["all images", "the last images"])
def test_images_without_a_tile_add_nothing_to_the_gradient_of_weights(holes):
    """Images of 64 x 64 are several bands of that gradient, one of which has nothing to sum."""
    args = case("partial_conv2d", (5, 64, 64, 64), 16, 3, "valid", padding=1)
    args["mask"][0 if holes == "all images" else 2 :] = False
    check("partial_conv2d", args)


def test_zero_where_nothing_reaches():
    """Tiles around a hole are computed whole: what is left in dead windows and in holes is 0, not a rest.

    So is the gradient of what no window covers: with stride 2 and no padding the last column of an even
    width, and what lies in the window of a larger kernel alone, around which the smallest is dead.
    """
    args = case("msfef", (2, 24, 32, 30), 32, (3, 7))
    args["mask"] = torch.ones(2, 1, 32, 30, dtype=torch.bool)
    args["mask"][:, :, 8:20, 9:22] = False
    alone = args["mask"].clone()
    alone[:, :, 13, 16] = True  # in the middle of the hole, and odd: the window of an even pixel covers it
    for mask in (args["mask"], alone):
        args["mask"] = mask
        grad_out = gradient_for("msfef", args)
        actual = results("msfef", args, grad_out)
        _, new_mask = pconv_ext.msfef(**args)
        assert (new_mask == 0).any()
        assert (actual["out"][(new_mask == 0).expand_as(actual["out"])] == 0).all()
        assert (actual["x"][holes_of(mask, args["x"])] == 0).all()
        assert not torch.equal(actual["out"], results("msfef", args, grad_out, "direct")["out"])

    args = case("partial_conv2d", (1, 24, 30, 26), 32, 5, "none", stride=2)
    gradient = results("partial_conv2d", args, gradient_for("partial_conv2d", args))["x"]
    assert (gradient[:, :, -1] == 0).all()
    assert (gradient[:, :, :, -1] == 0).all()
    assert (gradient[:, :, :-1, :-1] != 0).all()


@pytest.mark.parametrize("operator", ["partial_conv2d", "msfef", "upcat_partial_conv2d"])
def test_rubbish_in_holes_and_dead_windows_changes_no_bit(operator):
    """Nor does it send the call another way."""
    if operator == "upcat_partial_conv2d":
        args = case(operator, (1, 16, 16, 16), 24, (32, 32), 32, masks=("rectangle", "rectangle"))
    else:
        args = case(operator, (1, 16, 32, 32), 32, mask="rectangle")
    grad_out = gradient_for(operator, args)
    clean, direct = results(operator, args, grad_out), results(operator, args, grad_out, "direct")
    _, new_mask = getattr(pconv_ext, operator)(**args)
    assert (new_mask == 0).any()
    rubbish(grad_out, (new_mask == 0).expand_as(grad_out))
    for name, mask in (("x", "mask"), ("x_low", "mask_low"), ("skip", "mask_skip")):
        if name in args:
            rubbish(args[name], holes_of(args[mask], args[name]))
    for name, result in results(operator, args, grad_out).items():
        assert same_bits(result, clean[name]), name
        assert "bias" in name or not torch.equal(result, direct[name]), f"{name} took the direct way"


def test_masks_with_a_few_valid_pixels_have_the_largest_ratio():
    """Else the cases above would not have ratios up to 49."""
    x = torch.ones(1, 1, 40, 40)
    weight = torch.ones(1, 1, 7, 7)
    mask = mask_of("few", x)
    mask[:, :, :13, :13] = False
    mask[:, :, 6, 6] = True
    out, _ = pconv_ext.partial_conv2d(x, mask, weight, padding=3)
    assert out[0, 0, 6, 6] == 49

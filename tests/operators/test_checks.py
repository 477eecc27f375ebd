"""Wrong arguments: the error names the argument, what was expected and what came, before anything runs."""

import pytest
import torch

import pconv_ext

F32, F64, I64 = torch.float32, torch.float64, torch.int64


def ones(*shape, dtype=F32, device="cpu"):
    return torch.ones(shape, dtype=dtype, device=device)


ARGUMENTS = {
    "partial_conv2d": {
        "x": ones(2, 4, 8, 9),
        "mask": ones(2, 1, 8, 9),
        "weight": ones(6, 4, 3, 3),
        "bias": ones(6),
    },
    "msfef": {
        "x": ones(2, 4, 8, 9),
        "mask": ones(2, 1, 8, 9),
        "weights": [ones(6, 4, 3, 3), ones(6, 4, 5, 5)],
        "biases": [ones(6), ones(6)],
        "scales": ones(2, 6),
    },
    "upcat_partial_conv2d": {
        "x_low": ones(2, 3, 4, 5),
        "mask_low": ones(2, 1, 4, 5),
        "skip": ones(2, 1, 8, 9),
        "mask_skip": ones(2, 1, 8, 9),
        "weight": ones(6, 4, 3, 3),
        "bias": ones(6),
    },
}

#: By operator: the arguments that are wrong, the error, its message after the operator's name.
WRONG = {
    "partial_conv2d": [
        ({"x": 1}, TypeError, r"x must be a tensor \[N, C, H, W\], got int"),
        ({"x": None}, TypeError, "x must be a tensor .* got NoneType"),
        ({"x": ones(4, 8, 9)}, ValueError, r"x must have 4 dimensions .* got shape \[4, 8, 9\]"),
        ({"x": ones(2, 4, 8, 9, dtype=I64)}, TypeError, "x must be one of float64, .* got torch.int64"),
        ({"x": ones(2, 4, 0, 9)}, ValueError, r"x must have C, H and W of at least 1, got shape"),
        ({"x": ones(2, 4, 8, 9).to_sparse()}, ValueError, "x must be a dense .* got layout torch.sparse"),
        ({"mask": [1]}, TypeError, "mask must be a tensor .* or None, got list"),
        ({"mask": ones(2, 8, 9)}, ValueError, "mask must have 4 dimensions"),
        (
            {"mask": ones(2, 1, 8, 9, dtype=I64)},
            TypeError,
            "mask must be one of bool, uint8, .* got torch.int64",
        ),
        (
            {"mask": ones(2, 3, 8, 9)},
            ValueError,
            r"mask must have shape \[2 or 1, 1 or 4, 8, 9\] .* got \[2, 3, 8, 9\]",
        ),
        ({"mask": ones(2, 1, 9, 8)}, ValueError, r"mask must have shape .* got \[2, 1, 9, 8\]"),
        ({"mask": ones(3, 1, 8, 9)}, ValueError, r"mask must have shape .* got \[3, 1, 8, 9\]"),
        (
            {"mask": ones(2, 1, 8, 9, device="meta")},
            ValueError,
            "mask must be on the device of x, cpu, got meta",
        ),
        ({"weight": ones(6, 4, 3)}, ValueError, "weight must have 4 dimensions"),
        (
            {"weight": ones(6, 4, 3, 3, dtype=F64)},
            TypeError,
            "weight must have the dtype of x, torch.float32, got torch.float64",
        ),
        (
            {"weight": ones(6, 4, 3, 3, device="meta")},
            ValueError,
            "weight must be on the device of x, cpu, got meta",
        ),
        (
            {"weight": ones(6, 3, 3, 3)},
            ValueError,
            r"weight must have shape \[C_out, 4, kh, kw\] .* got \[6, 3, 3, 3\]",
        ),
        ({"weight": ones(0, 4, 3, 3)}, ValueError, r"weight must have shape .* got \[0, 4, 3, 3\]"),
        (
            {"weight": ones(6, 4, 9, 3)},
            ValueError,
            "x padded to 8 x 9 must be at least as large as the window of weight, 9 x 3",
        ),
        ({"dilation": 4}, ValueError, "x padded to 8 x 9 must be .* window of weight, 9 x 9"),
        ({"bias": ones(5)}, ValueError, r"bias must have shape \[6\], got \[5\]"),
        ({"bias": ones(1, 6)}, ValueError, "bias must have 1 dimensions"),
        ({"bias": ones(6, dtype=F64)}, TypeError, "bias must have the dtype of x"),
        ({"stride": 0}, ValueError, "stride must be one or two ints of at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be an int or a pair of ints, got 1.5"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must be one or two ints .* got \(1, 2, 3\)"),
        ({"dilation": (1, 0)}, ValueError, "dilation must be one or two ints of at least 1"),
        ({"padding": -1}, ValueError, "padding must be one or two ints of at least 0, got -1"),
        ({"padding": "full"}, ValueError, "padding must be ints, 'same' or 'valid', got 'full'"),
        ({"padding": "same", "stride": 2}, ValueError, r"padding='same' needs stride 1, got stride \[2, 2\]"),
        ({"groups": 3}, ValueError, "groups must divide C_in = 4 of x and C_out = 6 of weight, got 3"),
        ({"groups": 0}, ValueError, "groups must divide"),
        ({"groups": 2.0}, TypeError, "groups must be an int, got 2.0"),
    ],
    "msfef": [
        ({"x": ones(4, 8, 9)}, ValueError, "x must have 4 dimensions"),
        (
            {"mask": ones(2, 4, 8, 9)},
            ValueError,
            r"mask must have shape \[2 or 1, 1, 8, 9\] .* got \[2, 4, 8, 9\]",
        ),
        ({"weights": ones(6, 4, 3, 3)}, TypeError, "weights must be a list or tuple of tensors, got Tensor"),
        ({"weights": []}, ValueError, "weights must hold at least one kernel, got none"),
        ({"weights": [ones(6, 4, 3, 3), None]}, TypeError, r"weights\[1\] must be a tensor .* got NoneType"),
        (
            {"weights": [ones(6, 4, 3, 3), ones(6, 4, 4, 4)]},
            ValueError,
            r"weights\[1\] must have shape \[C_out, 4, k, k\] with k odd, got",
        ),
        ({"weights": [ones(6, 4, 3, 5), ones(6, 4, 5, 5)]}, ValueError, r"weights\[0\] must have shape"),
        ({"weights": [ones(6, 3, 3, 3), ones(6, 4, 5, 5)]}, ValueError, r"weights\[0\] must have shape"),
        (
            {"weights": [ones(6, 4, 3, 3), ones(6, 4, 3, 3)]},
            ValueError,
            r"weights must have distinct kernel sizes, got \[3, 3\]",
        ),
        (
            {"weights": [ones(6, 4, 3, 3), ones(5, 4, 5, 5)]},
            ValueError,
            r"weights must agree in C_out, got \[6, 5\]",
        ),
        ({"biases": ones(2, 6)}, TypeError, "biases must be a list or tuple of tensors or None, got Tensor"),
        ({"biases": [ones(6)]}, ValueError, "biases must hold one tensor for each of 2 weights, got 1"),
        ({"biases": [ones(6), None]}, TypeError, r"biases\[1\] must be a tensor"),
        ({"biases": [ones(6), ones(5)]}, ValueError, r"biases\[1\] must have shape \[6\], got \[5\]"),
        ({"scales": ones(6)}, ValueError, "scales must have 2 dimensions"),
        ({"scales": ones(3, 6)}, ValueError, r"scales must have shape \[2, 6\], got \[3, 6\]"),
        ({"scales": ones(2, 6, dtype=F64)}, TypeError, "scales must have the dtype of x"),
        ({"stride": -1}, ValueError, "stride must be one or two ints of at least 1, got -1"),
    ],
    "upcat_partial_conv2d": [
        ({"x_low": ones(3, 4, 5)}, ValueError, "x_low must have 4 dimensions"),
        ({"skip": None}, TypeError, "skip must be a tensor"),
        ({"skip": ones(2, 1, 8, 9, dtype=F64)}, TypeError, "skip must have the dtype of x_low"),
        (
            {"skip": ones(3, 1, 8, 9)},
            ValueError,
            r"skip must have shape \[2, C, 8 or 7, 10 or 9\] .* got \[3, 1, 8, 9\]",
        ),
        ({"skip": ones(2, 1, 9, 9)}, ValueError, r"skip must have shape .* got \[2, 1, 9, 9\]"),
        ({"mask_low": ones(2, 3, 4, 5)}, ValueError, r"mask_low must have shape \[2 or 1, 1, 4, 5\]"),
        ({"mask_low": ones(2, 1, 8, 9)}, ValueError, "mask_low must have shape"),
        ({"mask_skip": ones(2, 1, 4, 5)}, ValueError, r"mask_skip must have shape \[2 or 1, 1, 8, 9\]"),
        ({"weight": ones(6, 3, 3, 3)}, ValueError, r"weight must have shape \[C_out, 4, k, k\] with k odd"),
        ({"weight": ones(6, 4, 2, 2)}, ValueError, "weight must have shape"),
        ({"bias": ones(4)}, ValueError, r"bias must have shape \[6\], got \[4\]"),
    ],
}
CASES = [(name, *case) for name, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize("function", [pconv_ext, pconv_ext.reference], ids=["public", "reference"])
@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"), CASES, ids=[f"{case[0]}-{next(iter(case[1]))}" for case in CASES]
)
def test_wrong_arguments(function, name, wrong, error, message):
    with pytest.raises(error, match=f"^{name}: {message}"):
        getattr(function, name)(**(ARGUMENTS[name] | wrong))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_right_ones_pass(name):
    getattr(pconv_ext, name)(**ARGUMENTS[name])

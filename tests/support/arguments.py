"""Small arguments of each operator by name, on the device and in the most precise dtype of a backend."""

from support.cases import DEVICE_OF, DTYPE_OF, kernel, mask_of, randn


def partial_conv2d(
    backend, shape=(2, 4, 9, 11), c_out=6, size=3, mask="random", bias=True, dtype=None, **options
):
    """`size` is an int or (kh, kw), `options` are those of the operator."""
    where = {"dtype": dtype or DTYPE_OF[backend], "device": DEVICE_OF[backend]}
    x = randn(*shape, **where)
    kh, kw = (size, size) if isinstance(size, int) else size
    return {
        "x": x,
        "mask": mask_of(mask, x),
        "weight": kernel(c_out, shape[1] // options.get("groups", 1), kh, kw, **where),
        "bias": randn(c_out, **where) if bias else None,
        **options,
    }


def msfef(
    backend,
    shape=(2, 4, 9, 11),
    c_out=6,
    sizes=(3, 5, 7),
    mask="random",
    bias=True,
    dtype=None,
    stride=2,
):
    where = {"dtype": dtype or DTYPE_OF[backend], "device": DEVICE_OF[backend]}
    x = randn(*shape, **where)
    return {
        "x": x,
        "mask": mask_of(mask, x),
        "weights": [kernel(c_out, shape[1], k, **where) for k in sizes],
        "biases": [randn(c_out, **where) for _ in sizes] if bias else None,
        "scales": randn(len(sizes), c_out, **where),
        "stride": stride,
    }


def upcat_partial_conv2d(
    backend,
    low=(2, 4, 5, 6),
    c_skip=3,
    size=(10, 12),
    c_out=6,
    k=3,
    masks=("random", "random"),
    bias=True,
    dtype=None,
):
    """`low` is the shape of x_low, `size` the height and width of the skip."""
    where = {"dtype": dtype or DTYPE_OF[backend], "device": DEVICE_OF[backend]}
    x_low, skip = randn(*low, **where), randn(low[0], c_skip, *size, **where)
    return {
        "x_low": x_low,
        "mask_low": mask_of(masks[0], x_low),
        "skip": skip,
        "mask_skip": mask_of(masks[1], skip),
        "weight": kernel(c_out, low[1] + c_skip, k, **where),
        "bias": randn(c_out, **where) if bias else None,
    }

"""The interpreter's checks find accesses outside of tensors and misaligned ones, and no others."""

import pytest
import torch
from support import triton_bounds

from pconv_ext import _backends

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(not _backends.triton.INTERPRETED, reason="the kernels run on a GPU"),
]


@pytest.fixture(scope="module")
def copy():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(source, target, n, offset, WIDE: tl.constexpr):
        if WIDE:
            source = source.to(tl.pointer_type(tl.int32), bitcast=True)
            target = target.to(tl.pointer_type(tl.int32), bitcast=True)
        at = tl.arange(0, 16)
        tl.store(target + at, tl.load(source + at + offset, mask=at < n), mask=at < n)

    triton_bounds.hook()
    return triton_bounds.Bounded(kernel, "copy")


def tensors(sizes, start=0):
    """int16, filled; they begin `start` elements into their storage."""
    return [torch.arange(start + size, dtype=torch.int16)[start:] for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "n", "offset", "finding"),
    [
        ((8, 8), 8, 0, None),
        ((16, 16), 16, 0, None),
        ((9, 8), 8, 1, None),
        ((8, 9), 9, 0, "copy: a load of 1 elements outside of its tensors"),
        ((9, 8), 9, 0, "copy: a store of 1 elements outside of its tensors"),
        ((8, 8), 8, 1, "copy: a load of 1 elements outside of its tensors"),
        ((8, 8), 8, -2, "copy: a load of 2 elements outside of its tensors"),
        ((0, 8), 8, 0, "copy: a load of 8 elements outside of its tensors"),
    ],
)
def test_bounds(copy, sizes, n, offset, finding):
    source, target = tensors(sizes)
    if finding is None:
        copy[(1,)](source, target, n, offset, WIDE=False)
        assert torch.equal(target[:n], source[offset : offset + n])
    else:
        with pytest.raises(Exception, match=finding):
            copy[(1,)](source, target, n, offset, WIDE=False)


@pytest.mark.parametrize("what", ["load", "store"])
def test_alignment(copy, what):
    even, odd = tensors((16, 16)), tensors((16, 16), start=1)
    copy[(1,)](*even, 8, 0, WIDE=True)
    assert torch.equal(*even)
    source, target = (odd[0], even[1]) if what == "load" else (even[0], odd[1])
    with pytest.raises(Exception, match=f"copy: a misaligned {what} of 8 elements"):
        copy[(1,)](source, target, 8, 0, WIDE=True)


def test_the_packages_kernels_are_checked():
    kernels = _backends.triton._kernels()
    assert isinstance(kernels.compact, triton_bounds.Bounded)
    assert kernels.few_inputs is None

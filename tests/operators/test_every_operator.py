"""Every operator once in every backend and dtype, forward and backward: what a new machine is asked first."""

import pytest
from support import arguments
from support.cases import COMPILED, DTYPES, check_against_reference

CASES = {
    "partial_conv2d": lambda *of, **dtype: arguments.partial_conv2d(
        *of, (2, 20, 17, 19), 24, 3, "blobs", padding=1, **dtype
    ),
    "msfef": lambda *of, **dtype: arguments.msfef(*of, (2, 20, 17, 18), 24, (3, 5, 7), "blobs", **dtype),
    "upcat_partial_conv2d": lambda *of, **dtype: arguments.upcat_partial_conv2d(
        *of, (2, 20, 5, 6), 12, (9, 12), 24, 3, ("blobs", "rectangle"), **dtype
    ),
    "msfef of 3 channels": lambda *of, **dtype: arguments.msfef(
        *of, (2, 3, 33, 30), 24, (3, 5, 7), "rectangle", **dtype
    ),
    "upcat_partial_conv2d to 3 channels": lambda *of, **dtype: arguments.upcat_partial_conv2d(
        *of, (2, 20, 9, 12), 3, (18, 23), 3, 3, ("blobs", "rectangle"), **dtype
    ),
}


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operator(backend, name, dtype):
    check_against_reference(name.split()[0], backend, CASES[name](backend, dtype=dtype))

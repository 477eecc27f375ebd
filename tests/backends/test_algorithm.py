"""`set_algorithm` and PCONV_EXT_ALGORITHM: what the CPU kernels read when they run, whoever runs them."""

import importlib
import os
import subprocess
import sys
import threading

import pytest
import torch
from support.cases import kernel, mask_of, randn
from torch._dynamo.testing import CompileCounterWithBackend

import pconv_ext
from pconv_ext import _C, set_algorithm
from pconv_ext._backends import cpu


@pytest.fixture(autouse=True)
def from_auto():
    with set_algorithm("auto"):
        yield


def test_a_plain_call_holds():
    set_algorithm("direct")
    assert _C.algorithm() == "direct"
    set_algorithm("auto")
    assert _C.algorithm() == "auto"


def test_a_with_statement_restores_what_was_before():
    with set_algorithm("direct"):
        assert _C.algorithm() == "direct"
        with set_algorithm("auto"):
            assert _C.algorithm() == "auto"
            with set_algorithm("auto"):
                pass
            set_algorithm("direct")
        assert _C.algorithm() == "direct"
    assert _C.algorithm() == "auto"


def test_an_exception_restores_too():
    with pytest.raises(KeyError), set_algorithm("direct"):
        raise KeyError
    assert _C.algorithm() == "auto"


def test_what_a_plain_call_returned_is_entered_later():
    direct = set_algorithm("direct")
    set_algorithm("auto")
    for _ in range(2):
        with direct:
            assert _C.algorithm() == "direct"
        assert _C.algorithm() == "auto"


@pytest.mark.parametrize("algorithm", ["winograd", "Direct", "", None, 1, ["auto"]], ids=str)
def test_another_name_is_an_error_and_changes_nothing(algorithm):
    set_algorithm("direct")
    with pytest.raises(ValueError, match="set_algorithm: ") as caught:
        set_algorithm(algorithm)
    expected = f"set_algorithm: algorithm must be 'auto' or 'direct', got {algorithm!r}"
    assert str(caught.value) == expected
    with pytest.raises(ValueError, match="unknown algorithm"):
        _C.set_algorithm(algorithm)
    assert _C.algorithm() == "direct"


def test_other_threads_see_it():
    seen = []
    with set_algorithm("direct"):
        thread = threading.Thread(target=lambda: seen.append(_C.algorithm()))
        thread.start()
        thread.join()
    assert seen == ["direct"]


@pytest.fixture
def witness():
    """An operator that hands x on and notes the algorithm when it runs, and so does its backward."""
    seen = []

    @torch.library.custom_op("pconv_ext_test::witness", mutates_args=(), device_types="cpu")
    def witness(x: torch.Tensor, when: str) -> torch.Tensor:
        seen.append((when, _C.algorithm()))
        return x.clone()

    witness.register_fake(lambda x, when: torch.empty_like(x))
    witness.register_autograd(lambda ctx, grad: (witness(grad, "backward"), None))
    return witness, seen


def test_compiled_functions_obey_without_being_compiled_again(witness):
    note, seen = witness
    weight = kernel(4, 3, 3).requires_grad_()
    x = randn(2, 3, 9, 10)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def compiled(x):
        return note(pconv_ext.partial_conv2d(x, None, weight, padding=1)[0], "forward")

    for forward, backward in [("auto", "auto"), ("direct", "direct"), ("auto", "direct"), ("direct", "auto")]:
        seen.clear()
        with set_algorithm(forward):
            out = compiled(x)
        with set_algorithm(backward):
            out.sum().backward()
        assert seen == [("forward", forward), ("backward", backward)]
    assert counter.frame_count == 1


def test_direct_gives_the_same_bits_again():
    x = randn(2, 16, 24, 24)
    mask, weight = mask_of("random", x), kernel(16, 16, 3)

    def results():
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with set_algorithm("direct"):
            out, _ = pconv_ext.partial_conv2d(leaves[0], mask, leaves[1], padding=1, backend="cpu")
            return out, *torch.autograd.grad(out.square().sum(), leaves)

    first = results()
    with set_algorithm("auto"):
        pconv_ext.partial_conv2d(x, mask, weight, padding=1, backend="cpu")
    assert all(torch.equal(one, other) for one, other in zip(first, results(), strict=True))


def in_a_new_process(program, **environment):
    """What `program` prints in a Python that has PCONV_EXT_ALGORITHM of `environment` alone."""
    inherited = {name: value for name, value in os.environ.items() if name != "PCONV_EXT_ALGORITHM"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "auto"),
        ({"PCONV_EXT_ALGORITHM": "auto"}, "auto"),
        ({"PCONV_EXT_ALGORITHM": "direct"}, "direct"),
    ],
    ids=str,
)
@pytest.mark.parametrize("without", [False, True], ids=["", "without kernels"])
def test_the_environment_comes_first(environment, expected, without):
    """Also where the extension module is missing: then all is remembered, to no effect."""
    program = f"""
import sys
if {without}:
    sys.modules["pconv_ext._C"] = None
import pconv_ext
from pconv_ext._backends import algorithm
current = algorithm.current if {without} else pconv_ext._C.algorithm
print(pconv_ext.backends()["cpu"][0], current())
with pconv_ext.set_algorithm("direct"):
    with pconv_ext.set_algorithm("auto"):
        print(current())
    print(current())
print(current())
"""
    lines = [f"{not without} {expected}", "auto", "direct", expected]
    assert in_a_new_process(program, **environment) == lines


@pytest.mark.parametrize("asked", ["fast", "Direct", ""])
def test_an_environment_that_asks_for_something_else(asked):
    """Import stays silent; the backend says it, and so do calls: by name an error, else a warning."""
    program = """
import torch, warnings
import pconv_ext
print(pconv_ext.backends()["cpu"][1])
call = lambda backend: pconv_ext.partial_conv2d(
    torch.ones(1, 1, 3, 3), None, torch.ones(1, 1, 3, 3), backend=backend
)[0].item()
try:
    call("cpu")
except RuntimeError as error:
    print(error)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(call("auto"))
print(caught[0].message)
"""
    reason = f"PCONV_EXT_ALGORITHM must be 'auto' or 'direct', got {asked!r}"
    assert in_a_new_process(program, PCONV_EXT_ALGORITHM=asked) == [
        reason,
        f"partial_conv2d: backend 'cpu' is not available: {reason}",
        "9.0",
        f"pconv_ext falls back to its slow reference for cpu tensors (cpu: {reason})",
    ]


def test_an_extension_module_that_was_not_built_again(monkeypatch):
    monkeypatch.setattr(importlib, "import_module", lambda name: object())
    assert "is older than the rest of the package: run `pip install .` again" in cpu._load()

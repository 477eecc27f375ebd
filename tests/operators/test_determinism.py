"""The same inputs and thread count give the same bits; another thread count the same numbers."""

import pytest
import torch
from support.calls import every_operator
from support.cases import COMPILED, DEVICE_OF, emulated, every_backend
from support.tolerances import assert_close

every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def run(call, leaves, grad, backend):
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out, new_mask = call(*leaves, backend=backend)
    return [out.detach(), new_mask, *torch.autograd.grad(out, leaves, grad)]


def times(backend, count):
    """How often to run: few in the emulator, which is slow and orders its threads the same in every run."""
    return 2 if emulated(backend) else count


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


#: Of threads: they are the CPU's.
every_count = pytest.mark.parametrize(
    ("backend", "count"),
    [(name, count) for name in COMPILED for count in (1, 2, 5) if name in ("cpu", "dense") or count == 1],
)


@every_operator
@every_dtype
@every_count
def test_same_bits(backend, make, dtype, count, threads):
    threads(count)
    leaves, call = make({"dtype": dtype, "device": DEVICE_OF[backend]})
    grad = torch.randn_like(call(*leaves, backend=backend)[0])
    first = run(call, leaves, grad, backend)
    for _ in range(times(backend, 5) - 1):
        for one, other in zip(run(call, leaves, grad, backend), first, strict=True):
            assert torch.equal(one, other)


@every_operator
@every_dtype
def test_thread_counts(make, dtype, threads):
    leaves, call = make({"dtype": dtype, "device": "cpu"})
    grad = torch.randn_like(call(*leaves)[0])
    threads(1)
    expected = run(call, leaves, grad, "cpu")
    for count in (2, 3, 7):
        threads(count)
        for i, (one, other) in enumerate(zip(run(call, leaves, grad, "cpu"), expected, strict=True)):
            assert_close(one, other.double(), dtype, f"result {i} with {count} threads")


@every_operator
@every_backend
def test_calls_from_several_python_threads(backend, make):
    """Nothing is shared between calls."""
    import concurrent.futures

    leaves, call = make({"dtype": torch.float32, "device": DEVICE_OF[backend]})
    grad = torch.randn_like(call(*leaves, backend=backend)[0])
    expected = run(call, leaves, grad, backend)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(call, leaves, grad, backend), range(times(backend, 12))):
            for i, (one, other) in enumerate(zip(result, expected, strict=True)):
                assert_close(one, other.double(), torch.float32, f"result {i}", backend)

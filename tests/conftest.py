"""What every test gets: the installed package, a compiled backend, poisoned memory and a seed of its own."""

import importlib.util
import os
import random
import sys
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from support import emulated_cuda, outcomes, selection, triton_bounds, triton_interpreter

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))  # tests of a tool import it


def _prefer_installed_package():
    """Drop the checkout from sys.path (``python -m pytest`` puts it there) unless nothing is installed."""
    if "pconv_ext" in sys.modules:
        return
    kept = list(sys.path)
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    importlib.invalidate_caches()
    if importlib.util.find_spec("pconv_ext") is None:
        sys.path[:] = kept


_prefer_installed_package()
os.environ["PCONV_EXT_CACHE"] = os.devnull  # no folder: what was measured here decides nothing in a test
triton_interpreter.use_without_gpu()
try:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an import is silent
        import pconv_ext
except ModuleNotFoundError as error:
    pytest.exit(f"pconv_ext is not installed ({error}): run `pip install '.[test]'`", returncode=1)

#: One seed for the run and the processes that it starts, printed in its header; set, it repeats a run.
SEED = int(os.environ.setdefault("PCONV_EXT_TEST_SEED", str(random.SystemRandom().randrange(2**31))))


def pytest_addoption(parser):
    group = parser.getgroup("pconv_ext")
    group.addoption(
        "--as-gpu",
        action="store_true",
        help="run the tests of backend 'cuda', and no others, with the emulator in the GPU's place",
    )
    group.addoption(
        "--share",
        type=selection.share,
        metavar="K/N",
        help="run one of N shares, the same tests in every run; K may be any number, such as a commit's",
    )
    group.addoption("--outcomes", metavar="FILE", help="write a line of JSON for each test as it ends")


def pytest_configure(config):
    if pconv_ext._backends.triton.INTERPRETED:
        triton_bounds.use()
    if config.option.as_gpu:
        if torch.cuda.is_available():
            raise pytest.UsageError("--as-gpu is for machines without a GPU")
        from support import as_gpu

        as_gpu.use(_emulated(config))
    if config.option.outcomes and not hasattr(config, "workerinput"):
        config.pluginmanager.register(outcomes.Log(config.option.outcomes))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    kept = items
    if config.option.as_gpu:
        from support import as_gpu

        kept = [item for item in kept if as_gpu.runs(item)]
    if config.option.share:
        kept = [item for item in kept if selection.in_share(item.nodeid, *config.option.share)]
    if len(kept) < len(items):
        selected = set(kept)
        config.hook.pytest_deselected(items=[item for item in items if item not in selected])
        items[:] = kept


def _emulated(config):
    """The library of the emulator, compiled once for all processes and runs."""
    return emulated_cuda.cached(config.cache.mkdir("emulated_cuda"))


def pytest_report_header(config):
    states = [name if ok else f"no {name} ({reason})" for name, (ok, reason) in pconv_ext.backends().items()]
    return [
        f"pconv_ext: {Path(pconv_ext.__file__).parent}, backends: {', '.join(states)}",
        f"torch: {torch.__version__}, {torch.get_num_threads()} threads, PCONV_EXT_TEST_SEED={SEED}",
    ]


def pytest_sessionstart(session):
    available, reason = pconv_ext.backends()["cpu"]
    if not available:
        pytest.exit(f"the tests need the compiled backend: {reason}", returncode=1)


@pytest.fixture(scope="session")
def cuda_kernels(pytestconfig):
    """The CUDA kernels: on a GPU those of the package, without one those of the emulator."""
    from pconv_ext.kernels.cuda import library

    from pconv_ext import _backends

    if torch.cuda.is_available():
        if _backends.cuda.reason():
            pytest.skip(_backends.cuda.reason())
        return library.load(_backends.cuda.LIBRARY)
    return emulated_cuda.load(_emulated(pytestconfig))


@pytest.fixture(autouse=True)
def seeded(request):
    """Fresh inputs in every run, the same in every test that is repeated with the seed of the header."""
    torch.manual_seed(SEED + zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def poisoned_memory():
    """``torch.empty`` holds NaN (255 for bytes), so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    filled, torch.utils.deterministic.fill_uninitialized_memory = (
        torch.utils.deterministic.fill_uninitialized_memory,
        True,
    )
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def full_precision():
    """float32 products in float32 on GPUs: the tolerances are for those."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True

"""The emulated CUDA kernels as backend "cuda", on tensors of the CPU, so that its tests run without a GPU."""

from support import emulated_cuda

from pconv_ext import _backends, _cuda, _gpu, ops


def use(library):
    """Register the kernels of this library of the emulator. Call it before support/cases.py is imported."""
    kernels = emulated_cuda.load(library)
    _cuda.reason = lambda: ""
    _cuda._kernels = lambda: kernels
    for name in ops.NAMES:
        _cuda._library.impl(name, _gpu._implementation("cuda", name, _cuda._using), "CPU")
    real = _backends._BACKENDS["cuda"]
    _backends._BACKENDS["cuda"] = real._replace(device_type="cpu", reason="")

    from support import cases

    cases.DEVICE_OF["cuda"] = "cpu"
    assert "cuda" in cases.COMPILED


def runs(item):
    """Whether this is a test of backend "cuda"."""
    return hasattr(item, "callspec") and item.callspec.params.get("backend") == "cuda"

"""The emulated CUDA kernels as backend "cuda", on tensors of the CPU, so that its tests run without a GPU."""

from support import emulated_cuda

from pconv_ext import _backends, ops


def use(library):
    """Register the kernels of this library of the emulator. Call it before support/cases.py is imported."""
    kernels = emulated_cuda.load(library)
    _backends.cuda.reason = lambda: ""
    _backends.cuda._kernels = lambda: kernels
    for operator in ops.OPERATORS.values():
        implementations = _backends.gpu._implementations("cuda", operator, lambda: kernels)
        for name, implementation in zip(operator.names, implementations, strict=True):
            _backends.cuda._library.impl(name, implementation, "CPU")
    real = _backends._BACKENDS["cuda"]
    _backends._BACKENDS["cuda"] = real._replace(device_type="cpu", reason="", device_reason=None)

    from support import cases

    cases.DEVICE_OF["cuda"] = "cpu"
    assert "cuda" in cases.COMPILED


def runs(item):
    """Whether this is a test of backend "cuda"."""
    return hasattr(item, "callspec") and item.callspec.params.get("backend") == "cuda"

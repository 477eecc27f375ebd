"""Which backend a call takes, and what is said where one is missing."""

import importlib.util
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.cases import mask_of

import pconv_ext
from pconv_ext import _backends
from pconv_ext._backends import gpu
from pconv_ext._geometry import Geometry, centred
from pconv_ext.ops import OPERATORS, Operator
from pconv_ext.ops.call import Call, Source

X = torch.ones(1, 2, 5, 5)
W = torch.ones(3, 2, 3, 3)
CALLS = {
    "partial_conv2d": lambda **options: pconv_ext.partial_conv2d(X, None, W, **options),
    "msfef": lambda **options: pconv_ext.msfef(X, None, [W], None, torch.ones(1, 3), **options),
    "upcat_partial_conv2d": lambda **options: pconv_ext.upcat_partial_conv2d(
        X[:, :1], None, torch.ones(1, 1, 9, 10), None, W, **options
    ),
}
every_call = pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS.keys())


def test_backends_reports_all():
    states = pconv_ext.backends()
    assert list(states) == ["cpu", "cuda", "triton", "dense", "reference"]
    assert states["cpu"] == states["dense"] == states["reference"] == (True, "")
    for available, reason in states.values():
        assert available == (reason == "")
        assert "\n" not in reason


@every_call
def test_unknown_backend(name, call):
    with pytest.raises(ValueError, match=f"{name}: backend must be 'auto' or one of 'cpu', .*got 'gpu'"):
        call(backend="gpu")


@every_call
def test_backend_asked_for_by_name_raises_with_its_reason(name, call, monkeypatch):
    missing = _backends.Backend("cpu", None, "it was left at home")
    monkeypatch.setitem(_backends._BACKENDS, "cpu", missing)
    with pytest.raises(RuntimeError, match=f"{name}: backend 'cpu' is not available: it was left at home"):
        call(backend="cpu")


def test_why_triton_cannot_be_used(monkeypatch):
    monkeypatch.setattr(_backends.triton, "INTERPRETED", False)
    monkeypatch.setitem(
        _backends._BACKENDS, "triton", _backends._BACKENDS["triton"]._replace(device_type="cuda")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pconv_ext.backends()["triton"] == (False, f"torch {torch.__version__} finds no GPU")
    with pytest.raises(RuntimeError, match=r"backend 'triton' is not available: torch .* finds no GPU"):
        CALLS["msfef"](backend="triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5))
    reason = "a GPU of compute capability 8.0 or higher is needed, Tesla T4 has 7.5"
    assert pconv_ext.backends()["triton"] == (False, reason)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5) if i == 0 else (9, 0))
    assert pconv_ext.backends()["triton"] == (True, "")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in _backends.triton._missing()


def test_backend_of_another_device():
    x = X.to("meta")
    with pytest.raises(ValueError, match="backend 'cpu' takes tensors on cpu, got x on meta"):
        pconv_ext.partial_conv2d(x, None, W.to("meta"), backend="cpu")


def test_other_devices_take_the_reference():
    out, new_mask = pconv_ext.partial_conv2d(X.to("meta"), None, W.to("meta"))
    assert (out.shape, new_mask.shape) == ((1, 3, 3, 3), (1, 1, 3, 3))


def test_auto_takes_the_compiled_backend(monkeypatch):
    monkeypatch.setattr(pconv_ext.reference, "partial_conv2d", None)
    CALLS["partial_conv2d"]()


def test_auto_falls_back_to_the_reference_with_one_warning(monkeypatch):
    monkeypatch.setitem(_backends._BACKENDS, "cpu", _backends.Backend("cpu", None, "it was left at home"))
    monkeypatch.setattr(_backends, "_warned", set())
    expected = CALLS["msfef"](backend="reference")
    with pytest.warns(
        UserWarning, match=r"slow reference for cpu tensors \(cpu: it was left at home\)"
    ) as caught:
        results = [CALLS["msfef"](), CALLS["partial_conv2d"]()]
    assert len(caught) == 1
    assert caught[0].filename == __file__, "it points at the caller"
    assert torch.equal(results[0][0], expected[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CALLS["msfef"]()


@every_call
def test_reference_bypasses_the_operators(name, call, monkeypatch):
    monkeypatch.setattr(_backends, "_BACKENDS", {"reference": _backends.Backend(None, None, "")})
    call(backend="reference")


def imported_from(folder):
    """Output of a fresh Python which imports the package in `folder` and calls it."""
    program = (
        "import pconv_ext, torch, warnings; print(pconv_ext.__file__); print(pconv_ext.backends()['cpu']);"
        "warnings.simplefilter('ignore');"
        "print(pconv_ext.partial_conv2d(torch.ones(1, 1, 3, 3), None, torch.ones(1, 1, 3, 3))[0].item())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert Path(lines[0]).parent == folder / "pconv_ext"
    assert lines[2] == "9.0"
    return lines[1]


@pytest.mark.parametrize(
    ("module", "content", "reason"),
    [
        (None, None, "is not built"),
        ("_C.abi3.so", "not a shared library", "_C cannot be loaded"),
        ("_C.py", "", f"has no CPU kernel for {', '.join(n for o in OPERATORS.values() for n in o.names)}"),
    ],
    ids=["not built", "broken", "without kernels"],
)
def test_import_works_without_the_compiled_module(tmp_path, module, content, reason):
    source = Path(pconv_ext.__file__).parent
    shutil.copytree(source, tmp_path / "pconv_ext", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    if module is not None:
        (tmp_path / "pconv_ext" / module).write_text(content)
    state = imported_from(tmp_path)
    assert state.startswith("(False, ")
    assert reason in state


def test_mask_kinds_of_these_tests():
    """The tests rest on masks that are neither all valid nor all holes."""
    mask = mask_of("random", torch.ones(2, 3, 16, 16))
    assert 0 < mask.float().mean() < 1


def test_a_gpu_refuses_what_its_kernels_would_get_wrong():
    """Of the structures that a call can have, whether an operator makes it or not."""
    x, skip = torch.ones(1, 2, 4, 5), torch.ones(1, 2, 8, 9)
    weights, scales = [torch.ones(3, 4, k, k) for k in (3, 5)], torch.ones(2, 3)
    one, both = (Source(skip, None),), (Source(x, None, up=True), Source(skip, None))
    plain = Geometry([1, 1], [1, 1, 1, 1], [1, 1], 1)

    def refusal(sources, weights, scales=None, geometry=plain):
        return gpu.refusal(Call("op", sources, weights, (), scales, geometry))

    assert refusal(both, weights[:1]) == ""
    assert refusal(one, weights, scales, centred(5, [2, 2])) == ""
    assert refusal(one, weights[:1], None, Geometry([2, 3], [0, 1, 2, 3], [2, 1], 1)) == ""
    assert "several weights with scales" in refusal(one, weights, None, centred(5, [1, 1]))
    for wrong in (
        (weights, scales, centred(5, [1, 1])),
        (weights[:1], scales[:1]),
        (weights[:1], None, plain._replace(stride=[2, 1])),
        (weights[:1], None, plain._replace(dilation=[2, 2])),
        (weights[:1], None, plain._replace(padding=[0, 1, 1, 1])),
        ([torch.ones(3, 4, 3, 1)], None, plain),
    ):
        assert "under one square window" in refusal(both, *wrong)
    assert "an up-sampled one and then" in refusal(both[::-1], weights[:1])


def test_an_operator_that_does_not_fit_its_description():
    with pytest.raises(ValueError, match="op: parameters must be a weight and a bias"):
        Operator("op", "Tensor x, Tensor[] weights, Tensor bias", ["x"], ["weights", "bias"], call=None)

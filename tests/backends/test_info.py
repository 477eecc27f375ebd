"""`python -m pconv_ext info`: the first thing to send with a question."""

import subprocess
import sys

import torch

import pconv_ext
from pconv_ext import info


def test_what_it_says(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    lines = {line.partition("  ")[0]: line for line in info.report().splitlines()}
    assert torch.__version__ in lines["torch"]
    assert lines["OMP_NUM_THREADS"].endswith(" 3")
    assert f" {torch.get_num_threads()} in an operator" in lines["threads"]
    assert pconv_ext._C.instruction_set in lines["instruction set"]
    assert f"  {pconv_ext._C.algorithm()}, " in lines["algorithm"]
    for name, (available, reason) in pconv_ext.backends().items():
        said = lines[f"backend {name}"]
        assert said.endswith("  available" if available else f"not available: {reason}")


def test_a_missing_compiled_module_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pconv_ext._C", None)
    monkeypatch.delattr(pconv_ext, "_C", raising=False)
    assert "none, the CPU kernels are not there" in info.report()


def test_a_gpu_that_this_torch_cannot_use_is_named_with_the_reason(monkeypatch):
    def fails(index):
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040).")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", fails)
    lines = info.report().splitlines()
    (line,) = [line for line in lines if line.startswith("GPU 0 ")]
    assert line.endswith("The NVIDIA driver on your system is too old (found version 11040).")


def test_it_needs_no_extra():
    program = (
        "import sys\n"
        "for name in ('typer', 'rich', 'PIL', 'torchvision', 'safetensors', 'matplotlib', 'triton'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['pconv-ext', 'info']\n"
        "from pconv_ext.__main__ import main\n"
        "main()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    assert "backend cpu" in run.stdout


def test_as_a_command():
    run = subprocess.run([sys.executable, "-m", "pconv_ext", "info"], capture_output=True, text=True, cwd="/")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[0].startswith("pconv_ext")

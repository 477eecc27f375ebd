"""What Triton's compiler makes of the kernels of every layer, for GPUs that need not be there.

``python tools/triton_machine_code.py`` compiles them ahead of time for sm_80 and sm_90, reads registers,
spills, shared memory and instructions from the machine code with the tools in Triton's own wheel, prints a
table and writes benchmarks/results/triton-compiled.json. tests/machine_code/ asserts on the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

if os.environ.get("TRITON_INTERPRET") == "1":
    sys.exit("triton_machine_code.py compiles the kernels: unset TRITON_INTERPRET")

import torch
import triton
from pconv_ext.kernels import kernel_set, launch, operators
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
OUTPUT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "triton-compiled.json"
CAPABILITIES = (80, 90)
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
MATRIX = ("gather_matmul", "tap_matmul")  # kernels that multiply matrices
INSTRUCTIONS = ("HGMMA", "HMMA", "FFMA", "LDGSTS", "LDG", "LDL", "STL")


def features(n, c, h, w, dtype):
    """Features without storage: a kernel is compiled for shapes, dtypes and alignment."""
    return torch.empty(n, c, h, w, dtype=dtype, device="meta").contiguous(memory_format=torch.channels_last)


def msfef(n, c_in, c_out, size, dtype, sizes=(3, 5, 7), stride=2):
    """Forward and backward of an MSFEF layer."""
    x, mask = features(n, c_in, size, size, dtype), features(n, 1, size, size, torch.bool)
    weights = [features(c_out, c_in, k, k, dtype).contiguous() for k in sizes]
    biases, scales = [scale[0, :, 0, 0] for scale in [features(1, c_out, 1, 1, dtype)] * len(sizes)], None
    scales = torch.empty(len(sizes), c_out, dtype=dtype, device="meta")
    args = (x, mask, weights, biases, scales, [stride, stride])
    out, _ = operators.msfef(*args)
    operators.msfef_backward(out, *args, [True] * 4)


def partial_conv2d(n, c_in, c_out, size, dtype, k=3, stride=2, dilation=1):
    """Forward and backward of a partial convolution."""
    x, mask = features(n, c_in, size, size, dtype), features(n, 1, size, size, dtype)
    weight, bias = (
        features(c_out, c_in, k, k, dtype).contiguous(),
        features(1, c_out, 1, 1, dtype)[0, :, 0, 0],
    )
    geometry = ([stride] * 2, [dilation * (k // 2)] * 4, [dilation] * 2, 1)
    out, _ = operators.partial_conv2d(x, mask, weight, bias, *geometry)
    operators.partial_conv2d_backward(out, x, mask, weight, *geometry, [True] * 3)


def upcat_partial_conv2d(n, c_low, c_skip, c_out, size, dtype, k=3):
    """Forward and backward of a decoder stage."""
    low = (size + 1) // 2
    x_low, mask_low = features(n, c_low, low, low, dtype), features(n, 1, low, low, torch.bool)
    skip, mask_skip = features(n, c_skip, size, size, dtype), features(n, 1, size, size, torch.bool)
    weight = features(c_out, c_low + c_skip, k, k, dtype).contiguous()
    bias = features(1, c_out, 1, 1, dtype)[0, :, 0, 0]
    out, _ = operators.upcat_partial_conv2d(x_low, mask_low, skip, mask_skip, weight, bias)
    operators.upcat_partial_conv2d_backward(out, x_low, mask_low, skip, mask_skip, weight, [True] * 4)


#: Layers of the paper's network at batch 32, which have a tuned configuration each, in their order.
NETWORK = {
    "msfef1": (msfef, 32, 3, 64, 256),
    "msfef2": (msfef, 32, 64, 128, 128),
    "msfef3": (msfef, 32, 128, 256, 64),
    "msfef4": (msfef, 32, 256, 512, 32),
    "pconv5": (partial_conv2d, 32, 512, 512, 16),
    "pconv8": (partial_conv2d, 32, 512, 512, 2),
    "upcat9": (upcat_partial_conv2d, 32, 512, 512, 512, 2),
    "upcat12": (upcat_partial_conv2d, 32, 512, 512, 512, 16),
    "upcat13": (upcat_partial_conv2d, 32, 512, 256, 256, 32),
    "upcat14": (upcat_partial_conv2d, 32, 256, 128, 128, 64),
    "upcat15": (upcat_partial_conv2d, 32, 128, 64, 64, 128),
    "upcat16": (upcat_partial_conv2d, 32, 64, 3, 3, 256),
}
#: Shapes with other paths of the code: odd channels, one pixel, wide windows, odd sizes.
ODD = {
    "odd channels": (msfef, 2, 67, 35, 19),
    "one pixel": (msfef, 1, 1, 1, 1),
    "wide windows": (msfef, 1, 17, 20, 21, BF16, (5, 11)),
    "wide few channels": (msfef, 1, 3, 20, 21, BF16, (5, 11)),
    "wide, 8 channels": (partial_conv2d, 1, 8, 8, 33, F32, 9, 1),
    "few channels, 7x7": (msfef, 1, 8, 64, 33, F32),
    "dilated": (partial_conv2d, 1, 24, 24, 19, BF16, 3, 2, 3),
    "odd size": (upcat_partial_conv2d, 1, 24, 12, 24, 13),
    "wide odd size": (upcat_partial_conv2d, 1, 3, 12, 3, 13, BF16, 9),
}


class NoGPU:
    """Stands in for Triton's driver: knows the target and nothing else."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device):
        return 0


class Recorder:
    """Makes launches compile, and remembers what was compiled.

    `brief`: of kernels with the same tile, dtype and way to read only the first, and one of each that
    multiply no matrices.
    """

    def __init__(self, brief: bool) -> None:
        self.brief = brief
        self.compiled: dict[object, tuple[str, dict, object]] = {}
        self.seen: set[object] = set()
        run = JITFunction.run

        def warm_up(function, *args, grid, warmup, **options):
            name = function.__name__
            key = (
                name,
                *(str(options.get(o)) for o in ("BM", "BN", "BP", "STAGES", "PRECISION", "ROW_CHANNELS")),
            )
            if name in MATRIX:
                sources = [options[s][8] for s in ("SOURCE0", "SOURCE1") if options.get(s)]  # rows or taps
                key += (args[0].dtype, *sources)
            if brief and key in self.seen:
                return
            self.seen.add(key)
            kernel = run(function, *args, grid=grid, warmup=True, **options)
            self.compiled.setdefault(kernel.hash, (name, options, kernel))

        JITFunction.run = warm_up

    def take(self):
        """What was compiled since the last call."""
        new, self.compiled = self.compiled, {}
        return list(new.values())


def figures(name: str, kernel) -> dict:
    """Resources of a compiled kernel, from its machine code and PTX. A spill shows as a stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()

        def tool(option):
            command = [TOOLS / "cuobjdump", option, cubin.name]
            return subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL)

        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", tool("-res-usage"))
        result = {
            "registers": int(usage[1]),
            "stack": int(usage[2]) + int(usage[3]),
            "shared": kernel.metadata.shared,
        }
        if name not in MATRIX:
            return result
        code = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_]+)", tool("-sass"), re.MULTILINE)
    count = Counter(code)
    pending = re.findall(r"cp\.async\.wait_group\s+(\d+)", kernel.asm["ptx"])
    return result | {
        "copies_in_flight": max(map(int, pending), default=0),
        "instructions": len(code),
        **{name: count[name] for name in INSTRUCTIONS},
    }


def layers(brief: bool):
    """(name, call, precision of float32) of everything to compile."""
    for name, (call, *args) in NETWORK.items():
        yield f"{name} bfloat16", lambda c=call, a=args: c(*a, BF16), "tf32"
        yield f"{name} tf32", lambda c=call, a=args: c(*a, F32), "tf32"
    for dtype, label, precision in ((F16, "float16", "tf32"), (F32, "float32", "ieee")):
        for name in ("msfef1", "msfef2", "upcat16"):
            call, *args = NETWORK[name]
            yield f"{name} {label}", lambda c=call, a=args, d=dtype: c(*a, d), precision
    if brief:
        for name, (call, *args) in ODD.items():
            yield name, lambda c=call, a=args: c(*a) if BF16 in a or F32 in a else c(*a, BF16), "tf32"


def compile_all(capability: int, recorder: Recorder) -> list[dict]:
    """One record for each kernel that was compiled."""
    records = []
    recorder.seen.clear()
    triton.runtime.driver.set_active(NoGPU(capability))
    launch.capability = lambda device: capability
    for name, call, precision in layers(recorder.brief):
        torch.backends.cudnn.conv.fp32_precision = precision
        if name in ODD:
            recorder.seen.clear()
        with kernel_set.using(kernel_set.triton()):
            call()
        for kernel_name, options, kernel in recorder.take():
            blocks = {key: options[key] for key in ("BM", "BN", "BP", "STAGES") if key in options}
            records.append(
                {"gpu": f"sm_{capability}", "layer": name, "kernel": kernel_name, **blocks}
                | {"warps": kernel.metadata.num_warps, "precision": options.get("PRECISION", "")}
                | figures(kernel_name, kernel)
            )
    return records


def main() -> None:
    """Compile, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, action="append", help="80 or 90")
    parser.add_argument(
        "--brief", action="store_true", help="every configuration once, and odd shapes, not every layer"
    )
    options = parser.parse_args()
    recorder, records = Recorder(options.brief), []
    for capability in options.capability or CAPABILITIES:
        records += compile_all(capability, recorder)
    for r in records:
        if r["kernel"] in MATRIX:
            tile = "x".join(str(r[key]) for key in ("BM", "BN", "BP") if key in r)
            memory = f"{r['registers']:3} registers, {r['shared']:6} B shared, stack {r['stack']}"
            code = f"HGMMA {r['HGMMA']:3} HMMA {r['HMMA']:3} LDGSTS {r['LDGSTS']:3}"
            print(
                f"{r['gpu']} {r['layer']:18} {r['kernel']:14} {tile:11} {r['warps']} warps {memory}, {code}, "
                f"{r['copies_in_flight']} copies in flight"
            )
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(record) for record in records)  # one kernel a line, for diffs
    options.output.write_text(f'{{"versions": {json.dumps(versions)}, "kernels": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()

"""Which backend "auto" tries first where nothing was measured: a rule of counts, and its reasons.

On a processor the compiled kernels: they read features once and build no masked copy, where the reference
makes a pass over memory for each step of the formula. "dense" makes one too, for torch's convolution: a
measurement may prefer it, no count does. In float32 Winograd's products are faster, and in 16 bits it
depends on the processor (one with AMX multiplies bfloat16 many times as fast) and on the layer.

On a GPU it depends on how many channels there are to multiply, C_in and C_out:

- Few of one of them: the CUDA kernels without a twin, ``few_inputs`` and ``few_outputs``. A tile of the
  matrix kernels has 16 channels at least, so of `FEW` or less they throw half of each product away, and most
  of their time goes into what comes before the products: the list of rows, and a copy in channels-last
  storage. The direct kernels have neither, and one launch.
- Many: Triton's matrix kernels. CUDA's twins do the same steps on the same tiles, but their code is made
  when the package is built, for the oldest tensor cores that it runs on; Triton compiles for the GPU that is
  there.

No count says what launches, drivers and caches cost: a measurement (`pconv-ext tune`) goes before this rule.
"""

from __future__ import annotations

#: Channels that fill at most half of the narrowest tile of a matrix kernel (``kernels/tuning.py``), 16.
FEW = 8

#: For a processor, whatever the channels.
CPU = ("cpu", "reference")
#: What is measured there besides.
CPU_MEASURED = ("dense",)
_FEW_CHANNELS = ("cuda", "triton", "reference")
_MANY_CHANNELS = ("triton", "cuda", "reference")


def order(device_type: str, c_in: int, c_out: int) -> tuple[str, ...]:
    """Names of backends, to be tried one after another, for tensors on a device of this type.

    `c_in` and `c_out` are the channels of the call, of all sources together.
    """
    if device_type == "cpu":
        return CPU
    if device_type != "cuda":
        return ("reference",)
    if min(c_in, c_out) <= FEW:
        return _FEW_CHANNELS
    # A backend for large products (the vendor's convolution) comes here, by C_in * C_out * taps * pixels.
    return _MANY_CHANNELS

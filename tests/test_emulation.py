"""The emulator of CUDA finds what is wrong in kernels without a barrier, nothing in those that have it."""

import ctypes

import emulated_cuda
import pytest

pytestmark = pytest.mark.deep

# Each is a kernel's body for 2 blocks of 64 threads: t the thread, b the block, s shared and g global memory.
BODIES = {
    "block barrier": ("s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t];", 0),
    "no block barrier": ("s[t] = t; __syncwarp(); g[b * 64 + t] = s[63 - t];", "read after write"),
    "warp barrier": ("s[t] = t; __syncwarp(); g[b * 64 + t] = s[t ^ 1];", 0),
    "no warp barrier": ("s[t] = t; g[b * 64 + t] = s[t ^ 1];", "read after write"),
    "a shuffle orders no memory": (
        "s[t] = __shfl_sync(~0u, t, 0); g[b * 64 + t] = s[t ^ 1];",
        "read after write",
    ),
    "overwritten too early": (
        "s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t]; s[t] = 2 * t;",
        "write after read",
    ),
    "overwritten after a barrier": (
        "s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t]; __syncthreads(); s[t] = 2 * t;",
        0,
    ),
    "two writers": ("s[t / 2] = t; g[b * 64 + t] = t;", "write after write"),
    "neighbouring bytes": ("reinterpret_cast<uint8_t*>(s)[t] = t; g[b * 64 + t] = t;", 0),
    "two blocks, one place": ("g[t] = t;", "another block has written"),
    "many readers": ("g[64 + b * 64 + t] = g[t % 8];", 0),
    "a copy that is waited for": (
        "copy_async<4>(s + t, g + t, 4); commit_copies(); wait_for_copies<0>(); __syncthreads();"
        "g[256 + b * 64 + t] = s[63 - t];",
        0,
    ),
    "a copy without a barrier": (
        "copy_async<4>(s + t, g + t, 4); commit_copies(); wait_for_copies<0>();"
        "g[256 + b * 64 + t] = s[t ^ 1];",
        "read after write",
    ),
    "a copy onto what is still read": (
        "s[t] = t; __syncthreads(); g[256 + b * 64 + t] = s[63 - t]; copy_async<4>(s + t, g + t, 4);"
        "commit_copies(); wait_for_copies<0>();",
        "write after read",
    ),
    "matrices of other lanes' rows": (
        "uint32_t m[4]; s[t * 4] = s[t * 4 + 1] = s[t * 4 + 2] = s[t * 4 + 3] = t;"
        "load_matrices(m, s + t / 32 * 128 + (t * 5) % 32 * 4); g[256 + b * 64 + t] = m[0];",
        "read after write",
    ),
}
KERNEL = """
#include "matrix.h"
namespace pconv {{
__global__ void kernel{i}(uint32_t* g) {{
  PCONV_SHARED(memory);
  uint32_t* s = reinterpret_cast<uint32_t*>(memory);
  const int t = threadIdx.x, b = blockIdx.x;
  {body}
}}
}}
PCONV_ENTRY(run{i}) {{
  pconv::Args args(words);
  uint32_t* g = args.tensor<uint32_t>();
  PCONV_LAUNCH(pconv::kernel{i}, dim3(2), dim3(64), 4096, stream, g);
  return pconv_launched();
}}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    source = folder / "kernels.cu"
    bodies = enumerate(body for body, _ in BODIES.values())
    source.write_text("".join(KERNEL.format(i=i, body=body) for i, body in bodies))
    return ctypes.CDLL(str(emulated_cuda.build(folder, [source])))


@pytest.mark.parametrize(("name", "finding"), [(name, finding) for name, (_, finding) in BODIES.items()])
def test_races(name, finding, library, capfd):
    memory = (ctypes.c_uint32 * 1024)()
    words = (ctypes.c_int64 * 2)(ctypes.addressof(memory), 6)
    races = -getattr(library, f"pconv_run{[*BODIES].index(name)}")(words, None)
    said = capfd.readouterr().err
    if finding:
        assert races > 0
        assert f"race: {finding}" in said
    else:
        assert (races, said) == (0, "")

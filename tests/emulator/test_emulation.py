"""The emulator of CUDA finds what is wrong in kernels, and nothing in their correct twins."""

import ctypes

import pytest
import torch
from support import emulated_cuda

pytestmark = pytest.mark.deep

LOAD = (
    "for (int i = t; i < 1024; i += 64) s[i] = i; __syncthreads();"
    "uint32_t m[4]; load_matrices(m, s + {}); g[b * 64 + t] = m[0];"
)
TWO = "const Two two = *reinterpret_cast<const Two*>(g + {}); g[512 + b * 64 + t] = two.v[0] + two.v[1];"
TOO_MUCH = "more threads, blocks or shared memory than a launch may have"

# Each is a kernel's body for 2 blocks of 64 threads: t the thread, b the block, s shared and g global memory,
# 1024 words each. And what is found.
BODIES = {
    "block barrier": ("s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t];", 0),
    "no block barrier": ("s[t] = t; __syncwarp(); g[b * 64 + t] = s[63 - t];", "race: read after write"),
    "warp barrier": ("s[t] = t; __syncwarp(); g[b * 64 + t] = s[t ^ 1];", 0),
    "no warp barrier": ("s[t] = t; g[b * 64 + t] = s[t ^ 1];", "race: read after write"),
    "a shuffle orders no memory": (
        "s[t] = __shfl_sync(~0u, t, 0); g[b * 64 + t] = s[t ^ 1];",
        "race: read after write",
    ),
    "overwritten too early": (
        "s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t]; s[t] = 2 * t;",
        "race: write after read",
    ),
    "overwritten after a barrier": (
        "s[t] = t; __syncthreads(); g[b * 64 + t] = s[63 - t]; __syncthreads(); s[t] = 2 * t;",
        0,
    ),
    "two writers": ("s[t / 2] = t; g[b * 64 + t] = t;", "race: write after write"),
    "neighbouring bytes": ("reinterpret_cast<uint8_t*>(s)[t] = t; g[b * 64 + t] = t;", 0),
    "two blocks, one place": ("g[t] = t;", "race: another block has written this"),
    "many readers": ("g[64 + b * 64 + t] = g[t % 8];", 0),
    "a copy that is waited for": (
        "copy_async<4>(s + t, g + t, 4); commit_copies(); wait_for_copies<0>(); __syncthreads();"
        "g[256 + b * 64 + t] = s[63 - t];",
        0,
    ),
    "a copy without a barrier": (
        "copy_async<4>(s + t, g + t, 4); commit_copies(); wait_for_copies<0>();"
        "g[256 + b * 64 + t] = s[t ^ 1];",
        "race: read after write",
    ),
    "a copy onto what is still read": (
        "s[t] = t; __syncthreads(); g[256 + b * 64 + t] = s[63 - t]; copy_async<4>(s + t, g + t, 4);"
        "commit_copies(); wait_for_copies<0>();",
        "race: write after read",
    ),
    "matrices of other lanes' rows": (
        "uint32_t m[4]; s[t * 4] = s[t * 4 + 1] = s[t * 4 + 2] = s[t * 4 + 3] = t;"
        "load_matrices(m, s + t / 32 * 128 + (t * 5) % 32 * 4); g[256 + b * 64 + t] = m[0];",
        "race: read after write",
    ),
    "the last words": ("s[960 + t] = t; g[b * 64 + t] = g[1023 - t] + s[960 + t];", 0),
    "a read behind the tensor": ("g[b * 64 + t] = g[1023 + t];", "outside: a read"),
    "a write before the tensor": ("g[b * 64 + t - 1] = t;", "outside: a write"),
    "a write behind shared memory": ("s[961 + t] = t;", "outside: a write"),
    "a read before shared memory": ("g[b * 64 + t] = s[t - 1];", "outside: a read"),
    "a variable of another thread": (
        "uint32_t mine[8]; mine[t % 8] = t; uint32_t* p = mine;"
        "p = reinterpret_cast<uint32_t*>(__shfl_sync(~0u, reinterpret_cast<uint64_t>(p), 0));"
        "g[b * 64 + t] = p[b];",
        "outside: a read",
    ),
    "a table in the library": (
        "static const uint32_t table[] = {2, 3, 5, 7}; g[b * 64 + t] = table[t % 4];",
        0,
    ),
    "a copy of nothing from behind the tensor": (
        "copy_async<4>(s + t, g + 1024 + t, 0); commit_copies(); wait_for_copies<0>(); g[b * 64 + t] = s[t];",
        0,
    ),
    "a copy from behind the tensor": ("copy_async<4>(s + t, g + 1023 + t, 4);", "outside: a read"),
    "a copy to global memory": ("copy_async<4>(g + t, g + t, 4);", "outside of shared memory"),
    "a copy from shared memory": ("copy_async<4>(s + t, s + 64 + t, 4);", "not in global memory"),
    "a copy of 16 bytes": ("copy_async<16>(s + 4 * t, g + 4 * t, 16);", 0),
    "a copy from 4 bytes further": ("copy_async<16>(s + 4 * t, g + 4 * t + 1, 16);", "misaligned"),
    "a copy to 4 bytes further": ("copy_async<16>(s + 4 * t + 1, g + 4 * t, 16);", "misaligned"),
    "a copy of too much": ("copy_async<4>(s + t, g + t, 8);", "a copy of an impossible size"),
    "matrices": (LOAD.format("t % 32 * 4"), 0),
    "matrices from 4 bytes further": (LOAD.format("t % 32 * 4 + 1"), "misaligned"),
    "matrices behind shared memory": (LOAD.format("1024 - 64 + t % 32 * 4"), "outside of shared memory"),
    "two words at once": ("struct alignas(8) Two { uint32_t v[2]; };" + TWO.format("2 * t"), 0),
    "two words at once, misaligned": (
        "struct alignas(8) Two { uint32_t v[2]; };" + TWO.format("2 * t + 1"),
        "misaligned: kernels.cu",
    ),
    "matrices in two places": (
        "uint32_t m[4]; if (t % 32 < 16) { load_matrices(m, s + t * 4); m[0] += 1; }"
        "else { load_matrices(m, s + 128 + t * 4); m[0] *= 3; } g[b * 64 + t] = m[0];",
        "divergence: lanes meet at different instructions",
    ),
    "products of some lanes": (
        "if (t < 40) { float c[4] = {}; uint32_t a[4] = {}, w[2] = {}; multiply<Half>(c, a, w);"
        "g[b * 64 + t] = uint32_t(c[0]); }",
        "divergence: an instruction of a whole warp without all its lanes",
    ),
    "products of some warps": (
        "if (t < 32) { float c[4] = {}; uint32_t a[4] = {}, w[2] = {}; multiply<Half>(c, a, w);"
        "g[b * 64 + t] = uint32_t(c[0]); }",
        0,
    ),
    "a shuffle among those left": ("if (t < 40) g[b * 64 + t] = __shfl_sync(~0u, t, 7);", 0),
    "a shuffle from one that has ended": (
        "if (t < 40) g[b * 64 + t] = __shfl_sync(~0u, t, 8);",
        "divergence: a lane reads one that has ended",
    ),
    "shuffles in two places": (
        "uint32_t v; if (t % 2) v = 3 * __shfl_sync(~0u, t, 1); else v = __shfl_xor_sync(~0u, t, 2) + 1;"
        "g[b * 64 + t] = v;",
        "divergence: lanes meet at different instructions",
    ),
    "a block barrier in two places of a warp": (
        "if (t % 2) { __syncthreads(); g[b * 64 + t] = 1; } else { __syncthreads(); g[b * 64 + t] = 2 * t; }",
        "divergence: lanes meet at different instructions",
    ),
    "a block barrier in two places, by warps": (
        "if (t < 32) { __syncthreads(); g[b * 64 + t] = 1; }else { __syncthreads(); g[b * 64 + t] = 2 * t; }",
        0,
    ),
    "a block barrier for the threads left": ("if (t < 40) { __syncthreads(); g[b * 64 + t] = t; }", 0),
    "barriers of two kinds": (
        "if (t % 2) __syncthreads(); else __syncwarp(); g[b * 64 + t] = t;",
        "divergence: no thread passes the barrier where it waits",
    ),
}
# What is done to the kernel, and grid, block and shared memory of its launch.
LAUNCHES = {
    "all that needs no asking": ("", "dim3(2), dim3(64), 48 << 10", 0),
    "shared memory that was not asked for": ("", "dim3(2), dim3(64), (48 << 10) + 16", TOO_MUCH),
    "shared memory that was asked for": (
        "pconv::allow_shared({kernel});",
        "dim3(2), dim3(64), (48 << 10) + 16",
        0,
    ),
    "more than there is": ("pconv::allow_shared({kernel});", "dim3(2), dim3(64), (99 << 10) + 16", TOO_MUCH),
    "too many threads": ("", "dim3(2), dim3(1056), 4096", TOO_MUCH),
    "too many blocks": ("", "dim3(1, 65536), dim3(64), 4096", TOO_MUCH),
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
  {before}
  PCONV_LAUNCH(pconv::kernel{i}, {launch}, stream, g);
  return pconv_launched();
}}
"""
KERNELS = {
    name: {"body": body, "before": "", "launch": "dim3(2), dim3(64), 4096"}
    for name, (body, _) in BODIES.items()
}
KERNELS |= {
    name: {"body": "g[b * 64 + t % 64] = s[t % 64];", "before": before, "launch": launch}
    for name, (before, launch, _) in LAUNCHES.items()
}
FINDINGS = [(name, finding) for name, (*_, finding) in (BODIES | LAUNCHES).items()]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernels")
    source = folder / "kernels.cu"
    texts = [
        KERNEL.format(i=i, **kernel | {"before": kernel["before"].format(kernel=f"pconv::kernel{i}")})
        for i, kernel in enumerate(KERNELS.values())
    ]
    source.write_text("".join(texts))
    library = ctypes.CDLL(str(emulated_cuda.build(folder, [source, emulated_cuda.SOURCES / "library.cu"])))
    library.pconv_error.restype = ctypes.c_char_p
    return library


@pytest.mark.parametrize(("name", "finding"), FINDINGS)
def test_findings(name, finding, library, capfd):
    memory = (ctypes.c_uint32 * 1032)()
    first = ctypes.addressof(memory) + 15 & ~15
    emulated_cuda.tell_extents(library, [(first, first + 4096)])
    words = (ctypes.c_int64 * 2)(first, 6)
    error = getattr(library, f"pconv_run{[*KERNELS].index(name)}")(words, None)
    said = capfd.readouterr().err.splitlines()
    if finding:
        assert error < 0
        assert any(line.startswith(finding) for line in said)
        assert library.pconv_error(error).decode() == said[0]
    else:
        assert (error, said) == (0, [])


def test_the_tensors_of_a_launch(library):
    """Of several, one inside another; none after them."""
    memory = (ctypes.c_uint32 * 2048)()
    first = ctypes.addressof(memory) + 15 & ~15
    words = (ctypes.c_int64 * 2)(first, 6)
    reads = getattr(library, f"pconv_run{[*KERNELS].index('the last words')}")
    whole, inner, half = (first, first + 4096), (first + 8, first + 16), (first + 2048, first + 4096)
    for extents, clean in (
        ([inner, whole], True),
        ([whole, half], True),
        ([half, inner], False),
        ([], False),
    ):
        emulated_cuda.tell_extents(library, extents)
        assert (reads(words, None) == 0) == clean


def test_extents():
    tensor = torch.empty(6, 10, dtype=torch.int16)
    start = tensor.data_ptr()
    assert emulated_cuda.extent(tensor) == (start, start + 120)
    assert emulated_cuda.extent(tensor[1:3, 2:5]) == (start + 24, start + 50)
    assert emulated_cuda.extent(tensor.t()[::2]) == (start, start + 118)
    first, end = emulated_cuda.extent(tensor[:0])
    assert first == end

"""What the CPU's kernels allocate in MSFEF layers 1 and 2 of the network, by torch's allocation events.

Scratch is the peak above inputs and results. It is made of budgets for bands and tiles, some for each thread
and one that all share, so it does not grow with the batch, but for a number for each window of each kernel.
"""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import pconv_ext

#: Channels, outputs and size of the layers, and what forward and backward may allocate beside results, in
#: bytes of a batch of 2 with its output: 1.4 to 1.6 times what AVX-512 takes with 2 threads, so that twice as
#: much fails, and twice its largest part. Layer 1 goes the direct way. Most of layer 2's are the tiles of a
#: visit of each thread, and in the backward the sums of the weights' gradient.
LAYERS = {"msfef1": (3, 64, 256, 0.2, 0.4), "msfef2": (64, 128, 128, 2.2, 2.6)}


def peak(step):
    """The most that `step` holds at once, and its result."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest, result


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with pconv_ext.set_algorithm("auto"):
        yield
    torch.set_num_threads(before)


def scratch(layer, batch):
    """Bytes that forward and backward hold beside what they return; bytes of the input and the output."""
    c_in, c_out, size, *_ = LAYERS[layer]
    x = torch.randn(batch, c_in, size, size).requires_grad_()
    mask = torch.ones(batch, 1, size, size, dtype=torch.bool)
    mask[:, :, size // 4 : size // 2, size // 4 : size // 2] = False
    weights = [torch.randn(c_out, c_in, k, k).requires_grad_() for k in (3, 5, 7)]
    biases = [torch.randn(c_out).requires_grad_() for _ in weights]
    scales = torch.full((3, c_out), 1 / 3).requires_grad_()
    forward, (out, new_mask) = peak(
        lambda: pconv_ext.msfef(x, mask, weights, biases, scales, 2, backend="cpu")
    )
    grad_out = torch.randn_like(out)
    leaves = [x, *weights, *biases, scales]
    backward, gradients = peak(lambda: torch.autograd.grad(out, leaves, grad_out))
    results = out.nbytes + new_mask.nbytes
    assert forward >= results, "the profiler saw the output"
    assert backward >= sum(gradient.nbytes for gradient in gradients)
    return forward - results, backward - sum(gradient.nbytes for gradient in gradients), x.nbytes + out.nbytes


@pytest.mark.parametrize("layer", LAYERS)
def test_scratch(layer):
    forward, backward, features = scratch(layer, 2)
    *_, forward_bound, backward_bound = LAYERS[layer]
    assert forward <= forward_bound * features
    assert backward <= backward_bound * features


@pytest.mark.parametrize("layer", LAYERS)
def test_scratch_does_not_grow_with_the_batch(layer):
    one, three = scratch(layer, 1), scratch(layer, 3)
    _, _, size, *_ = LAYERS[layer]
    window_counts = 4 * 3 * (size // 2) ** 2  # bytes of an image
    for alone, together in zip(one[:2], three[:2], strict=True):
        assert together <= 1.05 * alone + 2 * window_counts

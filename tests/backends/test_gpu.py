"""What only a GPU can show: streams, graphs, synchronisation, devices, tensors beyond 2^31 elements."""

import pytest
import torch
from support.calls import every_operator
from support.cases import COMPILED, kernel, mask_of
from support.small_network import Network, run
from support.tolerances import GPU_BACKENDS, assert_close

import pconv_ext
from pconv_ext._backends import tables

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
    pytest.mark.parametrize("backend", [name for name in COMPILED if name in GPU_BACKENDS]),
]


def inputs(make, device="cuda", dtype=torch.float32):
    leaves, call = make({"dtype": dtype, "device": device})
    return [leaf.requires_grad_() for leaf in leaves], call


def results(call, leaves, grad, backend):
    out, new_mask = call(*leaves, backend=backend)
    return [out, new_mask, *torch.autograd.grad(out, leaves, grad)]


@every_operator
def test_nothing_waits_for_the_device(backend, make):
    leaves, call = inputs(make)
    grad = torch.randn_like(call(*leaves, backend=backend)[0])
    results(call, leaves, grad, backend)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(call, leaves, grad, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_operator
def test_another_stream(backend, make):
    leaves, call = inputs(make)
    grad = torch.randn_like(call(*leaves, backend=backend)[0])
    expected = results(call, leaves, grad, backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # what is launched elsewhere would overtake
        held = [leaf * 1 for leaf in leaves]
        actual = results(call, held, grad, backend)
    torch.cuda.current_stream().wait_stream(stream)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_a_graph_of_a_training_step(backend):
    """Captured once, replayed on new values."""
    network = Network(backend).cuda()
    x = torch.randn(2, 3, 15, 16, device="cuda", requires_grad=True)
    mask = mask_of("random", x, torch.float32)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(network, x, mask)
    torch.cuda.current_stream().wait_stream(stream)
    network.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = network(x, mask)
        captured = torch.autograd.grad(out.square().sum(), [x, *network.parameters()])
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
        mask.copy_(mask_of("rectangle", x, torch.float32))
    graph.replay()
    expected, _ = network(x, mask)
    grads = torch.autograd.grad(expected.square().sum(), [x, *network.parameters()])
    for one, other in zip([out, *captured], [expected, *grads], strict=True):
        assert torch.equal(one, other)


@every_operator
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one(backend, make):
    leaves, call = inputs(make, device="cuda:1")
    grad = torch.randn_like(call(*leaves, backend=backend)[0])
    actual = results(call, leaves, grad, backend)
    assert all(tensor.device == leaves[0].device for tensor in actual)
    for one, other in zip(actual, results(call, leaves, grad, "reference"), strict=True):
        assert_close(one, other.double(), torch.float32, "result", backend)


def test_more_than_2_to_the_31_elements(backend):
    """The last image of a large batch against the same image alone."""
    n, c, size = 33, 64, 1024
    x = torch.empty(n, c, size, size, dtype=torch.float16, device="cuda", memory_format=torch.channels_last)
    x[:-1] = 0
    x[-1] = torch.randn(c, size, size, dtype=x.dtype, device="cuda")
    assert x.numel() > 2**31
    mask = mask_of("blobs", x[-1:, :1])
    weight = kernel(16, c, 3, dtype=x.dtype, device="cuda").requires_grad_()
    alone = x[-1:].clone().requires_grad_()
    expected = pconv_ext.partial_conv2d(alone, mask, weight, stride=2, padding=1, backend=backend)[0]
    grad = torch.randn_like(expected)
    expected_grads = torch.autograd.grad(expected, [alone, weight], grad)
    x.requires_grad_()
    out = pconv_ext.partial_conv2d(x, mask, weight, stride=2, padding=1, backend=backend)[0]
    assert_close(out[-1:], expected.double(), x.dtype, "out", backend)
    grad = torch.cat([torch.zeros_like(out[:-1]), grad])
    grad_x, grad_weight = torch.autograd.grad(out, [x, weight], grad)
    assert_close(grad_x[-1:], expected_grads[0].double(), x.dtype, "gradient of x", backend)
    assert_close(grad_weight, expected_grads[1].double(), x.dtype, "gradient of weight", backend)


def test_compiled_with_inductor(backend):
    network = Network(backend).cuda()
    x = torch.randn(2, 3, 15, 16, device="cuda")
    mask = mask_of("random", x, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True)
    expected = [tensor.clone() for tensor in run(network, x, mask)]
    for one, other in zip(run(compiled, x, mask), expected, strict=True):
        assert_close(one, other.double(), torch.float32, "compiled", backend)


def test_autotune_measures_outside_of_a_capture_alone(backend, monkeypatch):
    monkeypatch.setattr(tables, "KNOWN", {"": tables.Known(), "cuda:0": tables.Known()})
    x, weight = torch.randn(1, 16, 9, 9, device="cuda"), kernel(16, 16, 3, device="cuda", dtype=torch.float32)
    expected, _ = pconv_ext.partial_conv2d(x, None, weight)  # which compiles it
    graph = torch.cuda.CUDAGraph()
    with pconv_ext.set_autotune(True):
        with torch.cuda.graph(graph):
            out, _ = pconv_ext.partial_conv2d(x, None, weight)
        assert not tables.KNOWN["cuda:0"].rows
        graph.replay()
        assert_close(out, expected.double(), torch.float32, "out", backend)
        pconv_ext.partial_conv2d(x, None, weight)
    (row,) = tables.KNOWN["cuda:0"].rows
    assert {backend, "reference"} <= {name for name, _ in row.times}

"""The operators under PyTorch's dispatcher: schema, fake, autograd, autocast, compile and export."""

import contextlib
import io

import pytest
import torch
from support.cases import COMPILED, DEVICE_OF, DTYPE_OF, every_backend, kernel, laid_out, mask_of, randn
from support.small_network import Network, run
from support.tolerances import assert_close
from torch.autograd import forward_ad
from torch.profiler import ProfilerActivity, profile

import pconv_ext
from pconv_ext import PartialConv2d, _backends, ops

every_operator = pytest.mark.parametrize("name", ops.OPERATORS)


def operator(backend, name):
    return getattr(_backends._BACKENDS[backend].operators, name).default


def arguments(name, backend, planes="random", *, n=2, grad=True, dtype=None, layout="contiguous"):
    """Arguments of the operator's schema, in the most precise dtype if none is given."""
    where = {"dtype": dtype or DTYPE_OF[backend], "device": DEVICE_OF[backend]}
    x = laid_out(randn(n, 3, 5, 6, **where), layout)
    mask = mask_of(planes, x)
    if name == "partial_conv2d":
        args = [x, mask, kernel(4, 3, 3, **where), randn(4, **where), [2, 1], [1, 2, 0, 1], [1, 1], 1]
    elif name == "msfef":
        weights = [kernel(4, 3, k, **where) for k in (5, 3)]
        args = [x, mask, weights, [randn(4, **where), randn(4, **where)], randn(2, 4, **where), [2, 2]]
    elif name == "upcat_partial_conv2d":
        skip = laid_out(randn(n, 2, 9, 12, **where), layout)
        args = [
            x,
            mask,
            skip,
            mask_of(planes, skip, torch.uint8),
            kernel(4, 5, 3, **where),
            randn(4, **where),
        ]
    for value in args:
        for tensor in value if isinstance(value, list) else [value]:
            if grad and isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and value is not mask:
                tensor.requires_grad_()
    return args


def flat(args):
    """The differentiable tensors of `args`, and a function from them to all arguments."""
    leaves = [
        t for a in args for t in (a if isinstance(a, list) else [a]) if getattr(t, "requires_grad", False)
    ]

    def rebuilt(*tensors):
        source = iter(tensors)

        def one(value):
            return next(source) if getattr(value, "requires_grad", False) else value

        return [[one(v) for v in a] if isinstance(a, list) else one(a) for a in args]

    return leaves, rebuilt


@every_backend
@every_operator
@pytest.mark.parametrize("planes", ["none", "random"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("dtype", "grad"), [(None, True), (torch.float32, False), (torch.bfloat16, False)], ids=str
)
def test_opcheck(backend, name, planes, layout, dtype, grad):
    args = arguments(name, backend, planes, grad=grad, layout=layout, dtype=dtype)
    torch.library.opcheck(operator(backend, name), args)


@every_backend
@every_operator
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("needed", ["all", "none", "first", "last"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
def test_opcheck_backward(backend, name, needed, layout, dtype):
    args = arguments(name, backend, grad=False, layout=layout, dtype=dtype)
    out, _ = operator(backend, name)(*args)
    count = len(ops.OPERATORS[name].differentiable)
    needs = [needed == "all" or (needed, i) in (("first", 0), ("last", count - 1)) for i in range(count)]
    args = [arg for i, arg in enumerate(args) if i not in ops.OPERATORS[name].unsaved]
    torch.library.opcheck(operator(backend, name + "_backward"), [torch.randn_like(out), *args, needs])


@pytest.mark.parametrize("backend", [name for name in COMPILED if DTYPE_OF[name] == torch.float64])
@every_operator
@pytest.mark.parametrize("planes", ["none", "random", "sparse"])
def test_gradcheck(backend, name, planes):
    args = arguments(name, backend, planes, n=1)
    leaves, rebuilt = flat(args)
    assert torch.autograd.gradcheck(lambda *tensors: operator(backend, name)(*rebuilt(*tensors))[0], leaves)


@every_backend
@every_operator
def test_second_derivative_is_an_error_that_says_what_to_do(backend, name):
    leaves, rebuilt = flat(arguments(name, backend))
    out, _ = operator(backend, name)(*rebuilt(*leaves))
    first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
    plain = torch.autograd.grad(operator(backend, name)(*rebuilt(*leaves))[0].square().sum(), leaves)
    for one, other in zip(first, plain, strict=True):
        assert torch.equal(one, other), "create_graph=True alone is no error"
    with pytest.raises(RuntimeError, match=rf'{name} is not twice differentiable.*backend="reference"'):
        first[0].sum().backward()


@every_backend
@every_operator
def test_forward_mode_is_refused_rather_than_lost(backend, name):
    args = arguments(name, backend, grad=False)
    with forward_ad.dual_level():
        args[0] = forward_ad.make_dual(args[0], torch.ones_like(args[0]))
        with pytest.raises(RuntimeError, match=r"forward AD|jvp"):
            operator(backend, name)(*args)


@every_backend
@every_operator
def test_a_result_that_is_not_used_has_no_gradient(backend, name):
    leaves, rebuilt = flat(arguments(name, backend))
    out, new_mask = operator(backend, name)(*rebuilt(*leaves))
    assert out.requires_grad
    assert not new_mask.requires_grad
    assert not operator(backend, name)(*arguments(name, backend, grad=False))[0].requires_grad
    with torch.no_grad():
        assert not operator(backend, name)(*rebuilt(*leaves))[0].requires_grad
    with torch.inference_mode():
        assert operator(backend, name)(*rebuilt(*leaves))[0].is_inference()


@every_backend
@every_operator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("route", ["auto", "reference", "operator"])
def test_autocast(backend, name, dtype, route):
    """x, weights, biases and scales are cast as a convolution's, masks never; float64 stays what it is."""
    device = DEVICE_OF[backend]
    args = arguments(name, backend, dtype=torch.float32)
    index = 1
    args[index] = args[index].to(torch.float32)
    if route == "operator":
        call = operator(backend, name)
    else:

        def call(*args):
            if name == "partial_conv2d":
                args = [*args[:5], [1, 1], *args[6:]]  # the public function takes symmetric padding
            return getattr(pconv_ext, name)(*args, backend=route)

    with torch.autocast(device, dtype=dtype):
        out, new_mask = call(*args)
        wide, _ = call(*arguments(name, backend)) if DTYPE_OF[backend] == torch.float64 else (None, None)
    assert out.dtype == dtype
    assert new_mask.dtype == torch.float32
    assert wide is None or wide.dtype == torch.float64
    leaves, _ = flat(args)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert [grad.dtype for grad in grads] == [torch.float32] * len(leaves)

    def cast(value):
        return (
            [cast(v) for v in value]
            if isinstance(value, list) and value and torch.is_tensor(value[0])
            else (value.to(dtype) if torch.is_tensor(value) and value is not args[index] else value)
        )

    expected, _ = call(
        *[value if i in (1, 3) and name[0] == "u" else cast(value) for i, value in enumerate(args)]
    )
    assert torch.equal(out, expected)


@every_backend
@every_operator
def test_a_backward_inside_of_autocast(backend, name):
    """Of a forward outside of it: the same gradients."""
    leaves, rebuilt = flat(arguments(name, backend, dtype=torch.float32))
    loss = operator(backend, name)(*rebuilt(*leaves))[0].square().sum()
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    with torch.autocast(DEVICE_OF[backend], dtype=torch.bfloat16):
        actual = torch.autograd.grad(loss, leaves)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@every_backend
def test_autocast_of_a_layer_after_a_convolution(backend):
    device = DEVICE_OF[backend]
    conv, layer = torch.nn.Conv2d(3, 8, 3, device=device), PartialConv2d(8, 4, 3, backend=backend).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = layer(conv(torch.randn(1, 3, 9, 9, device=device)))
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert conv.weight.grad.dtype == layer.weight.grad.dtype == torch.float32


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other.double(), torch.float32, "compiled")


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_compile_without_graph_breaks(backend, autocast):
    network = Network(backend)
    x = torch.randn(2, 3, 15, 16)
    mask = mask_of("random", x, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    context = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    with context:
        expected = [tensor.clone() for tensor in run(network, x, mask)]
        actual = run(compiled, x, mask)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert_close(one, other.double(), torch.bfloat16 if autocast else torch.float32, "compiled")


@every_backend
def test_compile_with_inductor_and_changing_sizes(backend):
    device = DEVICE_OF[backend]
    network = Network(backend).to(device)
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, dynamic=True)
    for shape in ((2, 3, 15, 16), (3, 3, 10, 13)):
        x = torch.randn(shape, device=device)
        mask = mask_of("rectangle", x, torch.float32)
        expected = [tensor.clone() for tensor in run(network, x, mask)]
        assert_same(run(compiled, x, mask), expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_export(backend):
    network = Network(backend).eval()
    x = torch.randn(2, 3, 16, 16)
    mask = mask_of("random", x, torch.float32)
    batch = torch.export.Dim("batch", max=64)
    exported = torch.export.export(network, (x, mask), dynamic_shapes=({0: batch}, {0: batch}))
    names = {str(node.target) for node in exported.graph.nodes if "pconv_ext" in str(node.target)}
    assert names == (
        set() if backend == "reference" else {f"pconv_ext.{name}.default" for name in ops.OPERATORS}
    )
    x = torch.randn(3, 3, 16, 16)
    mask = mask_of("random", x, torch.float32)
    for one, other in zip(exported.module()(x, mask), network(x, mask), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("size", [(32, 40), (33, 47)], ids=str)
def test_an_exported_program_takes_other_sizes(backend, size):
    """Of either parity, whatever that of the example was."""
    network = Network(backend).eval()
    x = torch.randn(2, 3, *size)
    mask = mask_of("random", x, torch.float32)
    dynamic = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(network, (x, mask), dynamic_shapes=(dynamic, dynamic)).module()
    for other in ((48, 64), (33, 47), (31, 50), (64, 65)):
        x = torch.randn(3, 3, *other)
        mask = mask_of("random", x, torch.float32)
        for one, expected in zip(program(x, mask), network(x, mask), strict=True):
            torch.testing.assert_close(one, expected)


def test_an_exported_network_takes_other_sizes():
    """Four levels, with named dimensions, whose constraints must be provable."""
    network = pconv_ext.InpaintingNet(width=8, depth=4).eval()
    x = torch.rand(2, 3, 64, 80)
    mask = mask_of("rectangle", x, torch.float32)
    height, width = (torch.export.Dim(name, min=32, max=512) for name in ("height", "width"))
    dynamic = {2: height, 3: width}
    program = torch.export.export(network, (x, mask), dynamic_shapes=(dynamic, dynamic)).module()
    for other in ((96, 128), (65, 127), (99, 64)):
        x = torch.rand(2, 3, *other)
        mask = mask_of("rectangle", x, torch.float32)
        for one, expected in zip(program(x, mask), network(x, mask), strict=True):
            torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.filterwarnings("ignore")  # both exporters say at length what they do
def test_onnx_export_of_the_reference(dynamo):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the dev extra: pip install '.[dev]'")
    pytest.importorskip("onnxscript", reason="needs the dev extra: pip install '.[dev]'")
    network = Network("reference").eval()
    x = torch.randn(1, 3, 16, 16)
    mask = mask_of("random", x, torch.float32)
    file = io.BytesIO()
    torch.onnx.export(network, (x, mask), file, dynamo=dynamo)
    session = onnxruntime.InferenceSession(file.getvalue())
    names = [node.name for node in session.get_inputs()]
    actual = session.run(None, dict(zip(names, (x.numpy(), mask.numpy()), strict=True)))
    for one, other in zip(actual, network(x, mask), strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other, rtol=1e-4, atol=1e-5)


def test_poison_reaches_the_kernels():
    """conftest.py poisons memory; the kernels' own allocations must pass through it."""
    args = arguments("partial_conv2d", "cpu", grad=False)
    with profile(activities=[ProfilerActivity.CPU]) as events:
        operator("cpu", "partial_conv2d")(*args)
    counts = {event.key: event.count for event in events.key_averages()}
    assert counts["aten::empty"] >= 2
    assert counts["aten::fill_"] >= counts["aten::empty"]

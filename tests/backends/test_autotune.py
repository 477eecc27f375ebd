"""`set_autotune`: a call is measured where it is first made, and never where something else looks on."""

import logging
import threading
import warnings

import pytest
import torch

import pconv_ext
from pconv_ext import _backends, _machine
from pconv_ext._backends import first_use, measured, rule, tables
from pconv_ext._backends.measured import FORWARD, TRAINING, Row
from pconv_ext._tuning import autotune, timing


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(tables, "KNOWN", {"": tables.Known(), "cpu": tables.Known()})
    monkeypatch.setattr(autotune, "_given_up", set())
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE_MS", {"cpu": 0.01})
    monkeypatch.setattr(autotune, "SECONDS", 0)
    yield
    assert first_use.measure is None, "a test left it on"


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "pconv_ext.autotune")
    return lambda: [record.getMessage() for record in caplog.records]


def arguments(c_in=3, c_out=5, size=9, dtype=torch.float32, grad=False):
    x = torch.randn(2, c_in, size, size, dtype=dtype)
    mask = (torch.rand(2, 1, size, size) < 0.7).to(dtype)
    return x, mask, torch.randn(c_out, c_in, 3, 3, dtype=dtype, requires_grad=grad)


def rows():
    return tables.KNOWN["cpu"].rows


def test_a_call_is_measured_once_for_each_direction_and_told(told):
    given = arguments()
    with pconv_ext.set_autotune(True):
        for _ in range(3):
            pconv_ext.partial_conv2d(*given, padding=1)
        out, _ = pconv_ext.partial_conv2d(*arguments(grad=True), padding=1)
        pconv_ext.partial_conv2d(*given, padding=1, backend="cpu")
        pconv_ext.partial_conv2d(*given, padding=1, backend="reference")
    capability = _machine.capability(given[0].device)
    call = (capability, "partial_conv2d", "float32")
    assert [row.call for row in rows()] == [
        (*call, direction, 3, 5, 9, 2 * 81) for direction in (FORWARD, TRAINING)
    ]
    assert all({name for name, _ in row.times} == {"cpu", "dense", "reference"} for row in rows())
    assert len(told()) == 2
    assert told()[0].startswith("partial_conv2d float32, forward, channels 3 -> 5, 9 taps, 162 pixels: ")
    out.sum().backward()


def test_nothing_is_measured_unless_asked(told):
    pconv_ext.partial_conv2d(*arguments())
    assert not rows()
    assert not told()


def test_what_was_measured_is_followed(monkeypatch):
    """Also when it is off again."""
    given, calls = arguments(), []
    slow = {"cpu": 5.0, "dense": 6.0, "reference": 1.0}
    monkeypatch.setattr(
        timing, "interleaved", lambda steps, *_: {step.name: [slow[step.name]] for step in steps}
    )
    partial_conv2d = pconv_ext.reference.partial_conv2d
    monkeypatch.setattr(
        pconv_ext.reference, "partial_conv2d", lambda *args: calls.append(args) or partial_conv2d(*args)
    )
    with pconv_ext.set_autotune(True):
        pconv_ext.partial_conv2d(*given)
    pconv_ext.partial_conv2d(*given)
    assert len(calls) == 2


def test_what_a_table_knows_is_not_measured():
    given = arguments()
    call = (_machine.capability(given[0].device), "partial_conv2d", "float32", FORWARD, 3, 5, 9, 2 * 81)
    tables.add("cpu", Row(*call, (("cpu", 1.0),)))
    with pconv_ext.set_autotune(True):
        pconv_ext.partial_conv2d(*given)
        assert len(rows()) == 1
        pconv_ext.partial_conv2d(*arguments(size=10))
        assert len(rows()) == 2


@pytest.mark.parametrize("padding", [0, 1, (1, 2), "valid", "same"])
def test_results_are_those_without(padding):
    """In float64, for either backend may be the faster one."""
    x, mask, _ = arguments(dtype=torch.float64)
    weight = torch.randn(5, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    bias, x = torch.randn(5, dtype=torch.float64), x.requires_grad_()
    found = []
    for enabled in (False, True):
        with pconv_ext.set_autotune(enabled):
            out, new_mask = pconv_ext.partial_conv2d(x, mask, weight, bias, 1, padding)
        found.append([out, new_mask, *torch.autograd.grad(out.square().sum(), [x, weight])])
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(after, before)
    assert len(rows()) == 1


def test_every_operator_and_the_layers():
    image, mask = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    mask[:, :, 4:9, 5:12] = 0
    net = pconv_ext.InpaintingNet(4, 1, (3, 5), depth=2, size=16)
    with pconv_ext.set_autotune(True):
        net(image, mask).sum().backward()
        net.eval()
        with torch.inference_mode():
            net(image, mask)
    found = {(row.operator, row.direction) for row in rows()}
    operators = ("partial_conv2d", "msfef", "upcat_partial_conv2d")
    assert found == {(name, direction) for name in operators for direction in (FORWARD, TRAINING)}


def test_without_biases():
    x, mask, weight = arguments()
    with pconv_ext.set_autotune(True):
        pconv_ext.msfef(x, mask, [weight], None, torch.ones(1, 5))
    assert len(rows()) == 1


def test_the_generators_and_modes_are_left_as_they_are():
    given = arguments(grad=True)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with pconv_ext.set_autotune(True), torch.no_grad():
        pconv_ext.partial_conv2d(*given)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert given[2].grad is None
    assert len(rows()) == 1


def test_autocast_is_measured_in_what_it_computes_in():
    with pconv_ext.set_autotune(True), torch.autocast("cpu", torch.bfloat16):
        out, _ = pconv_ext.partial_conv2d(*arguments(grad=True))
        assert torch.is_autocast_enabled("cpu")
    assert out.dtype == torch.bfloat16
    assert [row.dtype for row in rows()] == ["bfloat16"]


def test_never_while_something_is_compiled():
    torch._dynamo.reset()
    given = arguments()

    @torch.compile(fullgraph=True, backend="eager")
    def function(*given):
        return pconv_ext.partial_conv2d(*given)[0]

    with pconv_ext.set_autotune(True):
        assert torch.equal(function(*given), pconv_ext.partial_conv2d(*given, backend="cpu")[0])
        assert not rows()
        torch.export.export(pconv_ext.MSFEF(3, 4), given[:2])
        assert not rows()


def test_never_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pconv_ext.set_autotune(True):
        pconv_ext.partial_conv2d(*arguments())
    assert not rows()


class _Watching(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_never_below_a_mode_a_transform_or_another_class():
    given = arguments()
    fake = torch._subclasses.FakeTensorMode()
    with pconv_ext.set_autotune(True):
        with _Watching():
            pconv_ext.partial_conv2d(*given)
        with fake:
            pconv_ext.partial_conv2d(*map(fake.from_tensor, given))
        torch.func.vmap(lambda x: pconv_ext.partial_conv2d(x, None, given[2])[0])(given[0][None])
        torch.func.grad(lambda w: pconv_ext.partial_conv2d(*given[:2], w)[0].sum())(given[2])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(
                lambda x: pconv_ext.partial_conv2d(x, None, given[2])[0], given[0], check_trace=False
            )
        pconv_ext.partial_conv2d(*(one.to("meta") for one in given))
        pconv_ext.partial_conv2d(torch.empty(0, 3, 9, 9), None, given[2])
    assert not rows()


def test_contexts_nest():
    def on():
        return first_use.measure is not None

    with pconv_ext.set_autotune(True):
        assert on()
        with pconv_ext.set_autotune(False):
            assert not on()
            with pconv_ext.set_autotune(True):
                assert on()
            assert not on()
        assert on()
        with pytest.raises(KeyError), pconv_ext.set_autotune(False):
            raise KeyError
        assert on()
    assert not on()
    pconv_ext.set_autotune(True)
    assert on()
    pconv_ext.set_autotune(False)
    assert not on()


@pytest.mark.parametrize("enabled", [1, None, "on"])
def test_what_it_is_given(enabled):
    with pytest.raises(TypeError, match=f"set_autotune: enabled must be a bool, got {enabled!r}"):
        pconv_ext.set_autotune(enabled)


def test_threads_measure_a_call_once(told):
    given, ready, failures = arguments(), threading.Barrier(4), []

    def call():
        ready.wait()
        try:
            pconv_ext.partial_conv2d(*given)
        except Exception as error:
            failures.append(error)

    with pconv_ext.set_autotune(True):
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(rows()) == len(told()) == 1


def test_a_measurement_that_fails_is_told_once(told, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("all is full")

    monkeypatch.setattr(timing, "interleaved", full)
    given = arguments()
    with pconv_ext.set_autotune(True):
        for _ in range(2):
            out, _ = pconv_ext.partial_conv2d(*given)
    assert torch.equal(out, pconv_ext.partial_conv2d(*given, backend="cpu")[0])
    assert not rows()
    (line,) = told()
    assert line.endswith("162 pixels: not measured: all is full")


def test_a_banned_backend_is_not_measured(monkeypatch):
    known = tables.Known(bans={("cpu", "partial_conv2d", "float32"): "error 1, WRONG"})
    monkeypatch.setitem(tables.KNOWN, "cpu", known)
    monkeypatch.setattr(rule, "CPU_MEASURED", ())
    monkeypatch.setattr(_backends, "_warned", set())
    with pconv_ext.set_autotune(True), pytest.warns(UserWarning, match="error 1, WRONG"):
        pconv_ext.partial_conv2d(*arguments())
    assert not rows(), "the reference alone is left, which needs no measurement"


def test_dtypes_of_rows():
    with pconv_ext.set_autotune(True):
        for dtype in measured.DTYPES:
            pconv_ext.partial_conv2d(*arguments(dtype=dtype))
    assert {row.dtype for row in rows()} == {"float64", "float32", "bfloat16"}

"""Tables of `pconv-ext tune` in the cache folder: kept whole, and not used where they were not measured."""

import json
import os
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch

import pconv_ext
from pconv_ext import _backends, _machine, info
from pconv_ext._backends import measured, tables
from pconv_ext._backends.measured import FORWARD, TRAINING, Row
from pconv_ext._backends.tables import Ban, Tuned

CPU = torch.device("cpu")


def tuned(machine=None, *, rows=20, bans=()):
    """A table of random rows."""
    machine = _machine.identity(CPU) if machine is None else machine

    def row():
        sizes = [random.randrange(1, 512) for _ in range(4)]
        times = ("reference", 1.0), ("cpu", round(1.0 + random.random(), 2))
        dtype, direction = random.choice(("float32", "bfloat16")), random.choice((FORWARD, TRAINING))
        return Row(machine["capability"], "msfef", dtype, direction, *sizes, times)

    return Tuned(machine, list(bans), [row() for _ in range(rows)])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has read none."""
    monkeypatch.setenv("PCONV_EXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "KNOWN", {"": tables.Known()})
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def put(table, file=None):
    file = file or tables.path_of(table.machine)
    file.write_bytes(tables.dumps(table))
    return file


def known():
    """What "auto" follows on the processor; no warning may tell anything."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return tables.of(CPU)


def test_what_is_written_is_read():
    machine = _machine.identity(CPU)
    table = tuned(machine, bans=[Ban("cpu", "msfef", "float16", "error 0.3, WRONG")])
    read = tables.loads(tables.dumps(table))
    assert read == table._replace(rows=sorted(table.rows))


def test_auto_follows_the_table_of_this_machine(cache, monkeypatch):
    layer, x = pconv_ext.MSFEF(3, 4), torch.randn(1, 3, 16, 16)
    machine, taps = _machine.identity(CPU), 9 + 25 + 49
    sizes = (3, 4, taps, 256)
    rows = [Row(machine["capability"], "msfef", "float32", FORWARD, *sizes, (("reference", 1.0),))]
    put(Tuned(machine, [], rows))
    assert known().rows == tuple(rows)
    calls, msfef = [], pconv_ext.reference.msfef
    monkeypatch.setattr(pconv_ext.reference, "msfef", lambda *args: calls.append(args) or msfef(*args))
    with torch.no_grad():
        layer(x, None)
    assert len(calls) == 1
    layer(x, None)[0].sum().backward()
    assert len(calls) == 1, "training was not measured: the rule"


def test_it_is_read_once(cache):
    assert known() == tables.Known()
    put(tuned())
    assert known() == tables.Known(), "what came later is of the next process"
    tables.read_again(CPU)
    assert len(known().rows) == 20


@pytest.mark.parametrize("what", ["device", "capability", "torch", "pconv_ext"])
def test_a_table_of_another_machine_or_version_is_ignored_and_told(cache, what):
    other = _machine.identity(CPU) | {what: "another"}
    file = put(tuned(other), tables.path_of(_machine.identity(CPU)))  # as if it had been copied there
    with pytest.warns(UserWarning, match=f"{file.name} is ignored: .* with {what} another, which is .* here"):
        assert tables.of(CPU) == tables.Known()
    assert f"{what} another" in info.report()


def test_a_table_of_before_an_upgrade_is_told(cache):
    older = put(tuned(_machine.identity(CPU) | {"torch": "2.0"}))
    with pytest.warns(UserWarning, match=f"{older.name} is ignored: .*torch 2.0, which is .*pconv-ext tune"):
        assert tables.of(CPU) == tables.Known()
    put(tuned())
    tables.read_again(CPU)
    assert len(known().rows) == 20, "beside the table of this version it is nobody's concern"
    (line,) = [line for line in info.report().splitlines() if line.startswith("ignored table")]
    assert f"{older}: it was measured with torch 2.0, which is {torch.__version__} here" in line


def test_a_gpus_table_names_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found = _machine.identity(torch.device("cuda", 0))
    assert found.keys() == {"device", "driver", "triton", "capability", "torch", "pconv_ext"}
    assert (found["device"], found["capability"]) == ("Some GPU", "9.0")
    assert tables.path_of(found) != tables.path_of(found | {"driver": "1"})


def damages():
    """Contents of a file that was whole, each with its name."""
    whole = tables.dumps(tuned())
    middle = random.randrange(100, len(whole) - 100)
    yield "empty", b""
    yield "cut", whole[:middle]
    yield "a byte", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    yield "no text", bytes(random.randrange(256) for _ in range(200))
    yield "deep", b"[" * 100_000
    yield "a list", b"[]"
    content = json.loads(whole)
    yield "another schema", json.dumps(content | {"schema": 2}).encode()
    yield "no checksum", json.dumps({n: v for n, v in content.items() if n != "checksum"}).encode()
    yield "edited by hand", whole.replace(b'"reference": 1.0', b'"reference": 1.5', 1)


@pytest.mark.parametrize("damage", [name for name, _ in damages()])
def test_a_damaged_table_is_ignored_and_told(cache, damage):
    file = tables.path_of(_machine.identity(CPU))
    file.write_bytes(dict(damages())[damage])
    with pytest.warns(UserWarning, match=f"{file.name} is ignored: it (is damaged|has schema 2)"):
        assert tables.of(CPU) == tables.Known()
    report = info.report()
    assert f"{file} is ignored: it " in report
    assert all(line.isprintable() for line in report.splitlines())


@pytest.mark.parametrize(
    "wrong",
    [
        {"machine": []},
        {"machine": {"device": 3}},
        {"rows": {}},
        {"rows": [{}]},
        {"bans": [{"backend": "cpu"}]},
        {"bans": [{"backend": "cpu", "operator": "msfef", "dtype": "float32", "reason": None}]},
        {"bans": [{"backend": "reference", "operator": "msfef", "dtype": "float32", "reason": "?"}]},
    ],
)
def test_a_table_that_none_wrote(wrong):
    """With a right checksum, so that it is looked at."""
    content = json.loads(tables.dumps(tuned()))
    del content["checksum"]
    content |= wrong
    content["checksum"] = tables._checksum(content)
    with pytest.raises(tables.Unusable, match="it is damaged"):
        tables.loads(json.dumps(content).encode())


def test_without_a_home(cache, monkeypatch):
    def nobodys(cls):
        raise RuntimeError("no home")

    monkeypatch.delenv("PCONV_EXT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(nobodys))
    assert known() == tables.Known()
    assert "none, a rule chooses" in info.report()


def test_a_file_that_cannot_be_read(cache):
    tables.path_of(_machine.identity(CPU)).mkdir()
    with pytest.warns(UserWarning, match="is ignored: .*Is a directory"):
        assert tables.of(CPU) == tables.Known()
    assert "Is a directory" in info.report()


def test_where_the_folder_is(monkeypatch):
    monkeypatch.setenv("PCONV_EXT_CACHE", "/somewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert tables.folder() == Path("/somewhere")
    monkeypatch.setenv("PCONV_EXT_CACHE", "")
    assert tables.folder() == Path("/caches/pconv_ext")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert tables.folder() == Path.home() / ".cache" / "pconv_ext"


def test_a_ban_in_the_table_holds_for_auto_alone(cache, monkeypatch):
    put(tuned(rows=0, bans=[Ban("cpu", "partial_conv2d", "float32", "error 0.3, WRONG")]))
    monkeypatch.setattr(_backends, "_warned", set())
    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    with pytest.warns(UserWarning, match=r"slow reference .*cpu: error 0\.3, WRONG"):
        out, _ = pconv_ext.partial_conv2d(x, None, weight)
    assert torch.equal(out, pconv_ext.reference.partial_conv2d(x, None, weight)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pconv_ext.partial_conv2d(x, None, weight, backend="cpu")
        pconv_ext.partial_conv2d(x.double(), None, weight.double())
    assert "cpu in partial_conv2d float32: error 0.3, WRONG" in info.report()


def test_packed_weights_are_not_used_where_their_backend_is_banned(cache, monkeypatch):
    layer, x = pconv_ext.MSFEF(16, 32, stride=2).eval(), torch.randn(1, 16, 64, 64)
    pconv_ext.prepack(layer)
    assert layer._packed is not None
    put(tuned(rows=0, bans=[Ban("cpu", "msfef", "float32", "error 0.3, WRONG")]))
    tables.read_again(CPU)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out, _ = layer(x, None)
        weights = [branch.weight for branch in layer.branches]
        biases = [branch.bias for branch in layer.branches]
        expected, _ = pconv_ext.reference.msfef(x, None, weights, biases, layer.scales, 2)
    assert torch.equal(out, expected)


def test_rows_of_the_package_are_of_its_kind_and_give_way(cache, monkeypatch):
    capability = _machine.capability(CPU)

    def row(capability, direction, first):
        return Row(capability, "msfef", "float32", direction, 3, 64, 83, 100, ((first, 1.0),))

    packaged = [
        row(capability, FORWARD, "cuda"),
        row(capability, TRAINING, "cuda"),
        row("0.0", FORWARD, "cuda"),
    ]
    monkeypatch.setattr(measured, "packaged", lambda: ([], packaged))
    put(Tuned(_machine.identity(CPU), [], [row(capability, FORWARD, "reference")]))
    assert set(known().rows) == {row(capability, FORWARD, "reference"), row(capability, TRAINING, "cuda")}


def test_threads_read_it_once(cache, monkeypatch):
    put(tuned())
    reads, ready, found = [], threading.Barrier(8), []
    read = tables.read
    monkeypatch.setattr(tables, "read", lambda *args: reads.append(args) or read(*args))

    def ask():
        ready.wait()
        found.append(tables.of(CPU))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(found) == 8
    assert all(one is found[0] for one in found)


def test_an_import_reads_nothing(cache):
    tables.path_of(_machine.identity(CPU)).write_text("damaged")
    code = "import pconv_ext; assert set(pconv_ext._backends.tables.KNOWN) == {''}"
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_compiled_function_follows_the_table(cache):
    """The file is read while the function is traced."""
    rows = [Row(_machine.capability(CPU), "msfef", "float32", FORWARD, 3, 4, 9, 256, (("reference", 1.0),))]
    put(Tuned(_machine.identity(CPU), [], rows))
    torch._dynamo.reset()
    weights, scales = [torch.randn(4, 3, 3, 3)], torch.randn(1, 4)

    @torch.compile(fullgraph=True, backend="eager")
    def function(x):
        return pconv_ext.msfef(x, None, weights, None, scales)[0]

    with torch.no_grad():
        for size in (16, 20):
            x = torch.randn(1, 3, size, size)
            expected, _ = pconv_ext.reference.msfef(x, None, weights, None, scales)
            assert torch.equal(function(x), expected)


def test_a_compiled_function_keeps_what_it_follows(cache):
    """What is measured later is no reason to compile it again."""
    torch._dynamo.reset()
    compilations = []

    def count(graph, inputs):
        compilations.append(graph)
        return graph.forward

    @torch.compile(fullgraph=True, backend=count)
    def function(x, weight):
        return pconv_ext.partial_conv2d(x, None, weight)[0]

    x, weight = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
    expected, _ = pconv_ext.partial_conv2d(x, None, weight, backend="cpu")
    capability = _machine.capability(CPU)
    for pixels in range(1, 20):
        assert torch.equal(function(x, weight), expected)
        call = (capability, "partial_conv2d", "float32", FORWARD, 3, 4, 9, pixels)
        tables.add("cpu", Row(*call, (("reference", 1.0),)))
        other = torch.compile(lambda x: pconv_ext.partial_conv2d(x, None, weight)[0] * 2, backend="eager")
        other(x)
    assert len(compilations) == 1


def test_a_processors_table_that_agrees_with_the_rule_costs_nothing(cache):
    machine = _machine.identity(CPU)
    rows = [
        Row(machine["capability"], "msfef", "float32", FORWARD, 3, 4, 9, n, (("cpu", 1.0),)) for n in (1, 9)
    ]
    put(Tuned(machine, [], rows))
    assert known().rows == tuple(rows)
    assert not known().table
    tables.add("cpu", rows[0]._replace(times=(("reference", 1.0),)))
    assert known().table

"""The table of measured backends that "auto" follows on a GPU, and the tool that writes it."""

import json

import pytest
import torch
import write_measured

from pconv_ext import _backends
from pconv_ext._backends.measured import FORWARD, TRAINING, Row
from pconv_ext._geometry import centred
from pconv_ext.ops.call import Call, Source

KEY = ("9.0", "msfef", "bfloat16", FORWARD)


def record(c_in, c_out, size, triton, cuda, capability="9.0", direction=FORWARD, mask="rectangle"):
    forms = {name: {"samples_ms": times} for name, times in (("triton", triton), ("cuda", cuda)) if times}
    return {
        "capability": capability,
        "operator": "msfef",
        "dtype": "bfloat16",
        "direction": direction,
        "mask": mask,
        "shapes": [[32, c_in, size, size]],
        "out_channels": c_out,
        "forms": forms,
    }


def content(*records, capability="9.0"):
    names = ("gpu", "torch", "triton", "cuda", "commit")
    return {"machine": {"capability": capability, **dict.fromkeys(names, "x")}, "records": list(records)}


def test_the_table_of_the_package():
    """Only what `write_measured.py` writes: rows as read, sources for each GPU generation in them."""
    rows = _backends.measured.read(_backends.measured.FILE)
    sources = json.loads(_backends.measured.FILE.read_text())["sources"]
    assert {row.capability for row in rows} == {source["capability"] for source in sources}
    assert {row.backend for row in rows} <= {"triton", "cuda"}
    assert {row.direction for row in rows} <= {FORWARD, TRAINING}
    assert {row.dtype for row in rows} <= set(_backends.measured.DTYPES.values())


def test_rows_take_the_median_over_masks():
    masks = [
        record(3, 64, 256, [times], [1.0], mask=mask) for times, mask in ((3.0, "a"), (2.0, "b"), (0.5, "c"))
    ]
    tie = record(64, 128, 128, [1.01], [1.0])
    slower = record(128, 256, 64, [1.0, 1.2], [4.0, 4.8])
    alone = record(256, 512, 32, [1.0], None)
    rows = write_measured.rows_of(content(*masks, tie, slower, alone))
    assert rows == [
        Row(*KEY, 3, 64, 32 * 256 * 256, "cuda", 2.0),
        Row(*KEY, 64, 128, 32 * 128 * 128, "triton", 0.99),
        Row(*KEY, 128, 256, 32 * 64 * 64, "triton", 4.0),
    ]


def test_update_keeps_other_generations(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text('{"sources": [], "rows": []}')
    old = content(record(3, 64, 256, [2.0], [1.0], capability="8.0"), capability="8.0")
    write_measured.update(file, [old, content(record(3, 64, 256, [2.0], [1.0]))])
    write_measured.update(file, [content(record(3, 64, 256, [1.0], [3.0]))])
    assert [(row.capability, row.backend, row.times) for row in _backends.measured.read(file)] == [
        ("8.0", "cuda", 2.0),
        ("9.0", "triton", 3.0),
    ]
    assert len(json.loads(file.read_text())["sources"]) == 2
    assert all(len(line) < 200 for line in file.read_text().splitlines()), "one row a line"
    with pytest.raises(ValueError, match="time the same call"):
        write_measured.update(file, [old, old])


def test_limits_are_geometric_means():
    rows = [
        Row(*KEY, 3, 64, 1000, "cuda", 2.0),
        Row(*KEY, 512, 512, 100, "cuda", 1.1),
        Row(*KEY, 512, 512, 10000, "triton", 1.3),
    ]
    table = _backends.measured.table(rows)
    assert table[KEY] == {
        (3, 64): ((float("inf"), "cuda"),),
        (512, 512): ((1000.0, "cuda"), (float("inf"), "triton")),
    }


@pytest.fixture
def measured(monkeypatch):
    """Two fake backends that "auto" takes for those of a GPU, and a table."""
    for name in ("triton", "cuda"):
        backend = _backends.Backend("cuda", name, "")
        monkeypatch.setitem(_backends._BACKENDS, name, backend)
    monkeypatch.setattr(_backends.measured, "_capability", lambda index: "9.0")

    def use(*rows):
        monkeypatch.setattr(_backends.measured, "TABLE", _backends.measured.table(rows))

    return use


def msfef(c_in=8, c_out=16, size=4, dtype=torch.bfloat16, grad=False):
    weights = [torch.ones(c_out, c_in, k, k, dtype=dtype, requires_grad=grad) for k in (3, 5)]
    x = torch.ones(2, c_in, size, size, dtype=dtype)
    return Call("msfef", (Source(x, None),), weights, [], torch.ones(2, c_out), centred(5, [1, 1]))


def chosen(call):
    return _backends._automatic(call, "cuda")


def test_auto_follows_the_table(measured):
    measured()
    assert chosen(msfef()) == "triton", "nothing measured: the fixed order"
    measured(Row(*KEY, 3, 64, 32, "cuda", 2.0), Row(*KEY, 512, 512, 32, "triton", 2.0))
    assert chosen(msfef(4, 32)) == "cuda"
    assert chosen(msfef(256, 600)) == "triton"
    assert chosen(msfef(4, 32, dtype=torch.float16)) == "cuda"
    assert chosen(msfef(4, 32, dtype=torch.float32)) == "triton", "not measured"
    assert chosen(msfef(4, 32, grad=True)) == "triton", "training was not measured"
    with torch.no_grad():
        assert chosen(msfef(4, 32, grad=True)) == "cuda"
    measured(Row(*KEY, 8, 16, 10, "triton", 2.0), Row(*KEY, 8, 16, 1000, "cuda", 2.0))
    assert [chosen(msfef(size=size)) for size in (1, 7, 8, 30)] == ["triton", "triton", "cuda", "cuda"]


def test_a_faster_backend_that_cannot_take_the_call(measured, monkeypatch, recwarn):
    measured(Row(*KEY, 8, 16, 10, "cuda", 2.0))
    refusing = _backends._BACKENDS["cuda"]._replace(refusal=lambda call: "too wide")
    monkeypatch.setitem(_backends._BACKENDS, "cuda", refusing)
    assert chosen(msfef()) == "triton"
    assert not recwarn.list, "another fast backend is no reason to warn"


def test_auto_in_a_compiled_graph(measured):
    """The table is read while tracing; sizes become guards."""
    measured(Row(*KEY, 8, 16, 32, "cuda", 2.0), Row(*KEY, 8, 16, 1000, "triton", 2.0))
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def pixels(x, weight):
        call = Call("msfef", (Source(x, None),), [weight], [], None, centred(3, [1, 1]))
        return x.sum() * {"cuda": 1, "triton": 2}[_backends.measured.faster(call)]

    weights = msfef().weights
    for size, factor in ((4, 1), (5, 1), (20, 2), (21, 2)):
        x = torch.ones(2, 8, size, size, dtype=torch.bfloat16)
        torch._dynamo.mark_dynamic(x, (2, 3))
        assert pixels(x, weights[0]) == x.sum() * factor

"""What was measured of backends, how "auto" follows it, and the rule without it."""

import json

import pytest
import torch
import write_measured

from pconv_ext import _backends, ops
from pconv_ext._backends import measured, rule, tables
from pconv_ext._backends.measured import FORWARD, TRAINING, Row
from pconv_ext._geometry import centred
from pconv_ext.ops.call import Call, Source

CALL = ("9.0", "msfef", "bfloat16", FORWARD)
TAPS = 34  # of 3x3 and 5x5
GPU = {"capability": "9.0", "device": "some GPU", "driver": "1"}


def row(c_in, c_out, pixels, *backends, taps=TAPS, call=CALL):
    """`backends` from the fastest."""
    return Row(*call, c_in, c_out, taps, pixels, tuple((name, 1.0 + i) for i, name in enumerate(backends)))


def test_the_table_of_the_package():
    """Only what `write_measured.py` writes: rows as read, sources for each GPU generation in them."""
    sources, rows = measured.packaged()
    assert {row.capability for row in rows} == {source["capability"] for source in sources}
    assert {name for row in rows for name, _ in row.times} <= {"triton", "cuda", "reference"}


def test_a_row_ranks_by_time_and_leaves_what_is_as_fast_in_its_order():
    call = (*CALL, 3, 64, TAPS, 100)
    found = measured.row(call, {"triton": 2.0, "cuda": 1.0, "reference": 30.0})
    assert found == Row(*call, (("cuda", 1.0), ("triton", 2.0), ("reference", 30.0)))
    tie = measured.row(call, {"triton": 1.01, "cuda": 1.0})
    assert tie.times == (("triton", 1.01), ("cuda", 1.0))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pixels": 0}, "positive ints"),
        ({"c_in": True}, "positive ints"),
        ({"taps": 1.5}, "positive ints"),
        ({"operator": 3}, "must be texts"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"direction": "backward"}, "unknown dtype or direction"),
        ({"times": {}}, "ratios of at least 1"),
        ({"times": {"cpu": 0.5}}, "ratios of at least 1"),
        ({"times": {"cpu": float("nan")}}, "ratios of at least 1"),
        ({"more": 1}, "a row must have capability, operator"),
    ],
)
def test_a_row_that_none_wrote(wrong, said):
    good = measured.to_json(row(3, 64, 100, "cuda", "triton"))
    assert measured.from_json(json.loads(json.dumps(good))) == row(3, 64, 100, "cuda", "triton")
    with pytest.raises(ValueError, match=said):
        measured.from_json(good | wrong)


def test_limits_are_geometric_means():
    rows = [row(3, 64, 1000, "cuda"), row(512, 512, 100, "cuda"), row(512, 512, 10000, "triton")]
    assert measured.table(rows)[CALL[1:]] == {
        (3, 64, TAPS): ((float("inf"), ("cuda",)),),
        (512, 512, TAPS): ((1000.0, ("cuda",)), (float("inf"), ("triton",))),
    }


def written(file, *rows, **machine):
    file.write_text(measured.to_package([GPU | machine], rows))
    return file


def test_the_tool_keeps_other_generations(tmp_path):
    file = tmp_path / "measured.json"
    file.write_text('{"sources": [], "rows": []}')
    older = written(
        tmp_path / "8", row(3, 64, 10, "cuda", "triton", call=("8.0", *CALL[1:])), capability="8.0"
    )
    write_measured.update(file, [older, written(tmp_path / "9", row(3, 64, 10, "cuda", "triton"))])
    write_measured.update(file, [written(tmp_path / "9 again", row(3, 64, 10, "triton", "cuda"))])
    sources, rows = measured.packaged(file)
    assert [(one.capability, one.times[0][0]) for one in rows] == [("8.0", "cuda"), ("9.0", "triton")]
    assert [source["capability"] for source in sources] == ["8.0", "9.0"]
    assert all(len(line) < 250 for line in file.read_text().splitlines()), "one row a line"
    with pytest.raises(ValueError, match="time the same call"):
        write_measured.update(file, [older, older])
    with pytest.raises(ValueError, match="must have rows of a GPU"):
        write_measured.update(file, [written(tmp_path / "empty")])


@pytest.fixture
def gpu(monkeypatch):
    """Fake backends that "auto" takes for those of a GPU, and what it knows there."""
    for name in ("triton", "cuda"):
        monkeypatch.setitem(_backends._BACKENDS, name, _backends.Backend("cpu", name, ""))
    many = ("triton", "cuda", "reference")
    monkeypatch.setattr(rule, "CPU", ("triton", "cuda", "reference"))
    monkeypatch.setattr(rule, "order", lambda device, c_in, c_out: many)

    def use(*rows, bans=()):
        known = tables.Known(rows, measured.table(rows), {tuple(ban[:3]): ban[3] for ban in bans})
        monkeypatch.setitem(tables.KNOWN, "cpu", known)

    return use


def msfef(c_in=8, c_out=16, size=4, dtype=torch.bfloat16, grad=False):
    weights = [torch.ones(c_out, c_in, k, k, dtype=dtype, requires_grad=grad) for k in (3, 5)]
    x = torch.ones(2, c_in, size, size, dtype=dtype)
    return x, None, weights, [], torch.ones(2, c_out), [1, 1]


def chosen(arguments):
    return _backends._automatic(ops.OPERATORS["msfef"], arguments)


def test_auto_follows_the_table(gpu):
    gpu()
    assert chosen(msfef()) == "triton", "nothing measured: the rule"
    gpu(row(3, 64, 32, "cuda"), row(512, 512, 32, "triton"))
    assert chosen(msfef(4, 32)) == "cuda"
    assert chosen(msfef(256, 600)) == "triton"
    assert chosen(msfef(4, 32, dtype=torch.float16)) == "cuda"
    assert chosen(msfef(4, 32, dtype=torch.float32)) == "triton", "not measured"
    assert chosen(msfef(4, 32, grad=True)) == "triton", "training was not measured"
    with torch.no_grad():
        assert chosen(msfef(4, 32, grad=True)) == "cuda"
    gpu(row(8, 16, 10, "triton"), row(8, 16, 1000, "cuda"))
    assert [chosen(msfef(size=size)) for size in (1, 7, 8, 30)] == ["triton", "triton", "cuda", "cuda"]
    gpu(row(8, 16, 32, "cuda", taps=34), row(8, 16, 32, "triton", taps=9))
    assert chosen(msfef()) == "cuda", "the nearest taps"


def test_autocast_is_looked_up_by_what_it_computes_in(gpu):
    gpu(row(8, 16, 32, "cuda"))
    with torch.autocast("cpu", torch.bfloat16):
        assert chosen(msfef(dtype=torch.float32)) == "cuda"
        assert chosen(msfef(dtype=torch.float64)) == "triton"
    assert chosen(msfef(dtype=torch.float32)) == "triton"


def test_a_faster_backend_that_cannot_take_the_call(gpu, monkeypatch, recwarn):
    gpu(row(8, 16, 10, "cuda"))
    refusing = _backends._BACKENDS["cuda"]._replace(refusal=lambda call: "too wide")
    monkeypatch.setitem(_backends._BACKENDS, "cuda", refusing)
    assert chosen(msfef()) == "triton"
    assert not recwarn.list, "another fast backend is no reason to warn"


def test_a_banned_backend_is_not_taken(gpu, monkeypatch):
    ban = ("triton", "msfef", "bfloat16", "error 1, WRONG")
    gpu(row(8, 16, 10, "triton", "cuda"), bans=[ban])
    assert chosen(msfef()) == "cuda"
    assert chosen(msfef(dtype=torch.float16)) == "triton", "of another dtype it may be right"
    gpu(bans=[ban])
    assert chosen(msfef()) == "cuda", "by the rule neither"
    gpu(bans=[ban, ("cuda", "msfef", "bfloat16", "error 2, WRONG")])
    monkeypatch.setattr(_backends, "_warned", set())
    with pytest.warns(UserWarning, match=r"slow reference .*triton: error 1, WRONG; cuda: error 2, WRONG"):
        assert chosen(msfef()) is None


def test_a_reference_that_was_measured_fastest_is_no_fall_back(gpu, recwarn):
    gpu(row(8, 16, 10, "reference", "cuda"))
    assert chosen(msfef()) is None
    assert not recwarn.list


def test_names_of_another_version_are_passed_over(gpu):
    gpu(row(8, 16, 10, "abacus", "cuda"))
    assert chosen(msfef()) == "cuda"


def test_the_rule():
    assert rule.order("cpu", 3, 64) == ("cpu", "reference")
    assert rule.order("meta", 3, 64) == ("reference",)
    assert rule.order("cuda", 3, 64)[0] == rule.order("cuda", 64, 3)[0] == "cuda", "few channels"
    assert rule.order("cuda", 64, 64)[0] == "triton"


def test_auto_in_a_compiled_graph(gpu):
    """The table is read while tracing; sizes become guards."""
    gpu(row(8, 16, 32, "cuda", taps=9), row(8, 16, 1000, "triton", taps=9))
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="eager")
    def pixels(x, weight):
        call = Call("msfef", (Source(x, None),), [weight], [], None, centred(3, [1, 1]))
        found = tables.of(x.device).table
        ranking = measured.lookup(
            found, measured.key_of(call), measured.size_of(call), measured.pixels_of(call)
        )
        return x.sum() * {"cuda": 1, "triton": 2}[ranking[0]]

    _, _, weights, *_ = msfef()
    for size, factor in ((4, 1), (5, 1), (20, 2), (21, 2)):
        x = torch.ones(2, 8, size, size, dtype=torch.bfloat16)
        torch._dynamo.mark_dynamic(x, (2, 3))
        assert pixels(x, weights[0]) == x.sum() * factor


def test_directions_are_those_of_the_benchmarks():
    assert (FORWARD, TRAINING) == ("forward", "forward + backward")

"""`pconv-ext tune`: what is right is timed, what is wrong is banned, and "auto" follows."""

import json
import re
import statistics
import warnings

import pytest
import torch
import write_measured
from support import wrong_backend
from support.cases import DEVICE_OF, every_backend

import pconv_ext
from pconv_ext import _backends, _machine, info, ops
from pconv_ext._backends import measured, rule, tables
from pconv_ext._backends.measured import FORWARD, TRAINING
from pconv_ext._tuning import problems, timing, tune
from pconv_ext._tuning.problems import of_shape
from pconv_ext.inpainting import cli
from pconv_ext.inpainting.tuning import network_problems

CPU = torch.device("cpu")
SMALL = {
    "partial_conv2d": "partial_conv2d:2x5x9x11:6:3:2",
    "msfef": "msfef:2x4x12x14:6:3,5:2",
    "upcat_partial_conv2d": "upcat_partial_conv2d:2x4+3x9x12:6:3:1",
}
every_operator = pytest.mark.parametrize("operator", SMALL)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has read none."""
    monkeypatch.setenv("PCONV_EXT_CACHE", str(tmp_path / "cache" / "deep"))
    monkeypatch.setattr(tables, "KNOWN", {"": tables.Known()})
    return tmp_path / "cache" / "deep"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST_SAMPLE_MS", {"cpu": 0.01, "cuda": 0.01})


def tuned(*texts, dtypes=(torch.float32,), **options):
    """Findings and what was reported."""
    lines = []
    found = tune.tune([of_shape(text) for text in texts], CPU, dtypes, lines.append, seconds=0, **options)
    return found, "\n".join(lines)


def test_every_operator_has_a_shape():
    assert SMALL.keys() == problems.SHAPES.keys() == ops.OPERATORS.keys()


@every_operator
def test_a_problem_is_called_what_it_was_made_of(operator):
    assert str(of_shape(SMALL[operator])) == SMALL[operator]


@every_operator
def test_fresh_arguments(operator):
    problem = of_shape(SMALL[operator])
    before = torch.get_rng_state()
    given, again = problem.fresh(CPU, torch.float16), problem.fresh(CPU, torch.float16)
    other = problem.fresh(CPU, torch.float16, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for source, same, different in zip(
        *(problems.call_of(operator, one).sources for one in (given, again, other)), strict=True
    ):
        assert source.x.dtype == torch.float16
        assert torch.equal(source.x.isnan(), (source.mask == 0).expand_as(source.x))
        assert source.x.isnan().any()
        assert torch.equal(source.x.nan_to_num(), same.x.nan_to_num())
        assert not torch.equal(source.x.nan_to_num(), different.x.nan_to_num())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "conv2d:1x1x4x4:1:3",
        "msfef:1x3x8x8:4",
        "msfef:1x3x8:4:3",
        "msfef:1x3x8x8:4:3,4",
        "msfef:1x3x8x8:4:3,3",
        "msfef:1x3x8x8:4:3:0",
        "msfef:0x3x8x8:4:3",
        "msfef:1x3x8x8:four:3",
        "partial_conv2d:1x3x8x8:4:3,5",
        "partial_conv2d:1x3+4x8x8:4:3",
        "upcat_partial_conv2d:1x3x8x8:4:3",
        "upcat_partial_conv2d:1x3+4x8x8:4:3:2",
    ],
)
def test_a_shape_that_is_none(text):
    with pytest.raises(
        ValueError, match=re.escape("shape must be OPERATOR:N") + f".*{re.escape(repr(text))}"
    ):
        of_shape(text, "shape")


def test_the_layers_of_a_network():
    net = pconv_ext.InpaintingNet(4, 1, (3, 5), depth=3, size=32, residual=True, mirrored=True)
    before = torch.get_rng_state()
    torch.manual_seed(0)
    found = network_problems(net, CPU, (2, 1))
    torch.set_rng_state(before)
    assert [str(problem) for problem in found][:6] == [
        "msfef:2x3x32x32:4:3,5:2",
        "partial_conv2d:2x4x16x16:8:3:2",
        "partial_conv2d:2x8x8x8:16:3:2",
        "upcat_partial_conv2d:2x16+8x8x8:8:3:1",
        "upcat_partial_conv2d:2x8+4x16x16:4:3:1",
        "upcat_partial_conv2d:2x4+3x32x32:3:3:1",
    ]
    assert [str(problem) for problem in found][6].startswith("msfef:1x3x32x32")
    assert len(found) == 12, "a layer that is run twice is measured once"
    (mask,) = [source.mask for source in found[0].call.sources]
    assert 0 < mask.mean() < 1
    memory = {source.x.untyped_storage().nbytes() for problem in found for source in problem.call.sources}
    assert memory == {4}, "shapes alone are kept"


@every_operator
def test_what_is_right_is_timed(operator, cache):
    found, text = tuned(SMALL[operator], dtypes=(torch.float32, torch.bfloat16))
    assert [finding.bans for finding in found] == [[], []]
    assert [[row.direction for row in finding.rows] for finding in found] == [[FORWARD, TRAINING]] * 2
    assert {row.dtype for finding in found for row in finding.rows} == {"float32", "bfloat16"}
    for finding in found:
        for row in finding.rows:
            assert {name for name, _ in row.times} == {"cpu", "dense", "reference"}
            assert min(ratio for _, ratio in row.times) == 1
    (file,) = cache.iterdir()
    assert f"written to {file}" in text
    assert f"{SMALL[operator]} bfloat16" in text
    assert len(tables.of(CPU).rows) == 4
    assert f"{file}, 4 rows" in info.report()


@every_operator
@pytest.mark.parametrize(
    "spoil", [lambda out: out * 1.001, lambda out: out.index_fill(3, torch.tensor(1), 9.0)]
)
def test_what_is_wrong_is_banned(operator, spoil, monkeypatch):
    monkeypatch.setattr(rule, "CPU_MEASURED", ())
    wrong_backend.plant(monkeypatch, operator, spoil)
    found, text = tuned(*SMALL.values(), SMALL[operator].replace(":2x", ":1x"))
    bans = {ban[:3] for finding in found for ban in finding.bans}
    assert bans == {("cpu", operator, "float32")}
    assert "WRONG, at most" in text
    assert {row.operator for finding in found for row in finding.rows} == {*SMALL} - {operator}
    assert len([line for line in text.splitlines() if "WRONG" in line]) == 1, "it is not asked again"
    monkeypatch.setattr(_backends, "_warned", set())
    problem = of_shape(SMALL[operator])
    function = getattr(pconv_ext, operator)
    arguments = problem.fresh(CPU, torch.float32)
    with pytest.warns(UserWarning, match="slow reference .*cpu: banned|slow reference .*cpu: error"):
        out, _ = function(*arguments)
    assert torch.equal(out, function(*arguments, backend="reference")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(*problem.fresh(CPU, torch.float64))
    assert f"cpu in {operator} float32: error" in info.report()


def test_what_raises_is_banned_and_what_is_mended_is_not(monkeypatch):
    def fail(out):
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(rule, "CPU_MEASURED", ())
    with monkeypatch.context() as patch:
        wrong_backend.plant(patch, "msfef", fail)
        _, text = tuned(SMALL["msfef"], SMALL["partial_conv2d"])
    assert "RuntimeError: no kernel image is available" in text
    assert tables.of(CPU).bans == {("cpu", "msfef", "float32"): "RuntimeError: no kernel image is available"}
    assert len(tables.of(CPU).rows) == 2
    tuned(SMALL["upcat_partial_conv2d"])
    assert tables.of(CPU).bans, "which was not checked again"
    assert len(tables.of(CPU).rows) == 4, "rows of other calls stay"
    tuned(SMALL["msfef"])
    assert not tables.of(CPU).bans
    assert len(tables.of(CPU).rows) == 6


def test_a_wrong_gradient_is_wrong(monkeypatch):
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.01

    wrong_backend.plant(monkeypatch, "msfef", Spoilt.apply)
    found, _ = tuned(SMALL["msfef"])
    assert found[0].bans


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("all is full"), RuntimeError("DefaultCPUAllocator")]
)
def test_what_does_not_fit_is_no_ban(monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(pconv_ext.reference, "msfef", fail)
    found, text = tuned(SMALL["msfef"], SMALL["partial_conv2d"])
    assert f"not measured: {error}" in text
    assert not found[0].bans
    assert not found[0].rows
    assert len(found[1].rows) == 2


def test_a_backend_that_runs_out_of_memory_is_no_ban(monkeypatch):
    def fail(out):
        raise torch.OutOfMemoryError("all is full")

    wrong_backend.plant(monkeypatch, "msfef", fail)
    found, text = tuned(SMALL["msfef"])
    assert not found[0].bans
    assert "not measured: all is full" in text


def test_an_interruption_leaves_what_was_measured(monkeypatch):
    def report(text):
        if "upcat" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune.tune([of_shape(text) for text in SMALL.values()], CPU, [torch.float32], report, seconds=0)
    assert {row.operator for row in tables.of(CPU).rows} == {*SMALL}


def test_a_refusal_is_no_ban(monkeypatch):
    monkeypatch.setattr(rule, "CPU_MEASURED", ())
    refusing = _backends._BACKENDS["cpu"]._replace(refusal=lambda call: "too wide")
    monkeypatch.setitem(_backends._BACKENDS, "cpu", refusing)
    found, _ = tuned(SMALL["msfef"])
    assert (found[0].checks, found[0].rows) == ([], [])


@every_backend
def test_any_backend_of_the_tests(backend):
    """With --as-gpu the CUDA kernels, in the emulator."""
    tensors = torch.device(DEVICE_OF[backend])
    found = [*measure_all(tensors, backends=(backend, "reference"))]
    assert [finding.bans for finding in found] == [[]] * len(SMALL)
    assert all(finding.rows for finding in found)


@every_backend
def test_any_backend_that_is_wrong(backend, monkeypatch):
    wrong_backend.plant(monkeypatch, "msfef", lambda out: out * 1.2, backend)
    tensors = torch.device(DEVICE_OF[backend])
    found = {f.problem.operator: f for f in measure_all(tensors, backends=(backend, "reference"))}
    assert [ban[:3] for finding in found.values() for ban in finding.bans] == [(backend, "msfef", "float32")]
    assert not found["msfef"].rows


@pytest.mark.deep
def test_a_gpus_kernels_in_the_interpreter(monkeypatch):
    """Beside those of the processor: one that is wrong is banned, and the others are compared."""
    if not _backends.triton.INTERPRETED:
        pytest.skip("on a GPU these are timed as such")
    wrong_backend.plant(monkeypatch, "msfef", lambda out: out + 1, "triton")
    found = {f.problem.operator: f for f in measure_all(CPU, backends=("cpu", "triton", "reference"))}
    assert [ban[:3] for ban in found["msfef"].bans] == [("triton", "msfef", "float32")]
    assert {name for name, _ in found["msfef"].rows[0].times} == {"cpu", "reference"}
    assert {name for name, _ in found["partial_conv2d"].rows[0].times} == {"cpu", "triton", "reference"}


def measure_all(device, **options):
    return tune.measure(map(of_shape, SMALL.values()), device, [torch.float32], seconds=0, **options)


def test_export_and_the_tool(tmp_path, capsys):
    machine = _machine.identity(CPU)
    with pytest.raises(ValueError, match=r"there is no table of .*run `pconv-ext tune` first"):
        tune.export(machine)
    tuned(SMALL["msfef"])
    sources, rows = measured.packaged(_written(tmp_path / "table.json", tune.export(machine)))
    assert sources == [machine]
    assert tuple(rows) == tables.of(CPU).rows
    with pytest.raises(ValueError, match="must have rows of a GPU"):
        write_measured.update(tmp_path / "table.json", [tmp_path / "table.json"])


def _written(file, text):
    file.write_text(text)
    return file


def test_timing_is_interleaved():
    order = []

    def step(name):
        return timing.Step(name, lambda: order.append(name), lambda: order.append(f"clear {name}"))

    samples = timing.interleaved([step("a"), step("b")], "cpu", 3, 5, 0.0)
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 3, "b": 3}
    runs = [name for name in order if not name.startswith("clear")]
    assert {"a", "b"} == set(runs)
    assert all(order[i - 1] == f"clear {name}" for i, name in enumerate(order) if name in ("a", "b"))
    assert statistics.median(samples["a"]) < 1


@pytest.fixture
def run(capsys):
    """The command, which is to end with `code`; what it writes, of a failure its one line."""

    def run(*arguments, code=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run(["tune", *arguments])
        out, errors = capsys.readouterr()
        assert stop.value.code == code, out + errors
        assert len(errors.splitlines()) == (1 if code and not out else 0), errors
        return out or errors

    return run


def test_the_command(cache, run):
    text = run("--shape", SMALL["msfef"], "--shape", SMALL["partial_conv2d"], "--device", "cpu")
    (file,) = cache.iterdir()
    assert text.splitlines()[-1] == f"written to {file}"
    exported = json.loads(run("--export", "--device", "cpu"))
    assert exported["sources"] == [_machine.identity(CPU)]
    assert len(exported["rows"]) == 4


def test_the_command_ends_with_1_where_a_backend_is_wrong(run, monkeypatch):
    wrong_backend.plant(monkeypatch, "msfef", lambda out: out + 1)
    text = run("--shape", SMALL["msfef"], "--device", "cpu", code=1)
    assert text.splitlines()[-1].startswith('banned: "auto" no longer takes cpu for msfef float32: error')


def test_the_layers_of_a_checkpoint(tmp_path, run):
    net = pconv_ext.InpaintingNet(4, 1, (3, 5), depth=2, size=16)
    file = tmp_path / "net.safetensors"
    pconv_ext.checkpoint.save_net(net, file)
    text = run("--checkpoint", str(file), "--batch", "3", "--dtype", "bfloat16", "--device", "cpu")
    assert [line for line in text.splitlines() if not line.startswith(" ")][:-1] == [
        "msfef:3x3x16x16:4:3,5:2 bfloat16",
        "partial_conv2d:3x4x8x8:8:3:2 bfloat16",
        "upcat_partial_conv2d:3x8+4x8x8:4:3:1 bfloat16",
        "upcat_partial_conv2d:3x4+3x16x16:3:3:1 bfloat16",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "mine"], "tune: --layers must be one of 'paper', got 'mine'"),
        (["--dtype", "int8"], "tune: --dtype must be one of 'bfloat16', "),
        (["--batch", "0"], "tune: --batch must be an int of at least 1, got 0"),
        (["--batch", "two"], "tune: --batch must look like 32,1, got 'two'"),
        (["--shape", "msfef"], "tune: --shape must be OPERATOR:N"),
        (["--shape", SMALL["msfef"], "--batch", "2"], "tune: --batch is of a network's pictures"),
        (["--shape", SMALL["msfef"], "--layers", "paper"], "tune: --shape cannot go with --layers"),
        (["--export", "--dtype", "float32"], "tune: --dtype is about what is measured"),
        (["--export", "--device", "cpu"], "there is no table of"),
        (["--checkpoint", "nowhere"], "there is no checkpoint nowhere"),
        (["--device", "abacus"], "tune: --device must be one that torch can use here, got 'abacus'"),
    ],
)
def test_what_the_command_is_given(arguments, said, run):
    assert said in run(*arguments, code=1)


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path, run):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PCONV_EXT_CACHE", str(tmp_path / "file" / "cache"))
    said = run("--shape", SMALL["partial_conv2d"], "--device", "cpu", code=1)
    assert f"tune: PCONV_EXT_CACHE must be a folder, {tmp_path / 'file'} is a file" in said

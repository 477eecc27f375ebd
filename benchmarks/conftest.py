"""`pytest benchmarks/ --benchmark-only`: options, the fixture that measures, the last table, the JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this file, whatever pytest's import mode

from measure import training_step
from measure.case import DEFAULTS, DTYPES, Case, Settings, measure, prepare
from measure.machine import machine
from measure.timing import step_of
from names import FORWARD
from report.records import unfit
from report.tables import network_table, text_table

RECORDS = pytest.StashKey[list[dict[str, Any]]]()
NETWORKS = pytest.StashKey[list[dict[str, Any]]]()
SETTINGS = pytest.StashKey[Settings]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pconv_ext benchmarks")
    level = group.addoption
    level("--quick", action="store_true", help="under 90 seconds: fewer layers and rounds, no torch.compile")
    level("--full", action="store_true", help="all masks for all operators, and the sweeps")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    level("--device", choices=sorted(DEFAULTS), default=here, help="the GPU where there is one")
    level("--dtype", choices=sorted(DTYPES), help="float32 on a CPU, bfloat16 on a GPU")
    level("--batch", type=int, help="4 on a CPU, 32 on a GPU")
    level("--results", type=Path, default=Path(__file__).parent / "results" / "latest.json", metavar="PATH")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick") and config.getoption("full"):
        raise pytest.UsageError("--quick and --full exclude each other")
    settings = DEFAULTS[config.getoption("device")]
    if config.getoption("quick"):
        settings = replace(settings, min_rounds=3, max_rounds=15, seconds=1.0)
    if config.getoption("benchmark_disable", False):
        settings = replace(settings, batch=2)  # batch normalisation of the innermost 1x1 map needs two
    given = {name: config.getoption(name) for name in ("dtype", "batch")}
    settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
    config.stash[RECORDS], config.stash[NETWORKS], config.stash[SETTINGS] = [], [], settings


def pytest_report_header(config: pytest.Config) -> list[str]:
    here = machine(config.getoption("device"))
    backends = [f"{name}: {reason}" for name, reason in here.pop("backends").items()]
    return ["pconv_ext benchmarks: " + ", ".join(f"{k} {v}" for k, v in here.items() if v), *backends]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name == "bench_sweeps.py" and not config.getoption("full") else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    level = next((name for name in ("quick", "full") if metafunc.config.getoption(name)), "default")
    metafunc.parametrize("case", metafunc.module.plan(level), ids=str)


@pytest.fixture
def measure_case(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[Case], None]:
    """Measures a case; afterwards pytest-benchmark's own rounds time ours, `extra_info` has the rest.

    With --benchmark-disable the forms are only checked.
    """

    def run(case: Case) -> None:
        settings = request.config.stash[SETTINGS]
        if benchmark.disabled:
            prepare(replace(case, direction="", compiled=False), settings)
            benchmark(lambda: None)  # or pytest-benchmark warns that its fixture was not used
            return
        record, prepared = measure(case, settings)
        ours = prepared.forms[0]
        grad_out = None if case.direction == FORWARD else prepared.expected.grad_out
        step = step_of(ours, grad_out)

        def synchronised() -> None:
            step()
            if settings.device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = f"{record['operator']} {case.direction}"
        benchmark.extra_info.update(record)
        benchmark.pedantic(synchronised, setup=ours.clear_gradients, rounds=3)
        ours.clear_gradients()
        request.config.stash[RECORDS].append(record)

    return run


@pytest.fixture
def measure_network(benchmark: Any, request: pytest.FixtureRequest) -> Callable[[training_step.Case], None]:
    """The same for a training step of the whole network."""

    def run(case: training_step.Case) -> None:
        settings = request.config.stash[SETTINGS]
        if benchmark.disabled:
            training_step.prepare(case, settings)
            benchmark(lambda: None)
            return
        record, ours = training_step.measure(case, settings)
        benchmark.group = "network training step"
        benchmark.extra_info.update(record)
        benchmark.pedantic(ours.run, setup=ours.clear_gradients, rounds=3)
        request.config.stash[NETWORKS].append(record)

    return run


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    records, networks = config.stash[RECORDS], config.stash[NETWORKS]
    if records:
        terminalreporter.section("ratios: medians of interleaved rounds")
        for line in text_table(records):
            terminalreporter.write_line(line)
    if networks:
        terminalreporter.section("training step of the whole network")
        for line in network_table(networks):
            terminalreporter.write_line(line)
    if records or networks:
        terminalreporter.write_line(f"written to {config.getoption('results')}")
        fault = unfit(machine(config.getoption("device")))
        if fault:
            terminalreporter.write_line(fault)


def pytest_sessionfinish(session: pytest.Session) -> None:
    records, networks = session.config.stash[RECORDS], session.config.stash[NETWORKS]
    if records or networks:
        path: Path = session.config.getoption("results")
        path.parent.mkdir(parents=True, exist_ok=True)
        here = machine(session.config.getoption("device"))
        path.write_text(
            json.dumps({"machine": here, "records": records, "networks": networks}, indent=1) + "\n"
        )

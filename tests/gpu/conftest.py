"""Tests that need a CUDA GPU: nothing here is collected where there is none, and `pytest tests/gpu` says so.

FASTSAMPLE_GPU_TESTS=rehearse runs on the CPU, in small, whatever does not need a GPU by its nature: the bodies of the
tests are code too. With "spoilt" the backend under test is also made to err, which every comparison must notice.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastsample

from .target import MODE, REHEARSAL, Target

HERE = Path(__file__).parent
# Where benchmarks/gpu/testing.py wants each test recorded as it ends; and what it takes for "start me again".
RECORDS = os.environ.get("FASTSAMPLE_GPU_TEST_RECORDS")
BROKEN_CONTEXT = 70

NOTHING_RUNS = not torch.cuda.is_available() and not REHEARSAL
collect_ignore_glob = ["test_*.py"] if NOTHING_RUNS else []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(HERE)]
    for item in here:
        item.add_marker("gpu")
    if NOTHING_RUNS and here:  # a file that is named on the command line is collected all the same
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    asked_for = any(Path(argument.split("::")[0]).resolve().is_relative_to(HERE) for argument in config.args)
    if NOTHING_RUNS and asked_for:
        terminalreporter.section("tests/gpu")
        terminalreporter.write_line(
            f"NOTHING RAN: these tests need a CUDA GPU, and torch {torch.__version__} sees none. "
            "FASTSAMPLE_GPU_TESTS=rehearse runs what a CPU can."
        )
    if REHEARSAL:
        terminalreporter.write_line("A REHEARSAL ON THE CPU: none of these tests ran on a GPU.")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if RECORDS and (report.when == "call" or report.outcome != "passed"):
        record = {
            "kind": "test",
            "name": report.nodeid,
            "outcome": report.outcome,
            "seconds": round(report.duration, 2),
            "message": "" if report.passed else _last_words(report),
        }
        with open(RECORDS, "a") as file:
            file.write(json.dumps(record) + "\n")
    if report.failed and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            # After an illegal access, say, every later call in this process fails with the same error.
            pytest.exit(f"the GPU's context is broken after {report.nodeid}: {error}", BROKEN_CONTEXT)


def _last_words(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return f"{crash.message[:1000]} ({crash.path}:{crash.lineno})" if crash else str(report.longrepr)[-1000:]


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """In place of the one thread that tests elsewhere get: the CPU's kernels are the oracle of a million rows."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _backends() -> list[str]:
    """What runs on CUDA tensors here; "cuda" also where it is not usable, so that its tests fail."""
    if REHEARSAL:
        return ["auto"]
    return ["cuda", *(name for name in ("triton",) if fastsample.backends()[name].usable)]


@pytest.fixture(params=_backends() if not NOTHING_RUNS else ["cuda"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """What is tested, on its device."""
    yield Target(torch.device("cpu" if REHEARSAL else "cuda"), request.param, MODE == "spoilt")
    if not REHEARSAL:
        torch.cuda.synchronize()  # an error of a kernel belongs to the test that launched it

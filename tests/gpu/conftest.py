"""Tests that need a CUDA GPU: nothing here is collected where there is none, and `pytest tests/gpu` says so.

FASTSAMPLE_GPU_TESTS=rehearse runs on the CPU, in small, whatever does not need a GPU by its nature: the bodies of the
tests are code too. With "spoilt" the backend under test is also made to err, which every comparison must notice.
With "compile", on a GPU, Triton's kernels are compiled, launched nowhere, and nothing is compared: for
benchmarks/gpu/testing_triton.py, which fills Triton's cache by several processes. FASTSAMPLE_GPU_TEST_BACKENDS="triton"
leaves the CUDA kernels out.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import fastsample
from fastsample import ops

from .target import COMPILING, MODE, REHEARSAL, Target

HERE = Path(__file__).parent
# Where benchmarks/gpu/testing.py wants each test recorded as it ends; and what it takes for "start me again".
RECORDS = os.environ.get("FASTSAMPLE_GPU_TEST_RECORDS")
BROKEN_CONTEXT = 70
BACKENDS = os.environ.get("FASTSAMPLE_GPU_TEST_BACKENDS", "cuda triton").split()
# "3/16" of the kernels, for "compile".
SHARE = os.environ.get("FASTSAMPLE_GPU_TEST_SHARE", "0/1")
# What has nothing of its own to compile, takes the compiler of torch, or more memory than a sixteenth of a GPU has.
NOT_COMPILED = ("test_compile.py", "test_without_cuda.py", "further_apart_than_32_bits")

NOTHING_RUNS = not torch.cuda.is_available() and not REHEARSAL
collect_ignore_glob = ["test_*.py"] if NOTHING_RUNS else []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if item.path.is_relative_to(HERE)]
    for item in here:
        item.add_marker("gpu")
    if COMPILING:
        left_out = [item for item in here if any(name in item.nodeid for name in NOT_COMPILED)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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


@pytest.fixture(scope="session", autouse=True)
def _compiling() -> Iterator[None]:
    if not COMPILING:
        yield
        return
    from fastsample.benchmarks.gpu import ahead

    number, of = map(int, SHARE.split("/"))
    with ahead.compiling(ahead.Share(number, of)):
        yield


def _backends() -> list[str]:
    """What runs on the device that is tested; "cuda" also where it is not usable, so that its tests fail.

    Not Triton's interpreter, which takes hours over what a GPU does in seconds: test_divisions.py rehearses with it.
    """
    if REHEARSAL:
        return ["auto"]
    triton = fastsample.backends()["triton"].usable and not ops.triton_is_interpreted()
    return [name for name in BACKENDS if name != "triton" or triton]


@pytest.fixture(params=_backends() if not NOTHING_RUNS else ["cuda"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """What is tested, on its device."""
    yield Target(torch.device("cpu" if REHEARSAL else "cuda"), request.param, MODE == "spoilt")
    if not REHEARSAL:
        torch.cuda.synchronize()  # an error of a kernel belongs to the test that launched it


@pytest.fixture
def cuda_target(target: Target) -> Target:
    """For what only the CUDA kernels have, or what chooses its backend by itself (see test_without_cuda.py)."""
    if target.backend == "triton":
        pytest.skip("not of the Triton kernels")
    return target


@pytest.fixture
def triton_target() -> Iterator[Target]:
    """The Triton kernels; in a rehearsal their interpreter, if TRITON_INTERPRET=1 asks for it."""
    if not REHEARSAL and "triton" not in BACKENDS:
        pytest.skip("Triton was not asked for")
    status = fastsample.backends()["triton"]
    if not status.usable:
        pytest.skip(status.detail)
    if ops.triton_is_interpreted() != REHEARSAL:
        pytest.skip("on a GPU the kernels are to be compiled")
    yield Target(torch.device("cpu" if REHEARSAL else "cuda"), "triton", MODE == "spoilt")
    if not REHEARSAL:
        torch.cuda.synchronize()

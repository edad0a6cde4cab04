"""Part: pytest over tests/gpu, with the CUDA kernels.

What a test says is recorded as it ends, by tests/gpu/conftest.py.
"""

from __future__ import annotations

import sys
import time
from collections import Counter

from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder, read
from .subprocesses import Ended, tail, with_python_path
from .subprocesses import run as run_command

RECORDS_VARIABLE = "FASTSAMPLE_GPU_TEST_RECORDS"
MODE_VARIABLE = "FASTSAMPLE_GPU_TESTS"
BACKENDS_VARIABLE = "FASTSAMPLE_GPU_TEST_BACKENDS"
# Of pytest when tests/gpu/conftest.py finds that no test can run any more in its process: after an illegal access, say,
# every later call fails too.
BROKEN_CONTEXT = 70
_MOST_PROCESSES = 8


def run(recorder: Recorder, options: PartOptions) -> None:
    """Run every test once with the CUDA kernels. Raises PartFailedError if one failed, or if they did not all run."""
    run_tests(recorder, options, "cuda", time.monotonic() + options.seconds - 3)


def run_tests(recorder: Recorder, options: PartOptions, backend: str, end: float) -> None:
    """Run every test once with one backend, until `end`. Raises PartFailedError as `run`."""
    for _ in range(_MOST_PROCESSES):
        done = [record["name"] for record in read(recorder.path) if record["kind"] == "test"]
        ended = _pytest(recorder, options, backend, done, end - time.monotonic())
        if ended.code != BROKEN_CONTEXT:
            break
        recorder.add("note", text="a test left a GPU context in which nothing runs; the rest ran in a new process")
    tests = [record for record in read(recorder.path) if record["kind"] == "test"]
    counts = Counter(record["outcome"] for record in tests)
    failed = [record["name"] for record in tests if record["outcome"] == "failed"]
    if ended.code is None:
        raise PartFailedError(f"stopped at the limit after {dict(counts)}; failed: {', '.join(failed) or 'none'}")
    if failed:
        raise PartFailedError(f"{len(failed)} of {len(tests)} tests failed: {', '.join(failed)}")
    if ended.code != 0 or counts["passed"] == 0:
        raise PartFailedError(f"pytest ended with {ended.code} after {dict(counts)}: {tail(ended.output)[-1500:]}")


def _pytest(recorder: Recorder, options: PartOptions, backend: str, done: list[str], seconds: float) -> Ended:
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--quiet", "-p", "no:cacheprovider", "--tb=short"]
    for name in done:
        command += ["--deselect", name]
    environment = {**with_python_path(ROOT), RECORDS_VARIABLE: str(recorder.path), BACKENDS_VARIABLE: backend}
    if options.rehearsal:
        environment[MODE_VARIABLE] = "rehearse"
    return run_command(command, seconds, environment, ROOT)

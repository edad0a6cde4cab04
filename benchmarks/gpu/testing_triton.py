"""Part: pytest over tests/gpu, with the Triton kernels, which a pass over the same tests compiles first.

The tests launch some hundred kernels as Triton counts them, and most of the time goes to compiling. So first a process
for each CPU runs the tests with launches that only compile, each its share, and looks at no result.
"""

from __future__ import annotations

import sys
import time

from .compiling import processes, run_together
from .contestants import why_not
from .options import ROOT, PartOptions
from .records import Recorder
from .subprocesses import with_python_path
from .testing import BACKENDS_VARIABLE, MODE_VARIABLE, run_tests

SHARE_VARIABLE = "FASTSAMPLE_GPU_TEST_SHARE"
COMPILE = "compile"
# Of the part's time: what is not compiled by then is compiled by the test that needs it.
_FOR_COMPILING = 0.6


def run(recorder: Recorder, options: PartOptions) -> None:
    """Compile, then run every test once. Raises PartFailedError if one failed, or if they did not all run."""
    end = time.monotonic() + options.seconds - 3
    reason = why_not("triton", options.rehearsal) if "triton" in options.backends else "it was not asked for"
    if reason is not None:
        recorder.add("note", text=f"no test ran on Triton: {reason}")
        return
    count = processes()
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--quiet", "-p", "no:cacheprovider", "--tb=no"]
    environment = {**with_python_path(ROOT), BACKENDS_VARIABLE: "triton", MODE_VARIABLE: COMPILE}
    shares = [{**environment, SHARE_VARIABLE: f"{number}/{count}"} for number in range(count)]
    ended = run_together([(command, share) for share in shares], _FOR_COMPILING * options.seconds)
    late = sum(one.code is None for one in ended)
    took = max(one.seconds for one in ended)
    recorder.add("note", text=f"the tests' Triton kernels compiled for {took:.0f} s; {late} of {count} were stopped")
    run_tests(recorder, options, "triton", end)

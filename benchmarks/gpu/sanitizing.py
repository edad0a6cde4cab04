"""Part: compute-sanitizer's four tools over one script that takes every path (sanitized_calls.py), at the same time."""

from __future__ import annotations

import re
import shutil
import sys
import time

from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder
from .subprocesses import Ended, Running, tail, with_python_path

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SCRIPT = ROOT / "benchmarks/gpu/sanitized_calls.py"
_FOUND = 99
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
# The allocator of torch hands out parts of large blocks, in which an access out of bounds meets other tensors.
_ALLOCATOR = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def run(recorder: Recorder, options: PartOptions) -> None:
    """Run every tool. Raises PartFailedError unless all of them ran to the end and found nothing."""
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        raise PartFailedError("compute-sanitizer is not on PATH")
    end = time.monotonic() + options.seconds - 3
    running: dict[str, Running] = {}
    verdicts = {}
    try:
        for tool in TOOLS:
            command = [sanitizer, f"--tool={tool}", f"--error-exitcode={_FOUND}", "--print-limit=20"]
            running[tool] = Running(
                [*command, sys.executable, str(_SCRIPT)], {**with_python_path(ROOT), **_ALLOCATOR}, ROOT
            )
        for tool in TOOLS:
            ended = running.pop(tool).wait(end - time.monotonic())
            verdicts[tool] = verdict(ended)
            output = "" if verdicts[tool] == "clean" else tail(ended.output)
            recorder.add("sanitizer", tool=tool, verdict=verdicts[tool], seconds=ended.seconds, output=output)
    finally:
        for one in running.values():
            one.stop()
    if any(found != "clean" for found in verdicts.values()):
        raise PartFailedError(", ".join(f"{tool}: {found}" for tool, found in verdicts.items()))


def verdict(ended: Ended) -> str:
    """What a tool found: "clean", "N errors", or why that is not known."""
    if ended.code is None:
        return "stopped at the limit"
    counts = [int(first or second) for first, second in _SUMMARY.findall(ended.output)]
    if not counts:
        return f"no summary, exit status {ended.code}"
    if sum(counts):
        return f"{sum(counts)} errors"
    return "clean" if ended.code == 0 else f"no errors, but exit status {ended.code}"

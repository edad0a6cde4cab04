"""Part: Triton's kernels for the grid and the sanitizers, compiled by a process for each CPU before they are needed.

`row_kernel` takes a CPU 5 to 10 seconds for each dtype and way to divide a row that it is compiled for. What is in the
cache already, from an earlier call of the command, is not compiled again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .contestants import why_not
from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder, read
from .subprocesses import Ended, Running, part_command, tail

_MOST_PROCESSES = 16  # each has a GPU context of half a GiB, and torch in as much of the host's memory


def run(recorder: Recorder, options: PartOptions) -> None:
    """Compile, as far as the time goes. Raises PartFailedError if a kernel does not compile."""
    reason = why_not("triton", options.rehearsal) if "triton" in options.backends else "they were not asked for"
    if reason is not None:
        recorder.add("note", text=f"no Triton kernels were compiled: {reason}")
        return
    count = processes()
    commands = [
        part_command("compiled_ahead", recorder.path, replace(options, share=(number, count)))
        for number in range(count)
    ]
    ended = run_together([(command, {}) for command in commands], options.seconds - 3)
    failed = next((one for one in ended if one.code not in (0, None)), None)
    if failed is not None:
        raise PartFailedError(f"a process that compiles ended with {failed.code}: {tail(failed.output)[-800:]}")
    kernels = sum(record["kernels"] for record in read(recorder.path) if record["kind"] == "compiled")
    late = sum(one.code is None for one in ended)
    took = max(one.seconds for one in ended)
    recorder.add(
        "note",
        text=f"{late} of {count} processes had not compiled their share of the Triton kernels after {took:.0f} s"
        if late
        else f"{count} processes made {kernels} Triton kernels ready in {took:.0f} s",
    )


def processes() -> int:
    """How many compile at a time."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, _MOST_PROCESSES)


def run_together(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], seconds: float) -> list[Ended]:
    """Run commands, each with its environment, at the same time and for at most so long. Returns how each ended."""
    end = time.monotonic() + seconds
    running: list[Running] = []
    ended: list[Ended] = []
    try:
        for command, environment in commands:
            running.append(Running(command, environment, ROOT))
        while running:
            ended.append(running[0].wait(end - time.monotonic()))
            running.pop(0)
    finally:
        for one in running:
            one.stop()
    return ended

"""Part: ncu's counters of six points of the CUDA kernels: bytes, cache, issue slots, stall reasons, occupancy."""

from __future__ import annotations

import csv
import re
import shutil
import sys
import time
from typing import Any

from .contestants import why_not
from .counted_calls import POINTS
from .options import ROOT, PartFailedError, PartOptions
from .records import Recorder
from .subprocesses import run as run_command
from .subprocesses import tail, with_python_path

KERNEL = "row_kernel"
_SCRIPT = ROOT / "benchmarks/gpu/counted_calls.py"
_SECTIONS = (
    "SpeedOfLight",
    "MemoryWorkloadAnalysis_Tables",
    "SchedulerStats",
    "WarpStateStats",
    "Occupancy",
    "LaunchStats",
)
_BYTES = "dram__bytes_read.sum,dram__bytes_write.sum,gpu__time_duration.sum"
_MORE = "lts__t_sectors_op_read.sum,smsp__issue_active.avg.pct_of_peak_sustained_active,sm__inst_executed.sum"
# An ncu that does not know one of the names gives nothing at all; then with fewer of them.
ATTEMPTS = (
    [argument for name in _SECTIONS for argument in ("--section", name)] + ["--metrics", f"{_BYTES},{_MORE}"],
    ["--metrics", _BYTES],
)
_STALL = re.compile(r"smsp__average_warps?_(?:latency_)?issue_stalled_(\w+?)(?:_per_issue_active)?\.(?:ratio|pct)")
KEPT = {
    "bytes read": "dram__bytes_read.sum",
    "bytes written": "dram__bytes_write.sum",
    "nanoseconds": "gpu__time_duration.sum",
    "L2 sectors read": "lts__t_sectors_op_read.sum",
    "issue slots used, %": "smsp__issue_active.avg.pct_of_peak_sustained_active",
    "instructions": "sm__inst_executed.sum",
    "warps active, %": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "memory throughput, %": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "registers": "launch__registers_per_thread",
    "blocks": "launch__grid_size",
    "threads": "launch__block_size",
    "waves": "launch__waves_per_multiprocessor",
}


def run(recorder: Recorder, options: PartOptions) -> None:
    """Count every point. Raises PartFailedError if ncu gives no counters."""
    reason = why_not("cuda", options.rehearsal) if "cuda" in options.backends else "they were not asked for"
    if reason is not None:
        recorder.add("note", text=f"nothing was counted: counters are of the CUDA kernels, and {reason}")
        return
    ncu = shutil.which("ncu")
    if ncu is None:
        raise PartFailedError("ncu is not on PATH")
    end = time.monotonic() + options.seconds - 3
    output = ""
    for metrics in ATTEMPTS:
        # The clocks are as the machine has them: it is shared with others after us, and may not be changed.
        command = [ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
        command += ["--kernel-name", f"regex:{KERNEL}", "--profile-from-start", "off", *metrics]
        ended = run_command(
            [*command, sys.executable, str(_SCRIPT)], end - time.monotonic(), with_python_path(ROOT), ROOT
        )
        output = ended.output
        launches = parse(output)
        if launches:
            break
    else:
        raise PartFailedError(f"ncu gave no counters: {tail(output)[-800:]}")
    # One launch a call is the promise of the kernels; otherwise it is not known which launch belongs to which point.
    known = len(launches) == len(POINTS)
    for place, launch in enumerate(launches):
        point = POINTS[place]._asdict() if known else {}
        recorder.add("counters", point=point, **launch)
    if not known:
        raise PartFailedError(f"{len(launches)} launches of {KERNEL} for {len(POINTS)} calls")


def parse(output: str) -> list[dict[str, Any]]:
    """The launches in what ncu printed as CSV, in order: what `KEPT` names, and the stall reasons.

    Both forms are understood: a row for each launch with a column for each metric (its second row has the units), and a
    row for each metric of a launch. Lines that are no CSV are ncu's own remarks, or the program's output.
    """
    lines = [line for line in output.splitlines() if line.startswith('"')]
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines[start:]):
        if not row["ID"]:  # the units
            continue
        launch = launches.setdefault(row["ID"], {"kernel": row.get("Kernel Name") or ""})
        if "Metric Name" in row:
            launch[row["Metric Name"]] = row["Metric Value"]
        else:
            launch |= {name: value for name, value in row.items() if name is not None}
    return [_summary(launch) for launch in launches.values()]


def _summary(launch: dict[str, str]) -> dict[str, Any]:
    numbers = {name: number for name, text in launch.items() if (number := _number(text)) is not None}
    stalls = {match[1]: number for name, number in numbers.items() if (match := _STALL.fullmatch(name))}
    return {
        "kernel": launch["kernel"],
        "counters": {label: numbers[name] for label, name in KEPT.items() if name in numbers},
        "stalls": dict(sorted(stalls.items(), key=lambda stall: -stall[1])),
    }


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None

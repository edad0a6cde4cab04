"""What the benchmark ran on, for its output and its files."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil

from fastsample import doctor

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_TREE = Path(__file__).resolve().parents[1]


def describe(report: doctor.Report) -> dict[str, str]:
    """Hardware, versions and commit, as name and value.

    Args:
        report: what `doctor.examine` found.
    """
    backend = report.backends["cpu"]
    memory = psutil.virtual_memory().total / 2**30
    return {
        "CPU": report.cpu["CPU"],
        "instruction set": backend.instruction_set or f"none: {backend.detail}",
        "CPU features": report.cpu["CPU features"],
        "CPUs": str(usable_cpus()),
        "caches": caches() or "unknown",
        "memory": f"{memory:.1f} GiB",
        **report.versions,
        "commit": commit() or "unknown: not a git checkout",
    }


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def caches() -> str | None:
    """The first CPU's caches, such as "L1d 48K, L2 2048K, L3 266240K"; None where Linux does not tell."""
    found = []
    for folder in sorted(_CACHES.glob("index*")):
        kind = (folder / "type").read_text().strip()
        if kind == "Instruction":
            continue
        level = (folder / "level").read_text().strip()
        found.append(f"L{level}{'d' if kind == 'Data' else ''} {(folder / 'size').read_text().strip()}")
    return ", ".join(found) or None


def commit() -> str | None:
    """The commit of the source tree, with "+ changes" if there are any; None outside a checkout."""
    if not (_TREE / "pyproject.toml").exists():  # installed, perhaps inside somebody else's checkout
        return None
    git = ["git", "-C", str(_TREE)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip()[:12] + (" + changes" if changes.stdout.strip() else "")


def busyness() -> tuple[float, float, str | None]:
    """The load average of the last minute, the share of the CPUs that others use now, and a warning if they do."""
    load = os.getloadavg()[0]
    others = psutil.cpu_percent(interval=0.5) / 100  # while this process sleeps
    warning = (
        f"the machine was busy when the run began (others took {others:.0%} of its {usable_cpus()} CPUs, load average "
        f"{load:.1f}): times and ratios are not to be trusted"
    )
    return load, others, warning if others >= 0.1 else None


def fits(bytes_needed: int) -> bool:
    """Whether this much memory can be taken without crowding the machine."""
    return bytes_needed < psutil.virtual_memory().available // 2

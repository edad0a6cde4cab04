"""Part: what the run runs on. Every fact is asked for alone, so that one that cannot be had costs only itself."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastsample import backends

from .options import PartFailedError, PartOptions
from .records import Recorder
from .subprocesses import run as run_command

_SMI_FACTS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
    "persistence_mode",
    "mig.mode.current",
    "ecc.mode.current",
)
_TOOLS = {"nvcc": "--version", "ncu": "--version", "compute-sanitizer": "--version", "g++": "--version"}
_PACKAGES = ("triton", "numpy", "transformers", "flashinfer-python", "vllm", "pytest", "matplotlib")


def run(recorder: Recorder, options: PartOptions) -> None:
    """Record the facts. Raises PartFailedError if there is no GPU."""
    recorder.add("environment", facts=host_facts(options.commit))
    recorder.add("environment", facts=gpu_facts())
    recorder.add("environment", facts=smi_facts())
    if not options.rehearsal and not torch.cuda.is_available():
        raise PartFailedError(f"torch {torch.__version__} sees no CUDA GPU")


def host_facts(commit: str) -> dict[str, Any]:
    """The machine, the versions of what is installed, and the commit."""
    facts: dict[str, Any] = {
        "commit": commit or _or_none(_commit) or "unknown: not a git checkout",
        "python": platform.python_version(),
        "platform": platform.platform(),
        "CPU": _or_none(_cpu),
        "CPUs": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda,
    }
    facts |= {name: _or_none(partial(metadata.version, name)) for name in _PACKAGES}
    facts |= {name: tool_version(name, flag) for name, flag in _TOOLS.items()}
    return facts


def gpu_facts() -> dict[str, Any]:
    """What torch says of the GPU that is current; {"GPU": None} without one."""
    if not torch.cuda.is_available():
        return {"GPU": None}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "GPU": properties.name,
        "GPUs": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2 bytes": properties.L2_cache_size,
        "memory bytes": properties.total_memory,
        "backends before the build": {name: status.detail for name, status in backends().items()},
    }


def smi_facts() -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing without it."""
    query = f"--query-gpu={','.join(_SMI_FACTS)}"
    try:
        ended = run_command(["nvidia-smi", query, "--format=csv,noheader"], 15)
    except OSError:
        return {}
    if ended.code != 0:
        return {"nvidia-smi": ended.output.strip()[-200:]}
    return parse_smi(ended.output)


def parse_smi(output: str) -> dict[str, str]:
    """The first line of nvidia-smi's answer, by name."""
    values = [value.strip() for value in output.strip().splitlines()[0].split(",")]
    return dict(zip(_SMI_FACTS, values, strict=False))


def tool_version(name: str, flag: str) -> str | None:
    """The version in what a tool prints; None without the tool."""
    path = shutil.which(name)
    if path is None:
        return None
    ended = run_command([path, flag], 15)
    found = re.findall(r"\d+\.\d+[.\d]*\d", ended.output)
    return found[-1] if found else ended.output.strip()[:100]


def _commit() -> str | None:
    from fastsample.benchmarks.machine import commit  # needs psutil

    return commit()


def _cpu() -> str | None:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.processor()


def _or_none(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception:  # whatever is the matter with one fact, the others stand
        return None

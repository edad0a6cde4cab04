"""Peak extra memory of `fastsample.sample`: what a call needs beyond its logits and its tokens.

Two questions: by how much does the process grow during a call (the kernel's high-water mark of the resident set), and
what is the largest tensor that torch allocates in it. The answer must not depend on batch x vocabulary.

Run as a program, this measures in a process of its own and prints JSON: what a benchmark has done before would show.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import fastsample

from .grid import DTYPES
from .peers.base import Work

SHAPES = ((32, 262144), (4, 2**22))
WORKS = tuple(Work.parse(key) for key in ("k50-p0.9", "p0.9", "plain", "greedy"))
_MIB = 2**20
_M_MMAP_THRESHOLD = -3  # malloc.h
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class MemoryUse:
    """Extra memory of one call.

    Attributes:
        batch, vocab, dtype, threads: its setting; work: its key.
        peak_bytes: growth of the resident set at its highest; None where the system does not tell.
        largest_tensor_bytes: the largest single allocation by torch.
    """

    batch: int
    vocab: int
    dtype: str
    threads: int
    work: str
    peak_bytes: int | None
    largest_tensor_bytes: int

    @property
    def limit_bytes(self) -> int:
        """1 MiB, and 1 MiB for each thread."""
        return (1 + self.threads) * _MIB

    @property
    def met(self) -> bool:
        """Whether the peak is within the limit and no tensor is larger than that either."""
        return max(self.peak_bytes or 0, self.largest_tensor_bytes) <= self.limit_bytes


def measure(threads: int) -> list[MemoryUse]:
    """Measure in a fresh process with this many threads, which takes some seconds.

    Raises:
        RuntimeError: that process failed; the message is its last words.
    """
    command = [sys.executable, "-m", "fastsample.benchmarks.memory", "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the measurement of memory failed: {result.stderr.strip()[-500:]}")
    return [MemoryUse(**use) for use in json.loads(result.stdout.splitlines()[-1])]


def measure_here(threads: int) -> list[MemoryUse]:
    """Measure in this process, at every one of `SHAPES`, `WORKS` and dtypes."""
    torch.set_num_threads(threads)
    uses = []
    for batch, vocab in SHAPES:
        logits = torch.empty(batch, vocab).normal_()
        for name in DTYPES:
            typed = logits.to(getattr(torch, name))
            for work in WORKS:
                parameters = work.parameters(batch)
                # The pages of the code are not what a call needs.
                fastsample.sample(typed, **parameters)
                peak, largest = extra_memory(lambda: fastsample.sample(typed, **parameters))  # noqa: B023
                uses.append(MemoryUse(batch, vocab, name, threads, work.key, peak, largest))
    return uses


def extra_memory(call: Callable[[], Any]) -> tuple[int | None, int]:
    """What one call takes: growth of the resident set at its highest, and torch's largest allocation, in bytes.

    The first is None where the system does not tell (it is Linux that does), and is a quarter of a MiB off at worst,
    since the kernel counts pages in batches. `call` runs in new threads: working memory that a thread keeps between
    calls is new there, and so are the threads that help it. The smallest of three growths counts: pages that the
    kernel takes back between two calls would be counted when they come again (a call that stays below 2 MiB was once
    seen at 6.6, on a machine that reclaims memory by itself).
    """
    growths = [_growth(call) for _ in range(3)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    known = [growth for growth in growths if growth is not None]
    return min(known, default=None), _largest_allocation(profiled)


def _growth(call: Callable[[], Any]) -> int | None:
    """How much the resident set grows at its highest while a new thread makes the call."""
    _give_back_free_memory()
    before = _resident_bytes("VmRSS", reset=True)
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    after = _resident_bytes("VmHWM")
    return None if before is None or after is None else max(0, after - before)


def _give_back_free_memory() -> None:
    """Memory that was freed but is still resident would be used again, and so hide what a call takes."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        # Large blocks from the system and back to it: only those of the main thread would be given back otherwise.
        library.mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        library.malloc_trim(0)


def _resident_bytes(field: str, reset: bool = False) -> int | None:
    if not _RESET.exists():
        return None
    if reset:
        _RESET.write_text("5")  # sets VmHWM back to what is resident now
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _largest_allocation(profiled: profile) -> int:
    kineto = profiled.profiler.kineto_results if profiled.profiler is not None else None
    events: list[Any] = kineto.events() if kineto is not None else []
    return max((event.nbytes() for event in events if event.name() == "[memory]"), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak extra memory of fastsample.sample, as JSON.")
    parser.add_argument("--threads", type=int, default=1)
    print(json.dumps([asdict(use) for use in measure_here(parser.parse_args().threads)]))


if __name__ == "__main__":
    main()

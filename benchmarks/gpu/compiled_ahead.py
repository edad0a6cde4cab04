"""One process of the part "compile": its share of the Triton kernels that the grid and the sanitizers launch."""

from __future__ import annotations

import time

import torch

from fastsample.benchmarks.peers.base import Job, Work

from . import ahead, calls, grid
from .contestants import FastsampleSession
from .options import PartOptions
from .records import Recorder


def run(recorder: Recorder, options: PartOptions) -> None:
    """Compile the share and record how many kernels that are, of how many."""
    started = time.monotonic()
    share = ahead.Share(*options.share)
    with ahead.compiling(share):
        launch_all(options)
    recorder.add(
        "compiled",
        kernels=share.ours,
        of=len(share.kernels),
        by_function=dict(share.by_function),
        seconds=round(time.monotonic() - started, 1),
    )


def launch_all(options: PartOptions) -> None:
    """Every call of the grid, on memory that nobody has written, and what compute-sanitizer runs."""
    settings = grid.rehearsal() if options.rehearsal else grid.settings(options.axes)
    works: dict[tuple[int, int, str], dict[str, None]] = {}  # the kind of rows makes no other kernel
    for setting in settings:
        place = setting.place
        works.setdefault((place.vocab, place.batch, place.dtype), {}).update(dict.fromkeys(setting.works))
    for (vocab, batch, name), keys in works.items():
        dtype = getattr(torch, name)
        logits = torch.empty(batch, vocab, dtype=dtype, device=options.device)
        for key in keys:
            session = FastsampleSession(Job(Work.parse(key), batch, vocab, 1, dtype), "triton", logits.device)
            session.load(logits)
            session.draw()
    for _ in calls.triton_mismatches(options.device):
        pass  # nothing has run, so nothing agrees

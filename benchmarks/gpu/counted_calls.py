"""What ncu runs: one call for each of `POINTS`, in order, between cudaProfilerStart and cudaProfilerStop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple


class CountedPoint(NamedTuple):
    """One call that is counted."""

    work: str
    vocab: int
    batch: int
    dtype: str
    rows: str


POINTS = (
    CountedPoint("t0.8-k50-p0.9", 128256, 64, "float32", "real"),
    CountedPoint("p0.9", 128256, 64, "float32", "real"),
    CountedPoint("p0.9", 128256, 64, "float32", "normal-1"),
    CountedPoint("plain", 128256, 64, "float32", "real"),
    CountedPoint("t0.8-k50-p0.9", 128256, 64, "bfloat16", "real"),
    CountedPoint("t0.8-k50-p0.9", 128256, 1, "float32", "real"),
)


def main() -> None:
    """Warm up, then make every call once under the profiler."""
    import torch

    from fastsample.benchmarks.gpu.contestants import FastsampleSession
    from fastsample.benchmarks.gpu.inputs import Inputs
    from fastsample.benchmarks.peers.base import Job, Work

    device = torch.device("cuda")
    inputs = Inputs(device, 2**20)
    for point in POINTS:
        job = Job(Work.parse(point.work), point.batch, point.vocab, 1, getattr(torch, point.dtype))
        session = FastsampleSession(job, "cuda", device)
        session.load(inputs.batches(point.rows, point.vocab, point.batch, point.dtype)[0])
        session.draw()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        session.draw()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

    import fastsample

    fastsample.__path__.append(sys.path[0])
    main()

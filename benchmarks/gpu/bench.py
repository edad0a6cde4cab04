"""`fastsample bench` on a GPU: the benchmark of the GPU command, of one of fastsample's backends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from . import __main__ as command
from . import report
from .contestants import why_not
from .options import Axes
from .results import load

NO_GPU = 2
# Of the GPU command's parts: what the machine is, what is compiled on a first call, the grid.
PARTS = ("environment", "compile", "peers", "benchmark")
_INTERPRETER = "Triton's interpreter (TRITON_INTERPRET=1) is there to check results, and a time of it would say nothing"


class CannotMeasureError(Exception):
    """Nothing can be measured here; the message says why.

    Attributes:
        status: what to exit with.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def check(backend: str) -> None:
    """Raises CannotMeasureError unless a backend's kernels can be timed here."""
    if not torch.cuda.is_available():
        why = f"--backend {backend}: it is timed on a GPU, and torch {torch.__version__} sees none"
        raise CannotMeasureError(f"{why}. {_INTERPRETER}" if backend == "triton" else why, NO_GPU)
    reason = why_not(backend, rehearsal=False)
    if reason is not None:
        raise CannotMeasureError(f"--backend {backend}: {reason}", 1)


def run(backend: str, axes: Axes, peers: Sequence[str], budget: float, out: Path, eager: bool = False) -> int:
    """Measure, write OUT's JSON with table and pictures beside it, and print the table.

    Args:
        backend: "cuda" or "triton".
        axes: what of the grid.
        peers: keys of the peers to compare with.
        budget: seconds for all of it.
        out: the JSON file.
        eager: time every call launched by itself as well, beside the replay of graphs.

    Returns:
        The exit status of the GPU command.

    Raises:
        CannotMeasureError: there is nothing to measure here.
    """
    check(backend)
    base = out.with_suffix("")
    arguments = ["--parts", *PARTS, "--backends", backend, "--out", str(base), "--budget", str(budget)]
    for axis, values in axes._asdict().items():
        if values:
            arguments += [f"--{axis}", *map(str, values)]
    arguments += ["--eager"] if eager else []
    status = command.main([*arguments, "--peers", *peers])
    written = base.with_name(f"{base.name}.json")
    if status != NO_GPU and written.exists():
        print(report.markdown(load(written)))
    return status


def show(path: Path, markdown: bool, picture: Path | None) -> int:
    """Show a file of the GPU command. Returns the exit status, and raises ValueError where the file is damaged."""
    load(path)
    drawn = ["--out", str(picture.with_suffix(""))] if picture is not None else []
    return command.main(["--show", str(path), *(["--markdown"] if markdown else []), *drawn])

"""What every part is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

# The checkout; or the installed package, of which only the benchmark is of use.
ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = (ROOT / "setup.py").exists()
# For what is compiled on the way; in a checkout a folder that git ignores, and that stays between calls of the command.
BUILD = ROOT / "build" if CHECKOUT else Path.home() / ".cache" / "fastsample"


class Axes(NamedTuple):
    """What of the grid is measured; an empty axis is all that the grid has of it."""

    vocabs: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    works: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartOptions:
    """What a part is told.

    Attributes:
        seconds: how long it may take; past that it is stopped.
        rehearsal: run on the CPU, in small, to see that everything works but the GPU.
        commit: of the sources, for a copy of them that is no git checkout.
        unusable_peers: keys of the peers that an earlier part found wanting, or that were not asked for.
        backends: of fastsample, which to measure.
        axes: what of the grid to measure.
        share: which of how many processes this is, of a part that has several.
        eager: time calls that are launched one by one as well, beside the replay of graphs.
    """

    seconds: float
    rehearsal: bool = False
    commit: str = ""
    unusable_peers: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("cuda", "triton")
    axes: Axes = field(default_factory=Axes)
    share: tuple[int, int] = (0, 1)
    eager: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> PartOptions:
        """What `dataclasses.asdict` and JSON made of one."""
        axes = Axes(*(tuple(axis) for axis in content["axes"]))
        tuples = {name: tuple(content[name]) for name in ("unusable_peers", "backends", "share")}
        return cls(**{**content, **tuples, "axes": axes})


class PartFailedError(Exception):
    """A part ran to its end and found something wrong; the message says what."""

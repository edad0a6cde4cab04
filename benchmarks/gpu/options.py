"""What every part is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class PartOptions:
    """What a part is told.

    Attributes:
        seconds: how long it may take; past that it is stopped.
        rehearsal: run on the CPU, in small, to see that everything works but the GPU.
        commit: of the sources, for a copy of them that is no git checkout.
        unusable_peers: keys of the peers that an earlier part found wanting.
    """

    seconds: float
    rehearsal: bool = False
    commit: str = ""
    unusable_peers: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsal else "cuda"

    @property
    def backend(self) -> str:
        """fastsample's, for tensors on that device."""
        return "auto" if self.rehearsal else "cuda"


class PartFailedError(Exception):
    """A part ran to its end and found something wrong; the message says what."""

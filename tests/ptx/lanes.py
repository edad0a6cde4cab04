"""Sets of lanes. A lane is one CUDA thread; lane 32 w + i is thread i of warp w, block after block of a cluster."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

WARP = 32

Array = NDArray[Any]  # an entry for each lane, or for each of some lanes
Mask = NDArray[np.bool_]


class Lanes:
    """At least one lane, in a form that indexes arrays with an entry per lane.

    `index` is a slice wherever it can be one: a slice makes views, an array of numbers makes copies.
    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        numbers = np.flatnonzero(mask)
        self.count = len(numbers)
        self.index: slice | NDArray[np.int64] = numbers
        first, last = int(numbers[0]), int(numbers[-1])
        step = int(numbers[1]) - first if self.count > 1 else 1
        if last - first == step * (self.count - 1) and (step == 1 or bool((np.diff(numbers) == step).all())):
            self.index = slice(first, last + 1, step)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.mask)

    @cached_property
    def warp(self) -> NDArray[np.int64]:
        """The warp of each lane."""
        return self.numbers // WARP

    @cached_property
    def warps(self) -> int:
        """How many warps have a lane in here."""
        return int(np.count_nonzero(self.mask.reshape(-1, WARP).any(axis=1)))

    def split(self, condition: Mask) -> tuple[Lanes | None, Lanes | None]:
        """The lanes for which `condition` (an entry for each lane in here) is true, and the others."""
        count = np.count_nonzero(condition)
        if count == self.count:
            return self, None
        if count == 0:
            return None, self
        mask = np.zeros_like(self.mask)
        mask[self.index] = condition
        return Lanes(mask), Lanes(self.mask & ~mask)

    def union(self, other: Lanes) -> Lanes:
        return Lanes(self.mask | other.mask)

    def without(self, other: Lanes) -> Lanes | None:
        """None when nothing is left."""
        mask = self.mask & ~other.mask
        return Lanes(mask) if mask.any() else None


def words_of(mask: Mask) -> NDArray[np.uint32]:
    """A 32-bit word for each warp, bit i for its lane i."""
    return np.packbits(mask, bitorder="little").view(np.uint32)

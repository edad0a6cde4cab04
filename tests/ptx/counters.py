"""What a kernel did, in the units that cost time on a GPU."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .lanes import WARP, Lanes
from .memory import Access, Addresses

SECTOR = 32
_BANKS = 32

# The first that matches the start of an opcode. Names of what a kernel pays for, not of PTX's chapters.
_CLASSES = (
    (r"ld\.param", "parameter"),
    (r"(ld|st)(\.\w+)*?\.(shared|local|const)", None),  # named after the space
    (r"(ld|st)(\.\w+)*?\.global", "global memory"),
    (r"(ld|st)\.", "generic memory"),
    (r"(atom|red)\.", "atomic"),
    (r"(barrier|bar\.(?!warp)|membar|fence|griddepcontrol)", "barrier"),
    (r"(shfl|vote|redux|match|activemask|bar\.warp)", "warp exchange"),
    (r"(bra|ret|exit)", "branch"),
    (r"(mov|cvta|mapa)", "move"),
    (r"cvt", "conversion"),
    (r"(setp|selp)", "comparison and selection"),
    (r".*\.f(16|32|64)(x2)?$", "float"),
    (r"", "integer"),
)


@cache
def class_of(opcode: str) -> str:
    for pattern, name in _CLASSES:
        if match := re.match(pattern, opcode):
            return name or f"{match[3]} memory"
    raise AssertionError("the last pattern matches everything")


@dataclass
class Counts:
    """Totals over a launch.

    An instruction counts for the warps that have a lane at it, also where its guard keeps the lanes from it, as it does
    on the machine. Sectors are those of 32 bytes that a warp's instruction touches, each once; caches are not modelled.
    Shared memory gives a warp 32 banks of 4 bytes at a time, a wavefront; 8-byte accesses go by half warps and 16-byte
    ones by quarters. ptxas may order shared arrays otherwise than the interpreter does, which can move a conflict.
    """

    thread_instructions: Counter[str] = field(default_factory=Counter)  # by class
    warp_instructions: Counter[str] = field(default_factory=Counter)
    sectors_read: Counter[str] = field(default_factory=Counter)  # by buffer
    sectors_written: Counter[str] = field(default_factory=Counter)
    shared_requests: int = 0  # of warps, to their own block's shared memory
    shared_wavefronts: int = 0
    remote_requests: int = 0  # to another block's
    remote_sectors: int = 0
    atomic_requests: Counter[str] = field(default_factory=Counter)  # by space
    atomic_turns: Counter[str] = field(default_factory=Counter)  # lanes at one address take turns

    def add_global(self, lanes: Lanes, addresses: Addresses, access: Access, buffer: str) -> None:
        if access.atomic:
            self._add_atomic("global", lanes, _most_of_one(lanes.warp, addresses))
        else:
            (self.sectors_written if access.writes else self.sectors_read)[buffer] += sectors(lanes, addresses)

    def add_shared(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        if access.atomic:
            self._add_atomic("shared", lanes, _most_of_one(lanes.warp, addresses // 4 % _BANKS))
        else:
            self.shared_requests += lanes.warps
            self.shared_wavefronts += wavefronts(lanes, addresses, access)

    def add_remote(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        if access.atomic:
            self._add_atomic("remote", lanes, _most_of_one(lanes.warp, addresses))
        else:
            self.remote_requests += lanes.warps
            self.remote_sectors += sectors(lanes, addresses)

    def _add_atomic(self, space: str, lanes: Lanes, turns: int) -> None:
        self.atomic_requests[space] += lanes.warps
        self.atomic_turns[space] += turns


def _count_distinct(keys: NDArray[np.int64]) -> int:
    steps = np.diff(keys)
    if (steps < 0).any():
        steps = np.diff(np.sort(keys))
    return 1 + int(np.count_nonzero(steps))


def sectors(lanes: Lanes, addresses: Addresses) -> int:
    """How many sectors the warps touch. An aligned access of up to 16 bytes lies in one."""
    return _count_distinct((lanes.warp << 40) + addresses // SECTOR)


def wavefronts(lanes: Lanes, addresses: Addresses, access: Access) -> int:
    """In how many turns the banks of shared memory serve the lanes."""
    part = lanes.numbers // min(WARP, 128 // access.bytes)
    words = (((part << 40) + addresses // 4)[:, None] + np.arange(max(1, access.bytes // 4))).ravel()
    words.sort()
    words = words[_starts(words)]
    return _most_of_one(words >> 40, words % _BANKS)


def _starts(ordered: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of equal numbers begin."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def _most_of_one(group: NDArray[np.int64], member: NDArray[np.int64]) -> int:
    """For each group how often its most frequent member is there, summed over the groups."""
    keys = np.sort((group << 40) + member)
    starts = _starts(keys)
    lengths = np.diff(np.append(starts, len(keys)))
    return int(np.maximum.reduceat(lengths, _starts(keys[starts] >> 40)).sum())

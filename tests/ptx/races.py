"""Whether accesses to shared memory are ordered by barriers.

Two accesses to one place, at least one of them a write and not both atomic, race unless a barrier that both threads
took part in lies between them: of their warp, their block or their cluster. Every barrier here is of all threads of its
scope, so it is enough to know when each scope was last synchronised. (Shuffles and votes order no memory.)

A place is a word of 4 bytes: threads that write its bytes apart from each other would be reported, though they do not
race. None of our kernels does that.
"""

from __future__ import annotations

import numpy as np

from .lanes import WARP, Array, Lanes, Mask
from .memory import SHARED, WINDOW, Access, Addresses, Memory
from .module import PtxError

# How far apart two threads are, and so which barrier can order them.
_SAME_LANE, _SAME_WARP, _SAME_BLOCK, _SAME_CLUSTER = range(4)

_CONFLICTS = {"read": ("write", "atomic"), "write": ("read", "write", "atomic"), "atomic": ("read", "write")}

_WORD = 4


class _Record:
    """The last accesses of one kind to each word, and to how many lanes they spread that are not ordered."""

    def __init__(self, words: int) -> None:
        self.lane = np.zeros(words, np.int32)
        self.spread = np.zeros(words, np.int8)  # how far apart those lanes are
        self.time = np.zeros(words, np.int32)
        self.arrivals = np.zeros(words, np.int32)  # of the lane, at the barrier of its cluster
        self.latest_remote = -1  # the largest number of arrivals of who reached into another block


class RaceDetector:
    """The clocks of one cluster's lanes, and who touched what of its shared memory.

    Time goes on from one cluster to the next, so that what is older than a cluster needs no removing.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._records: dict[str, _Record] = {}
        self._words = self._blocks = 0  # of a block, and of a cluster, that the records are for
        self._time = 0
        self.start(WARP, 1, np.zeros(WARP, np.int32), np.zeros(WARP, np.int32))

    def start(self, threads: int, blocks: int, arrivals: Array, waits: Array) -> None:
        """For a new cluster. The arrivals and waits of each lane at the cluster's barrier are kept by the caller."""
        words = self._memory.extent["shared"] // _WORD + 1
        if (words, blocks) != (self._words, self._blocks):
            self._words, self._blocks = words, blocks
            self._records = {kind: _Record(blocks * words) for kind in ("read", "write", "atomic")}
        for record in self._records.values():
            record.latest_remote = -1
        self._block = np.repeat(np.arange(blocks), threads)  # of each lane
        self._time += 1
        self._begin = self._time
        self._warp_time = np.full(threads * blocks, self._begin, np.int32)
        self._block_time = self._warp_time.copy()
        self._arrivals, self._waits = arrivals, waits
        self._gone = np.zeros(blocks, bool)
        self._visited = np.full(blocks, -1, np.int32)  # the arrivals of the last lane that reached into this block

    # --- barriers

    def warps_synchronised(self, lanes: Lanes) -> None:
        self._time += 1
        self._warp_time[lanes.index] = self._time

    def blocks_synchronised(self, lanes: Lanes) -> None:
        self._time += 1
        self._block_time[lanes.index] = self._time

    def exited(self, live: Mask) -> None:
        """A block's shared memory is gone with its last thread; what others did there has to be ordered before that."""
        gone = ~np.any(live.reshape(self._blocks, -1), axis=1)
        for block in np.flatnonzero(gone & ~self._gone):
            if self._visited[block] >= self._waits.reshape(self._blocks, -1)[block].max():
                raise PtxError(f"block {block} of the cluster ends while others may still reach into its shared memory")
        self._gone = gone

    # --- accesses

    def access(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        numbers, offsets = lanes.numbers, addresses - SHARED
        if access.writes and not access.strong:
            self._check_distinct(addresses)
        blocks = offsets // WINDOW
        remote = self._blocks > 1 and bool((blocks != self._block[numbers]).any())
        if remote:
            self._check_remote(numbers, blocks)
        places = blocks * self._words + offsets % WINDOW // _WORD
        count = max(1, access.bytes // _WORD)
        if count > 1:
            places = (places[:, None] + np.arange(count)).ravel()
            numbers = np.repeat(numbers, count)
        kind = "atomic" if access.strong else "write" if access.writes else "read"
        for other in _CONFLICTS[kind]:
            self._check(kind, other, numbers, places, remote)
        self._add(self._records[kind], numbers, places, remote)

    def _check_distinct(self, addresses: Addresses) -> None:
        if (np.diff(addresses) > 0).all():
            return
        ordered = np.sort(addresses)
        twice = ordered[1:] == ordered[:-1]
        if twice.any():
            place = self._memory.describe(int(ordered[1:][twice][0]))
            raise PtxError(f"race: two threads write at once to {place}")

    def _check_remote(self, numbers: Array, target: Array) -> None:
        remote = target != self._block[numbers]
        blocks = target[remote]
        if self._gone[blocks].any():
            raise PtxError("reaches into the shared memory of a block that has ended")
        if (self._waits[numbers[remote]] == 0).any():
            raise PtxError("reaches into another block before a barrier of the cluster: it may not have started")
        np.maximum.at(self._visited, blocks, self._arrivals[numbers[remote]])

    def _check(self, kind: str, other: str, numbers: Array, places: Array, remote: bool) -> None:
        record = self._records[other]
        unordered = self._unordered(record, numbers, places, remote)
        if unordered is not None and unordered.any():
            one = int(np.flatnonzero(unordered)[0])
            block, word = divmod(int(places[one]), self._words)
            place = self._memory.describe(SHARED + block * WINDOW + word * _WORD)
            raise PtxError(
                f"race: {kind} by thread {numbers[one]} and {other} by thread {record.lane[places[one]]} with no "
                f"barrier between them, at {place}"
            )

    def _unordered(self, record: _Record, numbers: Array, places: Array, remote: bool) -> Mask | None:
        """Which lanes' accesses are not ordered after what is recorded of their places; None for none of them."""
        time = record.time[places]
        since_barrier = time >= self._block_time[numbers]
        if not remote and not since_barrier.any() and record.latest_remote < self._waits[numbers].min():
            return None
        distance = np.maximum(self._distance(record.lane[places], numbers), record.spread[places])
        ordered = distance == _SAME_LANE
        ordered |= (distance <= _SAME_BLOCK) & ~since_barrier
        ordered |= (distance <= _SAME_WARP) & (time < self._warp_time[numbers])
        ordered |= record.arrivals[places] < self._waits[numbers]
        unordered: Mask = ~ordered & (time >= self._begin)
        return unordered

    def _distance(self, one: Array, other: Array) -> Array:
        distance: Array = (one != other).astype(np.int8)
        distance += (one ^ other) >= WARP  # their numbers differ in more than the place within the warp
        if self._blocks > 1:
            distance += self._block[one] != self._block[other]
        return distance

    def _add(self, record: _Record, numbers: Array, places: Array, remote: bool) -> None:
        """What is ordered before an access needs no record any more; what is not is merged into one with it."""
        merged = self._unordered(record, numbers, places, remote)
        spread = np.zeros(len(numbers), np.int8)
        arrivals = self._arrivals[numbers]
        if merged is not None and merged.any():
            farther = np.maximum(record.spread[places], self._distance(record.lane[places], numbers))
            spread[merged] = farther[merged]
            arrivals[merged] = np.maximum(arrivals, record.arrivals[places])[merged]
        record.lane[places] = numbers
        record.spread[places] = spread
        record.time[places] = self._time
        record.arrivals[places] = arrivals
        if remote:
            record.latest_remote = max(record.latest_remote, int(arrivals.max()))
        # Of lanes that share a place the last one stands there. It spreads as far as the farthest of them.
        standing = record.lane[places]
        if (standing != numbers).any():
            distance = np.maximum(self._distance(standing, numbers), spread)
            for distant in (_SAME_WARP, _SAME_BLOCK, _SAME_CLUSTER):
                wider = (distance == distant) & (record.spread[places] < distant)
                record.spread[places[wider]] = distant

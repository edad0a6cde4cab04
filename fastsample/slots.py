"""What a `Sampler` keeps on its device: tensors of fixed size, into which the host copies what has changed.

Nothing is copied when a value is put, only by `flush`, which says how many elements it has copied. A copy to a GPU
does not wait for it: it is made from pinned memory that torch hands out anew only once the copy has ended, so that
values may change again at once.

KeyboardInterrupt can come between any two calls in here. A put that it ends may be repeated, and what it keeps a flush
from finishing is done by the next: hence the order in which they change things.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor


def copy(target: Tensor, source: Tensor) -> int:
    """Copy `source`, on the host, to `target`, of the same shape on any device. Returns the number of elements."""
    if source.numel() > 0:
        on_gpu = target.device.type == "cuda"
        target.copy_(source.pin_memory() if on_gpu else source, non_blocking=on_gpu)
    return source.numel()


class SlotRows:
    """A tensor with a row for each slot."""

    def __init__(self, slots: int, width: int, dtype: torch.dtype, device: torch.device, empty: int = 0) -> None:
        """
        slots, width: its shape. empty: what is everywhere at first, and in a cleared row; to clear copies nothing.
        """
        self.tensor = torch.full((slots, width), empty, dtype=dtype, device=device)
        self._empty = empty
        self._cleared = set(range(slots))
        self._changed: dict[int, Tensor | None] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,)

    def put(self, slot: int, row: Tensor | Sequence[float] | None) -> None:
        """Replace the beginning of a slot's row, so that what lies beyond len(row) stays; or clear it, with None."""
        if row is not None:
            self._cleared.discard(slot)
            self._changed[slot] = torch.as_tensor(row, dtype=self.tensor.dtype)
        elif slot not in self._cleared:
            self._changed[slot] = None
            self._cleared.add(slot)

    def flush(self) -> int:
        """Bring the tensor up to date; returns the number of elements copied."""
        copied = 0
        for slots in self._runs():
            rows = [row for row in map(self._changed.get, slots) if row is not None]
            place = self.tensor[slots[0] : slots[-1] + 1]
            if rows:
                copied += copy(place[:, : len(rows[0])], torch.stack(rows))
            else:
                place.fill_(self._empty)
        self._changed.clear()
        return copied

    def _runs(self) -> Iterator[list[int]]:
        """Neighbouring slots whose changed rows are equally long, or are all cleared: each run is one operation."""

        def kind(place: tuple[int, int]) -> tuple[int, int]:
            number, slot = place
            row = self._changed[slot]
            return slot - number, -1 if row is None else len(row)

        for _, run in groupby(enumerate(sorted(self._changed)), kind):
            yield [slot for _, slot in run]


class SlotCounts:
    """How often each token is in each slot's output: int32 [slots, vocab], counted on the device."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        self.tensor = torch.zeros((slots, vocab), dtype=torch.int32, device=device)
        self._changed: dict[int, Tensor] = {}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,)

    def put(self, slot: int, tokens: Tensor) -> None:
        """Let a slot's counts be those of `tokens`, int64 [n]."""
        self._changed[slot] = tokens

    def flush(self) -> int:
        """Bring the tensor up to date; returns the number of elements copied."""
        copied = 0
        for slot, tokens in self._changed.items():
            counts = self.tensor[slot].zero_()
            there = torch.empty(tokens.shape, dtype=tokens.dtype, device=counts.device)
            copied += copy(there, tokens)
            counts.index_add_(0, there, torch.ones_like(there, dtype=counts.dtype))
        self._changed.clear()
        return copied


class PackedLists:
    """A 1-D tensor that holds a list of each slot, one after another; or their running sums, after a 0.

    An operator finds a row's entries between two neighbouring offsets, so there are no gaps, and what follows a list
    that grows has to move. Of what has moved, what differs from what was there is copied.
    """

    def __init__(self, lists: Sequence[Tensor], size: int, device: torch.device, *, sums: bool = False) -> None:
        """
        lists: what each slot holds at first; all of its entries are 0. size: the length that the tensor may reach.
        sums: whether it holds the running sums, which begin with a 0.
        """
        self.tensor = torch.zeros(size, dtype=lists[0].dtype, device=device)
        self._held = torch.zeros(size, dtype=lists[0].dtype)  # what the tensor holds
        self._lists = list(lists)
        self._lengths = [len(entries) for entries in lists]
        self._sums = sums
        self._changed: set[int] = set()
        self._held_entries = sum(self._lengths)  # of all slots, at the last flush

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.tensor,)

    def put(self, slot: int, entries: Tensor) -> None:
        """Replace a slot's list."""
        length = len(entries)
        if length == self._lengths[slot] and torch.equal(entries, self._lists[slot]):
            return
        self._changed.add(slot)
        self._lists[slot], self._lengths[slot] = entries, length

    def entries_of_others(self, slot: int) -> int:
        """How many entries all slots but one have."""
        return sum(self._lengths) - self._lengths[slot]

    def flush(self) -> int:
        """Bring the tensor up to date; returns the number of elements copied."""
        if not self._changed:
            return 0
        first, last = min(self._changed), max(self._changed)
        held_entries = sum(self._lengths)
        moved = self._sums or held_entries != self._held_entries
        packed = torch.cat(self._lists[first : None if moved else last + 1])
        begin = sum(self._lengths[:first])
        if self._sums:
            packed = self._held[begin] + packed.cumsum(0)
            begin += 1
        held = self._held[begin : begin + len(packed)]
        differ = (held != packed).nonzero()
        copied = 0
        if len(differ) > 0:
            part = slice(int(differ[0]), int(differ[-1]) + 1)
            copied = copy(self.tensor[begin : begin + len(packed)][part], packed[part])
            held[part] = packed[part]
        self._held_entries = held_entries
        self._changed.clear()
        return copied

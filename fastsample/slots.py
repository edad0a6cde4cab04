"""What a `Sampler` keeps on its device: tensors of fixed size, into which the host copies what has changed.

Nothing is copied when a value is put, only by `flush`, which says how many elements it has copied. A copy to a GPU
does not wait for it: it is made from pinned memory that torch hands out anew only once the copy has ended, so that
values may change again at once.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

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
            self._cleared.add(slot)
            self._changed[slot] = None

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
    """The 1-D tensors that hold a list of each slot, one after another.

    An operator finds a row's entries between two neighbouring offsets, so there are no gaps, and what follows a list
    that grows has to move: all are packed anew on the host, and of each tensor the part that differs is copied.
    """

    def __init__(
        self,
        pack: Callable[[list[Any]], tuple[Any, ...]],
        slots: int,
        sizes: Sequence[tuple[int, torch.dtype]],
        device: torch.device,
    ) -> None:
        """
        pack: makes tensors of one list, or None, a slot. slots: how many. sizes: the length that each tensor may reach
        and its dtype; all zeros have to be what is packed of lists without entries.
        """
        self.tensors = tuple(torch.zeros(size, dtype=dtype, device=device) for size, dtype in sizes)
        self._held = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
        self._pack = pack
        self._lists: list[Any] = [None] * slots
        self._changed = False

    def put(self, slot: int, entries: Any) -> None:
        """Replace a slot's list; `entries` is what `pack` takes, and nothing where it is empty."""
        entries = entries or None
        self._changed |= entries != self._lists[slot]
        self._lists[slot] = entries

    def flush(self) -> int:
        """Bring the tensors up to date; returns the number of elements copied."""
        if not self._changed:
            return 0
        copied = 0
        # Not strict: what BadWords says last is no tensor.
        for tensor, held, packed in zip(self.tensors, self._held, self._pack(self._lists), strict=False):
            differ = (held[: len(packed)] != packed).nonzero()
            if len(differ) > 0:
                changed = slice(int(differ[0]), int(differ[-1]) + 1)
                held[changed] = packed[changed]
                copied += copy(tensor[changed], packed[changed])
        self._changed = False
        return copied

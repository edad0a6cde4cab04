"""The logits that are sampled from on the GPU: the kinds of rows of rows.py, made there and rotated past its cache."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample.benchmarks import rows
from fastsample.benchmarks.timing import rotation

# How many times the second-level cache the inputs of a setting take together, at least.
ROTATED_CACHES = 3
_ROWS_AT_ONCE = 64


def real_rows(source: Tensor, count: int, vocab: int) -> Tensor:
    """Rows out of a model's, as `rows.RealLogits.make` makes them on the host.

    Args:
        source: [rows, vocabulary] of the model, float32, where the rows are to be made.
        count, vocab: how many, of how many tokens.
    """
    made = torch.empty(count, vocab, device=source.device)
    place = torch.arange(vocab, device=source.device)
    for first in range(0, count, _ROWS_AT_ONCE):
        row = torch.arange(first, min(first + _ROWS_AT_ONCE, count), device=source.device)[:, None]
        before = (place - row * 7919) % vocab  # where a token was before its row was rotated
        piece = (row + before // source.shape[1]) % len(source)
        made[first : first + len(row)] = source[piece, before % source.shape[1]]
    return made


class Inputs:
    """Keeps what it makes, as long as the memory allows: the next setting often needs the same rows.

    Args:
        device: where they are made.
        cache_bytes: of the device's second-level cache.
    """

    def __init__(self, device: torch.device, cache_bytes: int) -> None:
        self.device = device
        self.rotated_bytes = ROTATED_CACHES * cache_bytes
        self.real = rows.RealLogits([rows.REAL_LOGITS] if rows.REAL_LOGITS.exists() else [])
        self.made: dict[tuple[str, int, str], Tensor] = {}

    def batches(self, kind: str, vocab: int, batch: int, dtype: str, rows_kept: int = 0) -> list[Tensor]:
        """Different batches [batch, vocab] that together take more than the cache.

        Args:
            kind, vocab, batch, dtype: what is wanted; `kind` as in `rows.check_kind`.
            rows_kept: make at least so many rows, because a setting to come will want them.
        """
        size = getattr(torch, dtype).itemsize
        wanted = rotation(batch * vocab * size, self.rotated_bytes)
        key = (kind, vocab, dtype)
        if key not in self.made or len(self.made[key]) < wanted * batch:
            # 16-bit rows need the most of them, and are made of these.
            count = max(wanted * batch, rows_kept, -(-self.rotated_bytes // (2 * vocab)))
            self.made.pop(key, None)
            self._make_room(count * vocab * 6)
            self.made[key] = self._make(kind, count, vocab, dtype)
        return list(self.made[key][: wanted * batch].split(batch))

    def describe(self, vocab: int) -> str:
        """How the real rows of this vocabulary are made, in words."""
        return self.real.describe(vocab)

    def _make(self, kind: str, count: int, vocab: int, dtype: str) -> Tensor:
        if dtype != "float32":
            whole = self.made.get((kind, vocab, "float32"))
            if whole is None or len(whole) < count:
                whole = self._make(kind, count, vocab, "float32")
            return whole[:count].to(getattr(torch, dtype))
        if kind == "real":
            return real_rows(self._source(vocab), count, vocab)
        return rows.make(kind, count, vocab, self.real, self.device).to(self.device)

    def _source(self, vocab: int) -> Tensor:
        return torch.from_numpy(self.real.source(vocab)[1]).to(self.device)

    def _make_room(self, needed: int) -> None:
        if self.device.type == "cuda" and torch.cuda.mem_get_info(self.device)[0] < 4 * needed:
            self.made.clear()
            torch.cuda.empty_cache()

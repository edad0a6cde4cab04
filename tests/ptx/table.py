"""What our kernels do for a row, counted, at the points that tests/data/ptx_counts.json keeps.

A test fails when a count has changed, for better or worse: then look why, and write the file again, in tests/, with

    PYTHONPATH=../csrc:.. python -m ptx.table

`rows_read` is what is read of the logits, in sectors of 32 bytes, as a multiple of the row. `instructions` are those of
all threads per token of the row, in PTX, without moves and loads of parameters, of which ptxas leaves few;
`issue_slots` are the same with the lanes that stand idle in a warp that is at work. `wavefronts` of shared memory,
`remote_sectors` (32 bytes to or from another block's shared memory) and `atomic_turns` are those of the whole row
(counters.py says what they are). `edit_bytes_read`, of a request, are those of its mask and edits per token of the row:
a bitmask is an eighth of a byte, and counted twice, since a warp's vector needs half a sector of it; the other half is
in the cache. Shape and rows_read have to stay as they are; the rest, which another version of nvcc
may change a little, within MAY_DIFFER.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import nvcc
from fastsample.arguments import Edits, Filters, Randomness

from .compilation import ROOT
from .counters import SECTOR, Counts
from .requests import FullCall
from .work import Call, Gpu, Shape

FILE = ROOT / "tests/data/ptx_counts.json"
MAY_DIFFER = 0.02

PLAIN = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)
FILTERS = {
    "greedy": PLAIN._replace(temperature=0.0),
    "plain": PLAIN,
    "T .8, k 50, p .9": PLAIN._replace(temperature=0.8, top_k=50, top_p=0.9),
    "k 50": PLAIN._replace(top_k=50),
    "p .9": PLAIN._replace(top_p=0.9),
    "min_p .05": PLAIN._replace(min_p=0.05),
}
SEEDED = Randomness(1234, None, 5, None, 0, None, True)


# What a request brings in: its edits of a vocabulary, and what is to be said of its draw.
@dataclass(frozen=True)
class Request:
    allowed: bool = False  # half of the tokens, as a grammar's mask
    edits: int = 0  # so many tokens, anywhere
    asked: tuple[tuple[str, int], ...] = ()
    top_of_processed: bool = False

    def edits_of(self, vocab: int) -> Edits:
        random = torch.Generator().manual_seed(1)
        words = (vocab + 31) // 32
        allowed = torch.randint(-(2**31), 2**31, (1, words), generator=random, dtype=torch.int32)
        if not self.edits:
            return Edits(allowed if self.allowed else None)
        edited = torch.zeros(words * 32, dtype=torch.bool)
        edited[torch.randperm(vocab, generator=random)[: self.edits]] = True
        by_word = edited.view(words, 32)
        bits = (by_word.long() << torch.arange(32)).sum(dim=1).to(torch.int32)[None]
        of_word = by_word.sum(dim=1)
        before = (of_word.cumsum(dim=0) - of_word).to(torch.int32)[None]
        values = torch.randn(1, self.edits, generator=random)
        return Edits(allowed if self.allowed else None, bits, before, values)


REQUESTS = {
    "nothing of a request": Request(),
    "a mask": Request(allowed=True),
    "500 edits": Request(edits=500),
    "a mask, 500 edits": Request(allowed=True, edits=500),
    "logprobs": Request(asked=(("logprobs", 1),)),
    "500 edits, raw_logprobs, ranks, top 20": Request(
        edits=500, asked=(("raw_logprobs", 1), ("ranks", 1), ("top_tokens", 20), ("top_logprobs", 20))
    ),
    "numbers": Request(asked=(("numbers", 8),)),
    "logprobs, top 20 processed": Request(
        asked=(("logprobs", 1), ("top_tokens", 20), ("top_logprobs", 20)), top_of_processed=True
    ),
}


@dataclass(frozen=True)
class Point:
    """One row of a batch of `batch`, for which the launch table chooses the shape.

    request: of REQUESTS, for a call of sample_full; None for one of sample.
    """

    filters: str
    logits: str = "N(0, 3)"
    dtype: torch.dtype = torch.float32
    vocab: int = 128256
    batch: int = 64
    capability: int = 90
    request: str | None = None

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        request = f"; {self.request}" if self.request else ""
        return f"{self.filters}; {self.logits}; {dtype} {self.vocab}; batch {self.batch}; sm_{self.capability}{request}"

    @property
    def gpu(self) -> Gpu:
        return Gpu(self.capability)

    @property
    def call(self) -> Call:
        return Call(row(self.logits, self.vocab).to(self.dtype)[None], FILTERS[self.filters], SEEDED)

    @property
    def full_call(self) -> FullCall:
        """What a point with a request is a call of."""
        assert self.request is not None
        request, call = REQUESTS[self.request], self.call
        return FullCall(
            call.logits, call.filters, SEEDED, request.edits_of(self.vocab), request.asked, request.top_of_processed
        )

    @property
    def shape(self) -> Shape:
        # On the chip a request's row is float32.
        call = self.call if self.request is None else replace(self.call, logits=self.call.logits.float())
        return self.gpu.shape(call, self.batch)

    def count(self) -> Counts:
        """What the kernel does."""
        if self.request is None:
            return self.gpu.run(self.call, self.shape)[1]
        return self.full_call.run(self.gpu, self.shape)[2]


@functools.cache
def row(name: str, vocab: int) -> Tensor:
    if name == "a model's":
        return torch.from_numpy(np.load(ROOT / "tests/data/real_logits.npz")["logits"][0]).float()
    return torch.randn(vocab, generator=torch.Generator().manual_seed(0)) * {"N(0, 1)": 1.0, "N(0, 3)": 3.0}[name]


_MAIN = "T .8, k 50, p .9"
POINTS = (
    Point(_MAIN),
    Point(_MAIN, dtype=torch.bfloat16),
    Point(_MAIN, dtype=torch.float16),
    Point(_MAIN, vocab=262144),
    Point(_MAIN, batch=1),
    Point(_MAIN, capability=75),
    Point(_MAIN, capability=75, batch=1),
    Point("greedy"),
    Point("plain"),
    Point("k 50"),
    Point("min_p .05"),
    Point("p .9"),
    Point("p .9", logits="N(0, 1)"),
    Point("p .9", dtype=torch.bfloat16),
    Point("p .9", logits="a model's", vocab=49152),
    *(Point(_MAIN, request=request) for request in REQUESTS),
    Point(_MAIN, request="a mask, 500 edits", dtype=torch.bfloat16),
    Point(_MAIN, request="a mask", capability=75),
    Point("plain", request="logprobs"),
)


def _worth_counting(instructions: Counter[str]) -> int:
    return sum(count for name, count in instructions.items() if name not in ("move", "parameter"))


def entry(point: Point, counts: Counts) -> dict[str, Any]:
    """A point as the file has it."""
    row_bytes = point.vocab * point.dtype.itemsize
    edits = {}
    if point.request:
        read = sum(counts.sectors_read[name] for name in ("allowed", "bits", "before", "values")) * SECTOR
        edits["edit_bytes_read"] = round(read / point.vocab, 4)
    return edits | {
        "shape": str(point.shape),
        "instructions": round(_worth_counting(counts.thread_instructions) / point.vocab, 2),
        "issue_slots": round(32 * _worth_counting(counts.warp_instructions) / point.vocab, 2),
        "rows_read": round(counts.sectors_read["logits"] * SECTOR / row_bytes, 4),
        "wavefronts": counts.shared_wavefronts,
        "remote_sectors": counts.remote_sectors,
        "atomic_turns": sum(counts.atomic_turns.values()),
    }


def main() -> None:
    points = {}
    for point in POINTS:
        points[str(point)] = entry(point, point.count())
        print(point, points[str(point)])
    table = {"nvcc": nvcc.find_nvcc().version, "points": points}
    FILE.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()

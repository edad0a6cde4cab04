"""The logits that the benchmark samples from: normals, a real model's rows, and rows made to hurt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

REAL_LOGITS = Path(__file__).resolve().parents[1] / "tests" / "data" / "real_logits.npz"
NO_REAL_LOGITS = f"{REAL_LOGITS.name} is part of the source tree, not of an installed package; give --real-logits FILE"
HURT = (
    "ascending",
    "descending",
    "equal",
    "two-values",
    "sawtooth-16",
    "sawtooth-257",
    "sawtooth-4096",
    "huge-12",
    "huge-1000",
)
_SEED = 20240607
_CPU = torch.device("cpu")


class NoRowsError(Exception):
    """These rows cannot be made here; the message says why."""


class RealLogits:
    """Rows of real models out of .npz files with an array `logits` [rows, vocab].

    A vocabulary that a file has is served by its rows. For another, rows of the next larger vocabulary are cut, or else
    rows of the first file set end to end; these are no rows of a real model, and `describe` says so.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.arrays: dict[int, tuple[Path, np.ndarray]] = {}
        for file in self.files:
            if not file.exists():
                raise NoRowsError(
                    f"{file.name} is not there: the real logits are part of the source tree, not of wheels"
                )
            with np.load(file) as archive:
                logits = archive["logits"].astype(np.float32)
            self.arrays.setdefault(logits.shape[1], (file, logits))

    def describe(self, vocab: int) -> str:
        """How the rows of this vocabulary are made, in words."""
        file, logits = self.source(vocab)
        rows, size = logits.shape
        made = f"the {rows} rows of {file.name}"
        if size != vocab:
            cut = "cut" if size > vocab else "set end to end and cut"
            made += f" (vocabulary {size}) {cut} to {vocab} tokens, and so no longer a model's rows"
        return f"{made}; each repetition rotated by another amount"

    def make(self, rows: int, vocab: int) -> Tensor:
        source = self.source(vocab)[1]
        pieces = -(-vocab // source.shape[1])
        made = torch.empty(rows, vocab)
        for row in range(rows):
            # Neighbours in the file are of different texts. Whole rows come round again, so each is rotated.
            parts = [source[(row + piece) % len(source)] for piece in range(pieces)]
            whole = np.concatenate(parts)[:vocab]
            made[row] = torch.from_numpy(np.roll(whole, row * 7919))
        return made

    def source(self, vocab: int) -> tuple[Path, np.ndarray]:
        """The file that serves this vocabulary, and its rows."""
        if not self.arrays:
            raise NoRowsError(NO_REAL_LOGITS)
        large_enough = [size for size in self.arrays if size >= vocab]
        return self.arrays[min(large_enough) if large_enough else next(iter(self.arrays))]


def check_kind(kind: str) -> str:
    """Returns `kind`; raises ValueError unless `make` knows it."""
    if kind in ("real", *HURT) or re.fullmatch(r"(normal|gumbel)-\d*\.?\d+|(sawtooth|huge)-\d+", kind):
        return kind
    raise ValueError(
        f"rows: got {kind!r}; accepted: real, normal-S (standard deviation S), gumbel-B (log(e) / B, e exponential: "
        "a Gumbel variable with its sign changed, as FlashInfer's benchmark makes it), "
        "sawtooth-P (period P), huge-H (one logit of H, the rest 0), ascending, descending, equal, two-values"
    )


def label(kind: str) -> str:
    """The name in tables."""
    name, _, number = kind.partition("-")
    if name == "normal":
        return f"N(0,{number})"
    if name == "huge":
        return f"one {number}, rest 0"
    return {"real": "real logits", "equal": "all equal"}.get(kind, kind.replace("-", " "))


def make(kind: str, rows: int, vocab: int, real: RealLogits, device: torch.device = _CPU) -> Tensor:
    """Logits of one kind.

    Args:
        kind: see `check_kind`.
        rows: how many; random rows all differ, those made to hurt are all alike.
        vocab: tokens in a row.
        real: where the real rows come from.
        device: where random rows are made, each device its own; the others are made on the CPU.

    Returns:
        float32 [rows, vocab], contiguous.
    """
    check_kind(kind)
    name, _, number = kind.partition("-")
    generator = torch.Generator(device).manual_seed(_SEED)
    if kind == "real":
        return real.make(rows, vocab)
    if name == "normal":
        return torch.randn(rows, vocab, generator=generator, device=device).mul_(float(number))
    if name == "gumbel":
        return torch.empty(rows, vocab, device=device).exponential_(generator=generator).log_().div_(float(number))
    place = torch.arange(vocab)
    rising = place / vocab * 20  # from 0 to 20: as far as the logits of a model reach, every value but a few distinct
    row = {
        "ascending": lambda: rising,
        "descending": lambda: -rising,
        "equal": lambda: torch.zeros(vocab),
        "two-values": lambda: (place % 2).float(),
        "sawtooth": lambda: (place % int(number)) / int(number) * 20,
        "huge": lambda: torch.where(place == vocab // 2, float(number), 0.0),
    }[kind if kind == "two-values" else name]()
    return row.float().repeat(rows, 1)

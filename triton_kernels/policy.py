"""How a call is divided over a GPU: the shape of its kernels. No result depends on it.

Chosen by capacity and by the compiler's register counts; no GPU has run it yet. `tuning.py` measures alternatives on
request, and `choose` then takes the fastest.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import tuning, work

_MOST_CHUNKS = 4096
_SMALLEST_CHUNK = 64
# A float32 row of 4096 tokens takes 16 registers of each of 256 threads, and what is computed of it twice as many.
_RESIDENT_BYTES = 16 << 10
_BLOCK = 2048
_TOKENS_PER_THREAD = 8
_LIST = 4096
_SHORT_LIST = 1024
_PIVOTS = 8
_TOKENS_PER_PART = 8192
_WAVES = 2  # programs for each multiprocessor, where there are too few rows


class Division(NamedTuple):
    """How rows are divided among programs, and programs among threads.

    Attributes:
        chunk: tokens that share one maximum and one sum; a power of two.
        block: tokens that a program has in hand at a time; a power of two, at least `chunk`.
        list: room for the candidates of a row; a power of two.
        pivots: ranks at which one read of a row measures; a power of two, at least 2.
        resident: whether a row is loaded once; `block` then holds it whole, and parts is 1.
        parts: programs that share the reads of a row; more than 1 takes launches of their own.
        warps: of a program.
    """

    chunk: int
    block: int
    list: int
    pivots: int
    resident: bool
    parts: int
    warps: int


def choose(vocab: int, rows: int, bytes_per_token: int, largest_k: int, device: torch.device) -> Division:
    """The division of a call.

    Args:
        vocab: tokens of a row.
        rows: output rows.
        bytes_per_token: 4 or 2.
        largest_k: the largest top_k there can be among the rows; 0 where there is none.
        device: where it is to run.
    """
    if _forced is not None:
        return _forced
    tuned = tuning.remembered(vocab, rows, bytes_per_token, largest_k, device)
    return tuned or by_default(vocab, rows, bytes_per_token, largest_k, multiprocessors_of(device))


@functools.lru_cache(maxsize=1024)
def by_default(vocab: int, rows: int, bytes_per_token: int, largest_k: int, multiprocessors: int) -> Division:
    """What `choose` takes where nothing was measured: a function of its arguments alone."""
    chunk = max(_SMALLEST_CHUNK, triton.next_power_of_2(-(-vocab // _MOST_CHUNKS)))
    candidates = _SHORT_LIST if 0 < 2 * largest_k <= _SHORT_LIST else _LIST
    length = triton.next_power_of_2(max(vocab, chunk))
    resident = length * bytes_per_token <= _RESIDENT_BYTES
    block = length if resident else max(_BLOCK, chunk)
    parts = 1 if resident else min(-(-vocab // _TOKENS_PER_PART), max(1, _WAVES * multiprocessors // rows))
    warps = max(4, min(16, block // (32 * _TOKENS_PER_THREAD)))
    return Division(chunk, block, candidates, _PIVOTS, resident, parts, warps)


def parts_to_write(vocab: int, division: Division) -> int:
    """Programs a row of the kernels that write whole rows, which do nothing but read, compute and write."""
    return 1 if division.resident else -(-vocab // max(_TOKENS_PER_PART, division.block))


@functools.lru_cache(maxsize=1024)
def shape_of(division: Division, vocab: int, probabilities: bool) -> work.Shape:
    """What the kernels of a division are compiled for."""
    chunks = triton.next_power_of_2(-(-vocab // division.chunk))
    constants = (
        division.chunk, chunks, division.block, division.list, division.pivots, division.resident, division.parts > 1,
        probabilities,
    )  # fmt: skip
    return work.Shape(*(tl.constexpr(constant) for constant in constants))


@functools.cache
def multiprocessors_of(device: torch.device) -> int:
    """How many a GPU has; 1 for the CPU, on which the interpreter runs one program after the other."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


_forced: Division | None = None


@contextmanager
def forced(division: Division) -> Iterator[None]:
    """Have every call divided in one way, for this process; for tests and tuning."""
    global _forced
    before = _forced
    _forced = division
    try:
        yield
    finally:
        _forced = before

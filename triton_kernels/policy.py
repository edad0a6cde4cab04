"""How a call is divided over a GPU: the shape of its kernels. No result depends on it.

Chosen by capacity and by the compiler's register counts; no GPU has run it yet. `tuning.py` measures alternatives on
request, and `choose` then takes the fastest.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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
_RESIDENT_TOKENS_PER_THREAD = 16
# The bound lets through a few more than top_k, and of tied logits many more. Two sizes, since each is compiled for.
_SHORT_LIST, _LONG_LIST, _LARGEST_SHORT_K = 1024, 4096, 256
_SHORTEST_LIST = 256  # of rows that have no more tokens
_TOKENS_PER_PART = 4096
# Programs for each multiprocessor: the registers of `maximum_kernel` let 8 of 8 warps run, of the others 2 or 3.
_WAVES = 4


class Division(NamedTuple):
    """How rows are divided among programs, and programs among threads.

    Attributes:
        chunk: tokens that share one maximum and one sum; a power of two.
        block: tokens that a program has in hand at a time; a power of two, at least `chunk`.
        list: room for the candidates of a row; a power of two.
        resident: whether a row is loaded once, by one program; `block` then holds it whole.
        parts: programs that share each read of a row.
        warps: of a program.
    """

    chunk: int
    block: int
    list: int
    resident: bool
    parts: int
    warps: int


def choose(
    vocab: int, rows: int, bytes_per_token: int, largest_k: int, has_top_p: bool, device: torch.device
) -> Division:
    """The division of a call.

    Args:
        vocab: tokens of a row.
        rows: output rows.
        bytes_per_token: 4 or 2.
        largest_k: the largest top_k there can be among the rows; 0 where there is none.
        has_top_p: whether there can be rows with top_p.
        device: where it is to run.
    """
    if (division := _forced.get()) is not None:
        return division
    default = by_default(vocab, rows, bytes_per_token, largest_k, multiprocessors_of(device))
    tuned = tuning.remembered(vocab, rows, bytes_per_token, largest_k, has_top_p, device)
    if tuned is None:
        return default
    division = tuned._replace(list=default.list)
    return division if is_possible(division, vocab) else default


def is_possible(division: Division, vocab: int) -> bool:
    """Whether the kernels can run so: a file may say anything."""
    sizes = (division.chunk, division.block, division.list, division.warps)
    return (
        all(type(size) is int and size > 0 and size & (size - 1) == 0 for size in sizes)
        and type(division.parts) is int
        and division.parts >= 1
        and max(64, division.chunk) <= division.block <= 1 << 16
        and vocab <= division.chunk * _MOST_CHUNKS
        and division.warps <= 16
        and (not division.resident or (vocab <= division.block and division.parts == 1))
    )


@functools.lru_cache(maxsize=1024)
def by_default(vocab: int, rows: int, bytes_per_token: int, largest_k: int, multiprocessors: int) -> Division:
    """What `choose` takes where nothing was measured: a function of its arguments alone."""
    chunk = max(_SMALLEST_CHUNK, triton.next_power_of_2(-(-vocab // _MOST_CHUNKS)))
    candidates = _SHORT_LIST if 0 < largest_k <= _LARGEST_SHORT_K else _LONG_LIST
    length = triton.next_power_of_2(max(vocab, chunk))
    candidates = min(candidates, max(_SHORTEST_LIST, length))
    if length * bytes_per_token <= _RESIDENT_BYTES:
        warps = max(4, length // (32 * _RESIDENT_TOKENS_PER_THREAD))
        return Division(chunk, length, candidates, True, 1, warps)
    block = max(_BLOCK, chunk)
    parts = min(-(-vocab // max(_TOKENS_PER_PART, block)), -(-_WAVES * multiprocessors // rows))
    warps = max(4, min(16, block // (32 * _TOKENS_PER_THREAD)))
    return Division(chunk, block, candidates, False, parts, warps)


def parts_to_write(vocab: int, division: Division) -> int:
    """Programs a row of the kernels that write whole rows, which do nothing but read, compute and write."""
    return 1 if division.resident else -(-vocab // max(_TOKENS_PER_PART, division.block))


def warps_for_the_list(division: Division) -> int:
    """Warps of the kernel that finishes a row: half as many candidates a thread take half as many registers."""
    return max(division.warps, min(16, division.list // 256))


@functools.lru_cache(maxsize=1024)
def shape_of(division: Division, vocab: int, probabilities: bool, edited: bool) -> work.Shape:
    """What the kernels of a division are compiled for."""
    chunks = triton.next_power_of_2(-(-vocab // division.chunk))
    constants = (division.chunk, chunks, division.block, division.list, division.resident, probabilities, edited)
    return work.Shape(*(tl.constexpr(constant) for constant in constants))


@functools.cache
def multiprocessors_of(device: torch.device) -> int:
    """How many a GPU has; 1 for the CPU, on which the interpreter runs one program after the other."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


_forced: ContextVar[Division | None] = ContextVar("_forced", default=None)


@contextmanager
def forced(division: Division) -> Iterator[None]:
    """Have every call of this context divided in one way; for tests and tuning."""
    before = _forced.get()
    try:
        _forced.set(division)
        yield
    finally:
        _forced.set(before)

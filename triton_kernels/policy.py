"""How a call is divided over a GPU: the shape of its kernels. No result depends on it.

Chosen by capacity and by counting; no GPU has run it yet. `tuning.py` measures a few alternatives where that is asked for.
"""

from typing import NamedTuple

import torch
import triton

_MOST_CHUNKS = 4096
_SMALLEST_CHUNK = 64
# A program has at most 64 K registers on every GPU; a float32 row of 32768 tokens takes half of them.
_RESIDENT_BYTES = 128 << 10
_BLOCK = 4096
_TOKENS_PER_THREAD = 16
_RESIDENT_TOKENS_PER_THREAD = 32
_LIST = 4096
_SHORT_LIST = 1024
_PIVOTS = 8
TOKENS_PER_PART = 8192
_WAVES = 2  # programs for each multiprocessor, where there are too few rows


class Division(NamedTuple):
    """How rows are divided among programs, and programs among threads.

    Attributes:
        chunk: tokens that share one maximum and one sum; a power of two.
        chunks: room for a row's chunks; a power of two.
        block: tokens that a program has in hand at a time; a power of two, a multiple of `chunk`.
        list: room for the candidates of a row; a power of two.
        pivots: ranks at which one read of a row measures; a power of two, at least 2.
        resident: whether a row is loaded once; `block` then holds it whole.
        parts: programs that share the reads of a row; more than 1 takes launches of their own.
        warps: of a program.
    """

    chunk: int
    chunks: int
    block: int
    list: int
    pivots: int
    resident: bool
    parts: int
    warps: int


def choose(vocab: int, rows: int, bytes_per_token: int, largest_k: int, multiprocessors: int) -> Division:
    """The division of a call.

    Args:
        vocab: tokens of a row.
        rows: output rows.
        bytes_per_token: 4 or 2.
        largest_k: the largest top_k there can be among the rows; 0 where there is none.
        multiprocessors: of the GPU.
    """
    chunk = max(_SMALLEST_CHUNK, triton.next_power_of_2(-(-vocab // _MOST_CHUNKS)))
    chunks = triton.next_power_of_2(-(-vocab // chunk))
    length = chunks * chunk
    candidates = _SHORT_LIST if 0 < 2 * largest_k <= _SHORT_LIST else _LIST
    if length * bytes_per_token <= _RESIDENT_BYTES:
        warps = min(32, max(4, length // (32 * _RESIDENT_TOKENS_PER_THREAD)))
        return Division(chunk, chunks, length, candidates, _PIVOTS, True, 1, warps)
    block = max(_BLOCK, chunk)
    parts = min(-(-vocab // TOKENS_PER_PART), max(1, _WAVES * multiprocessors // rows))
    warps = max(4, min(16, block // (32 * _TOKENS_PER_THREAD)))
    return Division(chunk, chunks, block, candidates, _PIVOTS, False, parts, warps)


def multiprocessors_of(device: torch.device) -> int:
    """How many a GPU has; for the interpreter, which runs one program after the other, 1."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count

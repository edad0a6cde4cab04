"""Calls of sample_full on a simulated GPU; the structures are those of csrc/requests.h, byte for byte."""

from __future__ import annotations

import ctypes
import re
from ctypes import c_bool, c_int64, c_uint64
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsample.arguments import Details, Edits, Filters, Randomness

from . import compilation
from .counters import Counts
from .machine import Machine
from .memory import Buffer, Memory
from .program import Grid
from .work import Batch, BatchFilters, BatchRandomness, Call, Gpu, Shape, TokenMatrix, put, work_of, workspace


class RowsOf(ctypes.Structure):
    _fields_ = (("data", c_uint64), ("row_stride", c_int64), ("stride", c_int64), ("columns", c_int64))


class RowIndices(ctypes.Structure):
    _fields_ = (("data", c_uint64), ("stride", c_int64))


class EditsOf(ctypes.Structure):
    _fields_ = (
        ("allowed", RowsOf),
        ("bits", c_uint64),
        ("before", c_uint64),
        ("values", c_uint64),
        ("words", c_int64),
        ("capacity", c_int64),
    )


class HistoryOf(ctypes.Structure):
    _fields_ = (("tokens", RowsOf), ("lengths", c_uint64), ("lengths_stride", c_int64), ("counts", RowsOf))


class DetailsOf(ctypes.Structure):
    _fields_ = (*((name, RowsOf) for name in Details._fields[:-1]), ("top_of_processed", c_bool))


class SampleFull(ctypes.Structure):
    _fields_ = (
        ("batch", Batch),
        ("indices", RowIndices),
        ("filters", BatchFilters),
        ("randomness", BatchRandomness),
        ("replacement", c_bool),
        ("tokens", TokenMatrix),
        ("edits", EditsOf),
        ("history", HistoryOf),
        ("details", DetailsOf),
    )


STRUCTURES = (RowsOf, RowIndices, EditsOf, HistoryOf, DetailsOf, SampleFull)

_DTYPES = {"ranks": torch.int64, "top_tokens": torch.int64, "numbers": torch.int64}


@dataclass(frozen=True)
class FullCall:
    """A call of sample_full.

    asked: the fields of `Details` to write, and with how many columns.
    """

    logits: Tensor
    filters: Filters
    randomness: Randomness
    edits: Edits = field(default_factory=Edits)
    asked: tuple[tuple[str, int], ...] = ()
    top_of_processed: bool = False

    def run(self, gpu: Gpu, shape: Shape) -> tuple[Tensor, dict[str, Tensor], Counts]:
        """The tokens, what is said of them by name, and what the kernel did."""
        memory = Memory()
        module = compilation.module(compilation.ROOT / "csrc/cuda/kernels_sample_full.cu", gpu.capability)
        machine = Machine(module, memory, gpu.checks, reverse=gpu.reverse, counting=gpu.counting)
        plain = Call(self.logits, self.filters, self.randomness)
        work = work_of(memory, plain)
        rows, vocab = self.logits.shape
        tokens = memory.add("tokens", 8 * rows, writable=True)
        places = {
            name: memory.add(name, rows * columns * _dtype(name).itemsize, writable=True)
            for name, columns in self.asked
        }
        columns = dict(self.asked)
        details = {name: RowsOf(buffer.address, columns[name], 1, columns[name]) for name, buffer in places.items()}
        call = SampleFull(
            batch=work.batch,
            filters=work.filters,
            randomness=work.randomness,
            replacement=True,
            tokens=TokenMatrix(tokens.address, rows, 1, 1, 1),
            edits=_edits(memory, self.edits, vocab),
            details=DetailsOf(**details, top_of_processed=self.top_of_processed),
        )
        arguments = [bytes(call), bytes(shape), bytes(workspace(memory, plain, shape))]
        (name,) = (name for name in module.names if re.search(rf"sample_full_kernelILb{int(shape.resident)}E", name))
        # On the chip every row is float32, the first of the dtypes.
        shared = compilation.host("shared", 0, vocab, shape.blocks, shape.threads) if shape.resident else 0
        grid = Grid(rows * shape.blocks, shape.threads, shape.blocks if shape.cluster else 1, shared)
        counts = machine.launch(name, grid, arguments)
        said = {name: _fetched(memory, buffer, _dtype(name), rows) for name, buffer in places.items()}
        return _fetched(memory, tokens, torch.int64, rows), said, counts


def _dtype(name: str) -> torch.dtype:
    return _DTYPES.get(name, torch.float32)


def _fetched(memory: Memory, buffer: Buffer, dtype: torch.dtype, rows: int) -> Tensor:
    return torch.from_numpy(memory.content(buffer)).view(dtype).view(rows, -1)


def _edits(memory: Memory, edits: Edits, vocab: int) -> EditsOf:
    fields = EditsOf(words=(vocab + 31) // 32)
    if edits.allowed is not None:
        mask = edits.allowed
        fields.allowed = RowsOf(put(memory, "allowed", mask), *mask.stride(), mask.shape[1])
    if edits.bits is not None and edits.before is not None and edits.values is not None:
        fields.bits, fields.before = put(memory, "bits", edits.bits), put(memory, "before", edits.before)
        fields.values, fields.capacity = put(memory, "values", edits.values), edits.values.shape[1]
    return fields

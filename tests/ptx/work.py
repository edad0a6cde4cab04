"""Calls of the CUDA kernels on a simulated GPU: torch tensors in, tensors and counts out.

The structures are those of csrc/batch.h and csrc/cuda/work.h, byte for byte (a test compares them with the compiler's).
"""

from __future__ import annotations

import ctypes
import re
from ctypes import c_bool, c_float, c_int32, c_int64, c_uint64
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fastsample.arguments import Filters, Randomness

from . import compilation
from .counters import Counts
from .machine import Checks, Machine
from .memory import Buffer, Memory
from .module import Module
from .program import Grid

DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of DType
OPERATIONS = ("sample", "filter_logits", "filtered_probs", "log_probs")  # in the order of Operation

_MULTIPROCESSORS = {75: 40, 90: 132}  # of a T4 and of an H200
_CODES = {torch.float32: "f", torch.float16: "NS0_7Float16E", torch.bfloat16: "NS0_8BFloat16E"}  # in mangled names

NO_RANDOMNESS = Randomness(0, None, 0, None, 0, None, False)


class PerRowFloat(ctypes.Structure):
    _fields_ = (("value", c_float), ("rows", c_uint64), ("stride", c_int64))


class PerRowInt64(ctypes.Structure):
    _fields_ = (("value", c_int64), ("rows", c_uint64), ("stride", c_int64))


class Batch(ctypes.Structure):
    _fields_ = (
        ("data", c_uint64),
        ("rows", c_int64),
        ("row_stride", c_int64),
        ("stride", c_int64),
        ("vocab", c_int64),
        ("dtype", c_int32),
    )


class BatchFilters(ctypes.Structure):
    _fields_ = (
        ("temperature", PerRowFloat),
        ("top_k", PerRowInt64),
        ("top_p", PerRowFloat),
        ("min_p", PerRowFloat),
        ("order", c_int64),
        ("probabilities", c_bool),
    )


class BatchRandomness(ctypes.Structure):
    _fields_ = (
        ("seed", PerRowInt64),
        ("offset", PerRowInt64),
        ("stream", PerRowInt64),
        ("stream_per_row", c_bool),
    )


class TokenMatrix(ctypes.Structure):
    _fields_ = (
        ("data", c_uint64),
        ("rows", c_int64),
        ("count", c_int64),
        ("row_stride", c_int64),
        ("stride", c_int64),
    )


class Work(ctypes.Structure):
    _fields_ = (
        ("operation", c_int32),
        ("batch", Batch),
        ("rows", c_int64),
        ("indices", c_uint64),
        ("indices_stride", c_int64),
        ("filters", BatchFilters),
        ("randomness", BatchRandomness),
        ("replacement", c_bool),
        ("tokens", TokenMatrix),
        ("wanted", TokenMatrix),
        ("out", c_uint64),
    )


class Shape(ctypes.Structure):
    _fields_ = (
        ("blocks", c_int32),
        ("threads", c_int32),
        ("cluster", c_bool),
        ("resident", c_bool),
        ("overlaps", c_bool),
    )

    def __str__(self) -> str:
        kind = "cluster of " if self.cluster else ""
        return f"{kind}{self.blocks} x {self.threads}, {'resident' if self.resident else 'read again'}"


class Workspace(ctypes.Structure):
    _fields_ = (("arrivals", c_uint64), ("maxima", c_uint64))


STRUCTURES = (PerRowFloat, PerRowInt64, Batch, BatchFilters, BatchRandomness, TokenMatrix, Work, Shape, Workspace)


@dataclass(frozen=True)
class Call:
    """A call of one of the operators, as `fastsample.ops` makes it.

    wanted: the tokens of log_probs. probabilities: the rows hold probabilities.
    """

    logits: Tensor
    filters: Filters
    randomness: Randomness = NO_RANDOMNESS
    operation: str = "sample"
    num_samples: int = 1
    replacement: bool = True
    indices: Tensor | None = None
    wanted: Tensor | None = None
    probabilities: bool = False

    @property
    def rows(self) -> int:
        return len(self.logits if self.indices is None else self.indices)


@dataclass(frozen=True)
class Gpu:
    """A simulated GPU for calls: its compute capability, and how it runs kernels (machine.py)."""

    capability: int = 90
    checks: Checks = field(default_factory=Checks)
    reverse: bool = False
    counting: bool = True

    def shape(self, call: Call, rows: int | None = None) -> Shape:
        """What the launch table says for a batch of `rows` such rows (those of the call, if not given)."""
        batch = rows or call.rows, call.logits.shape[1]
        device = self.capability, _MULTIPROCESSORS[self.capability]
        return Shape(*compilation.host("shape", *device, DTYPES.index(call.logits.dtype), *batch))

    def run(self, call: Call, shape: Shape | None = None) -> tuple[Tensor, Counts]:
        """The operator's result, and what the kernel did. The logits' buffer is called that in the counts."""
        shape = shape or self.shape(call)
        memory = Memory()
        module = _module(call.logits.dtype, self.capability)
        machine = Machine(module, memory, self.checks, reverse=self.reverse, counting=self.counting)
        work = work_of(memory, call)
        result = _result(memory, call, work)
        arguments = [bytes(work), bytes(shape), bytes(workspace(memory, call, shape))]
        (name,) = (
            name
            for name in module.names
            if re.search(rf"row_kernelI{_CODES[call.logits.dtype]}Lb{int(shape.resident)}E", name)
        )
        cluster = shape.blocks if shape.cluster else 1
        row = DTYPES.index(call.logits.dtype), call.logits.shape[1]
        shared = compilation.host("shared", *row, shape.blocks, shape.threads) if shape.resident else 0
        grid = Grid(call.rows * shape.blocks, shape.threads, cluster, shared)
        counts = machine.launch(name, grid, arguments)
        return _fetched(memory, result, call), counts


def _module(dtype: torch.dtype, capability: int) -> Module:
    name = str(dtype).removeprefix("torch.")
    return compilation.module(compilation.ROOT / f"csrc/cuda/kernels_{name}.cu", capability)


def put(memory: Memory, name: str, tensor: Tensor) -> int:
    """Copies what a tensor spans in its storage, its strides and alignment as they are; returns where it begins."""
    storage = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    last = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = begin + (last + 1) * size if tensor.numel() else begin
    return memory.add(name, storage[begin:end], misalign=begin % 256).address


def _rows(memory: Memory, name: str, value: float, rows: Tensor | None) -> tuple[float, int, int]:
    if rows is None:
        return value, 0, 0
    return value, put(memory, name, rows), rows.stride(0) if rows.dim() else 0


def work_of(memory: Memory, call: Call) -> Work:
    logits, filters, randomness = call.logits, call.filters, call.randomness
    batch = Batch(
        put(memory, "logits", logits),
        logits.shape[0],
        logits.stride(0) * logits.element_size(),
        logits.stride(1),
        logits.shape[1],
        DTYPES.index(logits.dtype),
    )
    work = Work(
        operation=OPERATIONS.index(call.operation),
        batch=batch,
        rows=call.rows,
        filters=BatchFilters(
            PerRowFloat(*_rows(memory, "temperature", filters.temperature, filters.temperature_rows)),
            PerRowInt64(*_rows(memory, "top_k", filters.top_k, filters.top_k_rows)),
            PerRowFloat(*_rows(memory, "top_p", filters.top_p, filters.top_p_rows)),
            PerRowFloat(*_rows(memory, "min_p", filters.min_p, filters.min_p_rows)),
            filters.order,
            call.probabilities,
        ),
        randomness=BatchRandomness(
            PerRowInt64(*_rows(memory, "seed", randomness.seed, randomness.seed_rows)),
            PerRowInt64(*_rows(memory, "offset", randomness.offset, randomness.offset_rows)),
            PerRowInt64(*_rows(memory, "stream", randomness.stream, randomness.stream_rows)),
            randomness.stream_per_row,
        ),
        replacement=call.replacement,
    )
    if call.indices is not None:
        work.indices, work.indices_stride = put(memory, "indices", call.indices), call.indices.stride(0)
    if call.wanted is not None:
        wanted = call.wanted
        work.wanted = TokenMatrix(put(memory, "wanted", wanted), *wanted.shape, *wanted.stride())
    return work


def _result(memory: Memory, call: Call, work: Work) -> Buffer:
    if call.operation == "sample":
        buffer = memory.add("tokens", 8 * call.rows * call.num_samples, writable=True)
        work.tokens = TokenMatrix(buffer.address, call.rows, call.num_samples, call.num_samples, 1)
        return buffer
    columns = call.wanted.shape[1] if call.wanted is not None else call.logits.shape[1]
    size = call.logits.element_size() if call.operation == "filter_logits" else 4
    buffer = memory.add("out", size * call.rows * columns, writable=True)
    work.out = buffer.address
    return buffer


def workspace(memory: Memory, call: Call, shape: Shape) -> Workspace:
    if shape.cluster or shape.blocks == 1:
        return Workspace(0, 0)
    arrivals = memory.add("arrivals", np.zeros(call.rows, np.uint32), writable=True)
    maxima = memory.add("maxima", 4 * call.rows * shape.blocks * shape.threads, writable=True)
    return Workspace(arrivals.address, maxima.address)


def _fetched(memory: Memory, buffer: Buffer, call: Call) -> Tensor:
    dtype = {"sample": torch.int64, "filter_logits": call.logits.dtype}.get(call.operation, torch.float32)
    return torch.from_numpy(memory.content(buffer)).view(dtype).view(call.rows, -1)

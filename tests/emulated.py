"""The CUDA kernels of csrc/cuda, run on the CPU by the emulator in tests/emulator, as operators on CPU tensors."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import emulator_builds
from fastsample import ops
from fastsample.arguments import Filters, Randomness

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# --- what csrc/cuda/work.h and tests/emulator/simt.h call the same


class Shape(NamedTuple):
    """How a row is divided: over how many blocks of how many threads."""

    blocks: int
    threads: int
    cluster: bool
    resident: bool
    overlaps: bool = False

    def __str__(self) -> str:
        kind = "cluster of " if self.cluster else ""
        return f"{kind}{self.blocks} x {self.threads}{' resident' if self.resident else ''}"


class Device(NamedTuple):
    """A GPU that a shape is chosen for."""

    capability: int
    multiprocessors: int


H200 = Device(90, 132)
A100 = Device(80, 108)

ORDERS = ("forward", "reverse", "random")


class Schedule(NamedTuple):
    """Which thread runs next where several could; the seed also makes what uninitialised memory holds."""

    order: str
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.order} {self.seed}"


FORWARD = Schedule("forward")


class PerRow(NamedTuple):
    value: float
    rows: int
    stride: int


class Batch(NamedTuple):
    data: int
    rows: int
    row_stride: int
    stride: int
    vocab: int
    dtype: int


class BatchFilters(NamedTuple):
    temperature: PerRow
    top_k: PerRow
    top_p: PerRow
    min_p: PerRow
    order: int
    probabilities: bool


class BatchRandomness(NamedTuple):
    seed: PerRow
    offset: PerRow
    stream: PerRow
    stream_per_row: bool


class Tokens(NamedTuple):
    data: int
    rows: int
    count: int
    row_stride: int
    stride: int


class Work(NamedTuple):
    """One call, as pointers: whoever makes it keeps the tensors."""

    operation: int
    batch: Batch
    rows: int
    indices: int
    indices_stride: int
    filters: BatchFilters
    randomness: BatchRandomness
    replacement: bool
    tokens: Tokens
    wanted: Tokens
    out: int


SAMPLE, FILTER_LOGITS, FILTERED_PROBS, LOG_PROBS = range(4)


# --- a call as the kernels take it


def _per_row(number: float, rows: Tensor | None, dtype: torch.dtype) -> PerRow:
    if rows is None:
        return PerRow(number, 0, 0)
    assert rows.dtype == dtype
    return PerRow(0, rows.data_ptr(), rows.stride(0) if rows.dim() else 0)


def _batch(logits: Tensor) -> Batch:
    rows, vocab = logits.shape
    row_stride, stride = logits.stride()
    element = logits.element_size()
    return Batch(logits.data_ptr(), rows, row_stride * element, stride, vocab, DTYPES.index(logits.dtype))


def _filters(filters: Filters, probabilities: bool) -> BatchFilters:
    return BatchFilters(
        _per_row(filters.temperature, filters.temperature_rows, torch.float32),
        _per_row(filters.top_k, filters.top_k_rows, torch.int64),
        _per_row(filters.top_p, filters.top_p_rows, torch.float32),
        _per_row(filters.min_p, filters.min_p_rows, torch.float32),
        filters.order,
        probabilities,
    )


def _randomness(randomness: Randomness) -> BatchRandomness:
    return BatchRandomness(
        _per_row(randomness.seed, randomness.seed_rows, torch.int64),
        _per_row(randomness.offset, randomness.offset_rows, torch.int64),
        _per_row(randomness.stream, randomness.stream_rows, torch.int64),
        randomness.stream_per_row,
    )


def _tokens(tokens: Tensor) -> Tokens:
    assert tokens.dtype == torch.int64
    return Tokens(tokens.data_ptr(), *tokens.shape, *tokens.stride())


NO_RANDOMNESS = Randomness(0, None, 0, None, 0, None, False)
NO_TOKENS = Tokens(0, 0, 0, 0, 0)


def sample_work(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> Work:
    """What the operator `sample` is called with, for the kernels."""
    replacement, probabilities = arguments[16:]
    return Work(
        SAMPLE,
        _batch(logits),
        out.shape[0],
        0 if indices is None else indices.data_ptr(),
        0 if indices is None else indices.stride(0),
        _filters(Filters(*arguments[:9]), probabilities),
        _randomness(Randomness(*arguments[9:16])),
        replacement,
        _tokens(out),
        NO_TOKENS,
        0,
    )


def transform_work(operation: int, out: Tensor, logits: Tensor, filters: Filters, wanted: Tokens = NO_TOKENS) -> Work:
    """What one of the operators that return rows is called with, for the kernels."""
    assert out.is_contiguous()
    return Work(
        operation,
        _batch(logits),
        logits.shape[0],
        0,
        0,
        _filters(filters, probabilities=False),
        _randomness(NO_RANDOMNESS),
        True,
        NO_TOKENS,
        wanted,
        out.data_ptr(),
    )


class Emulator:
    """One build of the emulator."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._module = emulator_builds.load(path)

    def choose_shape(self, work: Work, device: Device) -> Shape:
        return Shape(*self._module.choose_shape(work, device))

    def run(self, work: Work, shape: Shape, schedule: Schedule) -> None:
        """Raises RuntimeError, with the emulator's message, when the kernel does what it must not."""
        try:
            self._module.run(work, shape, (ORDERS.index(schedule.order), schedule.seed))
        except self._module.KernelError as error:
            raise RuntimeError(emulator_builds.with_lines(str(error), self.path)) from None


@functools.cache
def emulator(variant: str) -> Emulator:
    """The build of the kernels of this project; compiled, where it is out of date, once in a process."""
    return Emulator(emulator_builds.build(emulator_builds.KERNELS, variant))


def emulated_ops(
    shape: Shape | Device = H200, schedule: Schedule = FORWARD, machine: str | Emulator = "plain"
) -> ops.Ops:
    """The operators, run by the CUDA kernels on the emulator.

    shape: how to divide a row, or a device that the launch table chooses it for. machine: a build of the emulator, or
    the name of one that has the kernels of this project.
    """
    if isinstance(machine, str):
        machine = emulator(machine)

    def run(work: Work) -> None:
        machine.run(work, machine.choose_shape(work, shape) if isinstance(shape, Device) else shape, schedule)

    def sample(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> None:
        run(sample_work(out, logits, indices, *arguments))

    def filter_logits(logits: Tensor, *filters: Any) -> Tensor:
        out = torch.full(logits.shape, 12345.0, dtype=logits.dtype)
        run(transform_work(FILTER_LOGITS, out, logits, Filters(*filters)))
        return out

    def filtered_probs(logits: Tensor, *filters: Any) -> Tensor:
        out = torch.full(logits.shape, 12345.0)
        run(transform_work(FILTERED_PROBS, out, logits, Filters(*filters)))
        return out

    def log_probs(logits: Tensor, tokens: Tensor, *filters: Any) -> Tensor:
        out = torch.full(tokens.shape, 12345.0)
        run(transform_work(LOG_PROBS, out, logits, Filters(*filters), _tokens(tokens)))
        return out

    return ops.Ops(sample, filter_logits, filtered_probs, log_probs, ops.reference_only.draw_seed)

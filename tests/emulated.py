"""The CUDA kernels of csrc/cuda, run on the CPU by the emulator in tests/emulator, as operators on CPU tensors."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import emulator_builds
from fastsample import ops, reference
from fastsample.adjustments import Adjustments
from fastsample.arguments import NO_EDITS, NO_HISTORY, Details, Edits, Filters, History, Randomness
from fastsample.schemas import most_edits

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
    tokens = reference.by_draw(tokens)
    return Tokens(tokens.data_ptr(), *tokens.shape, *tokens.stride())


NO_RANDOMNESS = Randomness(0, None, 0, None, 0, None, False)
NO_TOKENS = Tokens(0, 0, 0, 0, 0)


def sample_work(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> Work:
    """What the operator `sample` is called with, for the kernels."""
    replacement, probabilities = arguments[16:18]
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


# --- the calls of csrc/requests.h, as lists of the fields of their structs and of theirs, in order


def _flat(*fields: Any) -> list[float]:
    """The numbers in nested tuples and lists."""
    numbers: list[float] = []
    for field in fields:
        numbers += _flat(*field) if isinstance(field, tuple | list) else [field]
    return numbers


def _pointer(tensor: Tensor | None, dtype: torch.dtype) -> int:
    if tensor is None:
        return 0
    assert tensor.dtype == dtype
    return tensor.data_ptr() or torch.zeros(1).data_ptr()


def _rows_of(matrix: Tensor | None, dtype: torch.dtype) -> tuple[int, ...]:
    if matrix is None:
        return 0, 0, 0, 0
    return _pointer(matrix, dtype), *matrix.stride(), matrix.shape[1]


def _vector(vector: Tensor | None, dtype: torch.dtype) -> tuple[int, int]:
    return _pointer(vector, dtype), 0 if vector is None else vector.stride(0)


def _edits(edits: Edits, vocab: int) -> tuple[Any, ...]:
    present = [tensor for tensor in edits[1:] if tensor is not None]
    assert len(present) in (0, 3)
    assert all(tensor.is_contiguous() for tensor in present)
    capacity = 0 if edits.values is None else edits.values.shape[1]
    pointers = (_pointer(tensor, dtype) for tensor, dtype in zip(edits[1:], _EDITS, strict=True))
    return _rows_of(edits.allowed, torch.int32), *pointers, (vocab + 31) // 32, capacity


def _history(history: History) -> tuple[Any, ...]:
    lengths = _vector(history.lengths, torch.int64)
    return _rows_of(history.tokens, torch.int64), lengths, _rows_of(history.counts, torch.int32)


_EDITS = (torch.int32, torch.int32, torch.float32)
_DETAILS = (torch.float32, torch.float32, torch.int64, torch.int64, torch.float32, torch.int64)


def sample_full_call(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> list[float]:
    """What the operator `sample_full` is called with, for the kernels."""
    details = Details(*arguments[24:31]).by_draw()
    return _flat(
        _batch(logits),
        _vector(indices, torch.int64),
        _filters(Filters(*arguments[:9]), probabilities=False),
        _randomness(Randomness(*arguments[9:16])),
        arguments[16],
        _tokens(out),
        _edits(Edits(*arguments[17:21]), logits.shape[1]),
        _history(History(*arguments[21:24])),
        [_rows_of(field, dtype) for field, dtype in zip(details[:6], _DETAILS, strict=True)],
        details.top_of_processed,
    )


def _lists(
    tokens: Tensor | None, offsets: Tensor | None, values_dtype: torch.dtype | None = None, values: Tensor | None = None
) -> tuple[Any, ...]:
    count, stride = (0, 0) if tokens is None else (tokens.shape[0], tokens.stride(0))
    lists = _pointer(tokens, torch.int64), count, stride, _vector(offsets, torch.int64)
    return lists if values_dtype is None else (*lists, _vector(values, values_dtype))


def _histories(tokens: Tensor | None, lengths: Tensor | None) -> tuple[Any, ...]:
    return _rows_of(tokens, torch.int64), _vector(lengths, torch.int64)


def _adjustments(a: Adjustments) -> tuple[Any, ...]:
    words = 0 if a.bad_word_offsets is None else a.bad_word_offsets.shape[0] - 1
    return (
        _per_row(a.repetition_penalty, a.repetition_penalty_rows, torch.float32),
        _per_row(a.presence_penalty, a.presence_penalty_rows, torch.float32),
        _per_row(a.frequency_penalty, a.frequency_penalty_rows, torch.float32),
        _histories(a.prompt_tokens, a.prompt_lengths),
        _histories(a.output_tokens, a.output_lengths),
        _rows_of(a.prompt_mask, torch.int32),
        _rows_of(a.output_counts, torch.int32),
        _lists(a.bias_tokens, a.bias_offsets, torch.float32, a.bias_values),
        _lists(a.bad_words, a.bad_word_offsets),
        words,
        _vector(a.bad_word_rows, torch.int64),
        a.bad_words_in_prompt,
        _per_row(a.min_tokens, a.min_tokens_rows, torch.int64),
        _lists(a.stop_tokens, a.stop_offsets),
        _rows_of(a.allowed, torch.int32),
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
        self.call("run", work, shape, schedule)

    def call(self, name: str, call: Work | list[float], shape: Shape | Device, schedule: Schedule) -> None:
        """One of the functions of the binding; raises as `run`."""
        try:
            getattr(self._module, name)(call, shape, (ORDERS.index(schedule.order), schedule.seed))
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
        if arguments[18:] and arguments[18] is not None:
            sample_full(out, logits, indices, *arguments[:17], *NO_EDITS, *NO_HISTORY, *Details(arguments[18]))
        else:
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

    def sample_full(out: Tensor, logits: Tensor, indices: Tensor | None, *arguments: Any) -> None:
        machine.call("sample_full", sample_full_call(out, logits, indices, *arguments), shape, schedule)

    def find_edits(logits: Tensor, indices: Tensor | None, rows: int, *adjustments: Any) -> tuple[Tensor, ...]:
        words, capacity = (logits.shape[1] + 31) // 32, most_edits(logits.shape[1], *adjustments)
        bits, before = (torch.full((rows, words), 12345, dtype=torch.int32) for _ in range(2))
        values, status = torch.full((rows, capacity), 12345.0), torch.full((rows,), 12345, dtype=torch.int32)
        found = [tensor.data_ptr() for tensor in (bits, before, values, status)]
        named = _adjustments(Adjustments(*adjustments))
        call = _flat(_batch(logits), _vector(indices, torch.int64), rows, named, found, words, capacity)
        machine.call("find_edits", call, shape, schedule)
        return bits, before, values, status

    def kept_tokens(logits: Tensor, indices: Tensor | None, *arguments: Any) -> Tensor:
        numbers, offsets, total = arguments[4:]
        out = torch.full((total,), 12345)
        call = _flat(
            _batch(logits),
            _vector(indices, torch.int64),
            numbers.shape[0],
            _edits(Edits(*arguments[:4]), logits.shape[1]),
            _rows_of(numbers, torch.int64),
            _vector(offsets, torch.int64),
            out.data_ptr(),
            total,
        )
        machine.call("kept_tokens", call, shape, schedule)
        return out

    def fixed_probs_at(logits: Tensor, indices: Tensor | None, tokens: Tensor, *arguments: Any) -> Tensor:
        out = torch.full(tokens.shape, 12345)
        call = _flat(
            _batch(logits),
            _vector(indices, torch.int64),
            _tokens(tokens),
            _filters(Filters(*arguments[:9]), arguments[9]),
            out.data_ptr(),
        )
        machine.call("fixed_probs_at", call, shape, schedule)
        return out

    def random_words(like: Tensor, rows: int, *arguments: Any) -> Tensor:
        first, count = arguments[7:]
        out = torch.full((rows, count), 12345)
        call = _flat(rows, _randomness(Randomness(*arguments[:7])), first, count, out.data_ptr())
        machine.call("random_words", call, shape, schedule)
        return out

    def sample_residual(out: Tensor, target: Tensor, target_indices: Tensor, *arguments: Any) -> None:
        draft, draft_indices = arguments[10:12]
        call = _flat(
            _batch(target),
            _vector(target_indices, torch.int64),
            _filters(Filters(*arguments[:9]), arguments[9]),
            _batch(draft),
            _vector(draft_indices, torch.int64),
            _filters(Filters(*arguments[12:21]), arguments[21]),
            _randomness(Randomness(*arguments[22:29])),
            _tokens(out),
        )
        machine.call("sample_residual", call, shape, schedule)

    return ops.reference_only._replace(
        sample=sample,
        filter_logits=filter_logits,
        filtered_probs=filtered_probs,
        log_probs=log_probs,
        find_edits=find_edits,
        sample_full=sample_full,
        kept_tokens=kept_tokens,
        fixed_probs_at=fixed_probs_at,
        random_words=random_words,
        sample_residual=sample_residual,
    )

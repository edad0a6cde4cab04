"""The operators on Triton: scratch memory from torch's allocator, and the launches, all on the current stream.

A call takes one launch where a row fits into a program, else two with top_k, three without, five with top_p alone; the
operators that return rows take one more. Nothing waits for the GPU, so a CUDA graph can capture it all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample import arguments, reference

from . import kernels, policy, work, write

# Probabilities may have more tokens than logits. Beyond, the tiles of a row's 4096 chunks no longer fit into registers.
_LARGEST_VOCAB = 2**24
# `a * b + c` keeps its two roundings (law section 1).
_EXACT = {"enable_fp_fusion": False}


class _Call(NamedTuple):
    """What the launches of a call share."""

    logits: work.Logits
    sources: work.Sources
    filters: work.Filters
    sizes: work.Sizes
    scratch: Tensor
    shape: work.Shape
    division: policy.Division
    rows: int


def sample(out: Tensor, logits: Tensor, indices: Tensor | None, *operands: Any) -> None:
    """`fastsample.reference.sample` on Triton; of more than 2^24 probabilities a row, the reference itself."""
    filters, randomness = arguments.Filters(*operands[:9]), arguments.Randomness(*operands[9:16])
    replacement, probabilities = operands[16:]
    rows, samples = out.shape
    if logits.numel() == 0 or logits.shape[1] > _LARGEST_VOCAB:
        reference.sample(out, logits, indices, *operands)
    elif rows > 0 and samples > 0:
        with _on_device(logits):
            call = _prepare(logits, indices, filters, rows, samples, probabilities)
            _read(call, filters)
            _select(call, randomness, replacement, _tokens(out), draws=True)


def filter_logits(logits: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.filter_logits` on Triton."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    _write_rows(write.filter_logits_kernel, out, logits, operands)
    return out


def filtered_probs(logits: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.filtered_probs` on Triton."""
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _write_rows(write.filtered_probs_kernel, out, logits, operands)
    return out


def log_probs(logits: Tensor, tokens: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference.log_probs` on Triton."""
    out = torch.empty(tokens.shape, dtype=torch.float32, device=logits.device)
    count = tokens.shape[1]
    if logits.numel() > 0 and count > 0:
        with _on_device(logits):
            call = _selected(logits, arguments.Filters(*operands))
            blocks = -(-count // call.division.chunk)
            write.log_probs_kernel[(call.rows * blocks,)](
                call.logits,
                call.filters.temperature,
                call.sizes,
                call.scratch,
                _tokens(tokens),
                count,
                _tokens(out),
                call.shape,
                num_warps=4,
                **_EXACT,
            )
    return out


def _write_rows(kernel: Any, out: Tensor, logits: Tensor, operands: tuple[Any, ...]) -> None:
    if logits.numel() == 0:
        return
    with _on_device(logits):
        call = _selected(logits, arguments.Filters(*operands))
        vocab = logits.shape[1]
        parts = policy.parts_to_write(vocab, call.division)
        kernel[(call.rows * parts,)](
            call.logits,
            call.filters.temperature,
            call.sizes,
            call.scratch,
            parts,
            work.Logits(out, vocab, 1),
            call.shape,
            num_warps=call.division.warps,
            **_EXACT,
        )


def _selected(logits: Tensor, filters: arguments.Filters) -> _Call:
    """A call whose rows' selections are in its scratch memory."""
    call = _prepare(logits, None, filters, logits.shape[0], 0, False)
    _read(call, filters)
    nothing = arguments.Randomness(0, None, 0, None, 0, None, False)
    _select(call, nothing, True, work.Tokens(call.scratch, work.coded(0), work.coded(0)), draws=False)
    return call


def _prepare(
    logits: Tensor, indices: Tensor | None, filters: arguments.Filters, rows: int, samples: int, probabilities: bool
) -> _Call:
    vocab = logits.shape[1]
    largest_k = vocab if filters.top_k_rows is not None else max(0, min(filters.top_k, vocab))
    has_top_p = filters.top_p_rows is not None or filters.top_p < 1
    division = policy.choose(vocab, rows, logits.element_size(), largest_k, has_top_p, logits.device)
    shape = policy.shape_of(division, vocab, probabilities, False)
    scratch = torch.empty(rows * work.scratch_words(shape), dtype=torch.int64, device=logits.device)
    floats = scratch.view(torch.float32)
    return _Call(
        work.Logits(logits, *logits.stride()),
        work.Sources(*_per_row(0, indices, scratch)[1:]),
        work.Filters(
            _per_row(filters.temperature, filters.temperature_rows, floats),
            _per_row(work.coded(largest_k), filters.top_k_rows, scratch),
            _per_row(filters.top_p, filters.top_p_rows, floats),
            _per_row(filters.min_p, filters.min_p_rows, floats),
            work.coded(filters.order),
        ),
        work.Sizes(work.coded(logits.shape[0]), vocab, -(-vocab // division.chunk), work.coded(samples)),
        scratch,
        shape,
        division,
        rows,
    )


def _per_row(number: float, rows: Tensor | None, nothing: Tensor) -> work.PerRow:
    """A parameter; `nothing` stands where a kernel wants a pointer that it does not read."""
    if rows is None:
        return work.PerRow(number, nothing, work.coded(-1))
    return work.PerRow(number, rows, work.coded(rows.stride(0) if rows.dim() else 0))


def _word(number: int, rows: Tensor | None, nothing: Tensor) -> work.Word:
    thirds = (number & 0x3FFFFF, number >> 22 & 0x3FFFFF, number >> 44 & 0xFFFFF)
    low, middle, high = (work.coded(third) for third in thirds)
    return work.Word(low, middle, high, *_per_row(0, rows, nothing)[1:])


def _tokens(tokens: Tensor) -> work.Tokens:
    return work.Tokens(tokens, work.coded(tokens.stride(0)), work.coded(tokens.stride(1)))


def _read(call: _Call, filters: arguments.Filters) -> None:
    """The reads of rows that are not resident: those that some row may need, as far as the host can know."""
    if call.division.resident:
        return
    some_without_top_k = filters.top_k_rows is not None or not 0 < filters.top_k < call.sizes.vocab
    some_top_p = filters.top_p_rows is not None or filters.top_p < 1
    all_greedy = filters.temperature_rows is None and filters.temperature == 0 and not call.shape.probabilities.value
    options = {"num_warps": call.division.warps, **_EXACT}
    parts = call.division.parts
    common = (call.logits, call.sources, call.filters, call.sizes, call.scratch)
    by_part = (call.rows * parts,)
    kernels.maximum_kernel[by_part](*common, parts, call.shape, **options)
    if some_without_top_k and not all_greedy:
        if some_top_p:
            kernels.bound_kernel[(call.rows,)](*common, call.shape, **options)
            kernels.narrow_kernel[by_part](*common, parts, call.shape, **options)
        kernels.weigh_kernel[by_part](*common, parts, call.shape, **options)


def _select(call: _Call, randomness: arguments.Randomness, replacement: bool, out: work.Tokens, draws: bool) -> None:
    words = (
        _word(randomness.seed, randomness.seed_rows, call.scratch),
        _word(randomness.offset, randomness.offset_rows, call.scratch),
        _word(randomness.stream, randomness.stream_rows, call.scratch),
    )
    kernels.row_kernel[(call.rows,)](
        call.logits,
        call.sources,
        call.filters,
        call.sizes,
        call.scratch,
        work.Randomness(*words, work.coded(randomness.stream_per_row), work.coded(replacement)),
        out,
        call.shape,
        draws,
        num_warps=policy.warps_for_the_list(call.division),
        **_EXACT,
    )


@contextmanager
def _on_device(tensor: Tensor) -> Iterator[None]:
    """Triton launches on the current device; and its interpreter's numpy warns of infinities, which the law has."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        import numpy  # which the interpreter needs

        with numpy.errstate(all="ignore"):
            yield

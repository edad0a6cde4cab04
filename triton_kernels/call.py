"""What a call's launches share: the arguments as kernels take them, scratch memory from torch's allocator, and the
launches that every operator begins with, all on the current stream. Nothing waits for the GPU, so a CUDA graph can
capture it all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from fastsample import arguments

from . import kernels, policy, work

# `a * b + c` keeps its two roundings (law section 1).
EXACT = {"enable_fp_fusion": False}
NO_RANDOMNESS = arguments.Randomness(0, None, 0, None, 0, None, False)


class Call(NamedTuple):
    """What the launches of a call share."""

    logits: work.Logits
    sources: work.Sources
    filters: work.Filters
    sizes: work.Sizes
    scratch: Tensor
    shape: work.Shape
    division: policy.Division
    rows: int


def prepare(
    logits: Tensor,
    indices: Tensor | None,
    filters: arguments.Filters,
    rows: int,
    samples: int,
    probabilities: bool = False,
    edits: arguments.Edits | None = None,
    division: policy.Division | None = None,
) -> Call:
    """A call on `rows` output rows. edits: None where there are none. division: None for the one of `policy.choose`."""
    vocab = logits.shape[1]
    largest_k = vocab if filters.top_k_rows is not None else max(0, min(filters.top_k, vocab))
    division = division or division_of(logits, filters, rows, edits is not None)
    shape = policy.shape_of(division, vocab, probabilities, edits is not None)
    scratch = scratch_for(rows, shape, logits.device)
    floats = scratch.view(torch.float32)
    return Call(
        logits_of(logits, edits, scratch),
        sources_of(indices, scratch),
        work.Filters(
            per_row(filters.temperature, filters.temperature_rows, floats),
            per_row(work.coded(largest_k), filters.top_k_rows, scratch),
            per_row(filters.top_p, filters.top_p_rows, floats),
            per_row(filters.min_p, filters.min_p_rows, floats),
            work.coded(filters.order),
        ),
        work.Sizes(work.coded(logits.shape[0]), vocab, -(-vocab // division.chunk), work.coded(samples)),
        scratch,
        shape,
        division,
        rows,
    )


def division_of(logits: Tensor, filters: arguments.Filters, rows: int, edited: bool) -> policy.Division:
    """How a call is divided."""
    vocab = logits.shape[1]
    largest_k = vocab if filters.top_k_rows is not None else max(0, min(filters.top_k, vocab))
    has_top_p = filters.top_p_rows is not None or filters.top_p < 1
    # What is edited is float32 in registers, whatever it was in memory.
    size = 4 if edited else logits.element_size()
    return policy.choose(vocab, rows, size, largest_k, has_top_p, logits.device)


def scratch_for(rows: int, shape: work.Shape, device: torch.device) -> Tensor:
    return torch.empty(rows * work.scratch_words(shape), dtype=torch.int64, device=device)


def per_row(number: float, rows: Tensor | None, nothing: Tensor) -> work.PerRow:
    """A parameter; `nothing` stands where a kernel wants a pointer that it does not read."""
    return work.PerRow(number, *vector_of(rows, nothing))


def vector_of(vector: Tensor | None, nothing: Tensor) -> work.Vector:
    """A vector, or a 0-d tensor, which is the same number for every row."""
    if vector is None:
        return work.Vector(nothing, work.coded(-1))
    return work.Vector(vector, work.coded(vector.stride(0) if vector.dim() else 0))


def word_of(number: int, rows: Tensor | None, nothing: Tensor) -> work.Word:
    thirds = (number & 0x3FFFFF, number >> 22 & 0x3FFFFF, number >> 44 & 0xFFFFF)
    low, middle, high = (work.coded(third) for third in thirds)
    return work.Word(low, middle, high, *vector_of(rows, nothing))


def sources_of(indices: Tensor | None, nothing: Tensor) -> work.Sources:
    return work.Sources(*vector_of(indices, nothing))


def tokens_of(tokens: Tensor | None, nothing: Tensor) -> work.Tokens:
    if tokens is None:
        return work.Tokens(nothing, work.coded(0), work.coded(-1))
    return work.Tokens(tokens, work.coded(tokens.stride(0)), work.coded(tokens.stride(1)))


def randomness_of(randomness: arguments.Randomness, nothing: Tensor) -> work.Randomness:
    """Seed, offset and stream; the draws are with replacement."""
    return work.Randomness(
        word_of(randomness.seed, randomness.seed_rows, nothing),
        word_of(randomness.offset, randomness.offset_rows, nothing),
        word_of(randomness.stream, randomness.stream_rows, nothing),
        work.coded(randomness.stream_per_row),
        work.coded(True),
    )


def logits_of(logits: Tensor, edits: arguments.Edits | None, nothing: Tensor) -> work.Logits:
    row_stride, stride = logits.stride()
    return work.Logits(logits, row_stride, stride, None if edits is None else _edits_of(edits, nothing))


def _edits_of(edits: arguments.Edits, nothing: Tensor) -> work.Edits:
    integers, floats = nothing.view(torch.int32), nothing.view(torch.float32)
    allowed = tokens_of(edits.allowed, integers)
    if edits.bits is None or edits.before is None or edits.values is None:
        return work.Edits(*allowed, integers, integers, floats, work.coded(0), work.coded(0))
    words, capacity = work.coded(edits.bits.shape[1]), work.coded(edits.values.shape[1])
    return work.Edits(*allowed, edits.bits, edits.before, edits.values, words, capacity)


def history_of(history: arguments.History, nothing: Tensor) -> work.History:
    columns = 0 if history.tokens is None else history.tokens.shape[1]
    return work.History(
        tokens_of(history.tokens, nothing),
        work.coded(columns),
        vector_of(history.lengths, nothing),
        tokens_of(history.counts, nothing.view(torch.int32)),
    )


def read(call: Call, filters: arguments.Filters) -> None:
    """The reads of rows that are not resident: those that some row may need, as far as the host can know."""
    if call.division.resident:
        return
    some_without_top_k = filters.top_k_rows is not None or not 0 < filters.top_k < call.sizes.vocab
    some_top_p = filters.top_p_rows is not None or filters.top_p < 1
    all_greedy = filters.temperature_rows is None and filters.temperature == 0 and not call.shape.probabilities.value
    options = {"num_warps": call.division.warps, **EXACT}
    parts = call.division.parts
    common = (call.logits, call.sources, call.filters, call.sizes, call.scratch)
    by_part = (call.rows * parts,)
    find_maximum(call)
    if some_without_top_k and not all_greedy:
        if some_top_p:
            kernels.bound_kernel[(call.rows,)](*common, call.shape, **options)
            kernels.narrow_kernel[by_part](*common, parts, call.shape, **options)
        kernels.weigh_kernel[by_part](*common, parts, call.shape, **options)


def find_maximum(call: Call) -> None:
    """The first of the reads."""
    parts = call.division.parts
    kernels.maximum_kernel[(call.rows * parts,)](
        call.logits,
        call.sources,
        call.filters,
        call.sizes,
        call.scratch,
        parts,
        call.shape,
        num_warps=call.division.warps,
        **EXACT,
    )


def select(
    call: Call,
    randomness: work.Randomness,
    out: work.Tokens,
    history: work.History | None,
    draws: bool,
    described: bool,
) -> None:
    """What each row keeps, and its draws; see `kernels.row_kernel`."""
    kernels.row_kernel[(call.rows,)](
        call.logits,
        call.sources,
        call.filters,
        call.sizes,
        call.scratch,
        randomness,
        out,
        history,
        call.shape,
        draws,
        described,
        num_warps=policy.warps_for_the_list(call.division),
        **EXACT,
    )


def describe(call: Call, filters: arguments.Filters) -> Call:
    """Leave what each row keeps in the scratch memory, and draw nothing."""
    read(call, filters)
    nothing = tokens_of(None, call.scratch)
    select(call, randomness_of(NO_RANDOMNESS, call.scratch), nothing, None, draws=False, described=True)
    return call


@contextmanager
def on_device(tensor: Tensor) -> Iterator[None]:
    """Triton launches on the current device; and its interpreter's numpy warns of infinities, which the law has."""
    if tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            yield
    else:
        import numpy  # which the interpreter needs

        with numpy.errstate(all="ignore"):
            yield

"""`sample_full` and `kept_tokens` on Triton: what they launch.

`sample_full` launches what `sample` does. For log-probabilities of its draws alone it takes one more launch; for what
is said of the raw row or of the kept set as a whole two, and memory of zeros; and where rows are edited, one for the
maxima of the raw ones.
"""

from typing import Any

import torch
from torch import Tensor

from fastsample import arguments, reference, reference_full

from . import details, kept, policy, work
from .call import (
    EXACT,
    Call,
    find_maximum,
    history_of,
    logits_of,
    on_device,
    prepare,
    randomness_of,
    read,
    scratch_for,
    select,
    sources_of,
    tokens_of,
)


def sample_full(out: Tensor, logits: Tensor, indices: Tensor | None, *operands: Any) -> None:
    """`fastsample.reference_full.sample_full` on Triton."""
    filters, randomness = arguments.Filters(*operands[:9]), arguments.Randomness(*operands[9:16])
    replacement, edits = operands[16], arguments.Edits(*operands[17:21])
    history, asked = arguments.History(*operands[21:24]), arguments.Details(*operands[24:31]).by_draw()
    out = reference.by_draw(out)
    rows, samples = out.shape
    if logits.numel() == 0 or samples == 0:
        reference_full.sample_full(out, logits, indices, *operands)
    elif rows > 0:
        with on_device(logits):
            call = prepare(logits, indices, filters, rows, samples, edits=given(edits))
            read(call, filters)
            words = randomness_of(randomness, call.scratch)._replace(replacement=work.coded(replacement))
            tokens = tokens_of(out, call.scratch)
            select(call, words, tokens, history_of(history, call.scratch), draws=True, described=True)
            if any(field is not None for field in asked[:6]):
                _say(call, tokens, samples, asked)


def given(edits: arguments.Edits) -> arguments.Edits | None:
    """The edits, or None where there are none."""
    return None if edits.allowed is None and edits.bits is None else edits


def _say(call: Call, tokens: work.Tokens, samples: int, asked: arguments.Details) -> None:
    """Launch what writes the details."""
    top_of_raw = None if asked.top_of_processed else asked.top_tokens
    of_raw = any(field is not None for field in (asked.raw_logprobs, asked.ranks, top_of_raw))
    raw_scratch = call.scratch
    if of_raw and call.shape.edited.value:
        raw = call._replace(
            logits=call.logits._replace(edits=None),
            shape=policy.shape_of(call.division, call.sizes.vocab, False, False),
            scratch=scratch_for(call.rows, call.shape, call.scratch.device),
        )
        find_maximum(raw)
        raw_scratch = raw.scratch
    whole_row = of_raw or asked.numbers is not None
    room = torch.zeros if whole_row else torch.empty
    sums = room(call.rows * (details.SUMS.value + samples), dtype=torch.int64, device=call.scratch.device)
    common = (call.logits, call.sources, call.filters.temperature, call.sizes, call.scratch, raw_scratch, sums, tokens)
    fields = _details(asked, call.scratch)
    if whole_row:
        parts = call.division.parts
        details.sums_kernel[(call.rows * parts,)](
            *common, fields, parts, call.shape, num_warps=call.division.warps, **EXACT
        )
    details.details_kernel[(call.rows,)](*common, fields, call.shape, num_warps=4, **EXACT)


def _details(asked: arguments.Details, nothing: Tensor) -> work.Details:
    floats = nothing.view(torch.float32)
    return work.Details(
        tokens_of(asked.logprobs, floats),
        tokens_of(asked.raw_logprobs, floats),
        tokens_of(asked.ranks, nothing),
        tokens_of(asked.top_tokens, nothing),
        tokens_of(asked.top_logprobs, floats),
        work.coded(0 if asked.top_tokens is None else asked.top_tokens.shape[1]),
        tokens_of(asked.numbers, nothing),
        work.coded(asked.top_of_processed),
    )


def kept_tokens(logits: Tensor, indices: Tensor | None, *operands: Any) -> Tensor:
    """`fastsample.reference_full.kept_tokens` on Triton."""
    edits, (numbers, offsets, total) = given(arguments.Edits(*operands[:4])), operands[4:]
    out = torch.full((total,), -1, dtype=torch.int64, device=logits.device)
    rows, vocab = numbers.shape[0], logits.shape[1]
    if logits.numel() > 0 and rows > 0 and total > 0:
        with on_device(logits):
            size = 4 if edits is not None else logits.element_size()
            division = policy.choose(vocab, rows, size, 0, False, logits.device)
            kept.kept_tokens_kernel[(rows,)](
                logits_of(logits, edits, out),
                sources_of(indices, out),
                work.Sizes(work.coded(logits.shape[0]), vocab, -(-vocab // division.chunk), work.coded(0)),
                tokens_of(numbers, out),
                offsets,
                work.coded(offsets.stride(0)),
                out,
                work.coded(total),
                policy.shape_of(division, vocab, False, edits is not None),
                num_warps=division.warps,
                **EXACT,
            )
    return out

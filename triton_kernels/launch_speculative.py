"""The pieces of speculative decoding on Triton: what they launch.

`random_words` takes one launch; the others what a selection takes (see `launch.py`), of target and draft, and one or
two more.
"""

from typing import Any

import torch
from torch import Tensor

from fastsample import arguments, reference_speculative

from . import policy, speculative, work
from .call import EXACT, Call, describe, division_of, on_device, prepare, randomness_of, tokens_of

_TILE = 128
# Of more probabilities a row the largest weight is so small that 2^102 / Z takes more than 64 bits.
_LARGEST_VOCAB = 2**22


def random_words(like: Tensor, rows: int, *operands: Any) -> Tensor:
    """`fastsample.reference_speculative.random_words` on Triton."""
    randomness, (first, count) = arguments.Randomness(*operands[:7]), operands[7:]
    out = torch.empty((rows, count), dtype=torch.int64, device=like.device)
    if out.numel() > 0:
        with on_device(out):
            speculative.random_words_kernel[(rows * -(-count // _TILE),)](
                randomness_of(randomness, out),
                work.coded(first),
                count,
                tokens_of(out, out),
                _TILE,
                num_warps=4,
                **EXACT,
            )
    return out


def fixed_probs_at(logits: Tensor, indices: Tensor | None, tokens: Tensor, *operands: Any) -> Tensor:
    """`fastsample.reference_speculative.fixed_probs_at` on Triton."""
    rows, count = tokens.shape
    if logits.numel() == 0 or tokens.numel() == 0 or logits.shape[1] > _LARGEST_VOCAB:
        return reference_speculative.fixed_probs_at(logits, indices, tokens, *operands)
    filters, probabilities = arguments.Filters(*operands[:9]), operands[9]
    out = torch.empty((rows, count), dtype=torch.int64, device=logits.device)
    with on_device(logits):
        call = describe(prepare(logits, indices, filters, rows, 0, probabilities), filters)
        speculative.fixed_probs_kernel[(rows * -(-count // call.division.chunk),)](
            _side(call), tokens_of(tokens, call.scratch), count, tokens_of(out, call.scratch), num_warps=4, **EXACT
        )
    return out


def sample_residual(out: Tensor, target: Tensor, target_indices: Tensor, *operands: Any) -> None:
    """`fastsample.reference_speculative.sample_residual` on Triton."""
    filters, target_probabilities = arguments.Filters(*operands[:9]), operands[9]
    draft, draft_indices = operands[10:12]
    draft_filters, draft_probabilities = arguments.Filters(*operands[12:21]), operands[21]
    rows, vocab = out.shape[0], target.shape[1]
    if target.numel() == 0 or draft.numel() == 0 or vocab > _LARGEST_VOCAB:
        reference_speculative.sample_residual(out, target, target_indices, *operands)
    elif rows > 0:
        with on_device(target):
            # Chunk by chunk of both: one division for the two, of the wider elements and the longer list.
            sides = (division_of(target, filters, rows, False), division_of(draft, draft_filters, rows, False))
            wider = sides[target.element_size() < draft.element_size()]
            division = wider._replace(list=max(side.list for side in sides))
            of_target = prepare(target, target_indices, filters, rows, 0, target_probabilities, division=division)
            of_draft = prepare(draft, draft_indices, draft_filters, rows, 0, draft_probabilities, division=division)
            both = _side(describe(of_target, filters)), _side(describe(of_draft, draft_filters))
            parts = policy.parts_to_write(vocab, division)
            speculative.residual_kernel[(rows * parts,)](*both, parts, num_warps=division.warps, **EXACT)
            randomness = randomness_of(arguments.Randomness(*operands[22:29]), of_target.scratch)
            speculative.draw_residual_kernel[(rows,)](
                *both, randomness, tokens_of(out, of_target.scratch), num_warps=4, **EXACT
            )


def _side(call: Call) -> work.Side:
    return work.Side(call.logits, call.sources, call.filters.temperature, call.sizes, call.scratch, call.shape)

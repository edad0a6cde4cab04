"""The second pass of `sample_full` for more top log-probabilities than fit the first: a sort of the row."""

import torch
from torch import Tensor

from fastsample import reference, reference_edits
from fastsample.arguments import Edits, Filters
from fastsample.ops import Ops


def sorted_top(
    operators: Ops,
    logits: Tensor,
    indices: Tensor | None,
    filters: Filters,
    edits: Edits,
    numbers: Tensor | None,
    first_tokens: Tensor,
    count: int,
) -> tuple[Tensor, Tensor]:
    """The first `count` tokens of each row with their log-probabilities, `top` of law section 7.

    logits, indices, filters, edits: as `sample_full` takes them, or neutral ones for the raw row. numbers: what it said
    of the rows, whose cut ends the list; None for all tokens above -inf. first_tokens: int64 [batch], below 0 for an
    invalid row.
    Returns int64 and float32 [batch, count].
    """
    rows, exists = _rows_of(logits, indices, first_tokens.shape[0])
    if edits.allowed is not None or edits.bits is not None:
        rows = reference_edits.process(rows, edits)
    listed = reference.rank(reference.ordered_key(rows))[:, :count]
    logprobs = operators.log_probs(rows, listed, *filters)
    invalid = (~exists | (first_tokens < 0) | logprobs[:, 0].isnan())[:, None]
    # Not by the log-probabilities: that of a token too far below the maximum is -inf too.
    logit = rows.gather(1, listed)
    there = logit > -torch.inf
    if numbers is not None:
        # By the keys of the order: a processor that flushes denormals compares them as equal.
        key, last = reference.ordered_key(logit), reference.ordered_key(numbers[:, 2:3].int().view(torch.float32))
        there = there & ((key > last) | ((key == last) & (listed < numbers[:, 3:4])))
    missing = (0, count - listed.shape[1])
    listed = torch.nn.functional.pad(torch.where(there, listed, -1), missing, value=-1)
    logprobs = torch.nn.functional.pad(torch.where(there, logprobs, -torch.inf), missing, value=-torch.inf)
    return torch.where(invalid, -1, listed), torch.where(invalid, torch.nan, logprobs)


def _rows_of(logits: Tensor, indices: Tensor | None, batch: int) -> tuple[Tensor, Tensor]:
    """The logits of each output row, and which of these rows exist, bool [batch]."""
    if indices is None:
        return logits, torch.ones(batch, dtype=torch.bool, device=logits.device)
    exists = (indices >= 0) & (indices < logits.shape[0])
    if logits.shape[0] == 0:
        return logits.new_empty((batch, logits.shape[1])), exists
    return logits[indices.clamp(0, logits.shape[0] - 1)], exists

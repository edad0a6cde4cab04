"""`errors="raise"`: which rows a call found invalid, and the reason of each, as a ValueError.

The kernels only write -1. The reasons are found again afterwards, and only for the rows that got a -1, so that the
usual call pays for one comparison.
"""

from typing import Any

import torch
from torch import Tensor

from fastsample.adjustments import ENTRIES_IGNORED, INVALID_PENALTY
from fastsample.arguments import Filters
from fastsample.graph_breaks import outside_of_graphs

_NAMED_ROWS = 8


def check_errors(errors: Any, device: torch.device) -> None:
    """Raise unless `errors` is "sentinel", or "raise" in a place where the tokens can be looked at."""
    if errors == "sentinel":
        return
    if errors != "raise":
        raise ValueError(f'errors: got {errors!r}; accepted: "sentinel" or "raise"')
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError('errors: "raise" looks at the tokens, which CUDA graph capture cannot; use "sentinel" there')


@outside_of_graphs('errors="raise" looks at the tokens; in a compiled graph use errors="sentinel"')
def raise_for_invalid_rows(
    tokens: Tensor, logits: Tensor, indices: Tensor | None, filters: Filters, edit_status: Tensor | None = None
) -> None:
    """Raise a ValueError that names the invalid rows and their reasons; return when there is none. Synchronises a GPU.

    Args:
        tokens: [batch] or [batch, num_samples], as the operator wrote it. A valid row's first draw is never -1: its
            largest weight is kept and is at least 1 (law section 3).
        logits, indices, filters: what the operator was given.
        edit_status: int32 [batch], what `find_edits` says of the rows' adjustments (law section 0), or None.
    """
    if edit_status is not None:
        raise_for_ignored_entries(edit_status)
    first = tokens if tokens.dim() == 1 else tokens[:, 0]
    # On a CPU a list is one operator where the comparison takes three, which a single row's draw would notice.
    if first.is_cpu and min(first.tolist(), default=0) >= 0:
        return
    invalid = (first < 0).nonzero().flatten()
    count = invalid.numel()
    if count == 0:
        return
    rows = invalid[:_NAMED_ROWS].tolist()
    named = [f"row {row}: {'; '.join(_reasons(row, logits, indices, filters, edit_status))}" for row in rows]
    more = f"; and {count - _NAMED_ROWS} more" if count > _NAMED_ROWS else ""
    raise ValueError(f"{count} of {tokens.shape[0]} rows cannot be sampled: {'; '.join(named)}{more}")


def raise_for_ignored_entries(edit_status: Tensor) -> None:
    """Raise a ValueError that names the rows whose adjustments were ignored in part. Synchronises a GPU."""
    rows = (edit_status & ENTRIES_IGNORED).nonzero().flatten()
    if rows.numel() > 0:
        listed = ", ".join(map(str, rows[:_NAMED_ROWS].tolist())) + (", ..." if rows.numel() > _NAMED_ROWS else "")
        raise ValueError(
            f"adjustments: {rows.numel()} of {edit_status.numel()} rows ({listed}) have a token id outside the "
            "vocabulary, a length outside its list, an offset outside its data or an empty bad word; accepted: ids "
            "from 0 to vocab - 1 (what pads a history is passed over only beyond prompt_lengths and output_lengths), "
            "lengths up to the columns, and offsets that rise from 0 to the number of entries"
        )


def _reasons(
    row: int, logits: Tensor, indices: Tensor | None, filters: Filters, edit_status: Tensor | None
) -> list[str]:
    reasons = []
    if edit_status is not None and int(edit_status[row]) & INVALID_PENALTY:
        reasons.append(
            "a penalty is out of range, accepted: repetition_penalty above 0 and finite, presence_penalty and "
            "frequency_penalty finite"
        )
    parameters = (
        ("temperature", filters.temperature_rows, float("inf")),
        ("top_p", filters.top_p_rows, 1.0),
        ("min_p", filters.min_p_rows, 1.0),
    )
    for name, rows, largest in parameters:
        if rows is not None:
            value = float(rows if rows.dim() == 0 else rows[row])
            if not 0.0 <= value <= largest:
                accepted = "at least 0" if largest == float("inf") else f"from 0 to {largest:g}"
                reasons.append(f"{name} = {value:g}, accepted: {accepted}")
    source = row
    if indices is not None:
        source = int(indices[row])
        if not 0 <= source < logits.shape[0]:
            reasons.append(f"indices = {source}, accepted: 0 to {logits.shape[0] - 1}, the rows of logits")
            return reasons
    values = logits[source]
    nan = values.isnan().nonzero().flatten()
    if nan.numel() > 0:
        reasons.append(f"{nan.numel()} of its logits are NaN, the first at token {int(nan[0])}")
    elif bool((values == float("-inf")).all()):
        reasons.append("every logit is -inf")
    return reasons or ["the adjustments leave no token, or make a logit NaN"]

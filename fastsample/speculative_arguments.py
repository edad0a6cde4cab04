"""What `verify_chain` and `verify_tree` are given, checked once and spread over the rows that the operators take.

Parameters, seeds and offsets are per request; an operator's row is one position of one request.
"""

from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from fastsample import arguments, ops
from fastsample.arguments import Filters, Randomness, describe
from fastsample.backends import select
from fastsample.graph_breaks import outside_of_graphs
from fastsample.invalid_rows import check_errors
from fastsample.ops import Ops
from fastsample.randomness import check_sources, generated, seeded

_NAMED_REQUESTS = 8


class DraftFilters(TypedDict, total=False):
    """How the drafts were drawn, as given to `sample_draft`; what is missing is off, as it is there."""

    temperature: float | Tensor
    top_k: int | Tensor
    top_p: float | Tensor
    min_p: float | Tensor
    order: Literal["top_k_first", "min_p_first", "joint"]


class Distributions(NamedTuple):
    """Rows of a model, a number of them for each request, with the filters of each request."""

    rows: Tensor  # [batch * rows per request, vocab]
    filters: Filters
    probabilities: bool


class Verification(NamedTuple):
    """A checked call."""

    operators: Ops
    target: Distributions
    draft: Distributions | None
    draft_tokens: Tensor  # int64 [batch, drafts]
    randomness: Randomness


class Sources(NamedTuple):
    """Where a call's random words come from, as the user wrote it."""

    seed: Any
    offset: Any
    stream: Any
    generator: Any


def prepare(
    target: Any,
    draft_tokens: Any,
    draft: Any,
    draft_rows_beyond_drafts: int,
    filters: tuple[Any, ...],
    draft_filters: Any,
    target_probabilities: Any,
    draft_probabilities: Any,
    sources: Sources,
    backend: str,
    errors: str,
) -> Verification:
    """Check the arguments that the public functions share.

    filters: temperature, top_k, top_p, min_p and order, as `arguments.normalise_filters` takes them.
    draft_rows_beyond_drafts: how many rows `draft` has beyond one for each draft.
    """
    arguments.check_flag("target_probabilities", target_probabilities)
    arguments.check_flag("draft_probabilities", draft_probabilities)
    target_rows = _check_rows("target", target)
    batch, device = target.shape[0], target.device
    draft_tokens = arguments.integer_matrix("draft_tokens", draft_tokens, batch, device)
    count = draft_tokens.shape[1]
    if target.shape[1] != count + 1:
        raise ValueError(
            f"target: got shape {list(target.shape)} with {count} draft tokens for each request; accepted: "
            f"[{batch}, {count + 1}, vocab], a row for each draft and one more"
        )
    check_errors(errors, device)
    if draft is None:
        for name, given in (("draft_filters", draft_filters is not None), ("draft_probabilities", draft_probabilities)):
            if given:
                raise ValueError(f"{name}: given without draft, which it describes; leave it out, or give draft too")
        drawn = None
    else:
        drawn = _draft(
            draft,
            (batch, count + draft_rows_beyond_drafts, target.shape[2]),
            device,
            draft_probabilities,
            draft_filters,
            filters,
        )
    chosen = ops.compiled if backend == "auto" else select(backend, device)
    check_sources(*sources, device)
    seed, offset, stream, generator = sources
    randomness = generated(generator, chosen, device) if seed is None else seeded(seed, offset, stream, batch, device)
    return Verification(
        chosen,
        Distributions(
            target_rows, _filters("target", filters, target_probabilities, batch, device), target_probabilities
        ),
        drawn,
        draft_tokens,
        randomness,
    )


def spread(filters: Filters, count: int) -> Filters:
    """The filters of `count` rows for each request."""
    temperature, top_k, top_p, min_p = (
        _repeat(rows, count)
        for rows in (filters.temperature_rows, filters.top_k_rows, filters.top_p_rows, filters.min_p_rows)
    )
    return filters._replace(temperature_rows=temperature, top_k_rows=top_k, top_p_rows=top_p, min_p_rows=min_p)


def at_positions(randomness: Randomness, positions: Tensor) -> Randomness:
    """The randomness of a row for each of `positions` (int64 [batch, n], what is added to a request's offset).

    A request's stream is the request's, whatever its position, as if it were decoded a token at a time.
    """
    batch, count = positions.shape
    offset = randomness.offset if randomness.offset_rows is None else randomness.offset_rows.expand(batch)[:, None]
    stream, stream_rows = randomness.stream, _repeat(randomness.stream_rows, count)
    if randomness.stream_per_row:
        first = stream if randomness.stream_rows is None else randomness.stream_rows
        stream_rows = _repeat(torch.arange(batch, device=positions.device) + first, count)
    return Randomness(
        randomness.seed,
        _repeat(randomness.seed_rows, count),
        0,
        (positions + offset).flatten(),
        stream,
        stream_rows,
        False,
    )


@outside_of_graphs('errors="raise" looks at the tokens; in a compiled graph use errors="sentinel"')
def raise_for_invalid_requests(accepted: Tensor, last_token: Tensor) -> None:
    """Raise a ValueError that names the requests whose last token (int64 [batch]) is -1. Synchronises a GPU."""
    invalid = (last_token < 0).nonzero().flatten()
    if invalid.numel() == 0:
        return
    named = [f"request {row} after {int(accepted[row])} accepted drafts" for row in invalid[:_NAMED_REQUESTS].tolist()]
    more = f" and {invalid.numel() - _NAMED_REQUESTS} more" if invalid.numel() > _NAMED_REQUESTS else ""
    raise ValueError(
        f"target: {invalid.numel()} of {last_token.numel()} requests cannot be sampled: {', '.join(named)}{more}; "
        "accepted: logits without NaN, one at least above -inf (probabilities: finite, at least 0, not all 0), and "
        "temperature at least 0, top_p and min_p from 0 to 1"
    )


def _check_rows(name: str, values: Any) -> Tensor:
    """Check logits or probabilities [batch, n, vocab]; return them as [batch * n, vocab], a view where they can be."""
    accepted = "a float32, float16 or bfloat16 tensor [batch, n, vocab]"
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: got {describe(values)}; accepted: {accepted}")
    if values.dtype not in arguments.LOGITS_DTYPES or values.layout is not torch.strided or values.is_nested:
        raise TypeError(f"{name}: got {describe(values)}; accepted: {accepted}, dense (strided)")
    if values.dim() != 3 or not 1 <= values.shape[2] <= arguments.MAX_VOCAB:
        raise ValueError(f"{name}: got {describe(values)}; accepted: {accepted}, vocab from 1 to {arguments.MAX_VOCAB}")
    rows = values.flatten(0, 1)
    arguments.check_logits(rows)
    return rows


def _draft(
    draft: Any,
    shape: tuple[int, ...],
    device: torch.device,
    probabilities: bool,
    filters: Any,
    target_filters: tuple[Any, ...],
) -> Distributions:
    rows = _check_rows("draft", draft)
    if draft.shape != shape:
        raise ValueError(f"draft: got shape {list(draft.shape)}; accepted: {list(shape)} with this target")
    arguments.check_device("draft", draft, device)
    names = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "order": "top_k_first"}
    if filters is None:
        # What drafts were drawn from is what probabilities say; logits were filtered as the target's are.
        given = tuple(names.values()) if probabilities else target_filters
    elif not isinstance(filters, dict):
        raise TypeError(f"draft_filters: got {describe(filters)}; accepted: a fastsample.DraftFilters, or None")
    elif unknown := filters.keys() - names.keys():
        raise TypeError(f"draft_filters: got {', '.join(map(repr, unknown))}; accepted: {', '.join(names)}")
    else:
        given = tuple((names | filters).values())
    return Distributions(rows, _filters("draft", given, probabilities, shape[0], device), probabilities)


def _filters(name: str, given: tuple[Any, ...], probabilities: bool, batch: int, device: torch.device) -> Filters:
    temperature, top_k, top_p, min_p, order = given
    if probabilities and not (type(temperature) in (int, float) and temperature == 1):
        raise ValueError(
            f"temperature: got {describe(temperature)} with {name}_probabilities=True; accepted: 1.0, since "
            "a temperature applies to logits"
        )
    return arguments.normalise_filters(temperature, top_k, top_p, min_p, order, batch, device)


def _repeat(rows: Tensor | None, count: int) -> Tensor | None:
    """A parameter of each request for each of its `count` rows; a shared one (0-d) stays one."""
    if rows is None or rows.dim() == 0:
        return rows
    return rows[:, None].expand(-1, count).flatten()

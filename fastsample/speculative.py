"""Speculative decoding along a chain: drafting, and verifying what was drafted (law section 8)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastsample import arguments, reference
from fastsample.sampling import sample
from fastsample.speculative_arguments import (
    DraftFilters,
    Sources,
    Verification,
    at_positions,
    prepare,
    raise_for_invalid_requests,
    spread,
)

ACCEPTANCE_WORD = 2  # of the first child


class Verified(NamedTuple):
    """What `verify_chain` returns.

    Attributes:
        tokens: int64 [batch, n + 1]: the accepted drafts, then one token more (the recovered or the bonus one), then
            -1.
        accepted: int64 [batch]: how many drafts were accepted, 0 to n; `accepted + 1` tokens are the request's.
        acceptable: bool [batch, n]: whether each draft would be accepted if all before it were; what to tune a drafter
            by.
    """

    tokens: Tensor
    accepted: Tensor
    acceptable: Tensor


def sample_draft(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    children: int | None = None,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    stream: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
    backend: str = "auto",
    errors: Literal["sentinel", "raise"] = "sentinel",
) -> Tensor:
    """Draw what a drafter proposes, from the request's own seed, by random words that nothing else draws by.

    `sample` with the request's seed and offset would draw by the word that a bonus or recovered token is drawn by, and
    the two would not be independent.

    Args:
        logits: [batch, vocab] or [vocab]: the drafter's, as given to `verify_chain` or `verify_tree` afterwards.
        temperature, top_k, top_p, min_p, order: as for `sample`; give the same to `draft_filters` of the verification.
        children: how many tokens to draw from each row, independently, for a tree; None is one.
        seed, stream, generator: as for `sample`.
        offset: as for `sample`: the number of tokens that the request has drawn, plus the drafts before this one.
        backend, errors: as for `sample`.

    Returns:
        int64 [batch], or [batch, children]; for 1-D logits 0-d, or [children]. -1 in an invalid row.

    Raises:
        TypeError, ValueError, RuntimeError: as `sample` does.

    Source: docs/law.md, section 8: child k is drawn by word 2k + 1.
    """
    count = 1 if children is None else arguments.integer_number("children", children, tensors="")
    if count < 1:
        raise ValueError(f"children: got {children}; accepted: at least 1, or None for one token per row")
    drawn = sample(
        logits,
        temperature,
        top_k,
        top_p,
        min_p,
        seed=seed,
        offset=offset,
        stream=stream,
        generator=generator,
        order=order,
        num_samples=2 * count,
        backend=backend,
        errors=errors,
    )[..., 1::2]
    return drawn[..., 0] if children is None else drawn


def verify_chain(
    target: Tensor,
    draft_tokens: Tensor,
    draft: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    draft_lengths: Tensor | None = None,
    draft_filters: DraftFilters | None = None,
    target_probabilities: bool = False,
    draft_probabilities: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    stream: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
    backend: str = "auto",
    errors: Literal["sentinel", "raise"] = "sentinel",
) -> Verified:
    """Accept the drafts that the target model would have drawn, and draw one token more.

    The tokens are distributed as if the target had drawn each of them, with the given parameters. Drafts without
    probabilities (`draft=None`: n-gram, Medusa heads) are compared with what the target draws, so the tokens are those
    of decoding without drafts, bit for bit. With `draft`, a draft x is accepted with probability min(1, p(x) / q(x)),
    decided in integers, and a refused one is replaced by a draw from max(p - q, 0): more drafts are accepted.

    Nothing synchronises with a GPU but errors="raise". After the call a request has drawn `accepted + 1` tokens more,
    by which its `offset` goes up. Penalties and other adjustments depend on the position: apply `process_logits` to
    the rows first.

    Args:
        target: [batch, n + 1, vocab], float32, float16 or bfloat16: the target's logits after the context and after
            each draft. Not copied where the rows lie at even distances.
        draft_tokens: integer [batch, n]. An id outside [0, vocab) is refused.
        draft: [batch, n, vocab]: the logits that each draft was drawn from, or None. A draft of an invalid row is
            refused.
        temperature, top_k, top_p, min_p, order: as for `sample`, a number or a tensor [batch]; of the target.
        draft_lengths: integer [batch], 0 to n: how many drafts a request has; None is n. With `draft` it may depend on
            drafts that come before, but not on the first one left out: leaving a draft out because of which token it
            is changes the distribution.
        draft_filters: what the drafts were drawn with (`DraftFilters`). None is the target's filters for logits, and
            none for probabilities.
        target_probabilities, draft_probabilities: whether `target` and `draft` hold probabilities, not logits. They
            have no temperature and need not sum to 1.
        seed, offset, stream, generator: as for `sample`, per request; `offset` is the number of tokens that the request
            has drawn, and the token at position j is drawn at offset + j.
        backend: as for `sample`.
        errors: what an invalid row of the target does, where it is reached: "sentinel" gives -1 and ends the request;
            "raise" raises a ValueError that names the requests.

    Returns:
        `Verified(tokens, accepted, acceptable)`.

    Raises:
        TypeError, ValueError: a bad argument, before any work, or invalid rows with errors="raise".
        RuntimeError: the backend is not usable here, or errors="raise" under CUDA graph capture.

    Source: Leviathan et al. 2023 and Chen et al. 2023, by docs/law.md, section 8.
    """
    call = prepare(
        target,
        draft_tokens,
        draft,
        0,
        (temperature, top_k, top_p, min_p, order),
        draft_filters,
        target_probabilities,
        draft_probabilities,
        Sources(seed, offset, stream, generator),
        backend,
        errors,
    )
    batch, count = call.draft_tokens.shape
    position = torch.arange(count + 1, device=target.device)
    drafted = torch.ones((batch, count), dtype=torch.bool, device=target.device)
    if draft_lengths is not None:
        lengths = arguments.integer_vector("draft_lengths", draft_lengths, batch, target.device)
        drafted = position[:count] < lengths[:, None]
    with_draft = call.draft is not None and count > 0
    acceptable, tokens = _judge(call) if with_draft else _decode(call)
    acceptable = acceptable & drafted
    accepted = acceptable.long().cumprod(dim=1).sum(dim=1)
    if with_draft:
        last = _recover(call, accepted, drafted)
        tokens = torch.where(position == accepted[:, None], last, tokens)
    tokens = torch.where(position <= accepted[:, None], tokens, reference.INVALID_TOKEN)
    if errors == "raise":
        raise_for_invalid_requests(accepted, tokens.gather(1, accepted[:, None])[:, 0])
    return Verified(tokens, accepted, acceptable)


def _decode(call: Verification) -> tuple[Tensor, Tensor]:
    """Drafts without probabilities: which are the tokens that the target draws, and those, int64 [batch, n + 1]."""
    batch, count = call.draft_tokens.shape
    position = torch.arange(count + 1, device=call.draft_tokens.device).expand(batch, count + 1)
    tokens = sample_positions(call, None, position)
    # A draft of -1, which fills up short requests, must not equal what an invalid row draws.
    return (tokens[:, :count] == call.draft_tokens) & (call.draft_tokens >= 0), tokens


def sample_positions(call: Verification, rows: Tensor | None, positions: Tensor) -> Tensor:
    """Draw from the target by law section 4, int64 [batch, n].

    rows: the row of each, int64 [batch * n]; None where those are all rows in order. positions: int64 [batch, n].
    """
    batch, count = positions.shape
    drawn = torch.empty((batch * count, 1), dtype=torch.int64, device=positions.device)
    target = call.target
    call.operators.sample(
        drawn,
        target.rows,
        rows,
        *spread(target.filters, count),
        *at_positions(call.randomness, positions),
        True,
        target.probabilities,
    )
    return drawn.view(batch, count)


def _judge(call: Verification) -> tuple[Tensor, Tensor]:
    """Drafts with probabilities: which are accepted, each on its own, and the drafts, int64 [batch, n + 1]."""
    batch, count = call.draft_tokens.shape
    target, draft = call.target, call.draft
    assert draft is not None
    device = target.rows.device
    position = torch.arange(count, device=device).expand(batch, count)
    request = torch.arange(batch, device=device)[:, None]
    tokens = call.draft_tokens.reshape(-1, 1)
    p = call.operators.fixed_probs_at(
        target.rows,
        (request * (count + 1) + position).flatten(),
        tokens,
        *spread(target.filters, count),
        target.probabilities,
    )
    q = call.operators.fixed_probs_at(draft.rows, None, tokens, *spread(draft.filters, count), draft.probabilities)
    words = call.operators.random_words(
        target.rows, batch * count, *at_positions(call.randomness, position), ACCEPTANCE_WORD, 1
    )
    acceptable = is_accepted(words, p, q).view(batch, count)
    return acceptable, torch.nn.functional.pad(call.draft_tokens, (0, 1))


def is_accepted(words: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """Law section 8: mulhi(r, q^) < p^, of what `fixed_probs_at` says of a draft in the target and in the draft."""
    return (q >= 0) & (reference.multiply_high(words, q.clamp(min=0)) < p)


def _recover(call: Verification, accepted: Tensor, drafted: Tensor) -> Tensor:
    """The token after the accepted drafts, int64 [batch, 1]: from the residual, or after the last one the target's."""
    batch, count = call.draft_tokens.shape
    target, draft = call.target, call.draft
    assert draft is not None
    vocab = target.rows.shape[1]
    request = torch.arange(batch, device=target.rows.device)
    refused = accepted.clamp(max=count - 1)
    token = call.draft_tokens.gather(1, refused[:, None])[:, 0]
    has_residual = (accepted < count) & drafted.gather(1, refused[:, None])[:, 0] & (token >= 0) & (token < vocab)
    last = torch.empty((batch, 1), dtype=torch.int64, device=target.rows.device)
    call.operators.sample_residual(
        last,
        target.rows,
        request * (count + 1) + accepted,
        *target.filters,
        target.probabilities,
        draft.rows,
        torch.where(has_residual, request * count + refused, -1),
        *draft.filters,
        draft.probabilities,
        *at_positions(call.randomness, accepted[:, None]),
    )
    return last

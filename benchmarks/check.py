"""Correctness before speed: fastsample's tokens against the reference, the peers' against the kept set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import fastsample

from .peers.base import Work

ROWS = 2  # compared with the reference, which takes a tenth of a second a row
_SEED = 3
_PEER_ROWS = 32  # compared with the kept set, which takes as long as a sampler
# A peer that sums probabilities in float32 may stop a few tokens after the exact place.
_TOP_P_SLACK = 2e-3


class WrongTokensError(Exception):
    """A sampler drew what it must not; the message says who, what and where."""


def expected_tokens(logits: Tensor, work: Work) -> Tensor:
    """The reference's tokens for the first rows of `logits` [rows, vocab]: int64 [ROWS] or fewer."""
    first = logits[:ROWS]
    return fastsample.sample(first, seed=_SEED, backend="reference", **work.parameters(len(first)))


def check_fastsample(logits: Tensor, work: Work, backend: str, expected: Tensor) -> int:
    """Compare a batch's first tokens with the reference's.

    Args:
        logits: [batch, vocab], beginning with the rows that `expected_tokens` was given.
        work, backend: as they will be timed.
        expected: what `expected_tokens` returned. A row's token depends on no other row, so it holds for any batch.

    Returns:
        How many tokens were compared.

    Raises:
        WrongTokensError: one differs, or any token of the batch is no index into the vocabulary.
    """
    tokens = fastsample.sample(logits, seed=_SEED, backend=backend, **work.parameters(len(logits)))
    compared = min(len(tokens), len(expected))
    if not torch.equal(tokens[:compared], expected[:compared]):
        raise WrongTokensError(
            f"fastsample ({work.label}) drew {tokens[:compared].tolist()}, the reference {expected[:compared].tolist()}"
        )
    if not bool(((tokens >= 0) & (tokens < logits.shape[1])).all()):
        raise WrongTokensError(f"fastsample ({work.label}) drew tokens outside the vocabulary: {tokens.tolist()}")
    return compared


def check_peer(label: str, tokens: Sequence[int] | Tensor, logits: Tensor, work: Work) -> None:
    """Check a peer's tokens against the kept set: its smallest logit, so that any choice among ties passes.

    Args:
        label: the peer's name.
        tokens: what it drew, one token a row.
        logits: [batch, vocab], from which it drew.
        work: what it was asked to do.

    Raises:
        WrongTokensError: a token is not in its row's kept set, as far as the first rows are; or is no token at all.
    """
    drawn = torch.as_tensor(tokens, dtype=torch.int64).flatten()
    if drawn.shape != logits.shape[:1] or not bool(((drawn >= 0) & (drawn < logits.shape[1])).all()):
        raise WrongTokensError(f"{label} ({work.label}) drew {drawn.tolist()} from logits {list(logits.shape)}")
    wider = work._replace(top_p=min(1.0, work.top_p + _TOP_P_SLACK)) if work.top_p < 1 else work
    first = logits[:_PEER_ROWS]
    kept = fastsample.filter_logits(first, **wider.parameters(len(first)))
    smallest = kept.masked_fill(kept == -torch.inf, torch.inf).amin(dim=1)
    chosen = first.gather(1, drawn[: len(first), None]).squeeze(1)
    for row in (chosen < smallest).nonzero().flatten().tolist():
        raise WrongTokensError(
            f"{label} ({work.label}) drew token {int(drawn[row])} of row {row}, which is outside the kept set"
        )

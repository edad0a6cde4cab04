"""Drop-ins for FlashInfer: functions with its signatures and contracts that draw by the sampling law."""

from typing import Any

import torch
from torch import Tensor

from fastsample.arguments import describe
from fastsample.speculative import verify_chain


def chain_speculative_sampling(
    draft_probs: Tensor,
    draft_token_ids: Tensor,
    target_probs: Tensor,
    maybe_output_accepted_token_num: Tensor | None = None,
    maybe_output_emitted_draft_token_num: Tensor | None = None,
    deterministic: bool = True,
    generator: torch.Generator | None = None,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Verify chains of drafts, with the contract of `flashinfer.sampling.chain_speculative_sampling`.

    It differs in the random numbers, and in serving any device; an id outside [0, vocab) is refused, and an invalid row
    of the target gives -1. A seed alone has offset 0, where FlashInfer ignores a seed without an offset.

    Args:
        draft_probs: [batch, n, vocab]: the probabilities that the drafts were drawn from, float32, float16, bfloat16 or
            float64 (rounded to float32).
        draft_token_ids: integer [batch, n].
        target_probs: [batch, n + 1, vocab]: the target's probabilities, with the same dtypes.
        maybe_output_accepted_token_num: integer [batch], to which the number of drafts is added, in place, that would
            be accepted each on its own.
        maybe_output_emitted_draft_token_num: integer [batch], to which the number of drafts is added, in place, that
            were accepted before the first refusal.
        deterministic: nothing depends on it: the result always is.
        generator: a torch.Generator; None is torch's default one.
        seed: a number, or an integer tensor [1] or [batch]. With [batch] each request has its own, where FlashInfer
            reads the first.
        offset: likewise. It counts positions, of which a call takes n + 1.

    Returns:
        (output_token_ids, output_accepted_token_num, output_emitted_draft_token_num): int32 [batch, n + 1], the
        accepted drafts, then the recovered or bonus token, then -1; and the two counters, those given or new int32
        [batch].

    Raises:
        TypeError, ValueError: as `verify_chain`, whose names for the first three are draft, draft_tokens and target.

    Source: FlashInfer's documentation; Chen et al. 2023; docs/law.md, sections 5 and 8.
    """
    # FlashInfer takes float64 as well, and rounds it.
    draft, target = (
        rows.float() if isinstance(rows, Tensor) and rows.dtype is torch.float64 else rows
        for rows in (draft_probs, target_probs)
    )
    for name, counter in (
        ("maybe_output_accepted_token_num", maybe_output_accepted_token_num),
        ("maybe_output_emitted_draft_token_num", maybe_output_emitted_draft_token_num),
    ):
        _check_counter(name, counter, target)
    verified = verify_chain(
        target,
        draft_token_ids,
        draft,
        target_probabilities=True,
        draft_probabilities=True,
        seed=_shared(seed),
        offset=_shared(offset),
        generator=generator,
    )
    return (
        verified.tokens.to(torch.int32),
        _add(maybe_output_accepted_token_num, verified.acceptable.sum(dim=1)),
        _add(maybe_output_emitted_draft_token_num, verified.accepted),
    )


def _check_counter(name: str, counter: Any, target: Any) -> None:
    if counter is None or not isinstance(target, Tensor) or target.dim() != 3:
        return
    fits = isinstance(counter, Tensor) and counter.shape == target.shape[:1] and counter.device == target.device
    if not fits or counter.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name}: got {describe(counter)}; accepted: int32 or int64 [{target.shape[0]}], or None")


def _shared(value: Any) -> Any:
    """A tensor [1] as the 0-d tensor of a value that the requests share."""
    return value[0] if isinstance(value, Tensor) and value.shape == (1,) else value


def _add(counter: Tensor | None, count: Tensor) -> Tensor:
    return count.to(torch.int32) if counter is None else counter.add_(count)

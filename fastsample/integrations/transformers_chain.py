"""The end of transformers' chain of logits processors: which filters are the law's, and what stands in their place."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.utils import logging

from fastsample.arguments import LOGITS_DTYPES, MAX_VOCAB
from fastsample.integrations.deferred import Deferred, DeferredScores, SamplingParameters

# Below transformers' own name, so that its handler shows these lines and its verbosity decides which.
logger = logging.get_logger("transformers.fastsample")

# In the order in which `generate` applies them, which is the law's order "top_k_first".
PARAMETER_OF: dict[type, str] = dict(
    zip(
        (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper),
        SamplingParameters._fields,
        strict=True,
    )
)
_OTHER_WARPERS = (TopHLogitsWarper, TypicalLogitsWarper, EpsilonLogitsWarper, EtaLogitsWarper)


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the first time that it is given in this process, which remembers it: few must be possible."""
    logger.warning(message)


def served_end(chain: Sequence[Any], parameter_of: Mapping[type, str]) -> int:
    """Where the longest end of the chain begins that is filters of the law in the law's order, each at most once.

    Every other filter of the chain is named in a warning.

    Args:
        chain: logits processors, in the order in which they are applied.
        parameter_of: the parameter of `fastsample.sample` that each served class holds.

    Returns:
        An index into the chain; its length where nothing is served.
    """
    start, next_rank = len(chain), len(SamplingParameters._fields)
    while start > 0 and (rank := _rank(chain[start - 1], parameter_of)) is not None and rank < next_rank:
        start, next_rank = start - 1, rank
    filters = (*parameter_of, *_OTHER_WARPERS)
    if left := [type(processor).__name__ for processor in chain[:start] if isinstance(processor, filters)]:
        warn_once(
            f"fastsample serves only the temperature, top-k, top-p and min-p filters at the end of the chain "
            f"({', '.join(type(processor).__name__ for processor in chain)}): {', '.join(left)} run in transformers, "
            "and fastsample draws from what they leave"
        )
    return start


def _rank(processor: Any, parameter_of: Mapping[type, str]) -> int | None:
    """The processor's place in the law's order; None if it computes something that the law does not."""
    # A subclass may compute anything, so only the very classes count.
    parameter = parameter_of.get(type(processor))
    if parameter is None or getattr(processor, "filter_value", -math.inf) != -math.inf:
        return None
    # The law keeps at least one token and no more. The top-k filters have folded their minimum into their top_k.
    if parameter in ("top_p", "min_p") and processor.min_tokens_to_keep > 1:
        return None
    return SamplingParameters._fields.index(parameter)


def can_defer(scores: Tensor) -> bool:
    """Whether `fastsample.sample` takes these scores; where not, a warning says so."""
    if scores.dim() != 2:
        reason = f"of {scores.dim()} dimensions, but of two, [batch, vocab]"
    elif scores.dtype not in LOGITS_DTYPES:
        reason = f"of {scores.dtype}, but of float32, float16 or bfloat16"
    elif not 1 <= scores.shape[1] <= MAX_VOCAB:
        reason = f"of a vocabulary of {scores.shape[1]} tokens, but of 1 to {MAX_VOCAB}"
    elif scores.requires_grad:
        reason = "that require a gradient (call it under torch.no_grad())"
    else:
        return True
    warn_once(f"fastsample does not serve scores {reason}: transformers samples these")
    return False


class ServedChain(LogitsProcessorList):
    """A chain that ends with `FilterAndDraw`; where that is all of it, it is called at once.

    transformers looks at the signature of every processor at every step. After a model's forward pass, which leaves
    nothing of Python in the caches, that took a fifth of the time that sampling has for one row (0.12 ms).
    """

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor, **kwargs: Any) -> Tensor:
        if len(self) == 1 and isinstance(self[0], FilterAndDraw):  # transformers may have added to it since
            return self[0](input_ids, scores)
        return super().__call__(input_ids, scores, **kwargs)


class FilterAndDraw(LogitsProcessor):
    """The end of a chain: takes the logits, returns deferred scores in place of those of the filters it replaces.

    Args:
        replaced: filters of the classes in `PARAMETER_OF`, in the law's order.
        kind: `DeferredScores`, or `KeptScores` where the host keeps the scores of each step for its user.
    """

    def __init__(self, replaced: list[LogitsProcessor], kind: type[DeferredScores]) -> None:
        self.replaced = LogitsProcessorList(replaced)
        self.kind = kind
        names = [PARAMETER_OF[type(warper)] for warper in replaced]
        self.parameters = SamplingParameters(
            **{name: getattr(warper, name) for name, warper in zip(names, replaced, strict=True)}
        )

    def __call__(self, input_ids: torch.LongTensor, scores: Tensor) -> Tensor:
        if isinstance(scores, Deferred):  # an assistant model gets the main model's chain before its own
            scores.compute()
        if not can_defer(scores):
            return self.replaced(input_ids, scores)
        return self.kind.of(scores, self.parameters)

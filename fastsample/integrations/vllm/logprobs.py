"""Log-probabilities of a draw in the form in which vLLM's samplers return them."""

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors

from fastsample.full_sampling import MOST_TOP_LOGPROBS_IN_ONE_PASS, SampleOutput


def in_one_pass(listed: int | None) -> bool:
    """Whether the draw can say on its way as many of the most probable tokens as a batch asks for."""
    return listed is not None and 0 <= listed <= MOST_TOP_LOGPROBS_IN_ONE_PASS


def logprobs_of(drawn: SampleOutput, dtype: torch.dtype) -> LogprobsTensors:
    """The token drawn, and after it the most probable ones.

    Args:
        drawn: with raw_logprobs=True.
        dtype: of the token ids.

    Returns:
        Ids and log-probabilities [batch, 1 + n], and the ranks of the tokens drawn [batch]. An invalid row's token is
        0, since vLLM turns every id into text.
    """
    assert drawn.raw_logprobs is not None
    assert drawn.ranks is not None
    ids, values = drawn.tokens.clamp(min=0).unsqueeze(1), drawn.raw_logprobs.unsqueeze(1)
    if drawn.top_tokens is not None and drawn.top_logprobs is not None:
        ids = torch.cat((ids, _filled(drawn.top_tokens)), dim=1)
        values = torch.cat((values, drawn.top_logprobs), dim=1)
    return LogprobsTensors(ids.to(dtype), values, drawn.ranks)


def _filled(listed: Tensor) -> Tensor:
    """The tokens listed of each row, and in free places others of the vocabulary, each once: vLLM looks ids up.

    The log-probability of those is -inf.
    """
    n = listed.shape[1]
    candidates = torch.arange(n, device=listed.device)
    # Of the first n ids at least as many are not listed as places are free.
    taken = (candidates.view(1, n, 1) == listed.unsqueeze(1)).any(dim=2)
    spare = taken.to(torch.int8).argsort(dim=1, stable=True)
    free = listed < 0
    return torch.where(free, spare.gather(1, (free.cumsum(dim=1) - 1).clamp_(min=0)), listed)

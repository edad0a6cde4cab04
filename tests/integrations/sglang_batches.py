"""Batches as SGLang's scheduler makes them, by SGLang's own classes, for tests of its sampler."""

import types
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import SamplingParams
from torch import Tensor

VOCABULARY = 1000
STOP = 7
_TOKENIZER = types.SimpleNamespace(additional_stop_token_ids=None, eos_token_id=STOP)


class Request:
    """What a batch looks at in a request of SGLang's.

    Args:
        prompt: how many tokens.
        output: the tokens drawn so far.
        parameters: of `SamplingParams`; beside them `processor` (as `CustomLogitProcessor.to_str` gives it), `mask` and
            `support`, which ask for the kept tokens and their log-probabilities.
    """

    def __init__(self, prompt: int = 3, output: Sequence[int] = (), **parameters: Any) -> None:
        self.custom_logit_processor = parameters.pop("processor", None)
        self.return_sampling_mask = parameters.pop("mask", False)
        self.sampling_logprobs_mode = "support" if parameters.pop("support", False) else None
        self.sampling_params = SamplingParams(**parameters)
        self.sampling_params.verify(VOCABULARY)
        self.tokenizer = _TOKENIZER
        self.eos_token_ids: set[int] = set()
        self.prompt = prompt
        self.output = list(output)

    @property
    def position(self) -> int:
        """Of the token that precedes the one to be drawn."""
        return self.prompt + len(self.output) - 1


class Batch:
    """A scheduler's batch: requests with their `SamplingBatchInfo`, without a model."""

    def __init__(self, request: Request, vocabulary: int = VOCABULARY) -> None:
        self.reqs = [request]
        self.device = "cpu"
        self.sampling_info = SamplingBatchInfo.from_schedule_batch(self, vocabulary)
        for token in request.output:
            self._count([token])

    def filter(self, keep: Sequence[int]) -> None:
        self.reqs = [self.reqs[row] for row in keep]
        self.sampling_info.filter_batch(list(keep), torch.tensor(keep))

    def merge(self, other: "Batch") -> None:
        self.sampling_info.merge_batch(other.sampling_info)
        self.reqs += other.reqs

    def positions(self) -> Tensor:
        return torch.tensor([request.position for request in self.reqs])

    def for_step(self) -> SamplingBatchInfo:
        """What the sampler is given."""
        return self.sampling_info.copy_for_forward()

    def record(self, tokens: Tensor) -> None:
        for request, token in zip(self.reqs, tokens.tolist(), strict=True):
            request.output.append(token)
        self._count(tokens.tolist())

    def _count(self, tokens: Sequence[int]) -> None:
        if self.sampling_info.penalizer_orchestrator.is_required:
            self.sampling_info.penalizer_orchestrator.cumulate_output_tokens(torch.tensor(tokens))


def batch_of(requests: Sequence[Request], vocabulary: int = VOCABULARY) -> Batch:
    """A batch of these requests in this order: as in SGLang, each comes from its prefill and joins those that run."""
    first, *others = [Batch(request, vocabulary) for request in requests]
    for other in others:
        first.merge(other)
    return first


def output_of(logits: Tensor) -> LogitsProcessorOutput:
    """What a model's forward leaves for the sampler; the sampler may write to the copy of the logits."""
    return LogitsProcessorOutput(next_token_logits=logits.clone())

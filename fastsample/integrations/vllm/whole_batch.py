"""Logits processors that do not say which rows they change: vLLM runs its own over the batch, fastsample draws.

vLLM gives every batch of an engine the same processors, so that which way a request goes does not depend on its
neighbours: with such a processor its penalties are always vLLM's.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

from fastsample.integrations.vllm.batch import GREEDY_BELOW
from fastsample.integrations.vllm.requests import SeededOutputs

_OF_KNOWN_ROWS = (LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor, SeededOutputs)


def any_of_unknown_rows(processors: Iterable[LogitsProcessor]) -> bool:
    """Whether there is a user's processor that was not made with `AdapterLogitsProcessor`, which knows its rows."""
    return any(
        type(processor) not in _OF_KNOWN_ROWS and not isinstance(processor, AdapterLogitsProcessor)
        for processor in processors
    )


def processed(sampler: Sampler, logits: Tensor, metadata: SamplingMetadata) -> tuple[Tensor, SamplingMetadata]:
    """What vLLM makes of a batch's logits before it filters and draws.

    Args:
        sampler: vLLM's.
        logits: [batch, vocab]; not written.
        metadata: of the batch.

    Returns:
        The logits, float32, and the metadata with what remains to be done: temperature, min_p, top_k, top_p and the
        draw; or without temperature and min_p, where a processor wants to be run between them and top_k.
    """
    logits = sampler.apply_logits_processors(logits.to(torch.float32, copy=True), metadata, False)
    temperature, remaining = metadata.temperature, LogitsProcessors()
    remaining.argmax_invariant = metadata.logitsprocs.argmax_invariant
    if temperature is not None and any_of_unknown_rows(remaining.argmax_invariant):
        logits = sampler.apply_temperature(logits, temperature, metadata.all_random)
        for processor in remaining.argmax_invariant:
            logits = processor.apply(logits)
        temperature = temperature.masked_fill(temperature >= GREEDY_BELOW, 1.0)
        remaining.argmax_invariant = []
    return logits, replace(
        metadata,
        temperature=temperature,
        no_penalties=True,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=remaining,
        thinking_budget_state_holder=None,
    )

"""Rows that need what fastsample lacks: which they are, and vLLM's own sampler run on them alone."""

from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, LogitsProcessor, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata

from fastsample.integrations.vllm.requests import SeededOutputs


def rows_for_vllm(metadata: SamplingMetadata, lengths: dict[int, int], batch: int, by_vllm_first: bool) -> set[int]:
    """The rows of a batch that vLLM has to sample.

    They are requests with a seed, but an output of unknown length; with a thinking budget; with a logits processor of
    their own; and with a minimum length and a grammar, where vLLM lifts a ban that leaves nothing.

    Args:
        metadata: of the batch.
        lengths: of the outputs of requests with a seed, by row, where they are known.
        batch: how many rows.
        by_vllm_first: whether vLLM changes the logits of the whole batch (whole_batch.py), which leaves it no rows but
            those of the first kind.
    """
    rows = {row for row in metadata.generators if row not in lengths}
    if not by_vllm_first:
        holder = metadata.thinking_budget_state_holder
        if holder is not None:
            rows |= set(holder._state)
        for processor in metadata.logitsprocs.all:
            if type(processor) is MinTokensLogitsProcessor:
                rows |= {row for row, (_, _, _, has_grammar) in processor.min_toks.items() if has_grammar}
            elif isinstance(processor, AdapterLogitsProcessor):
                rows |= set(processor.req_info)
    return {row for row in rows if row < batch}


def sample_by_vllm(
    forward: Callable[..., SamplerOutput],
    logits: Tensor,
    metadata: SamplingMetadata,
    rows: list[int],
    **changes: Any,
) -> SamplerOutput:
    """What vLLM's sampler makes of some rows of a batch.

    Args:
        forward: vLLM's own, of a sampler.
        logits: [batch, vocab]; not written.
        metadata: of the batch.
        rows: which, in rising order.
        changes: fields of the metadata to be replaced, or `logprobs_mode_override`.

    Returns:
        vLLM's output, of these rows in their order.
    """
    override = changes.pop("logprobs_mode_override", None)
    index = torch.tensor(rows, device=logits.device)
    return forward(
        logits[index],
        replace(_metadata_of(metadata, rows, index, logits.shape[0]), **changes),
        False,
        override,
    )


def _metadata_of(metadata: SamplingMetadata, rows: list[int], index: Tensor, batch: int) -> SamplingMetadata:
    place = {row: number for number, row in enumerate(rows)}

    def tensor(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index]

    def mapping(values: dict[int, Any] | None) -> Any:
        return values and {place[row]: value for row, value in values.items() if row in place}

    def lists(values: list[list[int]] | None) -> Any:
        return values and [values[row] for row in rows]

    def of_rows(processors: list[LogitsProcessor]) -> Any:
        return [_OfRows(each, index, batch) for each in processors if _concerns(each, place)]

    processors = LogitsProcessors()
    processors.argmax_invariant = of_rows(metadata.logitsprocs.argmax_invariant)
    processors.non_argmax_invariant = of_rows(metadata.logitsprocs.non_argmax_invariant)
    holder = metadata.thinking_budget_state_holder
    if holder is not None and not place.keys() & holder._state.keys():
        holder = None
    return replace(
        metadata,
        temperature=tensor(metadata.temperature),
        top_p=tensor(metadata.top_p),
        top_k=tensor(metadata.top_k),
        generators=mapping(metadata.generators),
        prompt_token_ids=tensor(metadata.prompt_token_ids),
        frequency_penalties=tensor(metadata.frequency_penalties),
        presence_penalties=tensor(metadata.presence_penalties),
        repetition_penalties=tensor(metadata.repetition_penalties),
        output_token_ids=lists(metadata.output_token_ids),
        allowed_token_ids_mask=tensor(metadata.allowed_token_ids_mask),
        bad_words_token_ids=mapping(metadata.bad_words_token_ids),
        logitsprocs=processors,
        logprob_token_ids=mapping(metadata.logprob_token_ids),
        spec_token_ids=lists(metadata.spec_token_ids),
        thinking_budget_state_holder=None if holder is None else _HolderOfRows(holder, metadata, index, batch),
    )


def _concerns(processor: LogitsProcessor, rows: Container[int]) -> bool:
    """Whether a processor may change one of the rows.

    One that does not is not run: a user's may count its calls, and any is run on a copy of the whole batch.
    """
    changed: Iterable[int]
    if type(processor) is SeededOutputs:
        return False
    if type(processor) is MinPLogitsProcessor:
        return processor.min_p_count > 0
    if type(processor) is LogitBiasLogitsProcessor:
        changed = processor.biases
    elif type(processor) is MinTokensLogitsProcessor:
        changed = processor.min_toks
    elif isinstance(processor, AdapterLogitsProcessor):
        changed = processor.req_info
    else:
        return True
    return any(row in rows for row in changed)


class _Spread:
    """Rows put where they are in their batch, and back: vLLM's parts know them by their place there."""

    def __init__(self, index: Tensor, batch: int) -> None:
        self._index = index
        self._batch = batch

    def through(self, change: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
        """The rows after a change of the batch, which has zeros elsewhere."""
        spread = logits.new_zeros(self._batch, logits.shape[1])
        return change(spread.index_copy_(0, self._index, logits))[self._index]


class _OfRows(_Spread):
    """A logits processor of a batch, for some of its rows."""

    def __init__(self, processor: LogitsProcessor, index: Tensor, batch: int) -> None:
        super().__init__(index, batch)
        self._processor = processor

    def apply(self, logits: Tensor) -> Tensor:
        return self.through(self._processor.apply, logits)


class _HolderOfRows(_Spread):
    """The thinking budgets of a batch, for some of its rows."""

    def __init__(self, holder: Any, metadata: SamplingMetadata, index: Tensor, batch: int) -> None:
        super().__init__(index, batch)
        self._holder = holder
        self._metadata = metadata

    def has_tracked_requests(self) -> bool:
        return bool(self._holder.has_tracked_requests())

    def update_state(self, output_token_ids: Any, spec_token_ids: Any, repeat_indices: Any = None) -> None:
        self._holder.update_state(self._metadata.output_token_ids, self._metadata.spec_token_ids, repeat_indices)

    def apply_to_logits(self, logits: Tensor, predict_bonus_token: bool, spec_token_ids: Any) -> Tensor:
        def change(spread: Tensor) -> Tensor:
            return self._holder.apply_to_logits(spread, predict_bonus_token, self._metadata.spec_token_ids)

        return self.through(change, logits)

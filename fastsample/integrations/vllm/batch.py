"""What vLLM's `SamplingMetadata` says of a batch, as the arguments of `fastsample.sample_full`."""

from typing import Any

import torch
from torch import Tensor
from vllm.utils.torch_utils import PIN_MEMORY, async_tensor_h2d, make_tensor_with_pad
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata

from fastsample.adjustments import BadWords, LogitBias, LogitsAdjustments, TokenLists, pack_bitmask
from fastsample.integrations.vllm.requests import SeededOutputs

# Below it vLLM's V1 sampler takes a temperature for 0 (_SAMPLING_EPS).
GREEDY_BELOW = 1e-5
# vLLM lists stop tokens only of rows that are not long enough yet, so any length is too short.
_NEVER_LONG_ENOUGH = 2**62


def filters(metadata: SamplingMetadata) -> dict[str, Any]:
    """Temperature, top_k, top_p and min_p, in vLLM's order."""
    chosen: dict[str, Any] = {"order": "min_p_first", "temperature": 0.0}
    if metadata.temperature is not None:
        temperature = metadata.temperature
        chosen["temperature"] = (
            temperature if metadata.all_random else temperature.masked_fill(temperature < GREEDY_BELOW, 0.0)
        )
    if metadata.top_k is not None:
        chosen["top_k"] = metadata.top_k
    if metadata.top_p is not None:
        chosen["top_p"] = metadata.top_p
    for processor in metadata.logitsprocs.argmax_invariant:
        if type(processor) is MinPLogitsProcessor and processor.min_p_count:
            chosen["min_p"] = processor.min_p.view(-1)
    return chosen


def adjustments(metadata: SamplingMetadata, batch: int, device: torch.device) -> LogitsAdjustments:
    """What the requests change in their logits."""
    given: LogitsAdjustments = {}
    if metadata.allowed_token_ids_mask is not None:
        given["bitmask"] = _allowed(metadata)
    if not metadata.no_penalties:
        given["repetition_penalty"] = metadata.repetition_penalties
        given["frequency_penalty"] = metadata.frequency_penalties
        given["presence_penalty"] = metadata.presence_penalties
        assert metadata.prompt_token_ids is not None
        # Padded with ids beyond the vocabulary, which are passed over.
        given["prompt_tokens"] = metadata.prompt_token_ids
    if metadata.bad_words_token_ids:
        words = metadata.bad_words_token_ids
        given["bad_words"] = BadWords.of([words.get(row) for row in range(batch)], device)
    if metadata.bad_words_token_ids or not metadata.no_penalties:
        given["output_tokens"], given["output_lengths"] = _outputs(metadata.output_token_ids, device)
    for processor in metadata.logitsprocs.non_argmax_invariant:
        if type(processor) is LogitBiasLogitsProcessor and processor.biases:
            rows, tokens = processor.logits_slice
            order, offsets = _by_row(rows, batch)
            given["logit_bias"] = LogitBias(tokens[order], processor.bias_tensor[order], offsets)
        elif type(processor) is MinTokensLogitsProcessor and processor.min_toks:
            rows, tokens = processor.logits_slice
            order, offsets = _by_row(rows, batch)
            given["stop_tokens"] = TokenLists(tokens[order], offsets)
            given["min_tokens"] = _NEVER_LONG_ENOUGH
            if "output_lengths" not in given:
                given["output_lengths"] = torch.zeros(batch, dtype=torch.int64, device=device)
    return given


def output_lengths(metadata: SamplingMetadata) -> dict[int, int]:
    """How many tokens each request with a seed has drawn, by row; a row of which that is not known is left out."""
    if not metadata.generators:
        return {}
    for processor in metadata.logitsprocs.argmax_invariant:
        if type(processor) is SeededOutputs:
            return {row: len(output) for row, output in processor.outputs.items()}
    # Without our processor, as under speculative decoding, vLLM hands outputs over only where a neighbour needs them: a
    # request would draw by its seed at one step and by vLLM's generator at another.
    return {}


def seeds(
    metadata: SamplingMetadata, lengths: dict[int, int], batch: int, device: torch.device
) -> dict[str, Tensor | None]:
    """Seed and offset of each row; a request without a seed draws its own from torch's default generator."""
    rows = [row for row in metadata.generators if row in lengths]
    if not rows:
        return {}
    words = [metadata.generators[row].initial_seed() for row in rows]
    host = [rows, [word - 2**64 if word >= 2**63 else word for word in words], [lengths[row] for row in rows]]
    of_rows, seed_words, offset_words = async_tensor_h2d(host, device=device, dtype=torch.int64)
    seed = torch.empty(batch, dtype=torch.int64, device=device).random_()
    offset = torch.zeros(batch, dtype=torch.int64, device=device)
    return {"seed": seed.index_copy_(0, of_rows, seed_words), "offset": offset.index_copy_(0, of_rows, offset_words)}


def _allowed(metadata: SamplingMetadata) -> Tensor:
    """vLLM's mask of the tokens that may not be drawn, bool [batch, vocab], as a bitmask of those that may."""
    packed: Tensor | None = getattr(metadata, "_fastsample_allowed", None)
    if packed is None:
        assert metadata.allowed_token_ids_mask is not None
        allowed = ~metadata.allowed_token_ids_mask
        packed = pack_bitmask(allowed, allowed.shape[1])
        # vLLM makes new metadata whenever the batch changes, so a request's mask is packed once, not at every token.
        metadata._fastsample_allowed = packed
    return packed


def _outputs(outputs: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The outputs side by side, padded, and their lengths."""
    padded = make_tensor_with_pad(outputs, pad=-1, dtype=torch.int64, device="cpu", pin_memory=PIN_MEMORY)
    lengths = async_tensor_h2d([len(output) for output in outputs], device=device, dtype=torch.int64)
    return padded.to(device, non_blocking=True), lengths


def _by_row(rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The order that puts entries of the same row together, and where each row's begin."""
    ordered, order = rows.sort(stable=True)
    # int32 as the rows are: of mixed types searchsorted makes copies.
    begins = torch.arange(batch + 1, dtype=ordered.dtype, device=rows.device)
    return order, torch.searchsorted(ordered, begins)

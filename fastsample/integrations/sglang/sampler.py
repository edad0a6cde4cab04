"""fastsample in SGLang's sampler (sglang/srt/layers/sampler.py), for all the work of its `forward`.

Tokens are those of `fastsample.sample`, in the order "joint", which is that of SGLang's own filters. What changes the
logits of a request before they are filtered (penalties, grammars, bias, custom logit processors, watermarks) stays
SGLang's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from sglang.srt.layers import sampler as host
from sglang.srt.layers.logits_processor import LogitsProcessorOutput, SamplingMaskOutput
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from torch import Tensor

import fastsample
from fastsample.integrations.sglang import plugin, say_on, seeds


def register_hooks() -> None:
    """Have SGLang call `forward` around that of its sampler, once it applies the hooks of its plugins."""
    HookRegistry.register("sglang.srt.layers.sampler.Sampler.forward", forward, HookType.AROUND)


def forward(
    sglang_forward: Callable[..., Tensor],
    sampler: host.Sampler,
    logits_output: LogitsProcessorOutput,
    sampling_info: SamplingBatchInfo,
    return_logprob: bool,
    top_logprobs_nums: Sequence[int],
    token_ids_logprobs: Sequence[Sequence[int] | None],
    positions: Tensor,
    *,
    logprob_logits: Tensor | None = None,
) -> Tensor:
    """Stands in for `Sampler.forward`: the same arguments, fields of `logits_output` and result.

    The logits are written by SGLang's own preparation alone (custom logit processors, NaN), and keep their values.

    Args:
        sglang_forward: SGLang's own, for batches that fastsample does not serve.
        sampler, logits_output, sampling_info, return_logprob, top_logprobs_nums, token_ids_logprobs, positions,
            logprob_logits: as SGLang calls it.

    Returns:
        Tokens [batch], int64 where all requests are greedy and else int32, as SGLang's are. 0 in a row with a NaN, or
        nothing but -inf.
    """
    logits = logits_output.next_token_logits
    if not _serves(sampler, logits):
        named = {} if logprob_logits is None else {"logprob_logits": logprob_logits}
        return sglang_forward(
            sampler,
            logits_output,
            sampling_info,
            return_logprob,
            top_logprobs_nums,
            token_ids_logprobs,
            positions,
            **named,
        )
    say_on()
    host.maybe_detect_nan(logits, "sampler: next_token_logits")
    logits = sampler._preprocess_logits(logits, sampling_info)
    if logprob_logits is not None:
        logprob_logits = sampler._preprocess_logits(logprob_logits, sampling_info)
    filters = _filters(sampling_info)
    words: dict[str, Any] = {} if sampling_info.is_all_greedy else seeds.words(sampling_info, positions)
    # Text is made of every id; a row that fastsample cannot draw from must not end the server.
    tokens = fastsample.sample(logits, **filters, **words).clamp_(min=0)
    if not sampling_info.is_all_greedy:
        tokens = tokens.to(torch.int32)
    if return_logprob:
        scores = _log_probabilities(logits if logprob_logits is None else logprob_logits, sampling_info)
        sampler.output_logprob_processor.compute_logprobs(
            scores, top_logprobs_nums, token_ids_logprobs, tokens
        ).write_output_to(logits_output)
    sampler._sync_token_ids_across_tp(tokens, sampling_info)
    if sampling_info.sampling_mask_batch_indices is not None:
        logits_output.sampling_mask_output = _kept_sets(sampler, logits, sampling_info, filters, tokens)
    return tokens


def _serves(sampler: host.Sampler, logits: Tensor) -> bool:
    # By its module, since a plugin of SGLang's may put another class under the name of SGLang's.
    if type(sampler).__module__ != host.__name__:
        plugin.warn_once(f"leaves every batch to {type(sampler).__name__}, which is not SGLang's own sampler")
        return False
    if sampler.rl_on_policy_target is not None:
        # Its tokens and log-probabilities are those of bfloat16 logits divided in bfloat16, as its trainer has them.
        plugin.warn_once("leaves every batch to SGLang under --rl-on-policy-target")
        return False
    # SGLang's ranks take part in steps that have no request of theirs.
    return logits.shape[0] > 0 and plugin.serves(logits)


def _filters(sampling_info: SamplingBatchInfo) -> dict[str, Any]:
    """Temperature, top_k, top_p and min_p of a batch, those that any of its requests needs."""
    if sampling_info.is_all_greedy:
        return {"temperature": 0.0}
    # A greedy request among others has top_k 1, by which the first of the largest logits is kept.
    chosen: dict[str, Any] = {"order": "joint", "temperature": sampling_info.temperatures.view(-1)}
    if sampling_info.need_top_k_sampling:
        chosen["top_k"] = sampling_info.top_ks
    if sampling_info.need_top_p_sampling:
        chosen["top_p"] = sampling_info.top_ps
    if sampling_info.need_min_p_sampling:
        chosen["min_p"] = sampling_info.min_ps
    return chosen


def _log_probabilities(logits: Tensor, sampling_info: SamplingBatchInfo) -> Tensor:
    """What SGLang says log-probabilities of: at the temperature, before the filters; a new tensor [batch, vocab]."""
    if not (sampling_info.is_all_greedy or host.SGLANG_RETURN_ORIGINAL_LOGPROB):
        logits = logits / sampling_info.temperatures
    # torch's, since SGLang promises under deterministic inference that prefill gives these bits again.
    return torch.nn.functional.log_softmax(logits, dim=-1)


def _kept_sets(
    sampler: host.Sampler,
    logits: Tensor,
    sampling_info: SamplingBatchInfo,
    filters: dict[str, Any],
    tokens: Tensor,
) -> SamplingMaskOutput:
    """The kept tokens of the requests that ask for them, packed by SGLang."""
    rows, supports = sampling_info.sampling_mask_batch_indices, sampling_info.sampling_support_logprobs_capture_indices
    if sampling_info.is_all_greedy:
        return sampler._build_greedy_sampling_mask_output(rows, tokens, supports)
    of_rows: dict[str, Any] = {
        name: value[rows] if isinstance(value, Tensor) else value for name, value in filters.items()
    }
    weights = fastsample.filtered_probs(logits[rows], **of_rows)
    # No selected weight: SGLang looks it up, since it may have put another rank's token in place of ours.
    capture = host._SamplingMaskCapture(weights=weights, token_ids=None, selected_weight=None, batch_rows=rows)
    return sampler._build_sampling_mask_output(tokens, capture, supports)

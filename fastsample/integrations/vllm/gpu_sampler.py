"""fastsample in the sampler of vLLM's newer GPU model runner (vllm/v1/worker/gpu/sample/sampler.py).

That sampler keeps each request's parameters in slots on the device. What its requests change in their logits stays with
its own kernels, which know drafts; temperature, filters and the draw are fastsample's. Where no request of a batch
changes any, the draw reads the model's logits as they are, and says the log-probabilities on its way.

Every request has a seed here, its own or one that vLLM gave it on arrival. Its token draws from (seed, number of tokens
in its output), which is known on the device, so nothing is waited for.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.worker.gpu.sample import sampler as vllm_sampler
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

import fastsample
from fastsample.integrations.vllm import plugin, say_on
from fastsample.integrations.vllm.logprobs import in_one_pass, logprobs_of
from fastsample.integrations.vllm.replaced import Replaced

# Where the tokens of a draw carry what was said of them, from `Sampler.sample` to what vLLM calls next.
_SAID = "_fastsample_logprobs"

Sampler = vllm_sampler.Sampler


def install() -> None:
    """Put fastsample into every sampler of the class; twice is once."""
    replaced_sample.install()
    replaced_scores.install()


def uninstall() -> None:
    """Undo `install`."""
    replaced_sample.uninstall()
    replaced_scores.uninstall()


def sample(
    self: Any,
    logits: Tensor,
    expanded_idx_mapping: Tensor,
    idx_mapping: Tensor,
    idx_mapping_np: np.ndarray,
    pos: Tensor,
    input_ids: Tensor,
    expanded_local_pos: Tensor,
    seq_lens_upper_bound_np: np.ndarray,
    return_logprobs: bool = False,
) -> tuple[Tensor, Tensor]:
    """Stands in for `Sampler.sample`: the same arguments, the same tokens' type, and the logits drawn from."""
    # A watermark is in vLLM's own noise.
    draws_otherwise = type(self)._sample_random is not Sampler._sample_random
    if draws_otherwise or not replaced_sample.on or not plugin.serves(logits):
        output: tuple[Tensor, Tensor] = replaced_sample.theirs(
            self,
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            input_ids,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            return_logprobs,
        )
        return output
    say_on()
    changed = _changes_logits(self, idx_mapping_np)
    if changed:
        context = LogitsContext(
            expanded_idx_mapping=expanded_idx_mapping,
            idx_mapping=idx_mapping,
            idx_mapping_np=idx_mapping_np,
            expanded_local_pos=expanded_local_pos,
            input_ids=input_ids,
            pos=pos,
            seq_lens_upper_bound_np=seq_lens_upper_bound_np,
        )
        logits = logits.to(torch.float32, copy=True)
        for processor in self.logits_processors:
            logits = processor.apply(logits, context)
        self.thinking_budget_state.apply(logits, context)

    states = self.sampling_states
    # Padding between the requests of a batch has a slot below 0.
    slots = expanded_idx_mapping.clamp(min=0).long()
    filters: dict[str, Any] = {"order": "min_p_first"}
    if np.any(states.top_k.np[idx_mapping_np] != states.vocab_size):
        filters["top_k"] = states.top_k.gpu[slots]
    if np.any(states.top_p.np[idx_mapping_np] != 1.0):
        filters["top_p"] = states.top_p.gpu[slots]
    if np.any(states.min_p.np[idx_mapping_np] != 0.0):
        filters["min_p"] = states.min_p.gpu[slots]
    temperature = states.temperature.gpu[slots]
    # The token at `pos` is the last one known: at the end of the prompt nothing has been drawn yet.
    drawn = pos.long() + 1 - self.req_states.prompt_len.gpu[slots]
    seeded = {"seed": states.seeds.gpu[slots], "offset": drawn}
    listed = None if changed or not return_logprobs else _listed(self, idx_mapping_np)
    if listed is None:
        tokens = fastsample.sample(logits, temperature, **filters, **seeded)
    else:
        full = fastsample.sample_full(logits, temperature, **filters, **seeded, raw_logprobs=True, top_logprobs=listed)
        tokens = full.tokens
        setattr(tokens, _SAID, logprobs_of(full, torch.int64))
    # An invalid row has -1, which vLLM reads as no token at all.
    tokens.clamp_(min=0)
    if self.return_sampling_mask or (return_logprobs and self.logprobs_mode in PROCESSED_LOGPROBS_MODES):
        # vLLM leaves the distribution of a greedy row as it is at temperature 1.
        temperature = temperature.masked_fill(temperature == 0.0, 1.0)
        logits = fastsample.filter_logits(logits.float(), temperature, **filters) / temperature.unsqueeze(1)
    return tokens, logits


def scores(
    logits: Tensor,
    num_logprobs: int,
    sampled_token_ids: Tensor,
    cu_num_logits: list[int] | None = None,
    *arguments: Any,
    **named: Any,
) -> Any:
    """Stands in for `compute_topk_scores` in that sampler's module: what the draw has said, where it has."""
    said = getattr(sampled_token_ids, _SAID, None)
    if said is None:
        return replaced_scores.theirs(logits, num_logprobs, sampled_token_ids, cu_num_logits, *arguments, **named)
    return said._replace(cu_num_generated_tokens=cu_num_logits)


replaced_sample = Replaced(Sampler, "sample", sample)
replaced_scores = Replaced(vllm_sampler, "compute_topk_scores", scores)


def _listed(sampler: Any, slots: np.ndarray) -> int | None:
    """How many tokens the draw shall list with their log-probabilities; None where it cannot say what is asked for."""
    asked = sampler.get_logprobs_dims(slots)
    # A replayed trace puts other tokens in place of those drawn.
    if asked is None or sampler.logprobs_mode != "raw_logprobs" or sampler.trace_replay_state is not None:
        return None
    listed, given_tokens = asked
    return listed if given_tokens == 0 and in_one_pass(listed) else None


def _changes_logits(sampler: Any, slots: np.ndarray) -> bool:
    """Whether any request of the batch changes its logits before the temperature."""
    bias, penalties, bad_words, *others = sampler.logits_processors
    thinking = sampler.thinking_budget_state
    return bool(
        others
        or bias.use_logit_bias[slots].any()
        or penalties.use_penalty[slots].any()
        or bad_words.num_bad_words.np[slots].any()
        or (thinking.enabled and thinking.use_thinking_budget[slots].any())
    )

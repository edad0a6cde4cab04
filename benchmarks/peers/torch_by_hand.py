"""torch as a careful user writes it: torch.topk first where there is a top_k, a sort only where nothing else does."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Filters, Job, refuse_mixed


class TorchSession:
    def __init__(self, job: Job) -> None:
        self.work = job.work
        self.top_k = 0 if job.work.per_row else min(job.work.top_k, job.vocab)
        self.filters: Filters | None = None

    def load(self, logits: Tensor) -> None:
        self.logits = logits
        self.prepare(logits)

    def prepare(self, logits: Tensor) -> None:
        """Put the filters of the rows where the logits are, once."""
        if self.work.per_row and self.filters is None:
            batch, vocab = logits.shape
            self.filters = self.work.filters(batch, vocab, logits.device)

    def draw(self) -> Tensor:
        return self.choose(self.logits)

    def choose(self, logits: Tensor) -> Tensor:
        """A token of every row."""
        work = self.work
        if work.greedy:
            return torch.argmax(logits, dim=-1)
        tokens: Tensor | None = None
        if self.top_k:
            logits, tokens = torch.topk(logits, self.top_k, dim=-1)
        elif work.per_row or work.top_p < 1:
            logits, tokens = torch.sort(logits, dim=-1, descending=True)
        scores = logits.float() if work.temperature == 1 else logits.float() / work.temperature
        top_p: float | Tensor = work.top_p
        min_p: float | Tensor = work.min_p
        if self.filters is not None:
            top_k, top_p, min_p = (value[:, None] for value in self.filters)
            rank = torch.arange(scores.shape[1], device=scores.device)
            scores = scores.masked_fill(rank >= top_k, -torch.inf)
        probabilities = torch.softmax(scores, dim=-1)
        if work.top_p < 1:
            before = torch.cumsum(probabilities, dim=-1).sub_(probabilities)
            probabilities.masked_fill_(before >= top_p, 0)
        if work.min_p:
            probabilities.masked_fill_(probabilities < min_p * probabilities.amax(dim=-1, keepdim=True), 0)
        drawn = torch.multinomial(probabilities, 1)
        return (drawn if tokens is None else tokens.gather(1, drawn)).squeeze(1)


class TorchByHand:
    key = "torch"
    label = "torch"
    package = "torch"
    note = (
        "torch.topk (or torch.sort for top_p alone, and for filters by row), then softmax, masks and "
        "torch.multinomial; greedy is torch.argmax"
    )

    def missing(self) -> str | None:
        return None

    def start(self, job: Job) -> TorchSession:
        refuse_mixed(job)
        return TorchSession(job)

"""torch as a careful user writes it: torch.topk first where there is a top_k, a full sort only where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Job, NotServedError, refuse_per_row


class TorchSession:
    def __init__(self, job: Job) -> None:
        self.work = job.work
        self.top_k = min(job.work.top_k, job.vocab)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        work, logits = self.work, self.logits
        if work.greedy:
            return torch.argmax(logits, dim=-1)
        if self.top_k:
            largest, tokens = torch.topk(logits, self.top_k, dim=-1)
        elif work.top_p < 1:
            largest, tokens = torch.sort(logits, dim=-1, descending=True)
        else:
            probabilities = torch.softmax(logits.float() / work.temperature, dim=-1)
            return torch.multinomial(probabilities, 1).squeeze(1)
        probabilities = torch.softmax(largest.float() / work.temperature, dim=-1)
        if work.top_p < 1:
            before = torch.cumsum(probabilities, dim=-1).sub_(probabilities)
            probabilities.masked_fill_(before >= work.top_p, 0)
        return tokens.gather(1, torch.multinomial(probabilities, 1)).squeeze(1)


class TorchByHand:
    key = "torch"
    label = "torch"
    package = "torch"
    note = (
        "torch.topk (or torch.sort for top_p alone), then softmax, cumsum and torch.multinomial; greedy is torch.argmax"
    )

    def missing(self) -> str | None:
        return None

    def start(self, job: Job) -> TorchSession:
        refuse_per_row("torch by hand", job)
        if job.work.min_p:
            raise NotServedError("min_p is not written out for torch by hand")
        return TorchSession(job)

"""Hugging Face transformers: the chain that `generate` runs between the model and the next token."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .base import Job, missing_package, refuse_bfloat16, refuse_per_row


class HuggingFaceSession:
    def __init__(self, job: Job) -> None:
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        work = job.work
        self.greedy = work.greedy
        self.chain = LogitsProcessorList()
        # generate() leaves out the warpers that would change nothing, and orders them so.
        if work.temperature not in (0, 1):
            self.chain.append(TemperatureLogitsWarper(work.temperature))
        if work.top_k:
            self.chain.append(TopKLogitsWarper(min(work.top_k, job.vocab)))
        if work.top_p < 1:
            self.chain.append(TopPLogitsWarper(work.top_p))
        if work.min_p:
            self.chain.append(MinPLogitsWarper(work.min_p))
        self.input_ids = cast(torch.LongTensor, torch.zeros(job.batch, 1, dtype=torch.int64))

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        if self.greedy:
            return torch.argmax(self.logits, dim=-1)
        scores = self.chain(self.input_ids, self.logits)
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1).squeeze(1)


class HuggingFace:
    key = "hugging-face"
    label = "Hugging Face"
    package = "transformers"
    note = "logits warpers of generate(), then torch.softmax and torch.multinomial; greedy is torch.argmax"

    def missing(self) -> str | None:
        return missing_package(self.package)

    def start(self, job: Job) -> HuggingFaceSession:
        refuse_per_row(job)
        refuse_bfloat16(job)
        return HuggingFaceSession(job)

"""fastsample as the benchmark runs it, and the two reference points measured beside it."""

from __future__ import annotations

import torch
from torch import Tensor

import fastsample

from .peers.base import Job


class FastsampleSession:
    """`fastsample.sample` as users call it: torch's default generator, a new result tensor for every call."""

    def __init__(self, job: Job, backend: str) -> None:
        self.backend = backend
        self.parameters = job.work.parameters(job.batch)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return fastsample.sample(self.logits, backend=self.backend, **self.parameters)


class Softmax:
    """x, the unit of the goals: torch.softmax in float32, into a tensor that is allocated and touched beforehand.

    Without `out=`, a result above 32 MiB is new memory in every call, whose page faults would flatter us.
    """

    def __init__(self, batch: int, vocab: int) -> None:
        self.out = torch.zeros(batch, vocab)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return torch.softmax(self.logits, dim=-1, out=self.out)


class OneRead:
    """The floor: one read of the memory that the logits take, by torch.sum over it as float32."""

    def load(self, logits: Tensor) -> None:
        flat = logits.view(-1)
        if flat.dtype is not torch.float32:  # two values of 16 bits at a time; their sum means nothing
            flat = flat[flat.storage_offset() % 2 :]  # two values to a float, which begins at an even one
            flat = flat[: flat.numel() // 2 * 2].view(torch.float32)
        self.flat = flat

    def draw(self) -> Tensor:
        return torch.sum(self.flat)

"""torch as a careful user writes it, under torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample.benchmarks.peers.base import Job, Session
from fastsample.benchmarks.peers.torch_by_hand import TorchByHand


class TorchCompiledSession:
    def __init__(self, session: Session) -> None:
        def draw(logits: Tensor) -> object:
            session.load(logits)
            return session.draw()

        self.compiled = torch.compile(draw, dynamic=False)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        tokens = self.compiled(self.logits)
        assert isinstance(tokens, Tensor)
        return tokens


class TorchCompiled:
    key = "torch-compile"
    label = "torch.compile"
    package = "torch"
    note = "the same steps as torch, under torch.compile"

    def missing(self) -> str | None:
        return None

    def start(self, job: Job) -> TorchCompiledSession:
        return TorchCompiledSession(TorchByHand().start(job))

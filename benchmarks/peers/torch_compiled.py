"""torch as a careful user writes it, under torch.compile."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from .base import Job
from .torch_by_hand import TorchByHand

# To torch.compile all jobs are variants of one function, of which it compiles eight and runs the rest uncompiled.
_ALONE: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in inspect.signature(torch.compile).parameters else {}
)


class Compiled:
    """What is compiled for a job: it does for any rows, and takes seconds, so it is kept."""

    def __init__(self, job: Job) -> None:
        self.session = TorchByHand().start(job)
        self.choose = torch.compile(self.session.choose, dynamic=False, fullgraph=True, **_ALONE)
        self.ready = False

    def make_ready(self, logits: Tensor) -> None:
        """Compile it, if that has not been done."""
        self.session.prepare(logits)
        if not self.ready:
            self.choose(logits)
            self.ready = True


@functools.cache
def compiled(job: Job) -> Compiled:
    """What is compiled for this job in this process."""
    return Compiled(job)


class TorchCompiledSession:
    def __init__(self, job: Job) -> None:
        self.compiled = compiled(job)

    def load(self, logits: Tensor) -> None:
        self.logits = logits
        self.compiled.make_ready(logits)

    def draw(self) -> Tensor:
        return self.compiled.choose(self.logits)


class TorchCompiled:
    key = "torch-compile"
    label = "torch.compile"
    package = "torch"
    note = "the same steps as torch, compiled by torch.compile before they are timed"

    def missing(self) -> str | None:
        return None

    def start(self, job: Job) -> TorchCompiledSession:
        return TorchCompiledSession(job)

"""fastsample as the GPU benchmark runs it, and the samplers that it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastsample
from fastsample.benchmarks.peers.base import Job, Peer
from fastsample.benchmarks.peers.hugging_face import HuggingFace
from fastsample.benchmarks.peers.torch_by_hand import TorchByHand

from .flashinfer import CakeSampling, FlashInferFromLogits, FlashInferFromProbs
from .torch_compiled import TorchCompiled
from .vllm_triton import VllmTriton

COMPILED = TorchCompiled()
# Compiling takes half a minute for each shape, so it is not among those that run at every setting with peers.
PEERS: dict[str, Peer] = {
    peer.key: peer
    for peer in (
        TorchByHand(),
        HuggingFace(),
        FlashInferFromLogits(),
        FlashInferFromProbs(),
        CakeSampling(),
        VllmTriton(),
    )
}


class FastsampleSession:
    """`fastsample.sample` as a server calls it: a seed and a count of tokens for each request, held on the device."""

    def __init__(self, job: Job, backend: str, device: torch.device) -> None:
        self.backend = backend
        self.parameters: dict[str, Any] = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in job.work.parameters(job.batch).items()
        }
        self.seed = torch.arange(job.batch, device=device) * 7919
        self.offset = torch.arange(job.batch, device=device)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return fastsample.sample(
            self.logits, seed=self.seed, offset=self.offset, backend=self.backend, **self.parameters
        )


class SoftmaxSession:
    """torch.softmax in float32 into a tensor that is there already: what a sampler from probabilities begins with."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.out = torch.empty(job.batch, job.vocab, device=device)

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return torch.softmax(self.logits, dim=-1, dtype=torch.float32, out=self.out)

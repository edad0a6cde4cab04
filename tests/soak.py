"""The program of `test_soak.py`: `python soak.py SECONDS` works, and prints what it took as JSON.

Threads go round a list of cases, each at a place of its own, and compare what a case returns with what it returned
first. They end and are made anew all the time, since the kernels keep memory for each thread.
"""

import gc
import hashlib
import itertools
import json
import math
import os
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastsample
from fastsample import LogitBias, Sampler, TokenLists

WORKERS = 3
CASES_OF_A_THREAD = 40
SHAPES = [(1, 128256), (3, 32003), (33, 4999), (64, 211), (5, 1)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def logits_of(number: int) -> torch.Tensor:
    rows, vocab = SHAPES[number % len(SHAPES)]
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(rows, vocab, generator=generator) * 3).to(DTYPES[number % len(DTYPES)])


def plain(number: int) -> Any:
    logits = logits_of(number)
    rows = torch.arange(len(logits))
    return (
        fastsample.sample(logits, 0.1 + rows / 8, 50, 0.9, 0.01, seed=rows, offset=rows),
        fastsample.sample(logits, top_p=0.95, seed=number, num_samples=5, replacement=False),
        fastsample.filter_logits(logits, 1.0, 20).isfinite().sum(dim=1),
    )


def full(number: int) -> Any:
    logits = logits_of(number)
    rows, vocab = logits.shape
    out = fastsample.sample_full(
        logits,
        0.8,
        100,
        0.9,
        seed=number,
        raw_logprobs=True,
        top_logprobs=min(vocab, 40 if number % 2 else 5),
        distribution=True,
        kept_set=True,
        repetition_penalty=1.2,
        output_tokens=torch.arange(rows * 4).view(rows, 4) % vocab,
        logit_bias=LogitBias.of([{number % vocab: 3.0}] * rows),
        allowed_tokens=TokenLists.of([list(range(0, vocab, 2))] * rows) if number % 3 == 0 else None,
    )
    return out.tokens, out.numbers, out.top_tokens, out.ranks, out.logprobs


def speculative(number: int) -> Any:
    requests, drafts, vocab = 2, 3, 211
    generator = torch.Generator().manual_seed(number)
    target = torch.randn(requests, drafts + 1, vocab, generator=generator)
    draft = torch.randn(requests, drafts, vocab, generator=generator)
    tokens = torch.full((requests, drafts), number)
    verified = fastsample.verify_chain(target, tokens, draft, 0.9, seed=number)
    return verified.tokens, verified.accepted


def trained(number: int) -> Any:
    logits = logits_of(number).float().requires_grad_()
    fastsample.filtered_probs(logits, 0.9, 30).square().sum().backward()
    assert logits.grad is not None
    return logits.grad.sum(dim=1, dtype=torch.float64), logits.grad.abs().amax(dim=1)


def dropped_in(number: int) -> Any:
    probs = logits_of(number).float().softmax(dim=1)
    generator = torch.Generator().manual_seed(number)
    with fastsample.patch_torch():
        return torch.multinomial(probs, 1, generator=generator)


def requests(number: int) -> Any:
    vocab = 211
    logits = torch.randn(4, vocab, generator=torch.Generator().manual_seed(number))
    sampler = Sampler(4, vocab, max_tokens=32, list_capacity=32)
    drawn = []
    for turn in range(6):
        slot = sampler.add(seed=turn, presence_penalty=0.3, stop_tokens=[turn], min_tokens=3, bad_words=[[turn, 3]])
        drawn.append(sampler.step(logits))
        if turn % 2:
            sampler.remove(slot)
        else:
            sampler.update(slot, logit_bias={turn: 2.0}, allowed_tokens=list(range(turn, vocab)))
        if turn == 4:
            sampler.remove(slot)
    return torch.stack(drawn)


def refused(number: int) -> Any:
    logits = logits_of(number).float()
    logits[0, -1] = math.nan
    messages = []
    for given in ({"temperature": -1.0}, {"top_p": 2.0}, {"seed": 1.5}, {"seed": 1, "errors": "raise"}):
        try:
            fastsample.sample(logits, **given)
        except (TypeError, ValueError) as error:
            messages.append(str(error))
    assert len(messages) == 4
    return messages


def by_reference(number: int) -> Any:
    return fastsample.sample(logits_of(number)[:, :211], 0.9, 20, 0.9, seed=number, backend="reference")


KINDS: list[Callable[[int], Any]] = [plain, full, speculative, trained, dropped_in, requests, refused, by_reference]
CASES = list(itertools.product(KINDS, range(15)))


def digest(case: tuple[Callable[[int], Any], int]) -> str:
    """What a case returns, in a few letters."""
    kind, number = case
    parts = kind(number)
    parts = parts if isinstance(parts, tuple | list) else [parts]
    text = repr([part.tolist() if isinstance(part, torch.Tensor) else part for part in parts])
    return hashlib.sha256(text.encode()).hexdigest()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def work(seconds: float) -> dict[str, Any]:
    """Go round the cases for a time; the memory, the threads and the objects at 40 moments of it."""
    expected = [digest(case) for case in CASES]
    begin = time.monotonic()
    wrong: set[str] = set()
    done = [0] * WORKERS

    def some_cases(worker: int) -> None:
        for _ in range(CASES_OF_A_THREAD):
            place = (done[worker] + worker * len(CASES) // WORKERS) % len(CASES)
            kind, number = CASES[place]
            if digest(CASES[place]) != expected[place]:
                wrong.add(f"{kind.__name__} {number}")
            done[worker] += 1

    def keep_working(worker: int) -> None:
        while time.monotonic() < begin + seconds:
            thread = threading.Thread(target=some_cases, args=(worker,))
            thread.start()
            thread.join()

    workers = [threading.Thread(target=keep_working, args=(worker,)) for worker in range(WORKERS)]
    for thread in workers:
        thread.start()
    resident, threads, objects = [], [], []
    for moment in range(1, 41):
        time.sleep(max(0.0, begin + seconds * moment / 40 - time.monotonic()))
        resident.append(resident_bytes())
        threads.append(len(os.listdir("/proc/self/task")))
        gc.collect()
        objects.append(len(gc.get_objects()))
    for thread in workers:
        thread.join()
    return {"cases": sum(done), "wrong": sorted(wrong), "resident": resident, "threads": threads, "objects": objects}


def python_growth() -> dict[str, int]:
    """Bytes of Python objects that some rounds of all cases leave behind, after others that warm up.

    What was there before the tracing counts once it is replaced: a round grows by 68000 bytes, then 7000, 5000, 4000,
    and from the tenth on by some 1000 to 2000.
    """
    measured = CASES * 4
    tracemalloc.start()
    sizes = []
    for cases in (CASES * 10, measured):
        for case in cases:
            digest(case)
        gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return {"python_growth": sizes[1] - sizes[0], "python_cases": len(measured)}


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(json.dumps({**work(float(sys.argv[1])), **python_growth()}))

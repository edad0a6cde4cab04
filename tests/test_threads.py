"""Threads at once: each draws what it would draw alone, by `==`, and random words that are taken are taken once."""

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import LogitBias, Sampler, ops
from missing import missing
from subprocesses import run_python

THREADS = 8
LOGITS = torch.randn(4, 3001, generator=torch.Generator().manual_seed(1)) * 3
# 8 draws of nearly 16 bits each: two calls with other random words have other tokens.
FLAT = torch.zeros(1, 60000)

# What draws on more than one thread of torch's needs a process of its own: in this one it is 1 (conftest.py).
CHANGING_THREADS = """
import sys, threading
import torch, fastsample

generator = torch.Generator().manual_seed(1)
# Short rows go to the threads whole; of long ones a call with fewer rows than threads splits each.
batches = [torch.randn(rows, vocab, generator=generator) for rows, vocab in ((5, 999), (1, 70001), (3, 70001))]

def draw(batch, seed):
    out = fastsample.sample_full(
        batch, 0.9, 50, 0.95, seed=seed, top_logprobs=3, distribution=True, presence_penalty=0.5,
        output_tokens=torch.tensor([[1, 2]] * len(batch)),
    )
    return out.tokens.tolist(), out.numbers.tolist(), out.logprobs.tolist()

torch.set_num_threads(1)
expected = {(place, seed): draw(batch, seed) for place, batch in enumerate(batches) for seed in range(4)}
failed, left = [], threading.Event()

def work(first):
    numbers = (1, 2, 64, 3)
    for turn in range(16):
        torch.set_num_threads(numbers[(first + turn) % 4])
        place, seed = turn % 3, turn % 4
        if draw(batches[place], seed) != expected[place, seed]:
            failed.append((first, turn))

def change():
    while not left.is_set():
        for number in (2, 64, 1):
            torch.set_num_threads(number)

threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
changing = threading.Thread(target=change)
for thread in (*threads, changing):
    thread.start()
for thread in threads:
    thread.join()
left.set()
changing.join()
print(failed)
"""

# An operator inside a task of torch's inter-op pool, which is where TorchScript runs what it forks.
IN_TASKS = """
import warnings
warnings.simplefilter("ignore")
import torch, fastsample

@torch.jit.script
def kept(logits: torch.Tensor) -> torch.Tensor:
    return torch.ops.fastsample.filter_logits(logits, 1.0, None, 50, None, 0.9, None, 0.0, None, 0)

@torch.jit.script
def in_tasks(batches: list[torch.Tensor]) -> list[torch.Tensor]:
    tasks = [torch.jit.fork(kept, batch) for batch in batches]
    return [torch.jit.wait(task) for task in tasks]

torch.set_num_threads(2)
batches = [torch.randn(2, 70001) for _ in range(8)]
print(all(torch.equal(one, kept(batch)) for one, batch in zip(in_tasks(batches), batches)))
"""


@pytest.fixture
def _frequent_switches() -> Iterator[None]:
    """Have the interpreter switch between threads wherever it may."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(*calls: Callable[[], Any], seconds: float = 120) -> list[Any]:
    """What calls return that are made by a thread each, which begin together. It fails when one is not over in time."""
    ready = threading.Barrier(len(calls))
    returned: dict[int, Any] = {}
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            ready.wait(30)
            returned[number] = calls[number]()
        except BaseException as error:
            raised.append(error)

    # Daemons, for which the end of the tests does not wait either.
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    waiting = [number for number, thread in enumerate(threads) if thread.is_alive()]
    assert not waiting, f"after {seconds} s still in calls {waiting}"
    if raised:
        raise raised[0]
    return [returned[number] for number in range(len(calls))]


def test_a_deadlock_is_a_failure() -> None:
    never = threading.Event()
    with pytest.raises(AssertionError, match=r"still in calls \[1\]"):
        at_once(lambda: 5, never.wait, seconds=0.2)
    never.set()
    with pytest.raises(ZeroDivisionError):
        at_once(lambda: 5, lambda: 1 // 0)


def draws_of_every_kind(seed: int, backend: str) -> list[list[Any]]:
    """The results of the functions that draw or filter, by one seed."""
    edits: dict[str, Any] = {
        "presence_penalty": 0.4,
        "output_tokens": torch.arange(8).view(4, 2),
        "logit_bias": LogitBias.of([{seed % 3001: 2.0}] * 4),
    }
    full = fastsample.sample_full(
        LOGITS, 0.8, 40, 0.9, seed=seed, top_logprobs=5, distribution=True, backend=backend, **edits
    )
    drafts = fastsample.sample(LOGITS, 1.2, seed=seed, num_samples=1, stream=50, backend=backend)
    verified = fastsample.verify_chain(
        LOGITS.unsqueeze(1).expand(-1, 2, -1), drafts, LOGITS.unsqueeze(1), 0.9, seed=seed, backend=backend
    )
    return [
        part.tolist()
        for part in (
            fastsample.sample(LOGITS, 0.7, 30, 0.9, 0.01, seed=seed, backend=backend),
            fastsample.sample(LOGITS, seed=seed, num_samples=20, replacement=False, backend=backend),
            fastsample.filtered_probs(LOGITS, 1.0, 20 + seed, backend=backend).sum(dim=1, dtype=torch.float64),
            full.tokens,
            full.logprobs,
            full.numbers,
            full.top_tokens,
            verified.tokens,
        )
        if part is not None
    ]


@pytest.mark.usefixtures("_frequent_switches")
def test_each_thread_draws_what_it_draws_alone(backend_name: str) -> None:
    seeds = [range(first, first + 3) for first in range(0, 3 * THREADS, 3)]
    expected = [[draws_of_every_kind(seed, backend_name) for seed in own] for own in seeds]
    assert expected == at_once(
        *(lambda own=own: [draws_of_every_kind(seed, backend_name) for seed in own] for own in seeds)
    )


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("given", [True, False], ids=["generator", "default-generator"])
@pytest.mark.parametrize(
    "draw",
    [
        lambda generator: fastsample.sample(FLAT, generator=generator, num_samples=8),
        lambda generator: fastsample.sample_full(FLAT, generator=generator, num_samples=8).tokens,
        lambda generator: fastsample.multinomial(FLAT + 1, 8, True, generator=generator),
    ],
    ids=["sample", "sample_full", "multinomial"],
)
def test_a_shared_generator_gives_each_call_words_of_its_own(
    given: bool, draw: Callable[[torch.Generator | None], Tensor]
) -> None:
    """The same calls one after another draw the same tokens, each set of them once, and leave the same state."""
    generator = torch.Generator() if given else None
    shared = generator or torch.default_generator
    shared.manual_seed(11)
    expected = [tuple(draw(generator).flatten().tolist()) for _ in range(THREADS * 60)]
    assert len(set(expected)) == len(expected)
    state = shared.get_state()

    shared.manual_seed(11)
    drawn = at_once(*[lambda: [tuple(draw(generator).flatten().tolist()) for _ in range(60)]] * THREADS)
    assert sorted(chain(*drawn)) == sorted(expected)
    assert torch.equal(shared.get_state(), state)


@pytest.mark.usefixtures("_frequent_switches")
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_steps_of_threads_draw_each_token_of_a_request_once(backend: str) -> None:
    """While some threads step, others add requests to the same Sampler, change them and remove them."""
    steps, slots = 8, 6
    logits = torch.randn(slots, 997, generator=torch.Generator().manual_seed(2))

    def sampler_with_two() -> Sampler:
        sampler = Sampler(slots, 997, max_tokens=100, backend=backend)
        for seed in (1, 2):
            sampler.add(seed=seed, presence_penalty=1.0)
        return sampler

    alone = sampler_with_two()
    expected = [alone.step(logits)[:2].tolist() for _ in range(4 * steps)]

    sampler = sampler_with_two()

    def come_and_go() -> None:
        for turn in range(20):
            slot = sampler.add(logit_bias={turn: 5.0}, stop_tokens=[turn], min_tokens=2)
            sampler.update(slot, temperature=0.5, bad_words=[[turn]])
            sampler.remove(slot)

    drawn = at_once(*[lambda: [sampler.step(logits)[:2].tolist() for _ in range(steps)]] * 4, *[come_and_go] * 3)
    assert sorted(chain(*drawn[:4])) == sorted(expected)
    assert sampler.lengths[:2].tolist() == [4 * steps, 4 * steps]


@pytest.mark.parametrize("threads", ["1", "64"])
def test_torchs_number_of_threads_may_change_at_any_time(threads: str) -> None:
    assert run_python("-c", CHANGING_THREADS, OMP_NUM_THREADS=threads) == "[]\n"


def test_operators_run_in_tasks_of_torch(tmp_path: Path) -> None:
    program = tmp_path / "in_tasks.py"  # TorchScript compiles from files alone
    program.write_text(IN_TASKS)
    assert run_python(str(program)) == "True\n"


def moments_during(call: Callable[[], Any]) -> int:
    """How many turns of a loop this thread makes in the middle half of a call that another thread makes."""
    entered, left = threading.Event(), threading.Event()
    times = []

    def run() -> None:
        entered.set()
        times.append(time.perf_counter())
        call()
        times.append(time.perf_counter())
        left.set()

    thread = threading.Thread(target=run)
    thread.start()
    entered.wait(30)
    moments = []
    while not left.is_set():
        moments.append(time.perf_counter())
    thread.join(30)
    begin, end = times
    return sum(begin + (end - begin) / 4 < moment < end - (end - begin) / 4 for moment in moments)


def test_other_threads_run_during_a_draw() -> None:
    """The call does not hold the interpreter; one that does is seen to."""
    if ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        assert moments_during(lambda: ctypes.PyDLL(None).usleep(300_000)) == 0
    logits = torch.zeros(1, 128256)
    rows = torch.zeros(2000, dtype=torch.int64)
    assert moments_during(lambda: fastsample.sample(logits, indices=rows, seed=1)) > 0


@pytest.mark.skipif(
    getattr(sys, "_is_gil_enabled", lambda: True)(), reason="this Python has a GIL; the rest of the file is for both"
)
def test_a_free_threaded_python_stays_one() -> None:
    """Python would turn the GIL on for an extension module that does not declare itself; ours are loaded by torch."""
    assert ops.cpu_status == "ok"
    fastsample.sample(FLAT, seed=1)
    assert not sys._is_gil_enabled()  # type: ignore[attr-defined]

"""What a server needs: the current stream, the right device, no wait for the GPU, no memory that is not given back."""

import pytest
import torch

import fastsample

from .target import ORACLE, Target, assert_same_tokens, needs_gpu

pytestmark = needs_gpu

CALLS = [
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    {"top_p": 0.9},
    {"num_samples": 4, "replacement": False},
    {"temperature": 0.0},
]
LONG_SLEEP = 200_000_000  # cycles, a tenth of a second


def logits_of(seed: int, rows: int = 16, vocab: int = 128256) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_it_runs_on_the_current_stream(target: Target) -> None:
    """Behind a copy that waits on another stream: a launch anywhere else would read what was there before."""
    stream = torch.cuda.Stream()
    before, after = logits_of(1), logits_of(2)
    logits = before.to("cuda")
    arriving = after.pin_memory()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG_SLEEP)
        logits.copy_(arriving, non_blocking=True)
        tokens = fastsample.sample(logits, 0.8, 50, 0.9, seed=1, backend=target.backend)
    stream.synchronize()
    assert_same_tokens(tokens.cpu(), fastsample.sample(after, 0.8, 50, 0.9, seed=1, backend=ORACLE))


@pytest.mark.parametrize("vocab", [5003, 128256, 2**20 + 1])
def test_two_streams_at_once(target: Target, vocab: int) -> None:
    """Calls of different sizes side by side share no workspace."""
    streams = [torch.cuda.Stream() for _ in range(2)]
    inputs = [logits_of(number, rows, vocab) for number, rows in ((3, 5), (4, 2))]
    there = [one.to("cuda") for one in inputs]
    torch.cuda.synchronize()
    found: list[list[torch.Tensor]] = [[], []]
    for step in range(100):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[number].append(
                    fastsample.sample(there[number], 0.9, 40, 0.95, seed=8, offset=step, backend=target.backend)
                )
    torch.cuda.synchronize()
    for step in range(0, 100, 9):
        for number, one in enumerate(inputs):
            expected = fastsample.sample(one, 0.9, 40, 0.95, seed=8, offset=step, backend=ORACLE)
            assert_same_tokens(found[number][step].cpu(), expected)


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_the_host_does_not_wait(target: Target, arguments: dict[str, object]) -> None:
    logits = logits_of(5).to("cuda")
    seed = torch.arange(16, device="cuda")

    def calls() -> None:
        fastsample.sample(logits, seed=seed, backend=target.backend, **arguments)
        fastsample.sample(logits, backend=target.backend, **arguments)  # from the default generator
        fastsample.filtered_probs(logits, 0.8, 50, backend=target.backend)
        fastsample.log_probs(logits, seed, 0.8, 50, backend=target.backend)

    calls()  # what is loaded and allocated on the first call may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(LONG_SLEEP)
        asleep = torch.cuda.Event()
        asleep.record()
        calls()
        assert not asleep.query(), "the calls returned only after the work that was enqueued before them"
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("arguments", CALLS, ids=str)
def test_no_memory_is_kept(target: Target, arguments: dict[str, object]) -> None:
    logits = logits_of(6, vocab=2**17 + 3).to("cuda")

    def call() -> None:
        fastsample.sample(logits, seed=1, backend=target.backend, **arguments)

    for _ in range(10):
        call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    torch.cuda.reset_peak_memory_stats()
    for _ in range(1000):
        call()
    torch.cuda.synchronize()
    after = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    assert after == before
    assert torch.cuda.max_memory_allocated() - before[0] < 2**20


def test_the_device_of_the_logits_is_the_one_that_runs(target: Target) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    logits = logits_of(7)
    with torch.cuda.device(0):
        tokens = fastsample.sample(logits.to("cuda:1"), 0.8, 50, seed=1, backend=target.backend)
        assert torch.cuda.current_device() == 0
    assert tokens.device == torch.device("cuda:1")
    assert_same_tokens(tokens.cpu(), fastsample.sample(logits, 0.8, 50, seed=1, backend=ORACLE))

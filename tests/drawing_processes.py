"""Programs of `test_processes.py`: `python drawing_processes.py NAME` draws in processes, and in those that they make.

Each ends with an AssertionError where a token differs, or where a process it made does not end.
"""

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import torch

import fastsample

SECONDS = 60  # for what takes well below one
LOGITS = torch.randn(8, 70001, generator=torch.Generator().manual_seed(1))


def draw(seed: int) -> list[list[int]]:
    """Rows over threads; then a single row, which is split over them; then an edited one."""
    rows = fastsample.sample(LOGITS, 0.8, 50, 0.9, seed=seed, backend="cpu")
    row = fastsample.sample(LOGITS[:1], top_p=0.8, seed=seed, backend="cpu")
    edited = fastsample.sample(
        LOGITS[:1], seed=seed, presence_penalty=1.0, output_tokens=torch.tensor([[seed, 5]]), backend="cpu"
    )
    return [rows.tolist(), row.tolist(), edited.tolist()]


def in_a_child(work: Callable[[], bool]) -> None:
    """Fork, and have the child do what has to return True."""
    child = os.fork()
    if child == 0:
        code = 1  # of a child that raises, which is not to go on with its parent's program
        try:
            code = 0 if work() else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > end:
            os.kill(child, 9)
            os.waitpid(child, 0)
            raise AssertionError(f"a forked child still draws after {SECONDS} s")
        time.sleep(0.01)
    assert ended[1] == 0, f"a forked child ended with {ended[1]}"


def fork() -> None:
    """After a draw on two threads, none of which comes along."""
    torch.set_num_threads(2)
    expected = draw(1)

    def child() -> bool:
        in_a_child(lambda: draw(1) == expected)
        torch.set_num_threads(2)
        return draw(1) == expected

    for _ in range(2):
        in_a_child(child)
        assert draw(1) == expected


def fork_while_threads_draw() -> None:
    """Whatever the other threads hold at that moment, the child gets along without it."""
    torch.set_num_threads(2)
    expected = [draw(seed) for seed in range(3)]
    left, wrong = threading.Event(), []

    def work(seed: int) -> None:
        while not left.is_set():
            if draw(seed) != expected[seed]:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        in_a_child(lambda: draw(2) == expected[2])
    left.set()
    for thread in threads:
        thread.join()
    assert not wrong


def fork_while_a_thread_steps() -> None:
    """The thread holds the Sampler's lock nearly always; a child has a lock that nobody holds."""
    torch.set_num_threads(1)
    sampler = fastsample.Sampler(len(LOGITS), LOGITS.shape[1], max_tokens=4)
    sampler.add(seed=1)
    left = threading.Event()

    def work() -> None:
        while not left.is_set():
            sampler.step(LOGITS)

    def child() -> bool:
        torch.set_num_threads(1)
        sampler.update(0, output_tokens=[])
        expected = fastsample.sample(LOGITS[:1], seed=1, offset=0).tolist()
        return sampler.step(LOGITS)[:1].tolist() == expected

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(10):
            in_a_child(child)
    finally:
        left.set()
        thread.join()


def fork_then_torchs_operators() -> None:
    """What is made of torch's own operators draws in a child that has told torch to use one thread."""
    torch.set_num_threads(2)
    LOGITS.exp()
    fastsample.sample(LOGITS)

    def draw_everything() -> list[list[int]]:
        sampler = fastsample.Sampler(len(LOGITS), LOGITS.shape[1], max_tokens=4)
        sampler.add(seed=1, presence_penalty=1.0)
        leaf = LOGITS.clone().requires_grad_()
        fastsample.filtered_probs(leaf, 1.0, 50).square().sum().backward()
        return [
            sampler.step(LOGITS).tolist(),
            fastsample.multinomial(LOGITS.double().exp(), 1, generator=torch.Generator().manual_seed(1)).tolist(),
            fastsample.sample_full(LOGITS, seed=1, top_logprobs=40).tokens.tolist(),
            fastsample.sample(LOGITS[:2, :999], seed=1, backend="reference").tolist(),
            fastsample.verify_chain(
                LOGITS.unsqueeze(1).expand(-1, 2, -1),
                torch.zeros(len(LOGITS), 1, dtype=torch.int64),
                LOGITS.unsqueeze(1),
                seed=1,
            ).tokens.tolist(),
        ]

    expected = draw_everything()

    def child() -> bool:
        torch.set_num_threads(1)
        return draw_everything() == expected

    in_a_child(child)


def fork_copies_the_generator() -> None:
    """A child goes on from its parent's state, as everywhere in torch; with a seed of its own it does not."""
    torch.manual_seed(5)
    fastsample.sample(LOGITS)
    state = torch.get_rng_state()
    expected = fastsample.sample(LOGITS).tolist()

    def child() -> bool:
        torch.manual_seed(6)
        return fastsample.sample(LOGITS).tolist() != expected

    torch.set_rng_state(state)
    in_a_child(lambda: fastsample.sample(LOGITS).tolist() == expected)
    in_a_child(child)
    assert fastsample.sample(LOGITS).tolist() == expected


def pools() -> None:
    """Processes that multiprocessing makes, in each of its ways."""
    torch.set_num_threads(2)
    expected = [draw(seed) for seed in range(4)]
    for method in ("spawn", "forkserver", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map_async(draw, range(4)).get(SECONDS) == expected, method


PROGRAMS = {
    program.__name__: program
    for program in (
        fork,
        fork_while_threads_draw,
        fork_while_a_thread_steps,
        fork_then_torchs_operators,
        fork_copies_the_generator,
        pools,
    )
}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]]()

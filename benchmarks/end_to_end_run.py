"""One run of `fastsample bench end-to-end`: a real model writes by turns without and with fastsample, after a check."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

import fastsample

from .check import ROWS, WrongTokensError, check_peer
from .end_to_end_results import GREEDY, Decoding, EndToEnd, Measured, Setting
from .generation import OPENINGS, QUESTIONS, Generation, StepTimes
from .model import load_model
from .model_packages import Model
from .peers.base import Work

_SEED = 3
_CHECKED_STEPS = 2


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        models: whose terms were accepted, if they have any.
        batches, works: every one of each model; greedy search is measured besides.
        tokens: written in each turn, at least 2.
        threads: of torch.
        seconds: for all of it.
    """

    models: Sequence[Model]
    batches: Sequence[int]
    works: Sequence[Work]
    tokens: int
    threads: int
    seconds: float


class Contestant(NamedTuple):
    """A way of sampling."""

    work: Work
    with_fastsample: bool


def weight(batch: int) -> float:
    """A batch's part of the time: the steps of larger ones take longer, and their medians need as many of them."""
    return 1 + batch / 16


def run(plan: Plan, results: EndToEnd, started: float, on_turn: Callable[[str], None]) -> None:
    """Measure a plan into `results`.

    Args:
        plan: what is measured.
        results: filled with what was measured and skipped.
        started: when the time budget began (`time.perf_counter`).
        on_turn: called with a label before whatever takes long.

    Raises:
        WrongTokensError: a token differs from the reference's or is outside the kept set.
        ModelUnavailableError: a model is not there.
    """
    to_come = sum(weight(batch) for _ in plan.models for batch in plan.batches)
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        for model in plan.models:
            if time.perf_counter() >= started + plan.seconds:
                results.skipped.append(f"{model.name}: the time budget was spent before it was loaded")
                continue
            on_turn(f"loading {model.name}")
            generation, vocab = _load(model)
            for batch in plan.batches:
                setting = Setting(model.name, vocab, batch, plan.threads)
                now = time.perf_counter()
                left = started + plan.seconds - now
                if left > 0:
                    results.decoding += _measure(
                        generation, setting, plan, now + left * weight(batch) / to_come, on_turn
                    )
                else:
                    results.skipped.append(f"{setting.label}: the time budget was spent")
                to_come -= weight(batch)
            del generation  # the next model needs the memory
    finally:
        torch.set_num_threads(threads)


def _load(model: Model) -> tuple[Generation, int]:
    """The model, and the size of its vocabulary."""
    loaded, tokenizer = load_model(model, terms_accepted=True)
    prompts = QUESTIONS if model.chat else OPENINGS
    return Generation(loaded, tokenizer, prompts, model.chat), loaded.config.vocab_size


def _measure(
    generation: Generation, setting: Setting, plan: Plan, end: float, on_turn: Callable[[str], None]
) -> list[Measured]:
    on_turn(f"{setting.label}: checking")
    checked = {work: check(generation, setting.batch, work) for work in plan.works}
    contestants = [Contestant(GREEDY, False)]
    contestants += [Contestant(work, with_fastsample) for work in plan.works for with_fastsample in (False, True)]
    times = by_turns(generation, setting.batch, contestants, plan.tokens, end, lambda: on_turn(setting.label))
    ways = {contestant: Decoding.of(one.steps, one.sampling) for contestant, one in times.items()}
    return [
        Measured(setting, work, ways[Contestant(work, False)], ways.get(Contestant(work, True)), checked.get(work, 0))
        for work in (GREEDY, *plan.works)
    ]


def by_turns(
    generation: Generation,
    batch: int,
    contestants: Sequence[Contestant],
    tokens: int,
    end: float,
    on_turn: Callable[[], None],
) -> dict[Contestant, StepTimes]:
    """Let every contestant write in turn, in every second round backwards, as long as another round fits before `end`.

    There is one round at least. All write from the same prompts, and in a round with the same seed.
    """
    times = {contestant: StepTimes(batch, [], []) for contestant in contestants}
    turn = 0
    while True:
        began = time.perf_counter()
        for contestant in reversed(contestants) if turn % 2 else contestants:
            on_turn()
            written = generation.run(options(contestant.work), batch, tokens, contestant.with_fastsample, seed=turn)
            times[contestant].steps.extend(written.times.steps)
            times[contestant].sampling.extend(written.times.sampling)
        turn += 1
        now = time.perf_counter()
        if now + (now - began) > end:
            return times


def options(work: Work) -> dict[str, Any]:
    """What `generate` is asked for."""
    if work.greedy:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": work.temperature,
        "top_k": work.top_k,
        "top_p": work.top_p,
        "min_p": work.min_p or None,
    }


def check(generation: Generation, batch: int, work: Work) -> int:
    """Compare what `generate` writes with the law, and say how many tokens were compared with the reference's.

    fastsample's tokens of the first rows must be those that the reference draws from the logits of each step; every
    token of fastsample and of transformers must be of the kept set. This also warms up both.

    Raises:
        WrongTokensError: a token is not so.
    """
    written = {
        who: generation.trace(options(work), batch, _CHECKED_STEPS, with_fastsample, _SEED)
        for who, with_fastsample in (("fastsample", True), ("Hugging Face", False))
    }
    for who, (tokens, logits) in written.items():
        for step, of_step in enumerate(logits):
            check_peer(f"generate with {who}, step {step}", tokens[:, step], of_step, work)
    tokens, logits = written["fastsample"]
    rows = min(ROWS, batch)
    # As `generate` was: the words of every step come from torch's default generator.
    torch.manual_seed(_SEED)
    expected = torch.stack(
        [fastsample.sample(of_step[:rows], backend="reference", **work.parameters(rows)) for of_step in logits], dim=1
    )
    if not torch.equal(tokens[:rows], expected):
        raise WrongTokensError(
            f"generate with fastsample ({work.label}) drew {tokens[:rows].tolist()}, the reference {expected.tolist()}"
        )
    return expected.numel()

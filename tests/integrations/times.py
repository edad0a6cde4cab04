"""What the `*_times.py` beside it share: a call with and without fastsample, by turns, and where a table was made."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample import doctor
from fastsample.benchmarks import machine, timing

# Of both contestants together.
SECONDS = 4.0


class Call:
    """One of the two, as `timing.measure` calls it.

    Args:
        prepare: makes what a call is given of the logits [batch, vocab], which a host may write to; not timed.
        call: what is timed.
    """

    def __init__(self, prepare: Callable[[Tensor], Any], call: Callable[[Any], Any]) -> None:
        self._prepare, self._call = prepare, call
        self._given: Any = None

    def load(self, logits: Tensor) -> None:
        self._given = self._prepare(logits)

    def draw(self) -> Any:
        return self._call(self._given)


class Pair(NamedTuple):
    """The same call without and with fastsample."""

    host: Call
    ours: Call


def row(name: str, logits: Tensor, pair: Pair) -> str:
    """A row of the table: the medians of both in milliseconds, and how many times the second goes into the first."""
    contestants = {key: timing.Contestant(one, [logits]) for key, one in pair._asdict().items()}
    times = timing.measure(contestants, SECONDS)
    host, ours = (times[key].median / 1e3 for key in ("host", "ours"))
    return f"| {name} | {logits.shape[0]} | {host:.3g} | {ours:.3g} | {host / ours:.3g} |"


def origin(script: str, python: str, *packages: str) -> str:
    """The line below a table: threads, machine, versions, commit and command.

    Args:
        script: the file that is run, as its `__file__`.
        python: the interpreter as the command names it.
        packages: distributions whose versions belong to the numbers, beside fastsample, torch and Python.
    """
    facts = machine.describe(doctor.examine())
    versions = [f"fastsample {facts['fastsample']}", f"torch {facts['torch']}", facts["python"]]
    versions += [f"{name} {version(name)}" for name in packages]
    threads = torch.get_num_threads()
    return (
        f"\n{threads} thread{'s' * (threads > 1)}, {facts['CPU']} ({facts['instruction set']}, {facts['CPUs']} CPUs); "
        f"{', '.join(versions)}; commit {facts['commit']}; "
        f"`OMP_NUM_THREADS={threads} {python} tests/integrations/{Path(script).name}`"
    )

"""What `fastsample bench end-to-end` measured, and its JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import json_files
from .json_files import named_in_errors
from .peers.base import Work
from .timing import Times, summary

FORMAT = 1
# What sampling may take of a step.
GOAL = 0.01
GREEDY = Work(temperature=0.0)


@dataclass(frozen=True)
class Decoding:
    """The decoding steps of one way of sampling, in microseconds.

    Attributes:
        step: from the tokens of one step to those of the next.
        sampling: of it, from the logits to the tokens.
        rest: what of each step is not sampling.
    """

    step: Times
    sampling: Times
    rest: Times

    @classmethod
    def of(cls, steps: Sequence[float], sampling: Sequence[float]) -> Decoding:
        """From the seconds of each step and of the sampling in it."""
        rest = [step - part for step, part in zip(steps, sampling, strict=True)]
        return cls(*(summary([1e6 * one for one in seconds]) for seconds in (steps, sampling, rest)))

    @property
    def share(self) -> float:
        """Of sampling in a step, by their medians."""
        return self.sampling.median / self.step.median

    def tokens_per_second(self, batch: int) -> float:
        return 1e6 * batch / self.step.median


@dataclass(frozen=True)
class Setting:
    """A batch of a model."""

    model: str
    vocab: int
    batch: int
    threads: int

    @property
    def label(self) -> str:
        return f"{self.model} (V {self.vocab}), B {self.batch}, {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True)
class Measured:
    """One kind of work in one setting.

    Attributes:
        setting, work: what was measured.
        before: with transformers' own sampling.
        after: with fastsample's; None for greedy search, which fastsample leaves to transformers.
        tokens_checked: how many of fastsample's tokens were compared with the reference's before.
    """

    setting: Setting
    work: Work
    before: Decoding
    after: Decoding | None
    tokens_checked: int

    @property
    def met(self) -> bool | None:
        """Whether fastsample's share is below the goal; None for greedy search."""
        return None if self.after is None else self.after.share < GOAL

    @property
    def moved(self) -> float | None:
        """By how much of a step the rest is longer after than before: so much of sampling can have moved there."""
        if self.after is None:
            return None
        return max(0.0, self.after.rest.median - self.before.rest.median) / self.after.step.median

    @property
    def rest_spread(self) -> float | None:
        """From the 10th to the 90th percentile of the rest, the larger of before and after, as a share of a step."""
        if self.after is None:
            return None
        return max(way.rest.p90 - way.rest.p10 for way in (self.before, self.after)) / self.after.step.median

    @property
    def resolved(self) -> bool | None:
        """Whether the rest is alike and steady enough to show the goal; None for greedy search."""
        if self.moved is None or self.rest_spread is None:
            return None
        return max(self.moved, self.rest_spread) <= GOAL


@dataclass
class EndToEnd:
    """Everything that a run found, and what it was.

    Attributes:
        date: when it began, ISO 8601 with the offset from UTC.
        command: the command line.
        machine: hardware, versions and commit.
        tokens: written in each turn, of which the first is the prompt's and not timed.
        budget_seconds, elapsed_seconds: the time it was given and took.
        load_average: of the minute before.
        used_by_others: share of the CPUs that other processes used when the run began.
        decoding: what was measured.
        skipped: what was not, and why.
        warnings: what makes the numbers doubtful.
    """

    date: str
    command: str
    machine: dict[str, str]
    tokens: int
    budget_seconds: float
    load_average: float
    used_by_others: float
    elapsed_seconds: float = 0.0
    decoding: list[Measured] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def save(results: EndToEnd, path: Path) -> None:
    """Write everything as JSON, with the derived shares and rates beside the times."""
    content: dict[str, Any] = {"format": FORMAT, **asdict(results)}
    content["decoding"] = [_to_json(measured) for measured in results.decoding]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> EndToEnd:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is of another format, or damaged; the message names it, and what is wrong with it.
    """
    content = json_files.read(path)
    if content.pop("format", None) != FORMAT or "decoding" not in content:
        raise ValueError(f"{path}: not a file of fastsample bench end-to-end of format {FORMAT}")
    with named_in_errors(path):
        content["decoding"] = [_from_json(entry) for entry in content["decoding"]]
        return EndToEnd(**content)


def _to_json(measured: Measured) -> dict[str, Any]:
    ways = {"before": measured.before, "after": measured.after}
    return {
        **asdict(measured.setting),
        "work": measured.work.key,
        **{
            name: None
            if decoding is None
            else {
                **{part: getattr(decoding, part)._asdict() for part in ("step", "sampling", "rest")},
                "share": round(decoding.share, 5),
                "tokens_per_second": round(decoding.tokens_per_second(measured.setting.batch), 3),
            }
            for name, decoding in ways.items()
        },
        "tokens_checked": measured.tokens_checked,
        "goal_share": GOAL,
        "goal_met": measured.met,
        "goal_resolved": measured.resolved,
    }


def _from_json(entry: dict[str, Any]) -> Measured:
    def decoding(way: dict[str, Any]) -> Decoding:
        return Decoding(*(Times.checked(**way[part]) for part in ("step", "sampling", "rest")))

    return Measured(
        Setting(**{name: entry[name] for name in ("model", "vocab", "batch", "threads")}),
        Work.parse(entry["work"]),
        decoding(entry["before"]),
        None if entry["after"] is None else decoding(entry["after"]),
        entry["tokens_checked"],
    )

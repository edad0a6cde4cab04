"""The result of a run, and its JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import goals, json_files
from .grid import Setting
from .json_files import named_in_errors
from .memory import MemoryUse
from .peers.base import Work
from .timing import Times

FORMAT = 1


@dataclass(frozen=True)
class Measurement:
    """One kind of work in one setting.

    Attributes:
        setting, work: what was measured.
        fastsample, softmax, one_read: times of fastsample, of x, and of the floor.
        peers: times of the peers, by key.
        tokens_checked: how many tokens were compared with the reference's before.
    """

    setting: Setting
    work: Work
    fastsample: Times
    softmax: Times
    one_read: Times
    peers: dict[str, Times]
    tokens_checked: int

    @property
    def ratio_to_softmax(self) -> float:
        return self.fastsample.median / self.softmax.median

    @property
    def ratio_to_one_read(self) -> float:
        return self.fastsample.median / self.one_read.median

    @property
    def best_peer(self) -> str | None:
        """The key of the fastest peer, or None if none was measured."""
        return min(self.peers, key=lambda key: self.peers[key].median, default=None)

    def speedup(self, peer: str) -> float:
        """How many times faster than a peer that was measured."""
        return self.peers[peer].median / self.fastsample.median

    @property
    def goal(self) -> float | None:
        return goals.largest_ratio(self.setting, self.work)

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        return None if self.goal is None else self.ratio_to_softmax <= self.goal

    @property
    def peer_goals(self) -> dict[str, float]:
        """How many times as fast as a peer the goal is, for the peers that were measured and have one."""
        least = {key: goals.least_speedup(self.setting, self.work, key) for key in self.peers}
        return {key: goal for key, goal in least.items() if goal is not None}


@dataclass(frozen=True)
class PeerStatus:
    """A peer of the run: its name in tables, version, what is in its time, and why it is missing, if it is."""

    label: str
    version: str | None
    note: str
    missing: str | None


@dataclass
class Results:
    """Everything that a run found, and what it was.

    Attributes:
        date: when it began, ISO 8601 with the offset from UTC.
        command: the command line.
        machine: hardware, versions and commit.
        backend: what `backend=` was.
        budget_seconds, elapsed_seconds: the time it was given and took.
        load_average: of the minute before.
        used_by_others: share of the CPUs that other processes used when the run began.
        rotated_mib: how much memory the inputs of one setting take together, at least.
        rows_made: how each kind of rows was made, by kind, then by vocabulary where that matters.
        peers: by key.
        measurements, memory: what was measured.
        skipped: what was not, and why.
        warnings: what makes the numbers doubtful.
        cold: whether other memory was read before each draw of every contestant (`timing.cool`).
    """

    date: str
    command: str
    machine: dict[str, str]
    backend: str
    budget_seconds: float
    load_average: float
    used_by_others: float
    rotated_mib: int
    elapsed_seconds: float = 0.0
    rows_made: dict[str, str] = field(default_factory=dict)
    peers: dict[str, PeerStatus] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    memory: list[MemoryUse] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    cold: bool = False


def save(results: Results, path: Path) -> None:
    """Write everything as JSON, with the derived ratios and verdicts beside the times."""
    content: dict[str, Any] = {"format": FORMAT, **asdict(results)}
    content["measurements"] = [_to_json(measurement) for measurement in results.measurements]
    content["memory"] = [{**asdict(use), "limit_bytes": use.limit_bytes, "met": use.met} for use in results.memory]
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is of another format, or damaged; the message names it, and what is wrong with it.
    """
    content = json_files.read(path)
    if content.pop("format", None) != FORMAT or "about" in content:
        raise ValueError(f"{path}: not a file of fastsample bench of format {FORMAT}")
    with named_in_errors(path):
        entries = content["measurements"]
    measurements = []
    for number, entry in enumerate(entries):
        with named_in_errors(path, f"measurement {number} "):
            measurements.append(_from_json(entry))
    content["measurements"] = measurements
    with named_in_errors(path):
        content["peers"] = {key: PeerStatus(**peer) for key, peer in content["peers"].items()}
        for use in content["memory"]:
            del use["limit_bytes"], use["met"]
        content["memory"] = [MemoryUse(**use) for use in content["memory"]]
        return Results(**content)


def _to_json(measurement: Measurement) -> dict[str, Any]:
    best = measurement.best_peer
    return {
        **measurement.setting._asdict(),
        "work": measurement.work.key,
        "fastsample": measurement.fastsample._asdict(),
        "softmax": measurement.softmax._asdict(),
        "one_read": measurement.one_read._asdict(),
        "peers": {key: times._asdict() for key, times in measurement.peers.items()},
        "tokens_checked": measurement.tokens_checked,
        "ratio_to_softmax": round(measurement.ratio_to_softmax, 4),
        "ratio_to_one_read": round(measurement.ratio_to_one_read, 4),
        "best_peer": best,
        "times_faster_than_best_peer": None if best is None else round(measurement.speedup(best), 3),
        "goal_ratio_to_softmax": measurement.goal,
        "goal_met": measurement.met,
    }


def _from_json(entry: dict[str, Any]) -> Measurement:
    return Measurement(
        setting=Setting(**{name: entry[name] for name in Setting._fields}),
        work=Work.parse(entry["work"]),
        fastsample=Times.checked(**entry["fastsample"]),
        softmax=Times.checked(**entry["softmax"]),
        one_read=Times.checked(**entry["one_read"]),
        peers={key: Times.checked(**times) for key, times in entry["peers"].items()},
        tokens_checked=entry["tokens_checked"],
    )

"""The result of a GPU run, and its JSON file, which is written anew after every part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastsample.benchmarks import json_files
from fastsample.benchmarks.json_files import named_in_errors

from .timing import GpuTimes

FORMAT = 1
# Where measured results are committed: nothing else may be written there.
COMMITTED = Path(__file__).resolve().parents[1] / "results"

FLOOR, LAUNCH, SOFTMAX = "floor", "launch", "softmax"
# fastsample's contestants: the CUDA kernels, which the goals are about, and the Triton kernels.
OURS, TRITON = "fastsample", "fastsample-triton"
OUR_LABELS = {OURS: "fastsample (CUDA)", TRITON: "fastsample (Triton)"}


class Place(NamedTuple):
    """Where in the grid something was measured."""

    vocab: int
    batch: int
    dtype: str
    rows: str


class Point(NamedTuple):
    """One kind of work at one place, by contestant.

    Attributes:
        place: where.
        work: the key of the work.
        times: of fastsample's contestants and the peers, by key.
        references: of the floor, an empty launch and a softmax, by key, measured together with them.
        eager: of those whose calls were launched one by one as well, by key.
    """

    place: Place
    work: str
    times: dict[str, GpuTimes]
    references: dict[str, GpuTimes]
    eager: dict[str, GpuTimes]

    def median(self, who: str = OURS) -> float | None:
        """Median microseconds of a contestant."""
        return self.times[who].median if who in self.times else None

    @property
    def first_of_ours(self) -> str | None:
        """Whom the peers are compared with: the CUDA kernels, or the Triton kernels where those were not measured."""
        return next((who for who in OUR_LABELS if who in self.times), None)

    @property
    def floor(self) -> float | None:
        """Median microseconds of the floor: reading the logits, but no less than a launch takes."""
        found = [self.references[key].median for key in (FLOOR, LAUNCH) if key in self.references]
        return max(found) if FLOOR in self.references else None

    def ratio_to_floor(self, who: str = OURS) -> float | None:
        median = self.median(who)
        return None if median is None or self.floor is None else median / self.floor

    def speedup(self, peer: str, who: str = OURS) -> float | None:
        """How many times as fast as a peer one of ours is."""
        ours, theirs = self.median(who), self.median(peer)
        return None if ours is None or theirs is None else theirs / ours


@dataclass
class Part:
    """What became of one part.

    Attributes:
        status: "ok", "failed", "timed out" or "not run".
        seconds, limit: how long it took, and what it was given.
        message: why it is not "ok"; the end of its output.
        records: what it found (see records.py), also when it is not "ok".
    """

    status: str
    seconds: float = 0.0
    limit: float = 0.0
    message: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class GpuResults:
    """Everything that a run found.

    Attributes:
        date: when it began, ISO 8601 with the offset from UTC.
        command: the command line.
        budget: seconds it was given.
        kind: "measured" on a GPU; "rehearsal" without one; "sample", written by hand for a test.
        elapsed: seconds it took so far.
        parts: by name, in the order they ran.
    """

    date: str
    command: str
    budget: float
    kind: str = "measured"
    elapsed: float = 0.0
    parts: dict[str, Part] = field(default_factory=dict)

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """Every record of a kind, of whichever part."""
        for part in self.parts.values():
            yield from (record for record in part.records if record["kind"] == kind)

    @property
    def environment(self) -> dict[str, Any]:
        """What the run ran on, by name."""
        return {name: value for record in self.records("environment") for name, value in record["facts"].items()}

    @property
    def points(self) -> list[Point]:
        """Every point of the grid that was measured; of one that was measured twice, the first time of each."""
        points: dict[tuple[Place, str], Point] = {}
        for record in self.records("setting"):
            place = Place(record["vocab"], record["batch"], record["dtype"], record["rows"])
            references = _times(record["references"])
            for work, content in record["works"].items():
                before = points.get((place, work))
                times = _times(content) | (before.times if before else {})
                eager = _times(record.get("eager", {}).get(work, {})) | (before.eager if before else {})
                points[place, work] = Point(place, work, times, before.references if before else references, eager)
        return list(points.values())

    @property
    def labels(self) -> dict[str, str]:
        """The names in tables of everyone, by key."""
        return OUR_LABELS | {record["key"]: record["label"] for record in self.records("peer")}


def _times(content: dict[str, dict[str, Any]]) -> dict[str, GpuTimes]:
    return {key: GpuTimes(**times) for key, times in content.items()}


def save(results: GpuResults, path: Path) -> None:
    """Write everything as JSON, in one step: whoever reads the file never sees half of it.

    Raises:
        ValueError: what was not measured on a GPU would go among the measured results.
    """
    refuse_unmeasured(results, path)
    text = json.dumps({"format": FORMAT, "about": "fastsample on a GPU", **asdict(results)}, indent=1)
    # A line for each time, not one for each of its numbers.
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(_joined(text) + "\n")
    os.replace(temporary, path)


def refuse_unmeasured(results: GpuResults, path: Path) -> None:
    """Raises ValueError if `path` is among the measured results and `results` are not measured."""
    if results.kind != "measured" and path.resolve().is_relative_to(COMMITTED):
        raise ValueError(f"{path}: a {results.kind} is no result; {COMMITTED} is for what was measured on a GPU")


def load(path: Path) -> GpuResults:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is of another format, or damaged; the message names it, and what is wrong with it.
    """
    content = json_files.read(path)
    if content.pop("about", None) != "fastsample on a GPU":
        raise ValueError(f"{path}: not a file of the GPU command")
    if (found := content.pop("format", None)) != FORMAT:
        raise ValueError(f"{path}: format {found}, expected {FORMAT}")
    with named_in_errors(path):
        content["parts"] = {name: Part(**part) for name, part in content["parts"].items()}
        results = GpuResults(**content)
        # What is read of the records later is read once here, where an error knows the file.
        _ = results.environment, results.points, results.labels
    return results


def _joined(text: str) -> str:
    """The JSON with its innermost objects on one line each."""
    lines: list[str] = []
    opened: int | None = None
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.endswith(("{", "[")):
            opened = len(lines)
        lines.append(line)
        if stripped.rstrip(",") in ("}", "]") and opened is not None:
            inner = [part.strip() for part in lines[opened + 1 : -1]]
            lines[opened:] = [lines[opened] + " ".join(inner) + stripped]
            opened = None
    return "\n".join(lines)

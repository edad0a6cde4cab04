"""`fastsample bench compare A.json B.json`: what became faster or slower from one run to another, beyond the noise.

The noise is the spread of single calls, from the low to the high percentile that both files hold. The standard error of
a median would be far less, and wrong: calls that follow each other share the machine's drift. Between four runs of
`--features` on one machine, 3 standard errors called 150 of 216 pairs of times of unchanged code faster or slower; the
spread called 1 so.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import end_to_end_results, features_run, rows
from . import results as cpu_results
from .features import FEATURES
from .features_run import FeatureResults
from .gpu import results as gpu_results
from .peers.base import Work
from .report import microseconds, ratio
from .results import Results
from .timing import ROUNDS

# Fewer were not made in every turn, and two or three calls tell no spread.
LEAST_CALLS = ROUNDS
CANNOT_COMPARE = 2
_FASTER, _SLOWER, _WITHIN, _NOT_JUDGED = "faster", "slower", "within noise", "not judged"
_STYLES = {_FASTER: "green", _SLOWER: "bold red", _WITHIN: "", _NOT_JUDGED: "dim"}


class Row(NamedTuple):
    """Who was timed, where and at what, by the names in tables; of the floor and a softmax the work is empty."""

    setting: str
    work: str
    contestant: str
    ours: bool


class Spread(NamedTuple):
    """The calls of a row in one file, in microseconds; `low` and `high` are the percentiles that `Run.band` names."""

    median: float
    low: float
    high: float
    calls: int


@dataclass(frozen=True)
class Run:
    """What one file says.

    Attributes:
        kind: what `fastsample bench` was asked to measure.
        band: the percentiles that every time has beside its median.
        date, command: of the run.
        facts: hardware, versions, commit, and the options that times depend on.
        warnings: what makes its numbers doubtful.
        times: what was measured.
    """

    kind: str
    band: str
    date: str
    command: str
    facts: dict[str, str]
    warnings: list[str]
    times: dict[Row, Spread]


class Change(NamedTuple):
    """A row that both files have."""

    row: Row
    before: Spread
    after: Spread

    @property
    def ratio(self) -> float:
        return self.after.median / self.before.median

    @property
    def noise(self) -> tuple[float, float]:
        """The smallest and largest ratio of two medians at which the spreads of both files still touch."""
        low = (self.after.median / self.after.high) * (self.before.low / self.before.median)
        return low, (self.after.median / self.after.low) * (self.before.high / self.before.median)

    @property
    def calls(self) -> int:
        """Of the file with fewer."""
        return min(self.before.calls, self.after.calls)

    @property
    def verdict(self) -> str:
        if self.calls < LEAST_CALLS:
            return _NOT_JUDGED
        if self.after.low > self.before.high:
            return _SLOWER
        return _FASTER if self.after.high < self.before.low else _WITHIN


def main(arguments: Sequence[str]) -> int:
    """Run `fastsample bench compare`.

    Args:
        arguments: the command line without "fastsample bench compare".

    Returns:
        The exit status: 0; 1 with --fail-if-slower if something of fastsample is slower beyond the noise; 2 if the
        files cannot be compared.
    """
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        before, after = load(options.before), load(options.after)
        found = changes(before, after)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return CANNOT_COMPARE
    show(before, after, found, console)
    slower = any(change.row.ours and change.verdict == _SLOWER for change in found)
    return int(options.fail_if_slower and slower)


def load(path: Path) -> Run:
    """Read a file of `fastsample bench --out`, on the CPU, with --features, end-to-end or on a GPU.

    Raises:
        ValueError: the file is none of these.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    read: Callable[[Path], Run]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a file that fastsample bench --out wrote")
    if "parts" in content:
        read = _of_the_gpu
    elif "measured" in content:
        read = _of_features
    elif "measurements" in content:
        read = _of_the_cpu
    elif "decoding" in content:
        read = _of_end_to_end
    else:
        raise ValueError(f"{path}: not a file that fastsample bench --out wrote")
    try:
        run = read(path)
        for row, times in run.times.items():
            if times.calls < 1 or not 0 < times.low <= times.median <= times.high:
                raise ValueError(f"{_name(row)}: {times} is not in order")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not as fastsample bench writes it: {error}") from error
    return run


def changes(before: Run, after: Run) -> list[Change]:
    """Every row that both runs have, in the first one's order.

    Raises:
        ValueError: they have none in common.
    """
    if before.kind != after.kind:
        raise ValueError(f"the first file holds {before.kind}, the second {after.kind}: these cannot be compared")
    found = [Change(row, times, after.times[row]) for row, times in before.times.items() if row in after.times]
    if not found:
        raise ValueError("nothing to compare: the files have no contestant in the same setting in common")
    return found


def show(before: Run, after: Run, found: list[Change], console: Console) -> None:
    """Print what differs between the runs, a table for each setting, what only one of them has, and the sums."""
    differing = _differing(before, after)
    console.print(_runs_table(before, after, differing))
    for line in _about_the_runs(before, after, differing):
        console.print(line, style="bold yellow", markup=False, highlight=False, soft_wrap=True)
    for setting in dict.fromkeys(change.row.setting for change in found):
        table = Table(title=Text(setting), title_justify="left")
        for column in ("work", "contestant", "A", "B", "B / A", f"noise ({before.band})", "verdict"):
            table.add_column(column, justify="left" if column in ("work", "contestant", "verdict") else "right")
        for change in (one for one in found if one.row.setting == setting):
            table.add_row(
                Text(change.row.work),
                Text(change.row.contestant),
                microseconds(change.before.median),
                microseconds(change.after.median),
                ratio(change.ratio),
                _noise(change),
                Text(change.verdict, style=_STYLES[change.verdict]),
            )
        console.print(table)
    for line in (*_only("A", before, after), *_only("B", after, before), *notes(before.band, found)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def notes(band: str, found: list[Change]) -> Iterator[str]:
    """How to read the verdicts, and how many there are of each; a line each."""
    yield (
        f"B / A is the ratio of the medians. Noise: the ratios at which the calls of A and B, {band} of each, still "
        f"overlap; a row with fewer than {LEAST_CALLS} calls in a file is not judged."
    )
    for who, ours in (("fastsample", True), ("everyone else", False)):
        of_these = [change for change in found if change.row.ours == ours]
        if not of_these:
            continue
        counted = Counter(change.verdict for change in of_these)
        sums = ", ".join(f"{counted[verdict]} {verdict}" for verdict in _STYLES)
        yield f"{who}: {sums}; median B / A {ratio(median(change.ratio for change in of_these))}"
    for verdict in (_FASTER, _SLOWER):
        for change in found:
            if change.row.ours and change.verdict == verdict:
                yield f"  {verdict}: {_name(change.row)}: {ratio(change.ratio)}, noise {_noise(change)}"


def _of_the_cpu(path: Path) -> Run:
    read = cpu_results.load(path)
    times: dict[Row, Spread] = {}
    for one in read.measurements:
        setting = one.setting.label
        times[Row(setting, "", "one read", False)] = Spread(*one.one_read)
        times[Row(setting, "", "softmax", False)] = Spread(*one.softmax)
        times[Row(setting, one.work.label, "fastsample", True)] = Spread(*one.fastsample)
        for key, peer in one.peers.items():
            times[Row(setting, one.work.label, read.peers[key].label, False)] = Spread(*peer)
    versions = {peer.label: peer.version for peer in read.peers.values() if peer.version}
    facts = {**read.machine, **versions, **read.rows_made, **_options(read)}
    return Run("sampling on the CPU", "p10 - p90", read.date, read.command, facts, read.warnings, times)


def _of_features(path: Path) -> Run:
    read = features_run.load(path)
    labels = {feature.key: feature.label for feature in FEATURES}
    times: dict[Row, Spread] = {}
    for one in read.measured:
        setting = one.setting.label
        times[Row(setting, "", "one read", False)] = Spread(*one.one_read)
        times[Row(setting, "sample alone", "fastsample", True)] = Spread(*one.alone)
        for contestant, measured in (("fastsample", one.features), ("Hugging Face", one.hugging_face)):
            for key, spread in measured.items():
                times[Row(setting, labels.get(key, key), contestant, contestant == "fastsample")] = Spread(*spread)
    facts = {**read.machine, **_options(read)}
    return Run("the features of requests (--features)", "p10 - p90", read.date, read.command, facts, [], times)


def _of_end_to_end(path: Path) -> Run:
    read = end_to_end_results.load(path)
    times: dict[Row, Spread] = {}
    for one in read.decoding:
        for who, way, ours in (("Hugging Face", one.before, False), ("fastsample", one.after, True)):
            if way is not None:
                for part, spread in (("step", way.step), ("sampling", way.sampling)):
                    times[Row(one.setting.label, f"{one.work.label}, {part}", who, ours)] = Spread(*spread)
    return Run("end-to-end", "p10 - p90", read.date, read.command, read.machine, read.warnings, times)


def _of_the_gpu(path: Path) -> Run:
    read = gpu_results.load(path)
    times: dict[Row, Spread] = {}
    for point in read.points:
        place = point.place
        setting = f"V {place.vocab}, B {place.batch}, {place.dtype}, {rows.label(place.rows)}"
        measured = [("", key, False, spread) for key, spread in point.references.items()]
        work = Work.parse(point.work).label
        for key, spread in point.times.items():
            measured.append((work, read.labels.get(key, key), key in gpu_results.OUR_LABELS, spread))
        for of_work, contestant, ours, spread in measured:
            row = Row(setting, of_work, contestant, ours)
            times[row] = Spread(spread.median, spread.p20, spread.p80, spread.replays)
    facts = {name: str(value) for name, value in read.environment.items()}
    unmeasured = [] if read.kind == "measured" else [f"not measured on a GPU: a {read.kind}"]
    return Run("sampling on a GPU", "p20 - p80", read.date, read.command, facts, unmeasured, times)


def _options(read: Results | FeatureResults) -> dict[str, str]:
    return {"--backend": read.backend, "--rotate": str(read.rotated_mib), "--cold": "yes" if read.cold else "no"}


def _differing(before: Run, after: Run) -> list[str]:
    """The facts that differ, of those that both runs name."""
    return [name for name, fact in before.facts.items() if name in after.facts and after.facts[name] != fact]


def _runs_table(before: Run, after: Run, differing: list[str]) -> Table:
    table = Table(title=f"Two runs of {before.kind}, and what differs", title_justify="left")
    for column in ("", "A", "B"):
        table.add_column(column)
    table.add_row("date", Text(before.date), Text(after.date))
    table.add_row("command", Text(before.command), Text(after.command))
    for name in differing:
        table.add_row(Text(name), Text(before.facts[name]), Text(after.facts[name]))
    return table


def _about_the_runs(before: Run, after: Run, differing: list[str]) -> Iterator[str]:
    if others := [name for name in differing if name != "commit"]:
        yield f"A difference may be due to these, and not to fastsample's code: {', '.join(others)}"
    for name, run in (("A", before), ("B", after)):
        for warning in run.warnings:
            yield f"WARNING of {name}: {warning}"


def _only(name: str, run: Run, other: Run) -> Iterator[str]:
    """What only one of two runs has: whole settings, else contestants."""
    shared = {row.setting for row in other.times}
    missing = [row for row in run.times if row not in other.times]
    yield from dict.fromkeys(
        f"only in {name}: {_name(row) if row.setting in shared else row.setting}" for row in missing
    )


def _name(row: Row) -> str:
    return f"{row.setting}: {row.work + ', ' if row.work else ''}{row.contestant}"


def _noise(change: Change) -> str:
    if change.verdict == _NOT_JUDGED:
        return f"{change.calls} call{'s' if change.calls > 1 else ''}"
    low, high = change.noise
    return f"{ratio(low)} - {ratio(high)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsample bench compare",
        description="What became faster or slower from one run of fastsample bench to another, beyond the noise.",
    )
    parser.add_argument("before", type=Path, metavar="A.json", help="what --out wrote")
    parser.add_argument("after", type=Path, metavar="B.json", help="what --out wrote, of the same kind")
    parser.add_argument(
        "--fail-if-slower",
        action="store_true",
        help="exit with 1 if something of fastsample is slower beyond the noise",
    )
    return parser

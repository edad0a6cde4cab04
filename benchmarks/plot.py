"""The result of a run as a picture: time over the batch with the floor drawn, and how many times as long peers take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from . import drawing, rows
from .grid import GOAL_VOCAB
from .peers.base import Work
from .results import Measurement, Results

_PANELS = 8  # kinds of work with times of their own; a preset may have more, of which these are taken evenly
_MOST_COLUMNS = 5
_BATCHES = 3  # with ratios of their own

Item = TypeVar("Item")


def save(results: Results, path: Path) -> None:
    """Write a PNG of the slice of the run that says most: the fewest threads, float32, real rows if there are any.

    Raises:
        ValueError: nothing was measured.
    """
    if not results.measurements:
        raise ValueError("nothing was measured, so there is nothing to plot")
    with_peers = [one for one in results.measurements if one.peers]
    chosen = _slice(results.measurements)
    works = _some(list(dict.fromkeys(one.work for one in chosen)), _PANELS)
    compared = _slice(with_peers) if with_peers else []
    lines = -(-len(works) // _MOST_COLUMNS)
    columns = -(-len(works) // lines)
    heights = [2.9 * lines + 0.9, 0.26 * len({one.work for one in compared}) + 2.0 if compared else 0.0]
    # Figure without pyplot: no window system, no global state.
    figure = Figure(figsize=(14, sum(heights) + 0.4), layout="constrained")
    parts: list[SubFigure] = list(
        figure.subfigures(1 + bool(compared), 1, height_ratios=heights[: 1 + bool(compared)], squeeze=False).flat
    )
    _times(results, chosen, works, columns, parts[0])
    if compared:
        _ratios(results, compared, parts[1])
    machine = results.machine
    figure.suptitle(
        f"fastsample on {machine['CPU']} ({machine['instruction set']}), torch {machine['torch']}, "
        f"commit {machine['commit']}, {results.date[:10]}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)


def _times(results: Results, chosen: list[Measurement], works: Sequence[Work], columns: int, part: SubFigure) -> None:
    panels: list[Axes] = list(part.subplots(-(-len(works) // columns), columns, squeeze=False).flat)
    for axes, work in zip(panels, works, strict=False):
        _panel(results, [one for one in chosen if one.work == work], axes)
    for axes in panels[len(works) :]:
        axes.axis("off")
    part.suptitle(f"Time of a call, median (fastsample: p10 to p90 shaded); {_place(chosen)}", fontsize=9)
    drawing.legend(part, panels[: len(works)], columns=6)


def _panel(results: Results, line: list[Measurement], axes: Axes) -> None:
    batches = [one.setting.batch for one in line]
    ours = [one.fastsample for one in line]
    axes.plot(batches, [one.median for one in ours], "ko-", linewidth=2, markersize=4, label="fastsample", zorder=3)
    axes.fill_between(batches, [one.p10 for one in ours], [one.p90 for one in ours], color="black", alpha=0.15)
    axes.plot(batches, [one.softmax.median for one in line], marker=".", **drawing.SOFTMAX)
    axes.plot(batches, [one.one_read.median for one in line], marker=".", **drawing.FLOOR)
    for number, key in enumerate(_measured_peers(results)):
        found = [(one.setting.batch, one.peers[key].median) for one in line if key in one.peers]
        if found:
            axes.plot(
                *zip(*found, strict=True),
                linewidth=1,
                markersize=4,
                label=results.peers[key].label,
                **drawing.style(number),
            )
    drawing.over_batches(axes, batches)
    axes.set_title(line[0].work.label, fontsize=9)


def _ratios(results: Results, compared: list[Measurement], part: SubFigure) -> None:
    batches = _some(sorted({one.setting.batch for one in compared}), _BATCHES)
    panels: list[Axes] = list(part.subplots(1, len(batches), squeeze=False, sharey=True).flat)
    works = list(dict.fromkeys(one.work for one in compared))
    for axes, batch in zip(panels, batches, strict=True):
        here = [one for one in compared if one.setting.batch == batch]
        found = {
            results.peers[key].label: [(works.index(one.work), one.speedup(key)) for one in here if key in one.peers]
            for key in _measured_peers(results)
        }
        drawing.ratios(axes, [work.label for work in works], found, "fastsample")
        axes.set_title(f"B {batch}", fontsize=9)
    part.suptitle(f"Times as long as fastsample; {_place(compared)}", fontsize=9)
    drawing.legend(part, panels, columns=7)


def _measured_peers(results: Results) -> list[str]:
    return [key for key in results.peers if any(key in one.peers for one in results.measurements)]


def _place(measurements: list[Measurement]) -> str:
    first = measurements[0].setting
    threads = f"{first.threads} thread{'s' if first.threads > 1 else ''}"
    return f"V {first.vocab}, {first.dtype}, {rows.label(first.rows)}, {threads}"


def _some(items: list[Item], most: int) -> list[Item]:
    """At most so many, evenly taken, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(number * (len(items) - 1) / (most - 1))] for number in range(most)]


def _slice(measurements: list[Measurement]) -> list[Measurement]:
    """The measurements that share the most telling threads, dtype, vocabulary and rows, by batch."""
    best = min(
        (one.setting for one in measurements),
        key=lambda setting: (
            setting.threads,
            setting.dtype != "float32",
            setting.vocab != GOAL_VOCAB,
            setting.rows != "real",
            setting.rows in rows.HURT,
        ),
    )
    same = [
        one
        for one in measurements
        if (one.setting.threads, one.setting.dtype, one.setting.vocab, one.setting.rows)
        == (best.threads, best.dtype, best.vocab, best.rows)
    ]
    return sorted(same, key=lambda one: one.setting.batch)

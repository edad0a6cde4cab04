"""The result of a GPU run as two pictures: time over the batch with the floor drawn, and the ratio to each peer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastsample.benchmarks import rows
from fastsample.benchmarks.peers.base import Work
from fastsample.benchmarks.report import ratio

from . import grid
from .results import FLOOR, LAUNCH, OUR_LABELS, OURS, TRITON, GpuResults, Point

_COLUMNS = 4
_STYLES = {OURS: ("o-", ""), TRITON: ("s--", ", Triton")}


def save(results: GpuResults, base: Path) -> list[Path]:
    """Write BASE-time.png and BASE-peers.png; one for which nothing was measured is not written."""
    pictures: tuple[tuple[str, Callable[[list[Point], GpuResults], Figure | None]], ...] = (
        ("time", _time_over_batch),
        ("peers", _ratio_to_peers),
    )
    written = []
    for name, draw in pictures:
        figure = draw(results.points, results)
        if figure is not None:
            path = base.with_name(f"{base.name}-{name}.png")
            figure.suptitle(_title(results), fontsize=10)
            figure.savefig(path, dpi=110)
            written.append(path)
    return written


def _title(results: GpuResults) -> str:
    facts = results.environment
    versions = f"torch {facts.get('torch')}, commit {facts.get('commit')}"
    told = f"fastsample on {facts.get('GPU')}, {versions}, {results.date[:10]}"
    return told if results.kind == "measured" else f"{results.kind.upper()}, NOT MEASURED ON A GPU\n{told}"


def _time_over_batch(points: list[Point], results: GpuResults) -> Figure | None:
    chosen = _largest_slice([point for point in points if point.first_of_ours])
    if not chosen:
        return None
    works = [work for work in grid.WORKS if any(point.work == work for point in chosen)]
    lines = -(-len(works) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.6 * lines), layout="constrained")
    panels: list[Axes] = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    for axes, work in zip(panels, works, strict=False):
        _panel(axes, [point for point in chosen if point.work == work])
    for axes in panels[len(works) :]:
        axes.axis("off")
    panels[0].legend(fontsize=7)
    return figure


def _panel(axes: Axes, points: list[Point]) -> None:
    place = points[0].place
    for number, kind in enumerate(dict.fromkeys((*grid.ROWS, *(point.place.rows for point in points)))):
        for who, (style, suffix) in _STYLES.items():
            chosen = [point for point in points if point.place.rows == kind and who in point.times]
            line = sorted(chosen, key=lambda point: point.place.batch)
            if line:
                times = [point.times[who] for point in line]
                batches = [point.place.batch for point in line]
                color = f"C{number}"
                label = rows.label(kind) + suffix
                axes.plot(batches, [one.median for one in times], style, markersize=3, label=label, color=color)
                spread = [one.p20 for one in times], [one.p80 for one in times]
                axes.fill_between(batches, *spread, alpha=0.2, color=color)
    for key, style, label in ((FLOOR, "k:", "floor: one read"), (LAUNCH, "k--", "empty launch")):
        line = sorted((point for point in points if key in point.references), key=lambda point: point.place.batch)
        found = {point.place.batch: point.references[key].median for point in line}
        if found:
            axes.plot(list(found), list(found.values()), style, linewidth=1, label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="batch",
        ylabel="us",
        title=f"{Work.parse(points[0].work).label}\nV {place.vocab}, {place.dtype}",
    )
    axes.title.set_fontsize(9)
    batches = sorted({point.place.batch for point in points})
    axes.set_xticks(batches, [str(batch) for batch in batches], fontsize=7)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _ratio_to_peers(points: list[Point], results: GpuResults) -> Figure | None:
    measured = [point for point in points if point.first_of_ours and set(point.times) - set(OUR_LABELS)]
    chosen = _largest_slice(measured)
    if not chosen:
        return None
    # One kind of rows: the peers that sort do not care, and the picture must be readable.
    kind = min((point.place.rows for point in chosen), key=lambda kind: (*grid.ROWS, kind).index(kind))
    chosen = [point for point in chosen if point.place.rows == kind]
    batches = sorted({point.place.batch for point in chosen})
    ours = next(who for who in OUR_LABELS if any(who in point.times for point in chosen))
    keys = list(dict.fromkeys(key for point in chosen for key in point.times if key != ours))
    figure = Figure(figsize=(6.5 * len(batches), 6), layout="constrained")
    for axes, batch in zip(figure.subplots(1, len(batches), squeeze=False).flat, batches, strict=True):
        _bars(axes, [point for point in chosen if point.place.batch == batch], ours, keys, results.labels)
    return figure


def _bars(axes: Axes, points: list[Point], ours: str, keys: list[str], labels: dict[str, str]) -> None:
    place = points[0].place
    height = 0.8 / len(keys)
    for number, key in enumerate(keys):
        line = [(row, point.speedup(key, ours)) for row, point in enumerate(points) if key in point.times]
        found = [(row, speedup) for row, speedup in line if speedup is not None]
        bars = axes.barh(
            [row + number * height for row, _ in found],
            [speedup for _, speedup in found],
            height=height,
            label=labels.get(key, key),
        )
        axes.bar_label(bars, [ratio(speedup) for _, speedup in found], fontsize=6, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(points))], [Work.parse(point.work).label for point in points]
    )
    axes.invert_yaxis()
    axes.set(
        xscale="log",
        xlabel=f"times as long as {labels[ours]}",
        title=f"B {place.batch}, V {place.vocab}, {place.dtype}, {rows.label(place.rows)}",
    )
    axes.margins(x=0.15)
    axes.legend(fontsize=6)


def _largest_slice(points: list[Point]) -> list[Point]:
    """The points of one vocabulary and dtype: the one the goals are about, or else the one with most points."""
    slices: dict[tuple[int, str], list[Point]] = {}
    for point in points:
        slices.setdefault((point.place.vocab, point.place.dtype), []).append(point)
    goal = slices.get((grid.GOAL_VOCABULARY, "float32"))
    return goal or max(slices.values(), key=len, default=[])

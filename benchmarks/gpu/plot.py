"""The result of a GPU run as two pictures: time over the batch with the floor drawn, and the ratio to each peer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastsample.benchmarks import drawing, rows
from fastsample.benchmarks.peers.base import Work

from . import grid
from .results import FLOOR, LAUNCH, OUR_LABELS, OURS, SOFTMAX, TRITON, GpuResults, Point

_COLUMNS = 4
_STYLES = {OURS: ("-", ""), TRITON: ("-.", ", Triton")}
_EMPTY = {**drawing.REFERENCE, "linestyle": (0, (1, 6)), "label": "empty launch"}


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
    known = list(dict.fromkeys((*grid.WORKS, *(point.work for point in chosen))))
    works = [work for work in known if any(point.work == work for point in chosen)]
    lines = -(-len(works) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3.3 * lines + 1), layout="constrained")
    panels: list[Axes] = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    for axes, work in zip(panels, works, strict=False):
        _panel(axes, [point for point in chosen if point.work == work])
    for axes in panels[len(works) :]:
        axes.axis("off")
    drawing.legend(figure, panels[: len(works)], columns=6)
    return figure


def _panel(axes: Axes, points: list[Point]) -> None:
    place = points[0].place
    for number, kind in enumerate(dict.fromkeys((*grid.ROWS, *(point.place.rows for point in points)))):
        for who, (line_style, suffix) in _STYLES.items():
            chosen = [point for point in points if point.place.rows == kind and who in point.times]
            line = sorted(chosen, key=lambda point: point.place.batch)
            if line:
                times = [point.times[who] for point in line]
                batches = [point.place.batch for point in line]
                style = drawing.style(number)
                label = rows.label(kind) + suffix
                axes.plot(
                    batches, [one.median for one in times], linestyle=line_style, markersize=4, label=label, **style
                )
                spread = [one.p20 for one in times], [one.p80 for one in times]
                axes.fill_between(batches, *spread, alpha=0.2, color=style["color"])
    for key, look in ((FLOOR, drawing.FLOOR), (LAUNCH, _EMPTY), (SOFTMAX, drawing.SOFTMAX)):
        line = sorted((point for point in points if key in point.references), key=lambda point: point.place.batch)
        found = {point.place.batch: point.references[key].median for point in line}
        if found:
            axes.plot(list(found), list(found.values()), marker=".", **look)
    drawing.over_batches(axes, sorted({point.place.batch for point in points}))
    axes.set_title(f"{Work.parse(points[0].work).label}\nV {place.vocab}, {place.dtype}", fontsize=9)


def _ratio_to_peers(points: list[Point], results: GpuResults) -> Figure | None:
    measured = [point for point in points if point.first_of_ours and set(point.times) - set(OUR_LABELS)]
    chosen = _largest_slice(measured)
    if not chosen:
        return None
    # One kind of rows: the peers that sort do not care, and the picture must be readable.
    kinds = list(dict.fromkeys((*grid.ROWS, *(point.place.rows for point in chosen))))
    kind = min((point.place.rows for point in chosen), key=kinds.index)
    chosen = [point for point in chosen if point.place.rows == kind]
    batches = sorted({point.place.batch for point in chosen})
    ours = next(who for who in OUR_LABELS if any(who in point.times for point in chosen))
    keys = list(dict.fromkeys(key for point in chosen for key in point.times if key != ours))
    works = list(dict.fromkeys(point.work for point in chosen))
    columns = min(len(batches), _COLUMNS)
    lines = -(-len(batches) // columns)
    size = (max(4 * columns, 8), (0.3 * len(works) + 1.4) * lines + 1)
    figure = Figure(figsize=size, layout="constrained")
    panels: list[Axes] = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes, batch in zip(panels, batches, strict=False):
        here = [point for point in chosen if point.place.batch == batch]
        found = {
            results.labels.get(key, key): [
                (works.index(point.work), speedup)
                for point in here
                if (speedup := point.speedup(key, ours)) is not None
            ]
            for key in keys
        }
        drawing.ratios(axes, [Work.parse(work).label for work in works], found, results.labels[ours])
        place = here[0].place
        axes.set_title(f"B {batch}, V {place.vocab}, {place.dtype}, {rows.label(place.rows)}", fontsize=9)
    for axes in panels[len(batches) :]:
        axes.axis("off")
    drawing.legend(figure, panels[: len(batches)], columns=3)
    return figure


def _largest_slice(points: list[Point]) -> list[Point]:
    """The points of one vocabulary and dtype: the one the goals are about, or else the one with most points."""
    slices: dict[tuple[int, str], list[Point]] = {}
    for point in points:
        slices.setdefault((point.place.vocab, point.place.dtype), []).append(point)
    goal = slices.get((grid.GOAL_VOCABULARY, "float32"))
    return goal or max(slices.values(), key=len, default=[])

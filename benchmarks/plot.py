"""The result of a run as a picture: time over the batch, and how many times slower the peers are."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import rows
from .grid import GOAL_VOCAB
from .report import ratio
from .results import Measurement, Results


def save(results: Results, path: Path) -> None:
    """Write a PNG of the slice of the run that says most: the fewest threads, float32, real rows if there are any.

    Raises:
        ValueError: nothing was measured.
    """
    if not results.measurements:
        raise ValueError("nothing was measured, so there is nothing to plot")
    # Figure without pyplot: no window system, no global state.
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _time_over_batch(results, left)
    _slower_than_fastsample(results, right)
    machine = results.machine
    figure.suptitle(
        f"fastsample on {machine['CPU']} ({machine['instruction set']}), torch {machine['torch']}, "
        f"commit {machine['commit']}, {results.date[:10]}",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)


def _time_over_batch(results: Results, axes: Axes) -> None:
    chosen = _slice(results.measurements)
    first = chosen[0].setting
    for work in dict.fromkeys(one.work for one in chosen):
        line = [one for one in chosen if one.work == work]
        axes.errorbar(
            [one.setting.batch for one in line],
            [one.fastsample.median for one in line],
            yerr=[
                [one.fastsample.median - one.fastsample.p10 for one in line],
                [one.fastsample.p90 - one.fastsample.median for one in line],
            ],
            marker="o",
            markersize=4,
            capsize=2,
            label=work.label,
        )
    line = [one for one in chosen if one.work == chosen[0].work]
    batches = [one.setting.batch for one in line]
    axes.plot(batches, [one.softmax.median for one in line], "k.--", label="torch.softmax(out=...)")
    axes.plot(batches, [one.one_read.median for one in line], "k.:", label="floor: one read (torch.sum)")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="batch",
        ylabel="time of a call, us (median, p10 to p90)",
        title=f"V {first.vocab}, {first.dtype}, {rows.label(first.rows)}, threads: {first.threads}",
    )
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _slower_than_fastsample(results: Results, axes: Axes) -> None:
    with_peers = [one for one in results.measurements if one.peers]
    if not with_peers:
        axes.axis("off")
        axes.text(0.5, 0.5, "no peer was measured", ha="center", va="center")
        return
    chosen = _slice(with_peers)
    first = chosen[0].setting
    keys = [key for key in results.peers if any(key in one.peers for one in chosen)]
    height = 0.8 / len(keys)
    for place, key in enumerate(keys):
        line = [(row, one.speedup(key)) for row, one in enumerate(chosen) if key in one.peers]
        bars = axes.barh(
            [row + place * height for row, _ in line],
            [speedup for _, speedup in line],
            height=height,
            label=results.peers[key].label,
        )
        axes.bar_label(bars, [ratio(speedup) for _, speedup in line], fontsize=7, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(
        [row + 0.4 - height / 2 for row in range(len(chosen))],
        [f"{one.work.label}, B {one.setting.batch}" for one in chosen],
    )
    axes.invert_yaxis()
    axes.set(
        xscale="log",
        xlabel="times as long as fastsample",
        title=f"V {first.vocab}, {first.dtype}, {rows.label(first.rows)}, threads: {first.threads}",
    )
    axes.margins(x=0.15)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the bars, not on them


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

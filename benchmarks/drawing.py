"""What the pictures of both benchmarks are made of: colours that colour-blind people tell apart, dots, a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .report import microseconds

# Okabe and Ito's colours, without the yellow that is not seen on white; a marker each, for prints without colour.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#7F7F7F")
_MARKERS = "s^Dv<>P"
REFERENCE: dict[str, Any] = {"color": "#555555", "linewidth": 1.2}
SOFTMAX: dict[str, Any] = {**REFERENCE, "linestyle": "--", "label": "torch.softmax"}
FLOOR: dict[str, Any] = {**REFERENCE, "linestyle": ":", "label": "floor: one read of the logits"}


def style(number: int) -> dict[str, Any]:
    """The colour and marker of the contestant of this number."""
    return {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}


def over_batches(axes: Axes, batches: Sequence[int]) -> None:
    """Make both axes those of a time over the batch."""
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="time of a call")
    axes.set_xticks(batches, [str(batch) for batch in batches], fontsize=7)
    axes.minorticks_off()
    lowest, highest = axes.get_ylim()
    if highest < 100 * lowest:  # or there would be one number, or none
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: microseconds(value)))
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(alpha=0.3)


def ratios(axes: Axes, works: Sequence[str], found: Mapping[str, Sequence[tuple[int, float]]], of: str) -> None:
    """Draw how many times as long as `of` others take: a line for each kind of work, a dot for each contestant.

    Args:
        axes: where.
        works: the lines, from top to bottom.
        found: by the contestant's name, its lines with the ratio there.
        of: whom they are compared with.
    """
    apart = 0.5 / max(len(found), 1)  # so that those that take equally long are all seen
    for number, (label, points) in enumerate(found.items()):
        axes.plot(
            [value for _, value in points],
            [row + apart * (number - (len(found) - 1) / 2) for row, _ in points],
            linestyle="none",
            markersize=6,
            label=label,
            **style(number),
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel=f"times as long as {of}", ylim=(len(works) - 0.5, -0.5))
    axes.set_yticks(range(len(works)), works, fontsize=8)
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    # A span of less than a power of ten would have no number at all.
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter(FuncFormatter(_plain) if _is_short(found) else NullFormatter())
    axes.grid(alpha=0.3)


def legend(figure: Figure | SubFigure, panels: Sequence[Axes], columns: int) -> None:
    """One legend below the panels, of everything that any of them shows."""
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=columns, fontsize=8)


def _is_short(found: Mapping[str, Sequence[tuple[int, float]]]) -> bool:
    values = [1.0, *(value for points in found.values() for _, value in points)]
    return max(values) < 30 * min(values)


def _plain(value: float, _: int | None = None) -> str:
    return f"{value:g}"

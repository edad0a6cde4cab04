"""The result of a run as tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import rows
from .grid import GOAL_VOCAB
from .memory import MemoryUse
from .results import Measurement, Results
from .timing import COOLING_MIB, Times

Part = TypeVar("Part")
ONE_CALL = "(one call): a peer that took longer than its share of the time was called once, so its time is no median."
COLD = f"{COOLING_MIB} MiB of other memory read before each draw of every contestant"


def microseconds(value: float) -> str:
    """A time with three digits and its unit."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} us"


def ratio(value: float) -> str:
    """Two digits after the point; three digits in all from 10 on."""
    return f"{value:.2f}" if value < 10 else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def show(results: Results, console: Console) -> None:
    """Print everything: the machine, the goals, the grid, the peers, memory, and the notes that belong to them."""
    console.print(_machine_table(results))
    for table in (*_goal_tables(results), *_grid_tables(results), *_peer_tables(results)):
        console.print(table)
    if results.memory:
        console.print(_memory_table(results))
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for warning in results.warnings:
        console.print(f"WARNING: {warning}", style="bold yellow", markup=False, soft_wrap=True)


def notes(results: Results) -> Iterator[str]:
    """How to read the numbers, what was not measured and why, and which goals are met; a line each."""
    yield "x is torch.softmax(logits, out=...) in float32 of the same rows; the floor is one read of them by torch.sum."
    inputs = f"rotated over at least {results.rotated_mib} MiB or two batches" if results.rotated_mib else "not rotated"
    if results.cold:
        inputs += f", and {COLD}"
    checked = sum(one.tokens_checked for one in results.measurements)
    yield (
        f"Medians; contestants by turns; inputs {inputs} (caches: {results.machine['caches']}); fastsample with "
        f"backend {results.backend!r}, after {checked} of its tokens were compared with the reference's."
    )
    if any(times.calls == 1 for one in results.measurements for times in one.peers.values()):
        yield ONE_CALL
    for kind, made in results.rows_made.items():
        yield f"{kind}: {made}"
    for peer in results.peers.values():
        yield f"{peer.label} {peer.version or ''}: " + (f"skipped: {peer.missing}" if peer.missing else peer.note)
    for reason in results.skipped:
        yield f"skipped: {reason}"
    yield from verdict(results)


def verdict(results: Results) -> Iterator[str]:
    """The goals that are met, as numbers, and those that are not, by name."""
    measurements = sorted(results.measurements, key=_in_order)
    judged = [one for one in measurements if one.met is not None]
    if judged:
        yield f"goals against softmax: {sum(bool(one.met) for one in judged)} of {len(judged)} met"
    for one in judged:
        if not one.met:
            yield (
                f"  not met: {one.work.label}, {one.setting.label}: {ratio(one.ratio_to_softmax)} of x, "
                f"goal {one.goal:g} (the floor is {ratio(one.one_read.median / one.softmax.median)})"
            )
    against = [(one, key, least) for one in measurements for key, least in one.peer_goals.items()]
    met = [one.speedup(key) >= least for one, key, least in against]
    if against:
        yield f"goals against peers: {sum(met)} of {len(met)} met"
    for one, key, least in against:
        if one.speedup(key) < least:
            label = results.peers[key].label
            yield (
                f"  not met: {one.work.label}, {one.setting.label}: {ratio(one.speedup(key))} times as fast as "
                f"{label}, goal {least:g}"
            )
    if results.memory:
        yield f"goal of memory: {sum(use.met for use in results.memory)} of {len(results.memory)} met"


def _machine_table(results: Results) -> Table:
    table = Table(title="Where and what", show_header=False, title_justify="left")
    facts = {
        **results.machine,
        "date": results.date,
        "command": results.command,
        "took": f"{results.elapsed_seconds:.0f} s, budget {results.budget_seconds:.0f} s",
        "before the run": f"load average {results.load_average:.2f}, {results.used_by_others:.0%} of the CPUs in use",
    }
    for name, value in facts.items():
        table.add_row(name, Text(value))  # brackets in it are no markup
    return table


def _goal_tables(results: Results) -> Iterator[Table]:
    with_goal = [one for one in results.measurements if one.goal is not None]
    ordinary = [one for one in with_goal if one.setting.rows not in rows.HURT]
    for (threads, dtype), part in _grouped(
        ordinary + worst_of_hurt(with_goal), lambda one: (one.setting.threads, one.setting.dtype)
    ):
        table = Table(title=f"Goals: V {GOAL_VOCAB}, {dtype}, {_threads(threads)}", title_justify="left")
        for name in ("B", "rows", "work", "time", "p10 - p90", "of x", "goal", "met", "of floor", "best peer", "times"):
            table.add_column(name, justify="left" if name in ("rows", "work", "met", "best peer") else "right")
        for _, group in _grouped(part, lambda one: one.setting.batch):
            for one in group:
                table.add_row(
                    str(one.setting.batch),
                    _rows_label(one),
                    one.work.label,
                    microseconds(one.fastsample.median),
                    _spread(one.fastsample),
                    ratio(one.ratio_to_softmax),
                    f"{one.goal:g}",
                    _yes_or_no(bool(one.met)),
                    ratio(one.ratio_to_one_read),
                    *_best_peer(one, results),
                )
            table.add_section()
        yield table


def worst_of_hurt(measurements: list[Measurement]) -> list[Measurement]:
    """Of the rows made to hurt, the one with the largest ratio to x for each work, batch and number of threads."""
    hurt = [one for one in measurements if one.setting.rows in rows.HURT]
    groups = _grouped(hurt, lambda one: (one.setting.threads, one.setting.batch, one.work))
    return [max(group, key=lambda one: one.ratio_to_softmax) for _, group in groups]


def _grid_tables(results: Results) -> Iterator[Table]:
    for (threads, dtype, vocab), part in _grouped(
        results.measurements, lambda one: (one.setting.threads, one.setting.dtype, one.setting.vocab)
    ):
        batches = sorted({one.setting.batch for one in part})
        title = f"V {vocab}, {dtype}, {_threads(threads)}: time, ratio to x, ratio to the floor"
        table = Table("rows", "work", title=title, title_justify="left")
        for batch in batches:
            table.add_column(f"B {batch}", justify="right")
        for kind, of_kind in _grouped(part, lambda one: one.setting.rows):
            for work, of_work in _grouped(of_kind, lambda one: one.work):
                by_batch = {one.setting.batch: one for one in of_work}
                table.add_row(rows.label(kind), work.label, *(_grid_cell(by_batch.get(batch)) for batch in batches))
            table.add_section()
        yield table


def _grid_cell(one: Measurement | None) -> str:
    if one is None:
        return "-"
    return f"{microseconds(one.fastsample.median)}  {ratio(one.ratio_to_softmax)}  {ratio(one.ratio_to_one_read)}"


def _peer_tables(results: Results) -> Iterator[Table]:
    measured = [one for one in results.measurements if one.peers]
    keys = [key for key in results.peers if any(key in one.peers for one in measured)]
    for (threads, dtype, vocab, batch), part in _grouped(
        measured, lambda one: (one.setting.threads, one.setting.dtype, one.setting.vocab, one.setting.batch)
    ):
        title = f"Peers: V {vocab}, B {batch}, {dtype}, {_threads(threads)}: time, times slower than fastsample"
        table = Table("rows", "work", title=title, title_justify="left")
        for name in ("fastsample", *(results.peers[key].label for key in keys)):
            table.add_column(name, justify="right")
        for kind, of_kind in _grouped(part, lambda one: one.setting.rows):
            for one in of_kind:
                cells = [_peer_cell(one, key) for key in keys]
                table.add_row(rows.label(kind), one.work.label, microseconds(one.fastsample.median), *cells)
            table.add_section()
        yield table


def _peer_cell(one: Measurement, key: str) -> str:
    if key not in one.peers:
        return "-"
    return f"{microseconds(one.peers[key].median)}  {ratio(one.speedup(key))}{called_once(one.peers[key])}"


def called_once(times: Times) -> str:
    """What is put after the time of a contestant that was called once."""
    return " (one call)" if times.calls == 1 else ""


def _memory_table(results: Results) -> Table:
    """The work that takes most, for each shape, dtype and number of threads."""
    table = Table(title="Peak extra memory of fastsample.sample, the work that takes most", title_justify="left")
    for name in ("V", "B", "dtype", "threads", "extra", "limit", "met", "largest tensor", "batch x vocab in float32"):
        table.add_column(name, justify="right")
    worst: dict[tuple[Any, ...], MemoryUse] = {}
    for use in results.memory:
        key = (use.threads, use.vocab, use.batch, use.dtype)
        if key not in worst or (use.peak_bytes or 0) > (worst[key].peak_bytes or 0):
            worst[key] = use
    for use in worst.values():
        table.add_row(
            str(use.vocab),
            str(use.batch),
            use.dtype,
            str(use.threads),
            "unknown" if use.peak_bytes is None else _mib(use.peak_bytes),
            _mib(use.limit_bytes),
            _yes_or_no(use.met),
            f"{use.largest_tensor_bytes} B",
            _mib(use.batch * use.vocab * 4),
        )
    return table


def _grouped(
    measurements: list[Measurement], key: Callable[[Measurement], Part]
) -> Iterator[tuple[Part, list[Measurement]]]:
    """Groups in the order of their first measurement, once these are in the order of tables."""
    groups: dict[Part, list[Measurement]] = {}
    for one in sorted(measurements, key=_in_order):
        groups.setdefault(key(one), []).append(one)
    yield from groups.items()


def _in_order(one: Measurement) -> tuple[int, bool, int, int]:
    """The order of tables; sorting is stable, so rows and work keep the order of the plan."""
    setting = one.setting
    return setting.threads, setting.dtype != "float32", setting.vocab, setting.batch


def _best_peer(one: Measurement, results: Results) -> tuple[str, str]:
    key = one.best_peer
    if key is None:
        return "", ""
    return f"{results.peers[key].label}{called_once(one.peers[key])}", ratio(one.speedup(key))


def _rows_label(one: Measurement) -> str:
    label = rows.label(one.setting.rows)
    return f"made to hurt, worst: {label}" if one.setting.rows in rows.HURT else label


def _spread(times: Times) -> str:
    return "one call" if times.calls == 1 else f"{microseconds(times.p10)} - {microseconds(times.p90)}"


def _threads(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def _yes_or_no(met: bool) -> str:
    return "[green]yes" if met else "[bold red]no"


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"

"""The result of a run as the compact table that the README shows."""

from __future__ import annotations

from collections.abc import Iterator

from . import rows
from .grid import GOAL_VOCAB, at_goal_shape
from .report import COLD, ONE_CALL, called_once, microseconds, ratio
from .results import Measurement, Results

_THREADS = 1


def table(results: Results) -> str:
    """One row for each work, and for each kind of rows where that matters; a column for each of the goals' batches.

    Raises:
        ValueError: the run has none of it: V = 128256, float32, one thread.
    """
    here = [
        one
        for one in results.measurements
        if one.setting.threads == _THREADS
        and one.setting.dtype == "float32"
        and at_goal_shape(one.setting.vocab, one.setting.batch)
        and one.setting.rows not in rows.HURT
    ]
    if not here:
        raise ValueError(
            f"the run has no measurement at V = {GOAL_VOCAB}, B = 1 or 32, float32, {_THREADS} thread: "
            "the README's table is about those"
        )
    batches = sorted({one.setting.batch for one in here})
    header = ["work", "rows"]
    for batch in batches:
        header += [f"B = {batch}: time", "of a softmax", "best peer", "times as fast"]
    lines = [_line(header), _line(["---"] * 2 + ["---:", "---:", "---", "---:"] * len(batches))]
    for kind, group in _rows_of_table(here):
        by_batch = {one.setting.batch: one for one in group}
        cells = [group[0].work.label, kind]
        for batch in batches:
            cells += _cells(by_batch.get(batch), results)
        lines.append(_line(cells))
    best = [one.peers[one.best_peer] for one in here if one.best_peer is not None]
    once = [ONE_CALL] if any(times.calls == 1 for times in best) else []
    return "\n".join([*lines, "", *_notes(results), *once])


def _rows_of_table(here: list[Measurement]) -> Iterator[tuple[str, list[Measurement]]]:
    """With top_p alone the time depends on the rows, so each kind is shown; else the real rows, or what there is."""
    works = list(dict.fromkeys(one.work for one in here))
    kinds = sorted({one.setting.rows for one in here}, key=lambda kind: (kind != "real", kind))
    for work in works:
        for kind in kinds if work.top_p < 1 and not work.top_k else kinds[:1]:
            group = [one for one in here if one.work == work and one.setting.rows == kind]
            if group:
                yield rows.label(kind), group


def _cells(one: Measurement | None, results: Results) -> list[str]:
    if one is None:
        return ["-"] * 4
    best = one.best_peer
    peer = ["-", "-"]
    if best is not None:
        peer = [f"{results.peers[best].label}{called_once(one.peers[best])}", ratio(one.speedup(best))]
    return [microseconds(one.fastsample.median), ratio(one.ratio_to_softmax), *peer]


def _notes(results: Results) -> Iterator[str]:
    machine = results.machine
    peers = ", ".join(f"{peer.label} {peer.version}" for peer in results.peers.values() if peer.missing is None)
    yield (
        f"Medians, one thread, float32, V = {GOAL_VOCAB}; {machine['CPU']} ({machine['instruction set']}), "
        f"torch {machine['torch']}, commit {machine['commit']}, {results.date[:10]}, `{results.command}`."
    )
    if results.cold:
        yield f"Cold caches: {COLD}, outside of the clock."
    if peers:
        yield f"Best peer: the fastest of {peers}."
    if made := results.rows_made.get(f"real logits, V {GOAL_VOCAB}"):
        yield f"Real logits: {made}."
    for warning in results.warnings:
        yield f"**Warning:** {warning}."


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

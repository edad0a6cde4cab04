"""What is measured on a GPU, in order: what the goals are about comes first, the rest fills the time."""

from __future__ import annotations

from typing import NamedTuple

from .options import Axes
from .results import Place

VOCABULARIES = (128256, 262144, 151936, 32000)
BATCHES = (64, 512, 1, 128, 256, 16, 4)
DTYPES = ("float32", "bfloat16")
ROWS = ("real", "normal-1", "normal-3")
WORKS = ("t0.8-k50-p0.9", "p0.9", "k50", "k1000", "m0.05", "plain", "greedy", "mixed")
GOAL_VOCABULARY = 128256
_PEER_BATCHES = (64, 512, 1)
EVERYTHING = Axes()
_COMPILED_WORKS = ("t0.8-k50-p0.9", "plain")


class Setting(NamedTuple):
    """One place of the grid; all its work, the floor and the peers are measured together, by turns.

    Attributes:
        place: where.
        works: keys of what is done there.
        peers: whether the peers run.
        compiled: whether torch.compile runs.
    """

    place: Place
    works: tuple[str, ...]
    peers: bool = False
    compiled: bool = False


def settings(axes: Axes = EVERYTHING) -> list[Setting]:
    """Every setting, in the order of measuring.

    Args:
        axes: what of the grid to measure, or beyond it. At sizes that the grid does not have the peers run as well, and
            at the end, in the first of these places, torch.compile.
    """
    works = axes.works or WORKS
    vocabs, batches = axes.vocabs or VOCABULARIES, axes.batches or BATCHES
    dtypes, rows = axes.dtypes or DTYPES, axes.rows or ROWS
    crossed = [
        Setting(Place(vocab, batch, dtype, kind), works, dtype == "float32")
        for vocab in vocabs
        for dtype in dtypes
        for batch in batches
        for kind in rows
    ]
    wanted = {setting.place for setting in crossed}
    whole = [
        setting._replace(works=tuple(work for work in works if work in setting.works) if setting.compiled else works)
        for setting in _whole()
        if setting.place in wanted
    ]
    known = {setting.place for setting in whole}
    beyond = [one for one in crossed if one.place not in known]
    compiled = [one._replace(works=works[:2], peers=False, compiled=True) for one in beyond if one.peers][:1]
    return [setting for setting in whole if setting.works] + beyond + compiled


def _whole() -> list[Setting]:
    goals = [
        Setting(Place(GOAL_VOCABULARY, batch, "float32", rows), WORKS, batch in _PEER_BATCHES and rows != "normal-3")
        for batch in BATCHES[:3]
        for rows in ROWS
    ]
    # The other goals: the larger vocabulary, 16-bit logits, and the batches in between.
    more = [(262144, batch, "float32", rows) for rows in ROWS for batch in BATCHES if batch >= 64]
    more += [(GOAL_VOCABULARY, batch, "bfloat16", rows) for rows in ROWS for batch in BATCHES if batch >= 64]
    more += [(GOAL_VOCABULARY, batch, "float32", rows) for rows in ROWS for batch in (128, 256)]
    goals += [Setting(Place(*place), WORKS) for place in more]
    goals.append(Setting(Place(GOAL_VOCABULARY, 64, "float32", "real"), _COMPILED_WORKS, compiled=True))
    crossed = [
        Setting(Place(vocab, batch, dtype, rows), WORKS)
        for vocab in VOCABULARIES
        for dtype in DTYPES
        for rows in ROWS
        for batch in BATCHES
    ]
    measured = {setting.place for setting in goals}
    return goals + [setting for setting in crossed if setting.place not in measured]


def rehearsal() -> list[Setting]:
    """A few small settings, for a machine without a GPU."""
    place = Place(2004, 3, "float32", "real")
    return [
        Setting(place, WORKS, peers=True),
        Setting(place._replace(dtype="bfloat16", rows="normal-1", batch=1), WORKS),
    ]

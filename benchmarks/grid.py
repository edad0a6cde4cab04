"""What is measured: the settings of a run, and the presets that name whole runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from . import rows
from .peers.base import Work

# The shapes and threads that the goals are about; peers and rows made to hurt are measured here unless asked otherwise.
GOAL_VOCAB = 128256
GOAL_BATCHES = (1, 32)
GOAL_THREADS = (1, 2)
DTYPES = ("float32", "bfloat16")


class Setting(NamedTuple):
    """One place in the grid; all its work, the reference points and the peers are measured together, by turns.

    Attributes:
        threads: of torch, and of peers that have threads.
        vocab, batch: the shape of the logits.
        dtype: their dtype, by name.
        rows: their kind (see `rows.check_kind`).
        with_peers: whether the peers run here.
    """

    threads: int
    vocab: int
    batch: int
    dtype: str
    rows: str
    with_peers: bool

    @property
    def label(self) -> str:
        return (
            f"V {self.vocab}, B {self.batch}, {self.dtype}, {rows.label(self.rows)}, "
            f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        )


@dataclass(frozen=True)
class Plan:
    """A run.

    Attributes:
        threads, vocabs, batches, dtypes, rows: crossed with each other. No vocabularies are those of the files that the
            real rows are from.
        hurt: rows measured only in float32 and at the shapes of the goals, as far as those are in the plan.
        works: what is done in every setting.
        seconds: the time budget.
        peers: keys of the peers to run.
        peers_everywhere: whether they run in every setting, and not only in float32 at the goals' shapes.
        memory: whether peak extra memory is measured too, at shapes of its own.
        eager: whether calls that a GPU is given one by one are timed beside the replay of graphs.
    """

    threads: tuple[int, ...]
    vocabs: tuple[int, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    rows: tuple[str, ...]
    hurt: tuple[str, ...]
    works: tuple[Work, ...]
    seconds: float
    peers: tuple[str, ...] = ()
    peers_everywhere: bool = False
    memory: bool = False
    eager: bool = False


_WORKS = tuple(Work.parse(key) for key in ("k50-p0.9", "p0.9", "k50", "plain", "greedy"))
_FULL = Plan(
    threads=(1, 2),
    vocabs=(49152, GOAL_VOCAB, 262144),
    batches=(1, 8, 32, 256),
    dtypes=DTYPES,
    rows=("normal-1", "normal-3", "real"),
    hurt=rows.HURT,
    works=_WORKS,
    seconds=600,
    memory=True,
)
PRESETS = {
    "full": _FULL,
    "quick": replace(
        _FULL,
        vocabs=(GOAL_VOCAB,),
        batches=GOAL_BATCHES,
        dtypes=("float32",),
        rows=("normal-3", "real"),
        hurt=(),
        seconds=60,
        memory=False,
    ),
    # FlashInfer's benchmarks/bench_sampling.py: its vocabulary, batches, rows and filters, which it does not combine.
    # It mostly times samplers from probabilities; here everyone begins with the logits.
    "flashinfer": replace(
        _FULL,
        vocabs=(128512,),
        batches=(1, 16, 32, 64, 128, 256, 512),
        dtypes=("float32",),
        rows=("normal-1", "normal-5", "gumbel-0.1", "gumbel-1"),
        hurt=(),
        works=tuple(Work.parse(key) for key in ("plain", "k10", "k100", "k1000", "k5000", "p0.1", "p0.5", "p0.9")),
        seconds=600,
        peers_everywhere=True,
        memory=False,
    ),
    # TensorRT-LLM's tests/microbenchmarks/sampling_ops_perf.py. Where half of the rows are neutral, those are the first
    # half there and every second one here. It gives its samplers a tensor of each parameter, with a number for each
    # row, in every case; here the parameters are numbers unless they differ by row. Of its shapes of a call one is
    # here: a token for each row of [batch, vocab].
    "tensorrt-llm": replace(
        _FULL,
        vocabs=(32000, 131072),
        batches=(1, 4, 8, 16, 32, 64),
        dtypes=("float32",),
        rows=("normal-2",),
        hurt=(),
        works=tuple(
            Work.parse(key)
            for key in (
                "t0.8",
                "t0.8-k50",
                "t0.8-p0.9",
                "t0.8-k50-p0.9",
                "t0.8-m0.05",
                "t0.8-k50-p0.9-m0.05",
                "t0.8-k50-p0.9-half",
            )
        ),
        seconds=300,
        peers_everywhere=True,
        memory=False,
        eager=True,
    ),
    # A model's own rows, in its own vocabulary, at the filters that models are sent out with.
    "real": replace(
        _FULL,
        vocabs=(),
        rows=("real",),
        hurt=(),
        works=(*_WORKS, *(Work.parse(key) for key in ("t0.8-k50-p0.9", "t0.6-k20-p0.95", "m0.05"))),
        seconds=300,
        peers_everywhere=True,
        memory=False,
    ),
}


def at_goal_shape(vocab: int, batch: int) -> bool:
    return vocab == GOAL_VOCAB and batch in GOAL_BATCHES


def settings(plan: Plan) -> list[Setting]:
    """Every setting of a plan, in the order of measuring: what the goals are about first, so that a budget that runs
    out costs the rest; the smallest batch first, because what a peer took there tells whether there is time for it at
    the larger ones; every kind of rows at a batch before the next batch, so that what is left out is left out of all;
    settings that share their inputs stand together.
    """
    crossed = [
        Setting(threads, vocab, batch, dtype, kind, False)
        for vocab in plan.vocabs
        for batch in sorted(plan.batches)
        for kind in plan.rows
        for dtype in plan.dtypes
        for threads in plan.threads
    ]
    crossed = [
        setting._replace(
            with_peers=bool(plan.peers)
            and (plan.peers_everywhere or (setting.dtype == "float32" and at_goal_shape(setting.vocab, setting.batch)))
        )
        for setting in crossed
    ]
    hurt = [
        Setting(threads, GOAL_VOCAB, batch, "float32", kind, False)
        for kind in plan.hurt
        for batch in plan.batches
        for threads in plan.threads
        if at_goal_shape(GOAL_VOCAB, batch) and GOAL_VOCAB in plan.vocabs and "float32" in plan.dtypes
    ]
    first = [setting for setting in crossed if at_goal_shape(setting.vocab, setting.batch)]
    rest = [setting for setting in crossed if not at_goal_shape(setting.vocab, setting.batch)]
    return first + hurt + rest

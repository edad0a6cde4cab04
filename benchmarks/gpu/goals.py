"""The goals for an H200, and which of them a run meets.

Times are of CUDA graph replay with inputs rotated past the second-level cache, medians. The floor is a kernel that only
reads the logits, measured in the same run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .grid import GOAL_VOCABULARY
from .results import OURS, GpuResults, Place, Point

_FUSED = ("t0.8-k50-p0.9", "greedy", "mixed")
_FUSED_VOCABULARIES = (GOAL_VOCABULARY, 262144)
_LEAST_BATCH = 64
_WITH_TOP_K = ("t0.8-k50-p0.9", "k50", "k1000")
_WITH_TOP_K_OR_P = (*_WITH_TOP_K, "p0.9")
_SLACK_16_BIT = 1.15  # around half of the time of float32
_FLASHINFER = ("flashinfer-logits", "flashinfer-probs", "flashinfer-cake")


class Verdict(NamedTuple):
    """One goal at one point.

    Attributes:
        goal: which one, in words; the same for all points it is about.
        where: the point.
        value, limit: measured and wanted, in `unit`.
        at_least: whether the value has to be at least the limit, or else at most.
    """

    goal: str
    where: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def verdicts(results: GpuResults, who: str = OURS) -> list[Verdict]:
    """Every goal at every point of the run that it is about.

    Args:
        results: of a run.
        who: which of fastsample's contestants to hold against them. They are the CUDA kernels' goals: of any other the
            values are of interest, and not whether they are met. Counters there are of the CUDA kernels alone.
    """
    points = {(point.place, point.work): point for point in results.points}
    found: list[Verdict] = []
    for point in points.values():
        found += _against_the_floor(point, who)
        found += _against_peers(point, who)
        found += _of_16_bits(point, points, who)
    return found + (list(_of_bytes(results)) if who == OURS else [])


def where(place: Place, work: str) -> str:
    """A point in words."""
    return f"{work}, V {place.vocab}, B {place.batch}, {place.dtype}, {place.rows}"


def _against_the_floor(point: Point, who: str) -> Iterator[Verdict]:
    place, ratio, median = point.place, point.ratio_to_floor(who), point.median(who)
    label = where(place, point.work)
    if place.batch == 1 and place.vocab == GOAL_VOCABULARY and median is not None:
        yield Verdict("any work at B = 1", label, median, 8.0, "us")
    if ratio is None or place.dtype != "float32" or place.batch < _LEAST_BATCH:
        return
    if point.work in _FUSED and place.vocab in _FUSED_VOCABULARIES:
        yield Verdict("k 50 + p .9, greedy, mixed rows: of the floor", label, ratio, 1.5, "x")
    if place.vocab != GOAL_VOCABULARY:
        return
    if point.work in ("plain", "m0.05"):
        yield Verdict("plain, min_p: of the floor", label, ratio, 1.5, "x")
    if point.work == "p0.9" and place.rows == "real":
        yield Verdict("p .9 alone, real logits: of the floor", label, ratio, 2.0, "x")
    if point.work == "p0.9" and place.rows == "normal-1":
        yield Verdict("p .9 alone, N(0,1): of the floor", label, ratio, 4.0, "x")


def _against_peers(point: Point, who: str) -> Iterator[Verdict]:
    place = point.place
    if place.vocab != GOAL_VOCABULARY or place.dtype != "float32" or place.batch < _LEAST_BATCH:
        return
    if point.work not in _WITH_TOP_K_OR_P:
        return
    label = where(place, point.work)

    def against(name: str, keys: tuple[str, ...], least: float) -> Iterator[Verdict]:
        speedups = [speedup for key in keys if (speedup := point.speedup(key, who)) is not None]
        if speedups:
            yield Verdict(f"times as fast as {name}", label, min(speedups), least, "x", at_least=True)

    # Its fastest way from logits to tokens counts, whichever it is.
    if place.batch in (64, 512):
        yield from against("FlashInfer", _FLASHINFER, 5.0 if place.batch == 64 else 3.0)
    yield from against("vLLM's Triton kernel", ("vllm-triton",), 8.0)
    yield from against("torch and Hugging Face", ("torch", "hugging-face"), 50.0)


def _of_16_bits(point: Point, points: dict[tuple[Place, str], Point], who: str) -> Iterator[Verdict]:
    place = point.place
    if place.dtype != "bfloat16" or place.vocab != GOAL_VOCABULARY or place.batch < _LEAST_BATCH:
        return
    wide = points.get((place._replace(dtype="float32"), point.work))
    narrow_time, wide_time = point.median(who), wide.median(who) if wide is not None else None
    if point.work in _WITH_TOP_K and narrow_time is not None and wide_time is not None:
        ratio = narrow_time / wide_time
        yield Verdict("bf16 with top_k: of float32", where(place, point.work), ratio, 0.5 * _SLACK_16_BIT, "x")


def _of_bytes(results: GpuResults) -> Iterator[Verdict]:
    for record in results.records("counters"):
        point, read = record["point"], record["counters"].get("bytes read")
        if not point or read is None:
            continue
        place = Place(point["vocab"], point["batch"], point["dtype"], point["rows"])
        logits = place.vocab * place.batch * (4 if place.dtype == "float32" else 2)
        yield Verdict("bytes read from memory: of the logits", where(place, point["work"]), read / logits, 1.05, "x")

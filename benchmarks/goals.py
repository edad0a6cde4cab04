"""The goals for the CPU, and whether a measurement meets them.

A goal is a largest ratio to x, which is torch.softmax with a preallocated result, of the same shape, in float32, measured
in the same run. They are about V = 128256, B = 1 and 32, 1 and 2 threads, at temperature 1.
"""

from __future__ import annotations

from .grid import GOAL_THREADS, Setting, at_goal_shape
from .peers.base import Work
from .rows import HURT

ALL_WORK = 2.0  # of rows made to hurt
_PLAIN = Work()
_GREEDY = Work.parse("greedy")
_TOP_P = Work.parse("p0.9")
_WITH_TOP_K = (Work.parse("k50"), Work.parse("k50-p0.9"))
# How many times faster than a peer, with top_k.
_FASTER_THAN = {"hugging-face": 150.0, "onnxruntime-genai": 5.0, "llama-cpp": 5.0}


def largest_ratio(setting: Setting, work: Work) -> float | None:
    """The goal: the largest time, as a ratio to x, or None where there is none."""
    if not at_goal_shape(setting.vocab, setting.batch) or setting.threads not in GOAL_THREADS:
        return None
    if setting.rows in HURT:
        return ALL_WORK if setting.dtype == "float32" else None
    if setting.rows not in ("normal-1", "normal-3", "real"):
        return None
    if setting.dtype == "bfloat16":
        return 0.2 if work in _WITH_TOP_K else 1.05 if work == _TOP_P else None
    if work == _GREEDY or work in _WITH_TOP_K:
        return 0.25
    if work == _PLAIN:
        return 0.7
    if work == _TOP_P:
        return 0.75 if setting.rows == "real" else 1.0
    return None


def least_speedup(setting: Setting, work: Work, peer: str) -> float | None:
    """The goal against one peer: how many times faster at least, or None where there is none."""
    if not at_goal_shape(setting.vocab, setting.batch) or setting.threads not in GOAL_THREADS:
        return None
    return _FASTER_THAN.get(peer) if work in _WITH_TOP_K and setting.dtype == "float32" else None

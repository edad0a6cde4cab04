"""The goals for the CPU.

A goal is a largest ratio to x, which is torch.softmax with a preallocated result, of the same shape, in float32, in the
same run. The goals are about V = 128256, B = 1 and 32, 1 and 2 threads, at temperature 1.
"""

from __future__ import annotations

from .grid import GOAL_THREADS, Setting, at_goal_shape
from .peers.base import Work
from .rows import HURT

_HURT = 2.0
_TOP_P = Work.parse("p0.9")
_WITH_TOP_K = (Work.parse("k50"), Work.parse("k50-p0.9"))
_FLOAT32 = {Work.parse("greedy"): 0.25, **dict.fromkeys(_WITH_TOP_K, 0.25), Work.parse("plain"): 0.7, _TOP_P: 1.0}
_FLOAT32_REAL = {**_FLOAT32, _TOP_P: 0.75}
_BFLOAT16 = {**dict.fromkeys(_WITH_TOP_K, 0.2), _TOP_P: 1.05}
# With top_k in float32: how many times as fast as a peer.
_FASTER_THAN = {"hugging-face": 150.0, "onnxruntime-genai": 5.0, "llama-cpp": 5.0}


def largest_ratio(setting: Setting, work: Work) -> float | None:
    """The goal: the largest time, as a ratio to x; None where there is none."""
    if not _in_scope(setting):
        return None
    if setting.rows in HURT:
        return _HURT if setting.dtype == "float32" and work in _FLOAT32 else None
    if setting.rows not in ("normal-1", "normal-3", "real"):
        return None
    if setting.dtype == "bfloat16":
        return _BFLOAT16.get(work)
    return (_FLOAT32_REAL if setting.rows == "real" else _FLOAT32).get(work)


def least_speedup(setting: Setting, work: Work, peer: str) -> float | None:
    """The goal against one peer: how many times as fast, at least; None where there is none."""
    if not _in_scope(setting) or setting.dtype != "float32" or work not in _WITH_TOP_K:
        return None
    return _FASTER_THAN.get(peer)


def _in_scope(setting: Setting) -> bool:
    return at_goal_shape(setting.vocab, setting.batch) and setting.threads in GOAL_THREADS

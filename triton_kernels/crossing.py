"""The search that the law asks for three times: where a running sum of integers first reaches a target.

top_k asks it of counts in rank order, top_p of weights in rank order, the draw of weights in index order. Reads no
memory: it halves the range of answers until one is left, at most 32 times.
"""

import triton
import triton.language as tl


@triton.jit
def crossing(value, measure, target, low, high):
    """The smallest v in [low, high] at which what is measured of the values <= v sums to `target`; else `high`.

    value: int32 tile, in any order, with any ties. measure: integer tile of its shape, nothing of it negative.
    target: int64. low, high: int32 or int64. Returns int32.
    """
    low = low.to(tl.int64)
    high = high.to(tl.int64)
    while low < high:
        middle = (low + high) >> 1
        reached = tl.sum(tl.where(value <= middle.to(tl.int32), measure, 0), axis=0) >= target
        high = tl.where(reached, middle, high)
        low = tl.where(reached, low, middle + 1)
    return low.to(tl.int32)

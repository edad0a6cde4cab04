"""Compiling Triton's kernels before they are needed: by many processes at once, each its share, and launching none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .options import BUILD

# A second call of the command finds what the first has compiled.
CACHE = BUILD / "triton"
CACHE_VARIABLE = "TRITON_CACHE_DIR"


class Share:
    """Which kernels one of several processes compiles, if all of them make the same launches in the same order.

    A kernel here is what Triton compiles: a function with its constants, dtypes and whatever else it specialises on.

    Args:
        number, of: this process is `number` (from 0) of `of`.
    """

    def __init__(self, number: int, of: int) -> None:
        self.number, self.of = number, of
        self.kernels: dict[tuple[str, str], bool] = {}  # whether it is ours
        self.by_function: Counter[str] = Counter()

    @property
    def ours(self) -> int:
        return sum(self.kernels.values())

    def takes(self, function: str, key: str) -> bool:
        """Whether this process compiles a kernel."""
        kernel = (function, key)
        if kernel not in self.kernels:
            # Dealt out function by function, since those of one function take about the same time.
            self.kernels[kernel] = self.by_function[function] % self.of == self.number
            self.by_function[function] += 1
        return self.kernels[kernel]


@contextmanager
def compiling(share: Share) -> Iterator[None]:
    """Inside, a launch of a Triton kernel compiles it, if that is this process's share, and never runs it."""
    from triton import knobs
    from triton.runtime.jit import JITFunction

    def others(*, key: str, fn: Any, **_: object) -> bool:
        """Triton asks this of every kernel that is neither in memory nor to be skipped."""
        return not share.takes(fn.name, key)

    run, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def compile_only(self: Any, *arguments: Any, warmup: bool, **keywords: Any) -> Any:
        return run(self, *arguments, warmup=True, **keywords)

    JITFunction.run = compile_only
    knobs.runtime.jit_cache_hook = others
    try:
        yield
    finally:
        JITFunction.run = run
        knobs.runtime.jit_cache_hook = hook

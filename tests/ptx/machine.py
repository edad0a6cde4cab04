"""A simulated GPU: memory, the kernels of one module, and what they did."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .counters import Counts
from .lanes import WARP, Lanes
from .memory import BLOCKS, LANES, SHARED, WINDOW, Access, Addresses, Memory
from .module import Kernel, Module, PtxError
from .program import Grid, Program
from .races import RaceDetector


@dataclass(frozen=True)
class Checks:
    """What a machine looks for beyond the bounds and the alignment of every access.

    races: accesses to shared memory that no barrier orders. uninitialised: reads of memory that was never written.
    """

    races: bool = True
    uninitialised: bool = True


class Machine:
    """Runs kernels one after the other, and of each the clusters one after the other.

    reverse: clusters, and lanes at atomic operations, get their turn from the last to the first. A kernel whose result
    depends on that is wrong. counting: False leaves what happens in memory out of the counts, which saves time.
    """

    def __init__(
        self,
        module: Module,
        memory: Memory,
        checks: Checks | None = None,
        *,
        reverse: bool = False,
        counting: bool = True,
    ) -> None:
        self.module, self.memory, self.reverse, self.counting = module, memory, reverse, counting
        self.checks = checks or Checks()
        self.counts = Counts()
        self.variables = memory.add_variables(module)
        self._threads = 0
        self._races = RaceDetector(memory) if self.checks.races else None

    def launch(self, name: str, grid: Grid, arguments: Sequence[bytes]) -> Counts:
        """Runs a kernel to its end and returns what it did. The arguments are the bytes of its parameters, in order."""
        kernel = self.module.kernel(name)
        lanes = grid.threads * grid.cluster
        if grid.threads % WARP or grid.blocks % grid.cluster or grid.cluster > BLOCKS or lanes > LANES:
            raise PtxError(f"the interpreter does not take {grid}")
        self.memory.set_parameters(_packed(kernel, arguments))
        self.counts = Counts()
        self._threads = grid.threads
        program = Program(kernel, grid, self)
        clusters = range(0, grid.blocks, grid.cluster)
        with np.errstate(all="ignore"), _without_garbage_collection():
            for first in reversed(clusters) if self.reverse else clusters:
                self.memory.clear(kernel, grid.cluster, lanes, grid.shared, written=not self.checks.uninitialised)
                program.run(first, self._races)
        program.count_instructions(self.counts)
        return self.counts

    def lacking(self, name: str) -> list[str]:
        """What of a kernel the interpreter has no way to run; else that shows when it comes to it."""
        return Program(self.module.kernel(name), Grid(1, WARP), self).lacking()

    def touch(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        """Checks and counts an access before it is done."""
        owners = self.memory.owners(addresses, access)
        if isinstance(owners, int):
            self._touch(lanes, addresses, access, owners)
        else:
            for owner in np.unique(owners):
                part, _ = lanes.split(owners == owner)
                assert part is not None
                self._touch(part, addresses[owners == owner], access, int(owner))

    def _touch(self, lanes: Lanes, addresses: Addresses, access: Access, owner: int) -> None:
        if self.memory.is_shared(owner):
            if self._races:
                self._races.access(lanes, addresses, access)
            if self.counting:
                self._count_shared(lanes, addresses, access)
        elif self.counting and (buffer := self.memory.buffer(owner)):
            self.counts.add_global(lanes, addresses, access, buffer.name)

    def _count_shared(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        remote = (addresses - SHARED) // WINDOW != lanes.numbers // self._threads
        there, here = lanes.split(remote)
        if there:
            self.counts.add_remote(there, addresses[remote], access)
        if here:
            self.counts.add_shared(here, addresses[~remote], access)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """The many functions that a kernel becomes start collections, each of which visits all that torch has loaded."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _packed(kernel: Kernel, arguments: Sequence[bytes]) -> bytes:
    """The arguments as the kernel's parameters lie in memory."""
    parameters = list(kernel.parameters.values())
    if [len(argument) for argument in arguments] != [parameter.size for parameter in parameters]:
        raise PtxError(f"{kernel.name} has parameters of {[parameter.size for parameter in parameters]} bytes")
    packed = b""
    for parameter, argument in zip(parameters, arguments, strict=True):
        packed = packed.ljust(parameter.offset, b"\0") + argument
    return packed

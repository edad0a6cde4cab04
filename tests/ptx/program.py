"""A kernel made ready for a launch: its basic blocks, and who runs when.

Of the places where lanes stand, the one earliest in the code goes first, and lanes that meet there go on together.
nvcc puts the place where branches meet after them, so this lets divergent lanes reconverge. Nothing that is computed
depends on it: what barriers wait for is PTX's (synchronisation.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import binding, synchronisation
from .counters import Counts, class_of
from .frame import Frame
from .lanes import WARP, Lanes
from .memory import LOCAL_BYTES, WINDOW, Memory
from .module import Instruction, Kernel, PtxError, Symbol
from .races import RaceDetector
from .synchronisation import Synchronisation, Team
from .transfers import Device, Step

_BRANCHES, _ENDS = ("bra", "bra.uni"), ("ret", "ret.uni", "exit")
_LONGEST_RUN = 5_000_000  # basic blocks of one cluster; whoever needs more is caught in a loop


@dataclass(frozen=True)
class Grid:
    """Blocks of `threads` threads in one dimension, every `cluster` of them a thread-block cluster.

    shared: bytes of the shared memory whose size the launch chooses, for each block.
    """

    blocks: int
    threads: int
    cluster: int = 1
    shared: int = 0


# What lanes do at the end of a block.
_Act = Callable[[Lanes], None]


@dataclass
class _Block:
    """Instructions that lanes go through together, the last of them perhaps a branch or one at which they wait."""

    instructions: list[Instruction] = field(default_factory=list)
    bound: bool = False  # to functions:
    steps: list[tuple[Instruction, Step]] = field(default_factory=list)
    synchronise: Synchronisation | None = None
    act: _Act | None = None
    warps: int = 0  # that went through it
    lanes: int = 0


def _ends_block(instruction: Instruction) -> bool:
    return instruction.opcode in _BRANCHES + _ENDS or synchronisation.waits(instruction.opcode)


class Program:
    def __init__(self, kernel: Kernel, grid: Grid, device: Device) -> None:
        self._kernel = kernel
        self._team = Team(grid.threads, grid.cluster)
        lanes = grid.threads * grid.cluster
        self._rank = (np.arange(lanes) // grid.threads).astype(np.uint32)
        self._special = _special_registers(grid)
        self._frame = Frame(kernel, lanes, self._special, _places(kernel, self._rank, device))
        self._ready: dict[int, Lanes] = {}
        self._parked: dict[int, Lanes] = {}
        self._blocks, self._labels = _cut(kernel)
        self._device = device

    def lacking(self) -> list[str]:
        """What the interpreter has no way to run: one instruction of each such opcode."""
        lacking = []
        first = {
            instruction.opcode: (block, instruction) for block in self._blocks for instruction in block.instructions
        }
        for block, instruction in first.values():
            try:
                self._bind_instruction(instruction, _Block(), self._blocks.index(block))
            except PtxError as error:
                lacking.append(f"{instruction}: {error}")
        return lacking

    def _bind(self, number: int) -> None:
        block = self._blocks[number]
        for instruction in block.instructions:
            try:
                self._bind_instruction(instruction, block, number)
            except (PtxError, ValueError, TypeError, KeyError) as error:
                raise PtxError(f"{error}\n  in {self._kernel.name}\n  {instruction}") from error
        block.bound = True

    def _bind_instruction(self, instruction: Instruction, block: _Block, number: int) -> None:
        if not _ends_block(instruction):
            block.steps.append((instruction, binding.bind(instruction, self._frame, self._device)))
            return
        act = self._act(instruction, block, number)
        if instruction.guard is None:
            block.act = act
            return
        condition = binding.condition_of(instruction.guard, self._frame)

        def guarded(lanes: Lanes) -> None:
            chosen, others = lanes.split(condition(lanes))
            if others:
                self._go(number + 1, others)
            if chosen:
                act(chosen)

        block.act = guarded

    def _act(self, instruction: Instruction, block: _Block, number: int) -> _Act:
        if instruction.opcode in _ENDS:
            return self._team.exit
        if instruction.opcode in _BRANCHES:
            (label,) = instruction.operands
            assert isinstance(label, Symbol)
            target = self._labels[label.name]
            return lambda lanes: self._go(target, lanes)
        block.synchronise = synchronisation.bind(instruction, self._frame, self._team)
        return lambda lanes: self._wait(number, lanes)

    def run(self, first: int, races: RaceDetector | None) -> None:
        """Runs the cluster that begins with block `first` of the grid."""
        self._team.start(races)
        self._special["%ctaid.x"][:] = first + self._rank
        self._special["%clusterid.x"][:] = first // self._team.blocks
        self._parked.clear()
        self._ready.clear()
        self._go(0, Lanes(self._team.live))
        for _ in range(_LONGEST_RUN):
            if not self._ready:
                if not self._parked:
                    return
                self._retry()
            number = min(self._ready)
            self._run(number, self._ready.pop(number), first)
        raise PtxError(f"{self._kernel.name} does not end")

    def _run(self, number: int, lanes: Lanes, first: int) -> None:
        block = self._blocks[number]
        if not block.bound:
            self._bind(number)
        block.warps += lanes.warps
        block.lanes += lanes.count
        instruction: Instruction | None = None
        try:
            for instruction, step in block.steps:  # noqa: B007 (the message names the one that failed)
                step(lanes)
            if block.act:
                instruction = block.instructions[-1]
                block.act(lanes)
            else:
                self._go(number + 1, lanes)
        except PtxError as error:
            place = f"cluster of block {first}, {_listed(lanes)}"
            raise PtxError(f"{error}\n  in {self._kernel.name}, {place}\n  {instruction}") from error

    def _go(self, number: int, lanes: Lanes) -> None:
        """Lets the lanes stand at a block; behind the last one the kernel ends."""
        if number == len(self._blocks):
            self._team.exit(lanes)
            return
        others = self._ready.get(number)
        self._ready[number] = others.union(lanes) if others else lanes

    def _wait(self, number: int, lanes: Lanes) -> None:
        synchronise = self._blocks[number].synchronise
        assert synchronise is not None
        if earlier := self._parked.pop(number, None):
            lanes = lanes.union(earlier)
        released = synchronise(lanes)
        if released:
            self._go(number + 1, released)
        others = lanes.without(released) if released else lanes
        if others:
            self._parked[number] = others

    def _retry(self) -> None:
        """Nobody can go on but those who wait: an end, or a barrier elsewhere, may have been what they waited for."""
        for number in list(self._parked):
            self._wait(number, self._parked.pop(number))
        if not self._ready:
            waiting = [
                f"\n  {_listed(lanes)}: {self._blocks[number].instructions[-1]}"
                for number, lanes in self._parked.items()
            ]
            raise PtxError(
                f"deadlock in {self._kernel.name}: threads wait for others that never come{''.join(waiting)}"
            )

    def count_instructions(self, counts: Counts) -> None:
        """Adds up what ran since the launch."""
        for block in self._blocks:
            if block.lanes == 0:
                continue
            classes = Counter(class_of(instruction.opcode) for instruction in block.instructions)
            for name, count in classes.items():
                counts.warp_instructions[name] += count * block.warps
                counts.thread_instructions[name] += count * block.lanes


def _cut(kernel: Kernel) -> tuple[list[_Block], dict[str, int]]:
    """The kernel's basic blocks, and which of them each label stands before.

    An instruction at which lanes wait has a block of its own: some of those that come there may go on before others.
    """
    blocks = [_Block()]
    labels: dict[str, int] = {}
    at: dict[int, list[str]] = {}
    for label, position in kernel.labels.items():
        at.setdefault(position, []).append(label)
    for position, instruction in enumerate(kernel.instructions):
        block = blocks[-1]
        labelled = at.get(position, [])
        ended = bool(block.instructions) and _ends_block(block.instructions[-1])
        if block.instructions and (ended or labelled or synchronisation.waits(instruction.opcode)):
            block = _Block()
            blocks.append(block)
        labels.update(dict.fromkeys(labelled, len(blocks) - 1))
        block.instructions.append(instruction)
    labels.update(dict.fromkeys(at.get(len(kernel.instructions), []), len(blocks)))
    return blocks, labels


def _special_registers(grid: Grid) -> dict[str, NDArray[np.uint32]]:
    threads, cluster = grid.threads, grid.cluster
    lane = np.arange(threads * cluster, dtype=np.uint32)
    registers = {
        "%tid": lane % threads,
        "%ntid": threads,
        "%ctaid": 0,
        "%nctaid": grid.blocks,
        "%clusterid": 0,
        "%nclusterid": grid.blocks // cluster,
        "%cluster_ctaid": lane // threads,
        "%cluster_nctaid": cluster,
    }
    special: dict[str, Any] = {f"{name}.x": value for name, value in registers.items()}
    for name in registers:
        counts = name.removeprefix("%").removeprefix("cluster_").startswith("n")
        special |= {f"{name}.y": int(counts), f"{name}.z": int(counts)}
    special |= {"%cluster_ctarank": lane // threads, "%cluster_nctarank": cluster, "%laneid": lane % WARP}
    return {name: np.broadcast_to(np.uint32(value), lane.shape).copy() for name, value in special.items()}


def _places(kernel: Kernel, rank: NDArray[np.uint32], device: Device) -> dict[str, Any]:
    """The address of whatever has a name, in its state space and for each lane."""
    places: dict[str, Any] = {parameter.name: parameter.offset for parameter in kernel.parameters.values()}
    places |= device.variables
    places |= {
        name: (rank * np.uint32(WINDOW) + np.uint32(offset)).astype(np.uint64)
        for name, offset in Memory.layout(kernel, "shared").items()
    }
    lanes = np.arange(len(rank), dtype=np.uint64)
    places |= {
        name: lanes * np.uint64(LOCAL_BYTES) + np.uint64(offset)
        for name, offset in Memory.layout(kernel, "local").items()
    }
    return places


def _listed(lanes: Lanes) -> str:
    numbers = lanes.numbers.tolist()
    shown = ", ".join(map(str, numbers[:4])) + (f", ... {numbers[-1]}" if len(numbers) > 4 else "")
    return f"{len(numbers)} threads ({shown})"

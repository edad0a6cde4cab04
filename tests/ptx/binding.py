"""Instructions at which nobody waits and nobody branches, as functions of the lanes that execute them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from . import operations, transfers
from .frame import Frame
from .lanes import Array, Lanes
from .module import Guard, Instruction, Pair, PtxError, Sink, Vector
from .operations import Operation
from .transfers import Device, Step

# Ordering accesses, waiting for an earlier grid, hints: nothing in a machine that does one thing after the other.
_NO_WORK = re.compile(r"(membar|fence|griddepcontrol|prefetch|discard|applypriority)\b.*")
_COMPARISON = re.compile(
    r"setp\.(?P<name>\w+?)(\.(?P<combine>and|or|xor))?\.(?P<type>[bus](16|32|64)|f(32|64))",
)


def bind(instruction: Instruction, frame: Frame, device: Device) -> Step:
    step = _bind(instruction, frame, device)
    if instruction.guard is None:
        return step
    condition = condition_of(instruction.guard, frame)

    def guarded(lanes: Lanes) -> None:
        chosen, _ = lanes.split(condition(lanes))
        if chosen:
            step(chosen)

    return guarded


def condition_of(guard: Guard, frame: Frame) -> Callable[[Lanes], Array]:
    """Whether the guard lets each of the lanes execute its instruction."""
    predicate = frame.source(guard.register, "pred")
    if guard.negated:
        return lambda lanes: ~predicate[lanes.index]
    return lambda lanes: predicate[lanes.index]


def _bind(instruction: Instruction, frame: Frame, device: Device) -> Step:
    opcode = instruction.opcode
    if _NO_WORK.fullmatch(opcode):
        return lambda lanes: None
    if opcode.startswith("mov.") and any(isinstance(operand, Vector) for operand in instruction.operands):
        return _repack(instruction, frame)
    if match := _COMPARISON.fullmatch(opcode):
        return _compare(match, instruction, frame)
    if operation := operations.find(opcode):
        return _compute(operation, instruction, frame)
    step = transfers.bind(instruction, frame, device)
    if step is None:
        raise PtxError("the interpreter does not have this instruction")
    return step


def _compute(operation: Operation, instruction: Instruction, frame: Frame) -> Step:
    target, *sources = instruction.operands
    write = frame.writer(target, operation.result)
    readers = [frame.reader(source, type_) for source, type_ in zip(sources, operation.sources, strict=True)]
    if operation.carry_in:
        readers.append(frame.carry.__getitem__)
    compute = operation.compute
    if operation.carry_out:

        def with_carry(lanes: Lanes) -> None:
            index = lanes.index
            result, carry = compute(*[read(index) for read in readers])
            write(index, result)
            frame.carry[index] = carry

        return with_carry

    # The two most frequent forms without the list: half of what such a step costs with few lanes.
    if len(readers) == 1:
        (read,) = readers
        return lambda lanes: write(lanes.index, compute(read(lanes.index)))
    if len(readers) == 2:
        first, second = readers
        return lambda lanes: write(lanes.index, compute(first(lanes.index), second(lanes.index)))
    return lambda lanes: write(lanes.index, compute(*[read(lanes.index) for read in readers]))


_COMBINE: dict[str | None, Callable[[Array, Array], Array]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}


def _compare(match: re.Match[str], instruction: Instruction, frame: Frame) -> Step:
    target, *sources = instruction.operands
    first, second = (target.first, target.second) if isinstance(target, Pair) else (target, Sink())
    write, write_opposite = frame.writer(first, "pred"), frame.writer(second, "pred")
    a, b = (frame.reader(source, match["type"]) for source in sources[:2])
    compare = operations.comparison(match["name"], match["type"])
    combine = _COMBINE.get(match["combine"])
    condition = frame.reader(sources[2], "pred") if combine else None
    paired = isinstance(target, Pair)

    def step(lanes: Lanes) -> None:
        index = lanes.index
        result = compare(a(index), b(index))
        opposite = ~result if paired else result
        if combine and condition:
            other = condition(index).copy()
            result, opposite = combine(result, other), combine(opposite, other)
        write(index, result)
        write_opposite(index, opposite)

    return step


def _repack(instruction: Instruction, frame: Frame) -> Step:
    """mov between one register and several that are as wide together."""
    target, source = instruction.operands
    bits = int(re.sub(r"\D", "", instruction.opcode))
    if isinstance(target, Vector):
        width = bits // len(target.items)
        read = frame.reader(source, f"b{bits}")
        writers = [frame.writer(item, f"b{width}") for item in target.items]

        def unpack(lanes: Lanes) -> None:
            whole = read(lanes.index).copy()
            for number, write in enumerate(writers):
                write(lanes.index, whole >> whole.dtype.type(width * number))

        return unpack
    assert isinstance(source, Vector)
    width = bits // len(source.items)
    write = frame.writer(target, f"b{bits}")
    readers = [frame.reader(item, f"b{width}") for item in source.items]

    def pack(lanes: Lanes) -> None:
        whole = np.zeros(lanes.count, f"u{bits // 8}")
        for number, read in enumerate(readers):
            whole |= read(lanes.index).astype(whole.dtype) << whole.dtype.type(width * number)
        write(lanes.index, whole)

    return pack

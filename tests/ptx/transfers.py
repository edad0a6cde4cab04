"""Instructions that reach memory: ld, st, atom and red. Every order of memory is the strongest one here."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .frame import Frame, dtype_of
from .lanes import Array, Lanes
from .memory import Access, Addresses, Memory
from .module import Instruction, Operand, PtxError, Sink, Vector

Step = Callable[[Lanes], None]


class Device(Protocol):
    memory: Memory
    variables: dict[str, int]  # addresses of the module's
    reverse: bool  # lanes get their turn at an atomic operation from the last to the first

    def touch(self, lanes: Lanes, addresses: Addresses, access: Access) -> None:
        """Checks and counts an access before it is done."""


_ORDER = r"(?P<strong>\.(volatile|relaxed|acquire|release|acq_rel))?(\.weak)?(\.(cta|cluster|gpu|sys))?"
_SPACE = r"(\.(?P<space>param|shared|local|global|const)(::(cta|cluster|entry))?)?"
_TYPE = r"\.(?P<type>[busf](?P<bits>8|16|32|64))"
_CACHE = r"(\.(ca|cg|cs|cv|lu|wb|wt))?(\.L[12]::\w+)*"

_LOAD = re.compile(rf"ld{_ORDER}{_SPACE}(?P<constant>\.nc)?{_CACHE}(\.v(?P<elements>2|4))?{_TYPE}")
_STORE = re.compile(rf"st{_ORDER}{_SPACE}{_CACHE}(\.v(?P<elements>2|4))?{_TYPE}")
_ATOMIC = re.compile(
    rf"(?P<name>atom|red){_ORDER}{_SPACE}\.(?P<operation>add|min|max|and|or|xor|exch|cas|inc)\.(?P<type>[bus](32|64))"
)


def bind(instruction: Instruction, frame: Frame, device: Device) -> Step | None:
    """The instruction as a function of the lanes that execute it; None if it is none of these."""
    for pattern, make in ((_LOAD, _load), (_STORE, _store), (_ATOMIC, _atomic)):
        if match := pattern.fullmatch(instruction.opcode):
            return make(match, instruction, frame, device)
    return None


def _items(operand: Operand, count: int) -> tuple[Operand, ...]:
    items = operand.items if isinstance(operand, Vector) else (operand,)
    if len(items) != count:
        raise PtxError(f"{count} operands are needed: {operand}")
    return items


def _access(match: re.Match[str], writes: bool) -> Access:
    return Access(
        match["space"] or "generic",
        int(match["bits"]) // 8,
        int(match["elements"] or 1),
        reads=not writes,
        writes=writes,
        strong=bool(match["strong"]),
        constant=bool(match.groupdict().get("constant")),
    )


def _load(match: re.Match[str], instruction: Instruction, frame: Frame, device: Device) -> Step:
    target, source = instruction.operands
    access = _access(match, writes=False)
    addresses = frame.addresses(source, access.space)
    type_ = match["type"] if match["type"][0] != "f" else f"b{match['bits']}"
    dtype = dtype_of(type_)
    writers = [frame.writer(item, type_) for item in _items(target, access.elements)]
    memory = device.memory

    def step(lanes: Lanes) -> None:
        places = addresses(lanes.index)
        device.touch(lanes, places, access)
        for write, value in zip(writers, memory.load(places, access), strict=True):
            write(lanes.index, value.view(dtype))

    return step


def _store(match: re.Match[str], instruction: Instruction, frame: Frame, device: Device) -> Step:
    target, source = instruction.operands
    access = _access(match, writes=True)
    addresses = frame.addresses(target, access.space)
    readers = [frame.reader(item, f"b{match['bits']}") for item in _items(source, access.elements)]
    memory = device.memory

    def step(lanes: Lanes) -> None:
        places = addresses(lanes.index)
        device.touch(lanes, places, access)
        memory.store(places, access, [read(lanes.index) for read in readers])

    return step


def _atomic(match: re.Match[str], instruction: Instruction, frame: Frame, device: Device) -> Step:
    type_, returns = match["type"], match["name"] == "atom"
    target, address, *rest = instruction.operands if returns else (Sink(), *instruction.operands)
    access = Access(match["space"] or "generic", int(type_[1:]) // 8, reads=True, writes=True, strong=True)
    addresses = frame.addresses(address, access.space)
    readers = [frame.reader(operand, type_) for operand in rest]
    write = frame.writer(target, type_)
    operation = match["operation"]
    cells = device.memory.data.view(dtype_of(type_))

    def step(lanes: Lanes) -> None:
        places = addresses(lanes.index)
        device.touch(lanes, places, access)
        order = slice(None, None, -1) if device.reverse else slice(None)
        operands = [read(lanes.index)[order] for read in readers]
        before = _in_turn(operation, cells, (places // access.size)[order], operands)
        write(lanes.index, before[order])

    return step


_IN_TURN: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
    "exch": lambda old, new: new,
    "cas": lambda old, expected, new: new if old == expected else old,
    "inc": lambda old, limit: 0 if old >= limit else old + 1,
}


def _in_turn(operation: str, cells: Array, places: Array, operands: list[Array]) -> Array:
    """Does the operation lane after lane; returns what each lane found."""
    if operation == "add":
        return _add_in_turn(cells, places, operands[0])
    combine = _IN_TURN[operation]
    now = dict(zip(places.tolist(), cells[places].tolist(), strict=True))
    before = []
    for place, *values in zip(places.tolist(), *(operand.tolist() for operand in operands), strict=True):
        before.append(now[place])
        now[place] = combine(now[place], *values)
    cells[list(now.keys())] = list(now.values())
    return np.array(before, cells.dtype)


def _add_in_turn(cells: Array, places: Array, values: Array) -> Array:
    order = np.argsort(places, kind="stable")
    place, value = places[order], values[order]
    begins = np.append(True, place[1:] != place[:-1])
    total = np.cumsum(value, dtype=value.dtype)
    start = np.flatnonzero(begins)
    run = np.cumsum(begins) - 1
    earlier = total - value - (total - value)[start][run]  # of the same place; wraps as the sum does
    found = cells[place] + earlier
    ends = np.append(start[1:], len(place)) - 1
    cells[place[ends]] = found[ends] + value[ends]
    before = np.empty_like(found)
    before[order] = found
    return before

"""Instructions at which lanes wait for each other: barriers, and what a warp does together.

Each is a function of the lanes that stand at it; it does its work for those that need to wait no longer, and returns
them. Who waits for whom follows PTX: threads that have ended are not waited for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np

from .frame import Frame
from .lanes import WARP, Array, Lanes, words_of
from .module import Immediate, Instruction, Operand, Pair, PtxError, Sink
from .races import RaceDetector

Synchronisation = Callable[[Lanes], Lanes | None]

_ALL_LANES = 0xFFFFFFFF


class Team:
    """The lanes of one cluster, and how far each is with its barriers."""

    def __init__(self, threads: int, blocks: int) -> None:
        self.threads, self.blocks = threads, blocks
        self.start(None)

    def start(self, races: RaceDetector | None) -> None:
        lanes = self.threads * self.blocks
        self.live = np.ones(lanes, bool)
        self.all_live = True
        self.arrivals = np.zeros(lanes, np.int32)
        self.waits = np.zeros(lanes, np.int32)
        self.races = races
        if races:
            races.start(self.threads, self.blocks, self.arrivals, self.waits)

    def exit(self, lanes: Lanes) -> None:
        self.live = self.live & ~lanes.mask
        self.all_live = False
        if self.races:
            self.races.exited(self.live)


@cache
def waits(opcode: str) -> bool:
    """Whether the instruction is one of these."""
    return any(re.fullmatch(pattern, opcode) for pattern, _ in _PATTERNS)


def bind(instruction: Instruction, frame: Frame, team: Team) -> Synchronisation:
    for pattern, make in _PATTERNS:
        if match := re.fullmatch(pattern, instruction.opcode):
            return make(match, instruction.operands, frame, team)
    raise PtxError("nobody waits at this instruction")


# --- barriers of a block and of a cluster


def _block_barrier(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    reduction = match["reduction"]
    number = operands[1 if reduction else 0]
    if not isinstance(number, Immediate) or len(operands) != (3 if reduction else 1):
        raise PtxError("a barrier of a part of a block is not interpreted")
    read = frame.reader(operands[2], "pred") if reduction else None
    write = frame.writer(operands[0], "u32" if reduction == "popc" else "pred") if reduction else None

    def synchronise(lanes: Lanes) -> Lanes | None:
        here = lanes.mask.reshape(team.blocks, -1)
        complete = here.any(axis=1) & (here == team.live.reshape(team.blocks, -1)).all(axis=1)
        released, _ = lanes.split(np.repeat(complete, team.threads)[lanes.index])
        if released is None:
            return None
        if read and write:
            votes = np.zeros(team.live.shape, bool)
            votes[released.index] = read(released.index)
            of_block = votes.reshape(team.blocks, -1)
            results = {
                "popc": of_block.sum(axis=1),
                "or": of_block.any(axis=1),
                "and": (of_block | ~here).all(axis=1),
            }
            write(released.index, np.repeat(results[reduction], team.threads)[released.index])
        if team.races:
            team.races.blocks_synchronised(released)
        return released

    return synchronise


def _cluster_arrive(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    def synchronise(lanes: Lanes) -> Lanes | None:
        released = _complete_warps(team, lanes, None) if match["aligned"] else lanes
        if released is not None:
            if (team.arrivals[released.index] != team.waits[released.index]).any():
                raise PtxError("arrives twice at the cluster's barrier without a wait in between")
            team.arrivals[released.index] += 1
        return released

    return synchronise


def _cluster_wait(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    def synchronise(lanes: Lanes) -> Lanes | None:
        if (team.arrivals[lanes.index] == team.waits[lanes.index]).any():
            raise PtxError("waits at the cluster's barrier without having arrived")
        complete = team.arrivals[team.live].min()
        released, _ = lanes.split(team.waits[lanes.index] < complete)
        if released is not None and match["aligned"]:
            released = _complete_warps(team, released, None)
        if released is not None:
            team.waits[released.index] += 1
        return released

    return synchronise


# --- warps


def _complete_warps(team: Team, lanes: Lanes, members: Array | None) -> Lanes | None:
    """The lanes whose fellows are all here: those that `members` (a word per lane) names, or the whole warp."""
    if members is None or (members == _ALL_LANES).all():
        if team.all_live and lanes.count == len(lanes.mask):
            return lanes
        members = np.full(lanes.count, _ALL_LANES, np.uint32)
    if not _among(members, lanes.numbers % WARP).all():
        raise PtxError("a lane is not in its own mask of members")
    missing = (words_of(team.live) & ~words_of(lanes.mask))[lanes.warp]
    released, _ = lanes.split((members & missing) == 0)
    return released


def _among(members: Array, lane: Array) -> Array:
    """Whether the word of members has the bit of that lane."""
    return (members >> lane.astype(np.uint32)) & np.uint32(1) != 0


def _same_members(lanes: Lanes, members: Array) -> None:
    named = np.zeros(lanes.mask.shape, np.uint32)
    named[lanes.index] = members
    each = named.reshape(-1, WARP)
    if ((each != each.max(axis=1, keepdims=True)) & lanes.mask.reshape(-1, WARP)).any():
        raise PtxError("lanes of one warp name different members")


_Exchange = Callable[[Lanes, Array], None]


def _of_a_warp(operands: tuple[Operand, ...], frame: Frame, team: Team, exchange: _Exchange) -> Synchronisation:
    """What the lanes of a warp that the last operand names do together."""
    read = frame.reader(operands[-1], "u32")

    def synchronise(lanes: Lanes) -> Lanes | None:
        released = _complete_warps(team, lanes, read(lanes.index))
        if released is not None:
            members = read(released.index)
            _same_members(released, members)
            exchange(released, members)
        return released

    return synchronise


def _warp_barrier(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    def exchange(lanes: Lanes, members: Array) -> None:
        # A barrier of a part of a warp orders that part; the race detector only knows whole ones.
        if team.races and not (words_of(team.live)[lanes.warp] & ~members).any():
            team.races.warps_synchronised(lanes)

    return _of_a_warp(operands, frame, team, exchange)


def _shuffle(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    target, source, distance, clamp, _ = operands
    value, inside = (target.first, target.second) if isinstance(target, Pair) else (target, Sink())
    write, write_inside = frame.writer(value, "b32"), frame.writer(inside, "pred")
    values = frame.source(source, "b32")
    read_distance, read_clamp = frame.reader(distance, "u32"), frame.reader(clamp, "u32")
    mode = match["mode"]

    def exchange(lanes: Lanes, members: Array) -> None:
        lane = lanes.numbers % WARP
        b = read_distance(lanes.index).astype(np.int64) & 31
        c = read_clamp(lanes.index).astype(np.int64)
        segment, limit = c >> 8 & 31, c & 31
        last = (lane & segment) | (limit & ~segment)
        if mode == "up":
            from_lane = lane - b
            within = from_lane >= last
        else:
            first = lane & segment
            from_lane = {"down": lane + b, "bfly": lane ^ b, "idx": first | (b & ~segment)}[mode]
            within = from_lane <= last
        from_lane = np.where(within, from_lane, lane)
        takes_part = lanes.mask[lanes.warp * WARP + from_lane] & _among(members, from_lane)
        if not takes_part.all():
            raise PtxError("shuffles the value of a lane that takes no part")
        write(lanes.index, values[lanes.warp * WARP + from_lane])
        write_inside(lanes.index, within)

    return _of_a_warp(operands, frame, team, exchange)


def _vote(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    target, source, _ = operands
    mode = match["mode"]
    write = frame.writer(target, "b32" if mode == "ballot" else "pred")
    read = frame.reader(source, "pred")

    def exchange(lanes: Lanes, members: Array) -> None:
        votes = np.zeros_like(lanes.mask)
        votes[lanes.index] = read(lanes.index)
        ballot = words_of(votes)[lanes.warp]
        taking_part = words_of(lanes.mask)[lanes.warp]
        results = {
            "ballot": ballot,
            "any": ballot != 0,
            "all": ballot == taking_part,
            "uni": (ballot == 0) | (ballot == taking_part),
        }
        write(lanes.index, results[mode])

    return _of_a_warp(operands, frame, team, exchange)


_REDUCTIONS: dict[str, Callable[[str], tuple[np.ufunc, int]]] = {
    "add": lambda kind: (np.add, 0),
    "or": lambda kind: (np.bitwise_or, 0),
    "xor": lambda kind: (np.bitwise_xor, 0),
    "and": lambda kind: (np.bitwise_and, -1),
    "min": lambda kind: (np.minimum, 0x7FFFFFFF if kind == "s" else -1),
    "max": lambda kind: (np.maximum, -0x80000000 if kind == "s" else 0),
}


def _reduce(match: re.Match[str], operands: tuple[Operand, ...], frame: Frame, team: Team) -> Synchronisation:
    target, source, _ = operands
    type_ = match["type"]
    reduce, identity = _REDUCTIONS[match["operation"]](type_[0])
    write, read = frame.writer(target, type_), frame.reader(source, type_)

    def exchange(lanes: Lanes, members: Array) -> None:
        values = read(lanes.index)
        each = np.full(lanes.mask.shape, np.array(identity).astype(values.dtype))
        each[lanes.index] = values
        write(lanes.index, reduce.reduce(each.reshape(-1, WARP), axis=1, dtype=values.dtype)[lanes.warp])

    return _of_a_warp(operands, frame, team, exchange)


_PATTERNS = (
    (r"(bar|barrier)(\.cta)?\.(sync|red\.(?P<reduction>popc|and|or)\.(u32|pred))", _block_barrier),
    (r"barrier\.cluster\.arrive(\.release)?(?P<aligned>\.aligned)?", _cluster_arrive),
    (r"barrier\.cluster\.wait(\.acquire)?(?P<aligned>\.aligned)?", _cluster_wait),
    (r"bar\.warp\.sync", _warp_barrier),
    (r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", _shuffle),
    (r"vote\.sync\.(?P<mode>ballot|any|all|uni)\.(b32|pred)", _vote),
    (r"redux\.sync\.(?P<operation>add|min|max|and|or|xor)\.(?P<type>[ubs]32)", _reduce),
)

"""What the machine does with many threads: branches, barriers, memory, and what it must notice and count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from . import Checks, Counts, Grid, Machine, Memory, Module, PtxError
from .compilation import refused_by_ptxas

THREADS = 64
_BLOCK = Grid(1, THREADS)

# Every kernel begins with: %tid in t, the block's rank in its cluster in rank, the number of the thread in the grid in
# n, the address of its word of `out` in mine. `words` and `bytes` are shared arrays.
_PROLOGUE = """
.reg .b32 t, rank, n, a, b, c, d, e, x0, x1, x2, x3; .reg .b64 in, out, mine, far, wide, wider; .reg .pred p, q, r;
.reg .b16 h; .shared .align 16 .b32 words[2048]; .shared .align 16 .b8 bytes[64];
ld.param.u64 in, [param_in]; ld.param.u64 out, [param_out];
mov.u32 t, %tid.x; mov.u32 rank, %cluster_ctarank; mov.u32 a, %ctaid.x; mov.u32 b, %ntid.x; mad.lo.u32 n, a, b, t;
mad.wide.u32 mine, n, 4, out;
"""


class Kernel(NamedTuple):
    body: str
    grid: Grid = _BLOCK
    inputs: int = 1024  # words, each its own index

    def text(self, name: str) -> str:
        parameters = ".param .u64 param_in, .param .u64 param_out"
        return f".visible .entry {name}({parameters}) {{ {_PROLOGUE} {self.body} ret; }}\n"


_HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"


def run(
    kernel: Kernel, checks: Checks | None = None, reverse: bool = False, misalign: int = 0
) -> tuple[NDArray[np.uint32], Counts]:
    """What the kernel wrote to its `out`, and its counts."""
    memory = Memory(1 << 20)
    numbers = np.arange(kernel.inputs, dtype=np.uint32)
    given = memory.add("in", numbers, misalign=misalign)
    out = memory.add("out", np.full(kernel.grid.blocks * kernel.grid.threads, 0xDEAD, np.uint32), writable=True)
    machine = Machine(Module(_HEADER + kernel.text("kernel")), memory, checks, reverse=reverse)
    addresses = [buffer.address.to_bytes(8, "little") for buffer in (given, out)]
    counts = machine.launch("kernel", kernel.grid, addresses)
    return memory.content(out).view(np.uint32), counts


# --- what has a result


def _thread(grid: Grid = _BLOCK) -> NDArray[np.int64]:
    return np.arange(grid.blocks * grid.threads) % grid.threads


_STORE = "st.global.u32 [mine], a;"
_LANE = np.arange(THREADS) % 32
_CLUSTER = Grid(4, THREADS, cluster=2)
_CLUSTER_BARRIER = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"

RESULTS: dict[str, tuple[Kernel, Callable[[], Any]]] = {
    "lanes leave a loop one after the other": (
        Kernel(f"mov.u32 a, 0; L1: add.u32 a, a, 3; setp.lt.u32 p, a, t; @p bra L1; {_STORE}"),
        lambda: np.maximum(3, -(-_thread() // 3) * 3),
    ),
    "lanes at uneven distances": (
        Kernel(f"shr.u32 b, 0x4D, t; and.b32 b, b, 1; setp.eq.u32 p, b, 1; mov.u32 a, 99; @p mov.u32 a, t; {_STORE}"),
        lambda: np.where(np.isin(_thread(), [0, 2, 3, 6]), _thread(), 99),
    ),
    "both sides of a branch": (
        Kernel(
            f"and.b32 b, t, 1; setp.eq.u32 p, b, 0; @p bra L1; mov.u32 a, 5; bra.uni L2; L1: mov.u32 a, 7; L2: {_STORE}"
        ),
        lambda: np.where(_thread() % 2 == 0, 7, 5),
    ),
    "threads that end early are not waited for": (
        Kernel("setp.gt.u32 p, t, 40; @p ret; bar.sync 0; mov.u32 a, t; st.global.u32 [mine], a;"),
        lambda: np.where(_thread() > 40, 0xDEAD, _thread()),
    ),
    "threads that come to a barrier from behind it": (
        Kernel(
            "mov.u32 a, t; setp.gt.u32 p, t, 40; @p bra L2; L1: bar.sync 0; bra.uni L3;"
            f"L2: add.u32 a, a, 8; bra.uni L1; L3: {_STORE}"
        ),
        lambda: np.where(_thread() > 40, _thread() + 8, _thread()),
    ),
    "lanes that have ended do not vote": (
        Kernel("setp.gt.u32 p, t, 40; @p ret; vote.sync.ballot.b32 a, !p, -1; st.global.u32 [mine], a;"),
        lambda: np.where(_thread() > 40, 0xDEAD, np.repeat([0xFFFFFFFF, 0x1FF], 32)),
    ),
    "a barrier between writing and reading": (
        Kernel(
            "mov.u32 b, words; mad.lo.u32 b, t, 4, b; st.shared.u32 [b], t; bar.sync 0;"
            f"xor.b32 c, t, 63; mov.u32 b, words; mad.lo.u32 b, c, 4, b; ld.shared.u32 a, [b]; {_STORE}"
        ),
        lambda: _thread() ^ 63,
    ),
    "counting at a barrier": (
        Kernel(f"setp.lt.u32 p, t, 37; bar.red.popc.u32 a, 0, p; {_STORE}"),
        lambda: 37,
    ),
    "any and all at a barrier": (
        Kernel(
            "setp.eq.u32 p, t, 37; bar.red.or.pred q, 0, p; selp.u32 a, 1, 0, q; bar.red.and.pred q, 0, !p;"
            f"selp.u32 b, 2, 0, q; add.u32 a, a, b; {_STORE}"
        ),
        lambda: 1,
    ),
    "the other block's shared memory": (
        Kernel(
            "mad.lo.u32 a, rank, 1000, t; mov.u32 b, words; mad.lo.u32 b, t, 4, b; st.shared.u32 [b], a;"
            f"{_CLUSTER_BARRIER} cvt.u64.u32 wide, b; cvta.shared.u64 wide, wide; xor.b32 c, rank, 1;"
            f"mapa.u64 far, wide, c; ld.u32 a, [far]; {_CLUSTER_BARRIER} {_STORE}",
            _CLUSTER,
        ),
        lambda: _thread(_CLUSTER) + 1000 * (1 - np.arange(4 * THREADS) // THREADS % 2),
    ),
    "a block that comes late to the barrier": (
        Kernel(
            f"mov.u32 b, words; mad.lo.u32 b, t, 4, b; setp.ne.u32 p, rank, 0; mov.u32 a, t; @p bra L1;"
            "cvt.u64.u32 wide, b; cvta.shared.u64 wide, wide; mapa.u64 far, wide, 1;"
            f"{_CLUSTER_BARRIER} ld.u32 a, [far]; bra.uni L2; L1: add.u32 c, t, 500; st.shared.u32 [b], c;"
            f"{_CLUSTER_BARRIER} L2: {_CLUSTER_BARRIER} {_STORE}",
            _CLUSTER,
        ),
        lambda: _thread(_CLUSTER) + 500 * (1 - np.arange(4 * THREADS) // THREADS % 2),
    ),
    "the other block's, by a shared address": (
        Kernel(
            "mad.lo.u32 a, rank, 1000, t; mov.u32 b, words; mad.lo.u32 b, t, 4, b; st.shared.u32 [b], a;"
            f"{_CLUSTER_BARRIER} mapa.shared::cluster.u32 d, b, 0; ld.shared::cluster.u32 a, [d];"
            f"{_CLUSTER_BARRIER} {_STORE}",
            _CLUSTER,
        ),
        lambda: _thread(_CLUSTER),
    ),
    "a shuffle up within segments of eight": (
        Kernel(f"shfl.sync.up.b32 a|p, t, 3, 0x1800, -1; @!p mov.u32 a, 99; {_STORE}"),
        lambda: np.where(_LANE % 8 < 3, 99, _thread() - 3),
    ),
    "a shuffle down": (
        Kernel(f"shfl.sync.down.b32 a|p, t, 3, 0x1F, -1; @!p add.u32 a, a, 100; {_STORE}"),
        lambda: np.where(_LANE > 28, _thread() + 100, _thread() + 3),
    ),
    "a shuffle of neighbours": (Kernel(f"shfl.sync.bfly.b32 a, t, 5, 0x1F, -1; {_STORE}"), lambda: _thread() ^ 5),
    "a shuffle from one lane": (
        Kernel(f"shfl.sync.idx.b32 a, t, 7, 0x1F, -1; {_STORE}"),
        lambda: _thread() - _LANE + 7,
    ),
    "a shuffle of a half of the warps": (
        Kernel(
            "and.b32 b, t, 31; mov.u32 a, t; setp.gt.u32 p, b, 15; @p bra L1;"
            f"shfl.sync.bfly.b32 a, t, 1, 0x1F, 0xFFFF; L1: {_STORE}"
        ),
        lambda: np.where(_LANE < 16, _thread() ^ 1, _thread()),
    ),
    "lanes that come later to a vote": (
        Kernel(
            "and.b32 b, t, 1; setp.eq.u32 p, b, 0; mov.u32 a, t; @p bra L1; add.u32 a, a, 8; L1:"
            f"setp.gt.u32 q, a, 40; vote.sync.ballot.b32 a, q, -1; {_STORE}"
        ),
        lambda: np.repeat([0, 0xFFFFFFFF & ~0b101010101], 32),
    ),
    "votes": (
        Kernel(
            "setp.eq.u32 p, t, 3; vote.sync.any.pred q, p, -1; selp.u32 a, 1, 0, q; vote.sync.all.pred q, !p, -1;"
            f"selp.u32 b, 2, 0, q; add.u32 a, a, b; vote.sync.uni.pred q, p, -1; @q add.u32 a, a, 4; {_STORE}"
        ),
        lambda: np.repeat([1, 6], 32),
    ),
    "reductions of a warp": (
        Kernel(
            "sub.u32 b, t, 10; redux.sync.add.u32 a, t, -1; redux.sync.max.s32 c, b, -1; add.u32 a, a, c;"
            f"redux.sync.min.u32 c, b, -1; xor.b32 a, a, c; redux.sync.or.b32 c, t, -1; add.u32 a, a, c; {_STORE}"
        ),
        lambda: np.repeat([496 + 21 + 31, ((1520 + 53) ^ 22) + 63], 32),
    ),
    "four words at once": (
        Kernel(
            "mad.wide.u32 wide, t, 16, in; ld.global.nc.L1::no_allocate.v4.u32 {x0, x1, x2, x3}, [wide];"
            f"mad.lo.u32 a, x1, 1000, x3; mad.lo.u32 a, x0, 7, a; {_STORE}"
        ),
        lambda: (4 * _thread() + 1) * 1000 + 4 * _thread() + 3 + 28 * _thread(),
    ),
    "a byte with its sign, into a wider register": (
        Kernel(f"mad.wide.u32 wide, t, 4, in; ld.global.s8 a, [wide+512]; {_STORE}"),
        lambda: (_thread() + 128) - 256 & 0xFFFFFFFF,
    ),
    "adding to one word, and what each lane found": (
        Kernel(
            "mov.u32 a, 5; setp.eq.u32 p, t, 0; @p st.shared.u32 [words], a; bar.sync 0;"
            f"atom.shared.add.u32 a, [words], t; {_STORE}"
        ),
        lambda: 5 + np.cumsum(_thread()) - _thread(),
    ),
    "adding 64 bits to two places": (
        Kernel(
            "setp.gt.u32 p, t, 1; mov.u32 b, words; mad.lo.u32 c, t, 8, b; mov.u64 wide, 0xFFFFFFFF;"
            "@!p st.shared.u64 [c], wide; bar.sync 0; and.b32 c, t, 1; mad.lo.u32 b, c, 8, b; cvt.u64.u32 wide, t;"
            f"atom.shared.add.u64 wide, [b], wide; shr.u64 wider, wide, 32; cvt.u32.u64 a, wider; {_STORE}"
        ),
        lambda: (_thread() > 2).astype(int),
    ),
    "the largest, the smallest and all bits": (
        Kernel(
            "mov.u32 b, 30; setp.eq.u32 p, t, 0; @p st.shared.u32 [words], b; @p st.shared.u32 [words+4], b;"
            "@p st.shared.u32 [words+8], b; @p st.shared.u32 [words+12], b; bar.sync 0; sub.u32 c, t, 5;"
            "atom.shared.max.u32 d, [words], t; atom.shared.min.s32 d, [words+4], c; red.shared.or.b32 [words+8], t;"
            "atom.shared.max.u32 d, [words+12], c; bar.sync 0; ld.shared.u32 a, [words]; ld.shared.u32 b, [words+4];"
            "mad.lo.u32 a, b, 1000, a; ld.shared.u32 b, [words+8]; mad.lo.u32 a, b, 100000, a;"
            f"ld.shared.u32 b, [words+12]; add.u32 a, a, b; {_STORE}"
        ),
        lambda: (63 - 5000 + 63 * 100000 + 0xFFFFFFFF) % 2**32,
    ),
    "the last of the blocks to arrive": (
        Kernel(
            "setp.ne.u32 p, t, 0; @p ret; mov.u32 c, 2; atom.global.inc.u32 a, [out], c;"
            "setp.ne.u32 p, n, 0; @p st.global.u32 [mine], a;",
            Grid(4, 32),
        ),
        # The first finds more than the limit and begins again at 0.
        lambda: np.concatenate([[found, *[0xDEAD] * 31] for found in (0, 0, 1, 2)]),
    ),
    "a local array": (
        Kernel(
            ".local .align 4 .b8 depot[64]; mov.u64 wide, depot; and.b32 b, t, 15; st.local.u32 [depot+4], t;"
            "mad.wide.u32 wide, b, 4, wide; st.local.u32 [wide], n; cvta.local.u64 far, wide; ld.u32 a, [far];"
            f"ld.local.u32 b, [depot+4]; add.u32 a, a, b; {_STORE}"
        ),
        lambda: 2 * _thread(),
    ),
    "volatile accesses of all threads to one word": (
        Kernel(f"mov.u32 b, 7; st.volatile.shared.u32 [words], b; ld.volatile.shared.u32 a, [words]; {_STORE}"),
        lambda: 7,
    ),
    "parameters by address": (
        Kernel(f"mov.b64 wide, param_in; ld.param.u64 far, [wide]; sub.u64 far, far, in; cvt.u32.u64 a, far; {_STORE}"),
        lambda: 0,
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(name: str) -> None:
    kernel, expected = RESULTS[name]
    found, _ = run(kernel)
    assert found.tolist() == np.broadcast_to(np.asarray(expected(), np.int64) % 2**32, found.shape).tolist()


def test_the_turns_of_atomic_operations_can_be_reversed() -> None:
    kernel, _ = RESULTS["adding to one word, and what each lane found"]
    found, _ = run(kernel, reverse=True)
    assert found[::-1].tolist() == (5 + np.cumsum(_thread()[::-1]) - _thread()[::-1]).tolist()


# --- what is wrong


_MINE = "mov.u32 b, words; mad.lo.u32 b, t, 4, b;"  # the address of the thread's own shared word
_NEXT = "xor.b32 c, t, 1; mov.u32 d, words; mad.lo.u32 d, c, 4, d;"  # of its neighbour's
_FAR = "xor.b32 c, t, 32; mov.u32 d, words; mad.lo.u32 d, c, 4, d;"  # of one in the other warp
_REMOTE = "cvt.u64.u32 wide, b; cvta.shared.u64 wide, wide; xor.b32 c, rank, 1; mapa.u64 far, wide, c;"

ERRORS: dict[str, tuple[Kernel, str]] = {
    "different barriers": (
        Kernel("setp.gt.u32 p, t, 40; @p bra L1; bar.sync 0; bra.uni L2; L1: bar.sync 0; L2:"),
        "deadlock",
    ),
    "a vote in a branch": (
        Kernel("setp.gt.u32 p, t, 40; @p bra L1; vote.sync.ballot.b32 a, p, -1; L1: bar.sync 0;"),
        "deadlock",
    ),
    "a part of the cluster at its barrier": (
        Kernel(f"setp.eq.u32 p, rank, 0; @p bra L1; {_CLUSTER_BARRIER} ret; L1: bar.sync 0; bra.uni L1;", _CLUSTER),
        "does not end",
    ),
    "a wait without an arrival": (Kernel("barrier.cluster.wait.aligned;", _CLUSTER), "without having arrived"),
    "two arrivals": (
        Kernel("barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;", _CLUSTER),
        "arrives twice",
    ),
    "a lane that is no member": (Kernel("vote.sync.ballot.b32 a, p, 0xFFFE;"), "not in its own mask"),
    "a shuffle from who takes no part": (
        Kernel("and.b32 b, t, 31; setp.gt.u32 p, b, 15; @p ret; shfl.sync.bfly.b32 a, t, 16, 0x1F, 0xFFFF;"),
        "takes no part",
    ),
    "members that differ": (
        Kernel("and.b32 b, t, 31; mov.u32 c, 1; shl.b32 c, c, b; shfl.sync.bfly.b32 a, t, 0, 0x1F, c;"),
        "different members",
    ),
    "reading what no barrier orders": (
        Kernel(f"{_MINE} st.shared.u32 [b], t; {_NEXT} ld.shared.u32 a, [d];"),
        "race: read by thread 0 and write by thread 1 ",
    ),
    "a barrier of the warp for the block": (
        Kernel(f"{_MINE} st.shared.u32 [b], t; bar.warp.sync -1; {_FAR} ld.shared.u32 a, [d];"),
        "race: read by thread 0 and write by thread 32",
    ),
    "a barrier of a part of the warp": (
        Kernel(
            f"and.b32 a, t, 31; setp.gt.u32 p, a, 15; {_MINE} st.shared.u32 [b], t; @p bra L1;"
            "bar.warp.sync 0xFFFF; bra.uni L2; L1: bar.warp.sync 0xFFFF0000; L2:"
            "xor.b32 c, t, 16; mov.u32 d, words; mad.lo.u32 d, c, 4, d; ld.shared.u32 a, [d];"
        ),
        "race: read",
    ),
    "writing what others still read": (
        Kernel(f"{_MINE} st.shared.u32 [b], t; bar.sync 0; {_FAR} ld.shared.u32 a, [d]; st.shared.u32 [b], n;"),
        "race: write by thread 0 and read by thread 32",
    ),
    "writing what the first of several readers still reads": (
        Kernel(
            "setp.eq.u32 p, t, 0; @p st.shared.u32 [words], t; bar.sync 0; ld.shared.u32 a, [words];"
            "setp.eq.u32 p, t, 63; @p st.shared.u32 [words], t;"
        ),
        "race: write",
    ),
    "writing what another reads, after reading it too": (
        Kernel(
            "setp.eq.u32 p, t, 0; @p st.shared.u32 [words], t; bar.sync 0; @p ld.shared.u32 a, [words];"
            "setp.eq.u32 q, t, 63; @q ld.shared.u32 a, [words]; @q st.shared.u32 [words], t;"
        ),
        "race: write by thread 63",
    ),
    "two that write one word": (
        Kernel("st.shared.u32 [words+8], t;"),
        "race: two threads write at once to byte 8 of words in block 0",
    ),
    "an atomic operation and a plain one": (
        Kernel(f"{_MINE} st.shared.u32 [b], t; bar.sync 0; {_FAR} red.shared.add.u32 [d], 1; ld.shared.u32 a, [b];"),
        "race: read by thread 0 and atomic by thread 32",
    ),
    "a barrier of the block for the cluster": (
        Kernel(
            f"{_MINE} {_REMOTE} {_CLUSTER_BARRIER} st.shared.u32 [b], t; bar.sync 0; ld.u32 a, [far];"
            f"{_CLUSTER_BARRIER}",
            _CLUSTER,
        ),
        "race: read by thread 0 and write by thread 64",
    ),
    "writing after the arrival": (
        Kernel(
            f"{_MINE} {_REMOTE} {_CLUSTER_BARRIER} barrier.cluster.arrive.aligned; st.shared.u32 [b], t;"
            f"barrier.cluster.wait.aligned; ld.u32 a, [far]; {_CLUSTER_BARRIER}",
            _CLUSTER,
        ),
        "race: read by thread 0 and write by thread 64",
    ),
    "a barrier of the block after another block's write": (
        Kernel(
            f"{_MINE} {_REMOTE} st.shared.u32 [b], t; {_CLUSTER_BARRIER} setp.eq.u32 p, rank, 0; @p st.u32 [far], t;"
            f"bar.sync 0; @!p ld.shared.u32 a, [b]; {_CLUSTER_BARRIER}",
            _CLUSTER,
        ),
        "race: read by thread 64 and write by thread 0",
    ),
    "reading after the arrival, beside a reader before it": (
        Kernel(
            f"{_MINE} {_REMOTE} st.shared.u32 [b], t; {_CLUSTER_BARRIER} setp.ne.u32 p, rank, 0; @p bra L1;"
            "barrier.cluster.arrive.aligned; ld.u32 a, [far]; bra.uni L2; L1: ld.shared.u32 a, [b];"
            f"barrier.cluster.arrive.aligned; L2: barrier.cluster.wait.aligned; @p st.shared.u32 [b], t;"
            f"{_CLUSTER_BARRIER}",
            _CLUSTER,
        ),
        "race: write by thread 64",
    ),
    "another block before any barrier": (
        Kernel(f"{_MINE} {_REMOTE} st.u32 [far], t; {_CLUSTER_BARRIER}", _CLUSTER),
        "it may not have started",
    ),
    "another block after the last barrier": (
        Kernel(f"{_MINE} {_REMOTE} st.shared.u32 [b], t; {_CLUSTER_BARRIER} ld.u32 a, [far];", _CLUSTER),
        "ends while others may still reach into",
    ),
    "a block that has ended": (
        Kernel(
            f"{_MINE} {_REMOTE} st.shared.u32 [b], t; {_CLUSTER_BARRIER} setp.eq.u32 p, rank, 0; @p bra L1;"
            "ld.u32 a, [far]; st.u32 [far], a; ret; L1:",
            _CLUSTER,
        ),
        "others may still reach into|has ended",
    ),
    "reading shared memory before it is written": (
        Kernel("ld.shared.u32 a, [words+64];"),
        "read before anything was written there: 4 bytes at byte 64 of words in block 0",
    ),
    "behind an array": (
        Kernel("mov.u32 b, words; mad.lo.u32 b, t, 4, b; st.shared.u32 [b+8000], t;"),
        "out of bounds: 4 bytes at byte 8192 of words",
    ),
    "behind a buffer": (
        Kernel("mad.wide.u32 wide, t, 4, in; ld.global.u32 a, [wide+3844];"),
        r"out of bounds: 4 bytes at byte 4096 of in \(4096 bytes\)",
    ),
    "no address": (Kernel("mov.u64 wide, 0; ld.global.u32 a, [wide];"), "out of bounds"),
    "an address beyond everything": (Kernel("mov.u64 wide, -8; ld.u32 a, [wide];"), "out of bounds"),
    "a misaligned address": (Kernel("ld.global.v2.u32 {a, b}, [in+4];"), "misaligned: 8 bytes at byte 4 of in"),
    "writing the input": (Kernel("st.global.u32 [in], t;"), "writes to in, which it may only read"),
    "a constant load of the output": (Kernel("ld.global.nc.u32 a, [out];"), "not constant"),
    "a shared address as a global one": (
        Kernel("mov.u32 b, words; cvt.u64.u32 wide, b; cvta.shared.u64 wide, wide; st.global.u32 [wide], t;"),
        "a global access reaches shared",
    ),
    "a loop without end": (Kernel("L1: bra L1;"), "does not end"),
    "part of a block at a barrier": (Kernel("bar.sync 1, 32;"), "not interpreted"),
    "an unknown register": (Kernel("mov.u32 a, %clock;"), "no register %clock"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptx.program._LONGEST_RUN", 1000)
    kernel, message = ERRORS[name]
    with pytest.raises(PtxError, match=message):
        run(kernel)


def test_checks_can_be_turned_off() -> None:
    race, _ = ERRORS["reading what no barrier orders"]
    uninitialised, _ = ERRORS["reading shared memory before it is written"]
    run(race, Checks(races=False))
    run(uninitialised, Checks(uninitialised=False))
    with pytest.raises(PtxError, match="read before"):
        run(uninitialised, Checks(races=False))
    with pytest.raises(PtxError, match="race"):
        run(race, Checks(uninitialised=False))


def test_a_result_that_is_not_written_everywhere() -> None:
    memory = Memory(1 << 16)
    buffer = memory.add("result", 8, writable=True)
    with pytest.raises(PtxError, match="result was not written everywhere"):
        memory.content(buffer)


def test_arguments_of_another_size() -> None:
    module = Module(_HEADER + Kernel("").text("kernel"))
    with pytest.raises(PtxError, match="parameters of"):
        Machine(module, Memory(1 << 16)).launch("kernel", Grid(1, 32), [bytes(8), bytes(4)])


@pytest.mark.parametrize(
    "text",
    [
        ".visible .entry kernel() { call (retval0), function, (param0); }",
        ".visible .entry kernel() { .param .b32 param0; ret; }",
        ".visible .entry kernel() { $$$ }",
        ".visible .entry kernel(.param .texref t) { ret; }",
        ".visible .entry kernel() { bra nowhere; }",
    ],
)
def test_ptx_that_is_not_understood(text: str) -> None:
    with pytest.raises(PtxError):
        Machine(Module(_HEADER + text), Memory(1 << 16)).launch("kernel", Grid(1, 32), [])


# --- what is counted


def _counted(body: str, grid: Grid = _BLOCK, misalign: int = 0) -> Counts:
    return run(Kernel(body, grid), Checks(uninitialised=False), misalign=misalign)[1]


def _global(stride: int, type_: str = "u32", target: str = "a") -> str:
    return f"mad.wide.u32 wide, t, {stride}, in; ld.global.{type_} {target}, [wide];"


@pytest.mark.parametrize(
    ("body", "misalign", "sectors"),
    [
        (_global(4), 0, 2 * 4),
        (_global(4), 4, 2 * 5),
        (_global(4), 32, 2 * 4),
        (_global(32), 0, 64),
        (_global(0), 0, 2),
        (_global(2, "u16", "h"), 0, 2 * 2),
        (_global(16, "v4.u32", "{a, b, c, d}"), 0, 2 * 16),
        (_global(16, "v4.u32", "{a, b, c, d}"), 16, 2 * 17),
        ("xor.b32 b, t, 21; mad.wide.u32 wide, b, 8, in; ld.global.u32 a, [wide];", 0, 2 * 8),
        (_global(4) * 2, 0, 2 * 2 * 4),
        (f"setp.gt.u32 p, t, 7; @p bra L1; {_global(4)} L1:", 0, 1),
    ],
)
def test_sectors_read(body: str, misalign: int, sectors: int) -> None:
    assert _counted(body, misalign=misalign).sectors_read == {"in": sectors}


def test_sectors_written() -> None:
    counts = _counted(f"mov.u32 a, t; {_STORE}")
    assert counts.sectors_written == {"out": 8}
    assert not counts.sectors_read


def _shared(stride: int, type_: str = "u32", target: str = "a") -> str:
    return f"mov.u32 b, words; mad.lo.u32 b, t, {stride}, b; ld.shared.{type_} {target}, [b];"


@pytest.mark.parametrize(
    ("body", "requests", "wavefronts"),
    [
        (_shared(4), 2, 2),
        (_shared(8), 2, 2 * 2),
        (_shared(12), 2, 2),
        (_shared(128), 2, 2 * 32),
        (_shared(0), 2, 2),
        (_shared(8, "v2.u32", "{a, c}"), 2, 2 * 2),
        (_shared(8, "u64", "wide"), 2, 2 * 2),
        ("and.b32 c, t, 15; mov.u32 b, words; mad.lo.u32 b, c, 8, b; ld.shared.u64 wide, [b];", 2, 2 * 2),
        (_shared(16, "v4.u32", "{a, c, d, e}"), 2, 2 * 4),
        (_shared(32, "v4.u32", "{a, c, d, e}"), 2, 2 * 8),
        (f"setp.gt.u32 p, t, 0; @p bra L1; {_shared(128)} L1:", 1, 1),
        (f"{_MINE} st.shared.u32 [b], t;", 2, 2),
    ],
)
def test_wavefronts_of_shared_memory(body: str, requests: int, wavefronts: int) -> None:
    counts = _counted(body)
    assert (counts.shared_requests, counts.shared_wavefronts) == (requests, wavefronts)


def test_what_goes_to_another_block() -> None:
    body = f"{_MINE} {_REMOTE} {_CLUSTER_BARRIER} st.u32 [far], t; {_CLUSTER_BARRIER}"
    counts = _counted(body, _CLUSTER)
    assert (counts.remote_requests, counts.remote_sectors) == (4 * 2, 4 * 8)
    assert counts.shared_requests == 0


@pytest.mark.parametrize(
    ("body", "space", "turns"),
    [
        ("red.shared.add.u32 [words], t;", "shared", 2 * 32),
        (f"{_MINE} red.shared.add.u32 [b], t;", "shared", 2),
        ("and.b32 c, t, 3; mov.u32 b, words; mad.lo.u32 b, c, 4, b; red.shared.add.u32 [b], t;", "shared", 2 * 8),
        ("red.global.add.u32 [out], t;", "global", 2 * 32),
        ("red.global.add.u32 [mine], t;", "global", 2),
    ],
)
def test_turns_at_atomic_operations(body: str, space: str, turns: int) -> None:
    counts = _counted(body)
    assert counts.atomic_requests == {space: 2}
    assert counts.atomic_turns == {space: turns}


def test_instructions() -> None:
    """A warp goes through a loop as often as its lane that stays longest."""
    before = _counted("mov.u32 a, 0;")
    loop = _counted("mov.u32 a, 0; L1: add.u32 a, a, 1; setp.lt.u32 p, a, t; @p bra L1;")
    threads = loop.thread_instructions - before.thread_instructions
    warps = loop.warp_instructions - before.warp_instructions
    rounds = [max(1, thread) for thread in range(THREADS)]
    assert threads == {name: sum(rounds) for name in ("integer", "comparison and selection", "branch")}
    assert warps == dict.fromkeys(("integer", "comparison and selection", "branch"), rounds[31] + rounds[63])


def test_the_kernels_here_are_ptx(tmp_path: Path) -> None:
    kernels = [kernel for kernel, _ in [*RESULTS.values(), *ERRORS.values()]]
    texts = [kernel.text(f"kernel_{number}") for number, kernel in enumerate(kernels)]
    assert not refused_by_ptxas(_HEADER + "".join(texts), 90, tmp_path)

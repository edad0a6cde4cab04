"""The emulator of tests/emulator itself: what CUDA defines works in every schedule, and what it leaves undefined is
noticed, with the place and the threads in the message.
"""

import json
import random
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import emulator_builds
from emulator_builds import PROBES

UNSET = 0xFFFFFFFF
ORDERS = ("forward", "reverse", "random")
each_order = pytest.mark.parametrize("order", range(3), ids=ORDERS)
SEED = 7


@cache
def module(variant: str) -> tuple[Path, ModuleType | None]:
    """The probes, built; loaded, unless that takes AddressSanitizer's runtime."""
    path = emulator_builds.build(PROBES, variant)
    return path, emulator_builds.load(path) if variant != "address" else None


def loaded(variant: str = "plain") -> ModuleType:
    _, probes = module(variant)
    assert probes is not None
    return probes


def run(name: str, order: int, variant: str = "plain", seed: int = SEED) -> list[int]:
    """What the probe of this name wrote."""
    return [number for number in loaded(variant).run(name, order, seed) if number != UNSET]


def error_of(name: str, order: int, variant: str) -> str:
    """The message of the error that the probe must end with."""
    path, _ = module(variant)
    with pytest.raises(loaded(variant).KernelError) as raised:
        run(name, order, variant)
    return emulator_builds.with_lines(str(raised.value), path)


def error_under_address_sanitizer(name: str, order: int) -> str:
    path, _ = module("address")
    program = (
        "import sys, pathlib, emulator_builds\n"
        "probes = emulator_builds.load(pathlib.Path(sys.argv[1]))\n"
        "probes.run(sys.argv[2], int(sys.argv[3]), 7)\n"
    )
    result = emulator_builds.run_with_address_sanitizer(program, str(path), name, str(order))
    assert result.returncode != 0
    return result.stderr


# --- what has to work


def expected_of_lanes() -> list[int]:
    """Of each lane: two ballots, any and all, three reductions, most of them over lanes 0 to 7 and 8 to 31."""
    low = [lane < 8 for lane in range(32)]
    every_third = sum(1 << lane for lane in range(0, 32, 3))
    votes = [every_third] * 32 + [0xFF if is_low else 0xFFFFFF00 for is_low in low]
    any_and_all = [1 if is_low else 2 for is_low in low]  # lane 9 is in the upper part
    sums = [sum(range(8)) if is_low else sum(range(8, 32)) for is_low in low]
    return votes + any_and_all + sums + [0 if is_low else 8 for is_low in low] + [7 if is_low else 31 for is_low in low]


def expected_of_shuffles() -> list[int]:
    lanes = range(32)
    by_index = [(lane + 1) % 32 for lane in lanes]
    up, down = (
        [max(lane - 3, lane if lane < 3 else 0) for lane in lanes],
        [lane + 3 if lane < 29 else lane for lane in lanes],
    )
    in_eights = [lane + 3 if lane % 8 < 5 else lane for lane in lanes]
    return by_index + up + down + [lane ^ 5 for lane in lanes] + [lane ^ 16 for lane in lanes] + in_eights


WORKS = {
    "barrier": [127 - i for i in range(128)] * 2,
    "votes": [32, 1, 0] * 64,
    "shuffles": expected_of_shuffles(),
    "lanes": expected_of_lanes(),
    "warp memory": list(range(31, -1, -1)),
    "atomics": [96, 7, 95, 255, 256 + 96],
    "cluster exchange": [0, 1, 2, 3] * 4 + [4, 5, 6, 7] * 4 + [block % 4 for block in range(8) for _ in range(4)],
    "last to arrive": [sum(range(192)), *range(192)],
    "dynamic memory": list(range(63, -1, -1)),
    "some end early": [32] * 32,
}


@each_order
@pytest.mark.parametrize("variant", ["plain", "ucontext", "race"])
@pytest.mark.parametrize("name", WORKS)
def test_what_cuda_defines(name: str, variant: str, order: int) -> None:
    for seed in range(5):
        assert run(name, order, variant, seed) == WORKS[name]


def test_what_cuda_defines_under_address_sanitizer() -> None:
    path, _ = module("address")
    program = (
        "import sys, json, pathlib, emulator_builds\n"
        "probes = emulator_builds.load(pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps([probes.run(name, order, 7) for name in sys.argv[2:] for order in range(3)]))\n"
    )
    result = emulator_builds.run_with_address_sanitizer(program, str(path), *WORKS)
    assert result.returncode == 0, result.stderr[-4000:]
    found = [[number for number in numbers if number != UNSET] for numbers in json.loads(result.stdout)]
    assert found == [numbers for numbers in WORKS.values() for _ in ORDERS]


def test_schedules() -> None:
    forward, backward = list(range(64)), list(range(63, -1, -1))
    assert run("order of threads", 0) == forward
    assert run("order of threads", 1) == backward
    at_random = [run("order of threads", 2, seed=seed) for seed in range(20)]
    assert all(sorted(threads) == forward for threads in at_random)
    assert len({tuple(threads) for threads in at_random}) > 10
    assert at_random == [run("order of threads", 2, seed=seed) for seed in range(20)], "a schedule can be repeated"


def test_orders_of_blocks() -> None:
    assert run("order of blocks", 0) == [0, 1, 2, 3, 4, 5]
    assert run("order of blocks", 1) == [5, 4, 3, 2, 1, 0]
    at_random = [run("order of blocks", 2, seed=seed) for seed in range(20)]
    assert all(sorted(blocks) == list(range(6)) for blocks in at_random)
    assert len({tuple(blocks) for blocks in at_random}) > 10


def test_shared_memory_starts_as_garbage() -> None:
    once, again, other_seed = (run("garbage", 0, seed=seed) for seed in (1, 1, 2))
    assert len(set(once)) == 128
    assert 0 not in once
    assert once == again
    assert not set(once) & set(other_seed)


# --- what is noticed

EVERY_BUILD = {
    "divergent barrier": "divergent barrier: block 0 thread",
    "barrier in a branch": "deadlock: 1 threads wait in __syncthreads at probes.cpp:",
    "vote in a branch": "mismatched warp operation: block 0 thread",
    "lane not in mask": "the mask of a warp operation lacks the lane that calls it: block 0 thread",
    "lane that ended": "deadlock: 31 threads wait in a warp operation at probes.cpp:",
    "arrives twice": "cluster_arrive twice without cluster_wait: block",
    "waits without arriving": "cluster_wait without cluster_arrive: block",
    "divergent cluster barrier": "divergent cluster barrier: block",
    "one block does not arrive": "deadlock: 1 threads wait in __syncthreads at probes.cpp:",
    "maps a block that ended": "cluster_map: the block of rank 1 has ended: block 0 thread",
    "maps no block": "cluster_map: no block of rank 2: block",
    "maps other memory": "cluster_map: not an address in this block's shared memory: block",
    "misaligned vector": "misaligned load of 16 bytes: block 0 thread",
    "constant load of an output": "from out, which the kernel writes: block 0 thread",
    "too much static memory": "too much shared memory: with more_words it is 50176 bytes static",
    "too much memory": "too much shared memory: with words it is 0 bytes static and 233472 dynamic",
}


@each_order
@pytest.mark.parametrize("variant", ["plain", "race"])
@pytest.mark.parametrize("name", EVERY_BUILD)
def test_errors_that_every_build_notices(name: str, variant: str, order: int) -> None:
    message = error_of(name, order, variant)
    assert EVERY_BUILD[name] in message
    assert "probes.cpp:" in message or "too much" in name
    assert message.endswith(f"[{ORDERS[order]}, seed {SEED}]")
    assert run("barrier", order, variant) == WORKS["barrier"], "the next launch is not disturbed"


def test_no_launch_of_a_wrong_shape() -> None:
    with pytest.raises(ValueError, match="a block has 32 to 1024 threads, in whole warps; got 48"):
        run("half a warp", 0)
    with pytest.raises(ValueError, match="a grid of 3 blocks in clusters of 2"):
        run("half a cluster", 0)


ADDRESS = {
    "beyond shared memory": "AddressSanitizer: heap-buffer-overflow",
    "beyond dynamic memory": "AddressSanitizer: heap-buffer-overflow",
    "beyond global memory": "AddressSanitizer: heap-buffer-overflow",
    "memory of a block that ended": "AddressSanitizer: heap-use-after-free",
    "shift by the width": "runtime error: shift exponent 32 is too large for 32-bit type",
}


@pytest.mark.parametrize("name", ADDRESS)
def test_errors_that_the_sanitizers_notice(name: str) -> None:
    message = error_under_address_sanitizer(name, 0)
    assert ADDRESS[name] in message
    assert "probes.cpp:" in message


RACES = {
    "no barrier": "words",
    "no barrier before reuse": "race of a (read with a write|write with a read): byte .* of words",
    "two writers": "race of two writes: byte 0 of word of block 0",
    "no atomic": "race of a (read with a write|write with a read): byte .* of counters",
    "atomic and plain": "byte 0 of counter",
    "no warp barrier": "race of a read with a write: byte .* of words",
    "warp barrier for a block": "byte .* of words",
    "block barrier for a cluster": "race of a read with a write: byte 0 of word of block",
    "reads what nobody wrote": "read before anything was written: byte 0 of word",
    "writes to a block that may not run": "access to a block that may not have started: byte 0 of word of block",
    "ends while others read": "may end before an access to byte 0 of word|has ended",
    "memory of a block that ended": "access to a block that has ended: byte 0 of word|has ended",
    "beyond shared memory": "out of bounds: byte 400 of words of block 0",
    "beyond dynamic memory": "out of bounds: byte 252 of words of block 0",
    "two blocks write": "race of two writes: byte 0 of out",
    "writes an input": "write to an input: byte 0 of in",
    "does not wait": "access before wait_for_earlier_kernels: byte .* of in",
    "arrives before a fence": "race of a read with a write: byte .* of out",
    "arrives before a barrier": "race of a read with a write: byte .* of out",
    "reads before a fence": "race of a read with a write: byte .* of out",
}


@each_order
@pytest.mark.parametrize("name", RACES)
def test_errors_that_the_race_detector_notices(name: str, order: int) -> None:
    path, _ = module("race")
    with pytest.raises(loaded("race").KernelError, match=RACES[name]) as raised:
        run(name, order, "race")
    message = emulator_builds.with_lines(str(raised.value), path)
    assert "<code" not in message
    assert "probes.cpp:" in message


# --- single instructions


def rounded_down(exact: Fraction) -> np.float32:
    """The largest float32 that is not above a number."""
    nearest = np.float32(float(exact))  # twice rounded: at most one float off
    above = np.nextafter(nearest, np.float32(np.inf))
    while Fraction(float(nearest)) > exact:
        nearest, above = np.nextafter(nearest, np.float32(-np.inf)), nearest
    assert Fraction(float(above)) > exact or above == nearest
    return nearest


def test_sums_rounded_down() -> None:
    add = loaded().fadd_rd
    numbers = random.Random(1)
    shifter = 1.5 * 2.0**23
    for _ in range(20000):
        scale = numbers.choice([1.0, 1.0, 2.0**-20, 2.0**-140, 2.0**100])
        a, b = (float(np.float32(numbers.uniform(-1, 1) * scale * 2.0 ** numbers.randint(-30, 20))) for _ in range(2))
        exact = Fraction(a) + Fraction(b)
        if exact != 0:
            assert np.float32(add(a, b)) == rounded_down(exact), (a, b)
        d = float(np.float32(-numbers.random() * 2.0 ** numbers.randint(-30, 22)))
        assert add(d, shifter) - shifter == np.floor(d), d


def test_sums_rounded_down_at_the_ends() -> None:
    add = loaded().fadd_rd
    largest, smallest = float(np.finfo(np.float32).max), 2.0**-149
    assert add(largest, smallest) == largest
    assert add(largest, largest) == largest
    assert add(-largest, -smallest) == -np.inf
    assert add(-largest, largest) == 0
    assert np.signbit([add(1.0, -1.0), add(0.0, -0.0), add(-0.0, -0.0)]).all()
    assert not np.signbit(add(0.0, 0.0))
    assert add(smallest, -1.0) == float(np.float32(-1.0) + np.float32(2.0**-24)) - 2.0**-24
    assert add(np.inf, 1.0) == np.inf
    assert np.isnan([add(np.inf, -np.inf), add(np.nan, 1.0)]).all()


def test_halves() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    found = np.array([loaded().half_to_float(number) for number in bits.tolist()], dtype=np.float32)
    assert (np.isnan(found) == np.isnan(expected)).all()
    number = ~np.isnan(expected)
    assert (found.view(np.uint32) == expected.view(np.uint32))[number].all()


def test_floats_to_integers() -> None:
    convert = loaded().float2ull_rz
    cases = {0.0: 0, -1.0: 0, 0.999: 0, 1.5: 1, 2.0**40 + 2.0**17: 2**40 + 2**17, 2.0**64: 2**64 - 1, np.inf: 2**64 - 1}
    assert {number: convert(number) for number in cases} == cases
    assert convert(float(np.nextafter(np.float32(2.0**64), np.float32(0)))) == 2**64 - 2**40
    assert convert(np.nan) == 2**63

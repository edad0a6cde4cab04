"""nvcc's PTX of the CUDA kernels, run by the interpreter in tests/ptx: the reference's results by ==, one read of the
logits, and the counts of ptx/table.py. (The interpreter's own tests are beside it.)
"""

import ctypes
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsample import reference, reference_full
from fastsample.arguments import Details, Filters, History, Randomness
from ptx import Checks, Counts, Machine, Memory, table
from ptx.compilation import ROOT, host, module, require_toolkit
from ptx.requests import STRUCTURES as REQUEST_STRUCTURES
from ptx.table import FILTERS, PLAIN, POINTS, SEEDED, Point
from ptx.work import DTYPES, STRUCTURES, Call, Gpu, Shape
from strategies import one_thread, same_bits, ulp_distance
from test_backends_agree import HOSTILE_ROWS

MORE_FILTERS = {
    **FILTERS,
    "k 700, p .95, min_p .01, min_p first": PLAIN._replace(top_k=700, top_p=0.95, min_p=0.01, order=1),
    "k 700, p .95, joint": PLAIN._replace(top_k=700, top_p=0.95, order=2),
}

# Ways to divide a row, small enough to be quick: blocks, threads, whether they are a cluster, and the row resident.
CLUSTER, CLUSTER_AGAIN, BLOCK = Shape(4, 64, True, True), Shape(2, 32, True, False), Shape(1, 128, False, True)
LAST_BLOCK, BLOCK_AGAIN = Shape(3, 64, False, False), Shape(1, 96, False, False)
WAYS = [
    (90, torch.float32, CLUSTER),
    (90, torch.float32, CLUSTER_AGAIN),
    (90, torch.bfloat16, CLUSTER),
    (90, torch.float16, BLOCK),
    (75, torch.float32, LAST_BLOCK),
    (75, torch.float32, BLOCK_AGAIN),
]


@pytest.fixture(autouse=True, scope="module")
def _toolkit() -> None:
    require_toolkit()


def expected(call: Call) -> Tensor:
    with one_thread():
        if call.operation == "sample":
            tokens = torch.empty(call.rows, call.num_samples, dtype=torch.int64)
            reference.sample(
                tokens, call.logits, call.indices, *call.filters, *call.randomness, call.replacement, call.probabilities
            )
            return tokens
        if call.operation == "log_probs":
            return reference.log_probs(call.logits, call.wanted, *call.filters)
        return getattr(reference, call.operation)(call.logits, *call.filters)


def check(gpu: Gpu, call: Call, shape: Shape | None = None) -> Counts:
    found, counts = gpu.run(call, shape)
    if call.operation == "log_probs":
        assert (ulp_distance(found, expected(call)) <= 4).all()
    elif call.operation == "sample":
        assert found.tolist() == expected(call).tolist()
    else:
        assert same_bits(found, expected(call))
    return counts


def check_full(point: Point) -> Counts:
    """A call of sample_full by the interpreter and by the reference."""
    call = point.full_call
    tokens, said, counts = call.run(point.gpu, point.shape)
    expected_tokens = torch.empty_like(tokens)
    room = {name: torch.empty_like(found) for name, found in said.items()}
    with one_thread():
        reference_full.sample_full(
            expected_tokens,
            call.logits,
            None,
            *call.filters,
            *call.randomness,
            True,
            *call.edits,
            *History(),
            *Details(**room, top_of_processed=call.top_of_processed),
        )
    assert tokens.tolist() == expected_tokens.tolist()
    for name, found in said.items():
        if found.dtype == torch.int64:
            assert found.tolist() == room[name].tolist(), name
        else:
            assert (ulp_distance(found, room[name]) <= 4).all(), name
    return counts


# --- what the interpreter assumes


def test_the_arguments_lie_as_the_compiler_lays_them_out() -> None:
    layout = {
        f"{structure.__name__}.{name}": [getattr(structure, name).offset, getattr(structure, name).size]
        for structure in (*STRUCTURES, *REQUEST_STRUCTURES)
        for name, _ in structure._fields_
    }
    sizes = {structure.__name__: [0, ctypes.sizeof(structure)] for structure in (*STRUCTURES, *REQUEST_STRUCTURES)}
    expected_layout = host("layout")
    assert layout | {name: size for name, size in sizes.items() if name in expected_layout} == expected_layout


@pytest.mark.parametrize("capability", [75, 90])
def test_every_instruction_for_requests_is_interpreted(capability: int) -> None:
    for name, kernels in (("sample_full", 2), ("requests", 5)):
        machine = Machine(module(ROOT / f"csrc/cuda/kernels_{name}.cu", capability), Memory(1 << 16))
        assert len(machine.module.names) == kernels
        assert not any(machine.lacking(kernel) for kernel in machine.module.names)


@pytest.mark.parametrize(("capability", "dtype"), sorted({(c, d) for c, d, _ in WAYS}, key=str), ids=str)
def test_every_instruction_is_interpreted(capability: int, dtype: torch.dtype) -> None:
    """Also those that the calls here do not come to."""
    source = ROOT / f"csrc/cuda/kernels_{str(dtype).removeprefix('torch.')}.cu"
    machine = Machine(module(source, capability), Memory(1 << 16))
    assert len(machine.module.names) == 2
    assert [machine.lacking(name) for name in machine.module.names] == [[], []]


# --- rows of full size, as the launch table divides them


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_points_of_the_table(point: Point) -> None:
    counts = check_full(point) if point.request else check(point.gpu, point.call, point.shape)
    found, kept = table.entry(point, counts), json.loads(table.FILE.read_text())["points"][str(point)]
    assert (found.pop("shape"), found["rows_read"]) == (kept.pop("shape"), kept["rows_read"])
    assert found == pytest.approx(kept, rel=table.MAY_DIFFER)
    if point.shape.cluster and point.shape.resident:
        # What is said of the row before its edits takes two more sweeps, since the chip holds the edited one.
        assert found["rows_read"] <= (3.05 if "raw" in (point.request or "") else 1.05)


def test_the_table_has_the_rows_that_are_read_once() -> None:
    main = [point for point in POINTS if point.filters == "T .8, k 50, p .9" and point.vocab == 128256]
    assert all(point.request is None or point.capability == 75 or point.shape.resident for point in main)
    once = {point.dtype for point in main if point.shape.cluster and point.shape.resident}
    assert once == set(DTYPES)
    assert set(json.loads(table.FILE.read_text())["points"]) == {str(point) for point in POINTS}


# --- every way through the kernels


def rows_with_ties(dtype: torch.dtype, vocab: int) -> Tensor:
    """Two rows that begin at no multiple of 16 bytes; half of the second are ties."""
    random = torch.Generator().manual_seed(1)
    buffer = torch.randn(2, vocab + 5, generator=random) * 3
    buffer[1] = torch.where(torch.rand(vocab + 5, generator=random) < 0.5, (buffer[1] * 2).round() / 2, buffer[1])
    return buffer.to(dtype)[:, 3 : vocab + 3]


def ways_and_filters() -> list[Any]:
    """All filters for the two ways that most rows go, two for the others."""
    few = ("T .8, k 50, p .9", "p .9")
    main = ((90, torch.float32, CLUSTER), (75, torch.float32, LAST_BLOCK))
    return [(*way, filters) for way in WAYS for filters in (MORE_FILTERS if way in main else few)]


@pytest.mark.parametrize(("capability", "dtype", "shape", "filters"), ways_and_filters(), ids=str)
def test_draws(capability: int, dtype: torch.dtype, shape: Shape, filters: str) -> None:
    call = Call(rows_with_ties(dtype, 3001), MORE_FILTERS[filters], SEEDED, num_samples=3)
    check(Gpu(capability, counting=False), call, shape)


@pytest.mark.parametrize(("capability", "shape"), [(90, CLUSTER), (90, CLUSTER_AGAIN), (75, LAST_BLOCK)], ids=str)
@pytest.mark.parametrize("filters", ["plain", "T .8, k 50, p .9"])
def test_draws_without_replacement(capability: int, shape: Shape, filters: str) -> None:
    call = Call(rows_with_ties(torch.float32, 1001), FILTERS[filters], SEEDED, num_samples=4, replacement=False)
    check(Gpu(capability, counting=False), call, shape)


@pytest.mark.parametrize(("capability", "dtype", "shape"), [WAYS[0], WAYS[2], WAYS[3], WAYS[4]], ids=str)
@pytest.mark.parametrize("operation", ["filter_logits", "filtered_probs", "log_probs"])
def test_rows(capability: int, dtype: torch.dtype, shape: Shape, operation: str) -> None:
    logits = rows_with_ties(dtype, 1003)
    wanted = torch.arange(-1, 1004).expand(2, -1) if operation == "log_probs" else None
    call = Call(logits, FILTERS["p .9"], operation=operation, wanted=wanted)
    check(Gpu(capability, counting=False), call, shape)


def mixed_call(dtype: torch.dtype) -> Call:
    """Rows of their own parameters, seeds and places, some of them invalid or out of range."""
    random = torch.Generator().manual_seed(2)
    logits = (torch.randn(6, 517, generator=random) * 3).to(dtype)
    logits[1, 100] = math.nan
    logits[2] = -math.inf
    logits[3, 7:9] = math.inf
    indices = torch.tensor([5, 1, 2, 3, 0, -1, 4, 6, 4, 0])
    count = len(indices)

    def choose(values: list[float], dtype: torch.dtype) -> Tensor:
        numbers = torch.randint(len(values), (count,), generator=random)
        return torch.tensor(values, dtype=torch.float64).to(dtype)[numbers]

    filters = Filters(
        1.0,
        choose([0.0, 0.7, 1.0, math.inf, -1.0], torch.float32),
        0,
        choose([0, 1, 5, 300], torch.int64),
        1.0,
        choose([1.0, 0.9, 0.5, math.nan], torch.float32),
        0.0,
        torch.tensor(0.001),
        0,
    )
    seeds = torch.randint(-(2**62), 2**62, (2 * count,), generator=random)[::2]
    return Call(logits, filters, Randomness(0, seeds, 7, None, 0, None, False), num_samples=2, indices=indices)


@pytest.mark.parametrize(("capability", "shape"), [(90, CLUSTER_AGAIN), (90, BLOCK), (75, LAST_BLOCK)], ids=str)
def test_mixed_rows(capability: int, shape: Shape) -> None:
    check(Gpu(capability, counting=False), mixed_call(torch.float32), shape)


@pytest.mark.parametrize(("capability", "shape"), [(90, CLUSTER), (75, LAST_BLOCK)], ids=str)
def test_probabilities(capability: int, shape: Shape) -> None:
    probabilities = torch.randn(2, 2003, generator=torch.Generator().manual_seed(3)).exp()
    call = Call(probabilities, PLAIN._replace(top_k=40, top_p=0.8), SEEDED, num_samples=3, probabilities=True)
    check(Gpu(capability, counting=False), call, shape)


def test_logits_that_lie_apart() -> None:
    logits = torch.randn(700, 3, generator=torch.Generator().manual_seed(4)).t()[1:]
    check(Gpu(counting=False), Call(logits, FILTERS["T .8, k 50, p .9"], SEEDED), CLUSTER)


@pytest.mark.parametrize("vocab", [1, 33])
def test_short_rows(vocab: int) -> None:
    for capability in (75, 90):
        logits = torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab))
        check(Gpu(capability, counting=False), Call(logits, PLAIN._replace(top_p=0.9), SEEDED, num_samples=2))


@pytest.mark.parametrize(("capability", "shape"), [(90, CLUSTER), (75, LAST_BLOCK)], ids=str)
def test_who_is_first_does_not_matter(capability: int, shape: Shape) -> None:
    call = Call(rows_with_ties(torch.float32, 2003), FILTERS["p .9"], SEEDED, num_samples=2)
    check(Gpu(capability, reverse=True, counting=False), call, shape)


# --- more of it


@pytest.mark.slow
@pytest.mark.parametrize("filters", MORE_FILTERS)
@pytest.mark.parametrize("name", HOSTILE_ROWS)
def test_hostile_rows(name: str, filters: str) -> None:
    for capability, dtype, shape in ((90, torch.float32, CLUSTER), (75, torch.bfloat16, LAST_BLOCK)):
        logits = HOSTILE_ROWS[name](6001)[None].to(dtype)
        call = Call(logits, MORE_FILTERS[filters], SEEDED, num_samples=3, replacement=False)
        check(Gpu(capability, counting=False), call, shape)


@pytest.mark.slow
@pytest.mark.parametrize("filters", MORE_FILTERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("capability", [75, 90])
def test_rows_of_full_size(capability: int, dtype: torch.dtype, filters: str) -> None:
    for scale in ("N(0, 1)", "N(0, 3)"):
        logits = table.row(scale, 128256).to(dtype)[None]
        call = Call(logits, MORE_FILTERS[filters], SEEDED, num_samples=3)
        check(Gpu(capability, counting=False), call)


@pytest.mark.slow
def test_the_largest_vocabulary() -> None:
    """It is longer than any cluster's memory."""
    logits = torch.full((1, 2**22), -1.25, dtype=torch.bfloat16)
    check(Gpu(checks=Checks(races=False), counting=False), Call(logits, PLAIN, SEEDED))

"""The real source of the CUDA kernels, run on the CPU (tests/emulator), gives what the reference gives, by ==: the
bodies of tests/test_backends_agree.py over ways to divide a row among blocks and threads, and over schedules of the
threads.

What a GPU does differently from the emulator (weaker memory ordering, other machine code) is not seen here; a race that
would let it show is, in the build with the race detector.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import emulated_requests as requests
import emulator_builds
import test_backends_agree as agree
import test_law_vectors as law_vectors
from emulated import (
    FORWARD,
    H200,
    ORDERS,
    SAMPLE,
    Device,
    Schedule,
    Shape,
    emulated_ops,
    emulator,
    sample_work,
)
from fastsample import ops, reference
from request_checks import check_edits, check_full
from request_strategies import full_calls, request_calls
from strategies import DTYPES, Call, calls, calls_without_indices, one_thread

A100, T4 = Device(80, 108), Device(75, 40)

# One block, whose row stays in its shared memory or is read again; clusters of such; and blocks without a cluster, of
# which the last to arrive finishes. The last is no power of two, and its warps get no tokens of most rows.
SHAPES = (
    Shape(1, 32, False, True),
    Shape(1, 512, False, True),
    Shape(1, 96, False, False),
    Shape(2, 64, True, True),
    Shape(4, 32, True, False),
    Shape(8, 64, True, True),
    Shape(16, 32, True, True),
    Shape(16, 32, True, False),
    Shape(3, 64, False, False),
    Shape(7, 32, False, False),
    Shape(5, 160, True, False),
)
SCHEDULES = (FORWARD, Schedule("reverse", 1), Schedule("random", 2), Schedule("random", 3))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def one_of_each(number: int) -> ops.Ops:
    """The operators by some shape and schedule: all pairs of them as `number` grows."""
    return emulated_ops(SHAPES[number % len(SHAPES)], SCHEDULES[number % len(SCHEDULES)])


# --- whatever hypothesis thinks of


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Any way to divide a row that a launch can have, small ones more often: they take less time."""
    kind = draw(st.sampled_from(("block", "cluster", "cluster", "last to arrive")))
    if kind == "block":
        return Shape(1, draw(st.sampled_from((32, 64, 96, 128, 256, 512))), False, draw(st.booleans()))
    threads = draw(st.sampled_from((32, 32, 64, 128)))
    if kind == "cluster":
        return Shape(draw(st.sampled_from((2, 3, 4, 8, 16))), threads, True, draw(st.booleans()))
    return Shape(draw(st.sampled_from((2, 3, 4, 8, 16))), threads, False, False)


schedules = st.builds(Schedule, st.sampled_from(ORDERS), st.integers(0, 2**32))

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large]
EXAMPLES = settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=HEALTH)

BODIES: dict[str, tuple[st.SearchStrategy[Any], Callable[[ops.Ops, Any], None]]] = {
    "tokens from logits": (calls(), agree.check_tokens),
    "tokens from probabilities": (calls(probabilities=True), partial(agree.check_tokens, probabilities=True)),
    "transforms": (
        calls_without_indices(),
        lambda backend, call: agree.check_transforms(backend, call.logits, call.filters),
    ),
    "edits": (request_calls(), check_edits),
    "draws of requests": (full_calls(), check_full),
    "speculative decoding": (requests.speculative_calls(), requests.check_speculative),
}
each_body = pytest.mark.parametrize("body", BODIES)


def run_examples(body: str, examples: settings, variant: str = "plain", number: int | None = None) -> None:
    """Runs a body over calls, shapes and schedules: the same in each process, or those of a number."""
    any_call, check = BODIES[body]

    @examples
    @given(call=any_call, shape=shapes(), schedule=schedules)
    def test(call: Any, shape: Shape, schedule: Schedule) -> None:
        with one_thread():
            check(emulated_ops(shape, schedule, variant), call)

    (test if number is None else seed(number)(test))()


@each_body
def test_examples(body: str) -> None:
    run_examples(body, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
@each_body
def test_many_examples(body: str, number: int) -> None:
    run_examples(body, settings(EXAMPLES, max_examples=1500, derandomize=False, database=None), number=number)


# --- whole batches, and rows made to hurt


@functools.cache
def expected_tokens(order: int, replacement: bool) -> Tensor:
    call = agree.mixed_call(24)
    with one_thread():
        return agree.tokens_of(reference.sample, call._replace(filters=call.filters._replace(order=order)), replacement)


def check_mixed_rows(shape: Shape, schedule: Schedule, orders: Sequence[int]) -> None:
    """Rows of all kinds, each with parameters and seeds of its own, in one launch."""
    call = agree.mixed_call(24)
    for order in orders:
        ordered = call._replace(filters=call.filters._replace(order=order))
        for replacement in (True, False):
            found = agree.tokens_of(emulated_ops(shape, schedule).sample, ordered, replacement)
            assert torch.equal(found, expected_tokens(order, replacement))


@each_schedule
@each_shape
def test_every_shape_and_schedule(shape: Shape, schedule: Schedule) -> None:
    check_mixed_rows(shape, schedule, [(SHAPES.index(shape) + SCHEDULES.index(schedule)) % 3])


@pytest.mark.slow
@each_shape
def test_many_schedules(shape: Shape) -> None:
    for number in range(30):
        check_mixed_rows(shape, Schedule("random", number), range(3))


@pytest.mark.parametrize("device", [H200, A100, T4], ids=lambda device: f"sm_{device.capability}")
def test_shapes_of_the_launch_table(device: Device) -> None:
    backend = emulated_ops(device, Schedule("random", 5))
    for order in range(3):
        call = agree.mixed_call(24)
        found = agree.tokens_of(backend.sample, call._replace(filters=call.filters._replace(order=order)), True)
        assert torch.equal(found, expected_tokens(order, True))
    few = agree.of_rows(agree.mixed_call(), torch.tensor([1, 8]))  # more blocks a row
    agree.check_tokens(backend, few)
    agree.check_transforms(backend, few.logits, few.filters)


@pytest.mark.parametrize("order", range(3))
def test_transforms_of_mixed_rows(order: int) -> None:
    call = agree.mixed_call(16, 1001)
    agree.check_transforms(one_of_each(order), call.logits, call.filters._replace(order=order))


# Pairs in a row meet different shapes and schedules, so that each kind of row and each filter meets many of them.
HOSTILE = [(name, filter_name) for name in agree.HOSTILE_ROWS for filter_name in agree.FILTERS]


@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_hostile_rows(name: str) -> None:
    for number, pair in enumerate(HOSTILE):
        if pair[0] == name:
            agree.check_hostile_row(one_of_each(number), name, 3001, DTYPES[number % 3], pair[1], batches=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_hostile_rows_in_every_shape(name: str, dtype: torch.dtype) -> None:
    for filter_name in agree.FILTERS:
        for number, shape in enumerate((*SHAPES, H200, A100)):
            backend = emulated_ops(shape, SCHEDULES[number % len(SCHEDULES)])
            agree.check_hostile_row(backend, name, 12289, dtype, filter_name)


@pytest.mark.parametrize(
    ("name", "filter_name", "shape"),
    [
        ("wide normal", "T .8, k 50, p .9", H200),
        ("all equal", "p .9", H200),
        ("descending", "k 3000, p .95, min_p .01, min_p first", Shape(8, 512, True, False)),
        ("sawtooth 256", "plain", Shape(16, 128, False, False)),
    ],
)
def test_a_vocabulary_of_2_to_the_18(name: str, filter_name: str, shape: Shape | Device) -> None:
    agree.check_hostile_row(emulated_ops(shape), name, 2**18, torch.float32, filter_name, batches=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [H200, A100, T4, Shape(16, 512, True, True), Shape(1, 512, False, False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_hostile_rows_of_2_to_the_18(name: str, dtype: torch.dtype, shape: Shape | Device) -> None:
    for filter_name in agree.FILTERS:
        agree.check_hostile_row(emulated_ops(shape), name, 2**18, dtype, filter_name, batches=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("device", [H200, A100], ids=lambda device: f"sm_{device.capability}")
@pytest.mark.parametrize("filter_name", ["plain", "k 3000, p .95, min_p .01, min_p first"])
def test_the_largest_vocabulary(filter_name: str, device: Device) -> None:
    """2^22 tokens of the largest weight sum to the largest Z there can be, 2^62; no cluster can keep the row."""
    agree.check_hostile_row(emulated_ops(device), "all equal", 2**22, torch.bfloat16, filter_name, batches=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("device", [H200, A100], ids=lambda device: f"sm_{device.capability}")
def test_probabilities_of_more_than_2_to_the_22_tokens(device: Device) -> None:
    probabilities, expected = agree.many_probabilities()
    call = Call(probabilities, None, agree.PLAIN._replace(top_k=100_000), agree.SEEDED, 5)
    found = agree.tokens_of(emulated_ops(device).sample, call, replacement=True, probabilities=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("filter_name", ["plain", "T .8, k 50, p .9", "p .9", "greedy"])
def test_many_draws(filter_name: str) -> None:
    """More draws than there are tokens to take."""
    logits = torch.stack([agree.normal(300, 2.0, number) for number in range(2)])
    for number, shape in enumerate((SHAPES[0], SHAPES[3], SHAPES[4], SHAPES[8])):
        backend = emulated_ops(shape, SCHEDULES[number])
        agree.check_tokens(backend, Call(logits, None, agree.FILTERS[filter_name], agree.SEEDED, 400))
        call = Call(logits.softmax(1), None, agree.FILTERS[filter_name], agree.SEEDED, 320)
        agree.check_tokens(backend, call, probabilities=True)


@pytest.mark.parametrize("form", ["numbers", "tensors"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[4], SHAPES[8]], ids=str)
def test_law_vectors(shape: Shape, form: str) -> None:
    backend = emulated_ops(shape, Schedule("random", 4))
    for replacement in (True, False):
        law_vectors.test_tokens(backend, form, replacement)
    law_vectors.test_kept_sets(backend, form)
    law_vectors.test_probabilities(backend, form)
    law_vectors.test_log_probabilities(backend, form)


@functools.cache
def real_logits() -> Tensor:
    return torch.from_numpy(np.load(Path(__file__).parent / "data/real_logits.npz")["logits"])


@pytest.mark.parametrize(
    "filters",
    [agree.FILTERS[name] for name in ("plain", "T .8, k 50, p .9", "p .9", "min_p .05", "greedy")],
    ids=("plain", "T .8, k 50, p .9", "p .9", "min_p .05", "greedy"),
)
def test_logits_of_a_real_model(filters: agree.Filters) -> None:
    for number, (dtype, shape) in enumerate(((torch.float32, H200), (torch.bfloat16, A100))):
        rows = real_logits()[number :: max(1, len(real_logits()) // 3)].to(dtype)
        agree.check_tokens(emulated_ops(shape, SCHEDULES[2]), Call(rows, None, filters, agree.SEEDED, 3))


# --- what a row's tokens must not depend on


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[8]], ids=str)
def test_rows_do_not_depend_on_each_other(shape: Shape) -> None:
    backend = emulated_ops(shape, Schedule("random", 6))
    agree.test_tokens_do_not_depend_on_the_batch(backend)
    agree.test_indices_are_the_same_as_gathered_rows(backend)
    agree.test_an_invalid_row_leaves_its_neighbours_alone(backend)
    agree.test_flushing_denormals_changes_nothing(backend)


# --- what requests bring in


def check_requests(variant: str) -> None:
    """Rows that several warps, blocks and words of a bitmask share, in every shape."""
    for number, shape in enumerate((*SHAPES, H200, A100)):
        backend = emulated_ops(shape, SCHEDULES[number % len(SCHEDULES)], variant)
        for call in list(requests.larger_calls(1401))[number % 2 :: 2]:
            requests.check_larger(backend, call)
        requests.check_speculative(backend, requests.larger_speculative_call(1401))
        requests.check_offsets_in_the_history(backend)


def test_requests_of_larger_rows() -> None:
    check_requests("plain")


@pytest.mark.parametrize("device", [H200, A100, T4], ids=lambda device: f"sm_{device.capability}")
def test_requests_of_larger_rows_by_the_launch_table(device: Device) -> None:
    for call in requests.larger_calls(20011):
        requests.check_larger(emulated_ops(device, Schedule("random", 7)), call)
    requests.check_speculative(emulated_ops(device), requests.larger_speculative_call(20011))


# --- under the sanitizers, and with the race detector


def check_a_selection(variant: str, examples: int) -> None:
    """A smaller number of the cases above, in every shape."""
    for body in BODIES:
        run_examples(body, settings(EXAMPLES, max_examples=examples), variant)
    mixed = agree.mixed_call()
    for number, shape in enumerate((*SHAPES, H200, A100)):
        backend = emulated_ops(shape, SCHEDULES[number % len(SCHEDULES)], variant)
        for row in range(number, 64, 13):
            call = agree.of_rows(mixed, torch.tensor([row]))
            # In memory of its own, which ends where the row does.
            agree.check_tokens(backend, call._replace(logits=call.logits[:, : 3001 - row].to(DTYPES[row % 3])))
        few = agree.of_rows(mixed, torch.arange(number, 64, 20))
        agree.check_transforms(backend, few.logits[:, :701], few.filters)
    agree.check_hostile_row(emulated_ops(H200, FORWARD, variant), "wide normal", 2**17, torch.float32, "p .9", (1,))
    check_requests(variant)


def test_selection_with_the_race_detector() -> None:
    check_a_selection("race", examples=25)


def test_selection_under_address_sanitizer() -> None:
    emulator_builds.build(emulator_builds.KERNELS, "address")
    program = (
        "import torch, test_cuda_emulated\n"
        "torch.set_num_threads(1)\n"
        "test_cuda_emulated.check_a_selection('address', examples=25)\n"
    )
    result = emulator_builds.run_with_address_sanitizer(program)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-8000:]}"


@pytest.mark.slow
def test_selection_of_what_older_devices_run() -> None:
    check_a_selection("sm_75", examples=300)


# --- the launch table


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 103, 120])
def test_the_launch_table_asks_for_what_a_device_has(capability: int) -> None:
    for dtype in DTYPES:
        for vocab in (1, 31, 1000, 32000, 50257, 128256, 262144, 10**6, 2**22):
            for rows in (1, 2, 16, 64, 133, 4096, 65536):
                logits = torch.empty(1, 1, dtype=dtype).expand(rows, vocab)
                out = torch.empty(1, 1, dtype=torch.int64).expand(rows, 1)
                work = sample_work(out, logits, None, *agree.PLAIN, *agree.SEEDED, True, False)
                assert work.operation == SAMPLE
                shape = emulator("plain").choose_shape(work, Device(capability, 100))
                assert shape.threads % 32 == 0
                assert 32 <= shape.threads <= 512
                assert 1 <= shape.blocks <= 16
                assert shape.blocks & (shape.blocks - 1) == 0, "clusters of other sizes are not tested on a device"
                assert shape.cluster == (shape.blocks > 1 and capability >= 90)
                assert not (shape.resident and shape.blocks > 1 and not shape.cluster)
                if shape.resident:
                    shared_memory = {75: 64, 80: 163, 86: 99, 89: 99, 120: 99}.get(capability, 227) << 10
                    row = (vocab + 16) * logits.element_size()
                    assert row / shape.blocks <= shared_memory

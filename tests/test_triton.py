"""The Triton kernels, run by Triton's interpreter, give what the reference gives, by ==: the bodies of
tests/test_backends_agree.py over ways to divide a row among programs and blocks.

The interpreter runs the programs of a launch one after the other, and their arithmetic in numpy. What the compilers
make of the kernels is looked at in tests/test_triton_compiled.py; a GPU runs them in tests/gpu.
"""

import functools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample
import test_backends_agree as agree
import test_law_vectors as law_vectors
from fastsample import ops
from missing import missing
from strategies import Call, calls, calls_without_indices, one_thread

if ops.triton_status() == "triton is not installed":
    missing("triton is not installed")
if not ops.triton_is_interpreted():
    pytest.skip("there is a GPU: tests/gpu runs the compiled kernels", allow_module_level=True)

import triton.language as tl
from triton.runtime import interpreter

from fastsample.triton_kernels import policy
from fastsample.triton_kernels.policy import Division

TRITON = ops.for_backend("triton")

# The largest parts are what policy.py chooses. The others are so small that rows of a few hundred tokens have many
# chunks, blocks and parts, do not fit into the list, and need several rounds of pivots.
DIVISIONS = (
    Division(64, 2048, 1024, False, 1, 8),
    Division(64, 2048, 4096, False, 3, 8),
    Division(64, 8192, 1024, True, 1, 8),
    Division(16, 128, 32, False, 1, 4),
    Division(16, 128, 32, False, 3, 4),
    Division(32, 64, 16, False, 5, 4),
    Division(8, 8192, 16, True, 1, 4),
)


@functools.cache
def real_logits() -> Tensor:
    return torch.from_numpy(np.load(Path(__file__).parent / "data/real_logits.npz")["logits"])


@pytest.fixture(autouse=True, scope="module")
def _patched_once_a_launch() -> Iterator[None]:
    """Have the interpreter replace Triton's language by its own once a launch.

    It does so for each call of each function, which takes it half of its time, though nothing ever changes in between.
    """
    patch = interpreter._patch_lang
    scopes: dict[frozenset[str], Any] = {}

    class Once:
        def __init__(self, function: Any) -> None:
            self.outermost = not scopes
            languages = frozenset(
                value.__name__ for value in function.__globals__.values() if value is tl or value is tl.core
            )
            if languages not in scopes:
                scopes[languages] = patch(function)

        def restore(self) -> None:
            if self.outermost:
                for scope in reversed(scopes.values()):
                    scope.restore()
                scopes.clear()

    interpreter._patch_lang = Once
    yield
    interpreter._patch_lang = patch


def fitting(division: Division, vocab: int) -> Division:
    """The division, with a block in which a row of `vocab` tokens fits if it is to be resident."""
    if not division.resident:
        return division
    return division._replace(block=max(division.chunk, 1 << (vocab - 1).bit_length()))


# --- whatever hypothesis thinks of

# Shrinking a failure would run the interpreter for many minutes.
EXAMPLES = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
    phases=(Phase.explicit, Phase.generate),
)
SMALL = (1, 2, 15, 16, 17, 63, 64, 65, 100, 257, 600)

BODIES: dict[str, tuple[st.SearchStrategy[Call], Callable[[ops.Ops, Call], None]]] = {
    "tokens from logits": (calls(max_rows=3, vocabularies=SMALL), agree.check_tokens),
    "tokens from probabilities": (
        calls(probabilities=True, max_rows=3, vocabularies=SMALL),
        partial(agree.check_tokens, probabilities=True),
    ),
    "transforms": (
        calls_without_indices(max_rows=3, vocabularies=SMALL),
        lambda backend, call: agree.check_transforms(backend, call.logits, call.filters),
    ),
}
each_body = pytest.mark.parametrize("body", BODIES)


def run_examples(body: str, examples: settings, number: int | None = None) -> None:
    """Runs a body over calls and divisions: the same in each process, or those of a number."""
    any_call, check = BODIES[body]

    @examples
    @given(call=any_call, division=st.sampled_from((None, *DIVISIONS)))
    def test(call: Call, division: Division | None) -> None:
        if division is None:
            check(TRITON, call)
        else:
            with policy.forced(fitting(division, call.logits.shape[1])):
                check(TRITON, call)

    (test if number is None else seed(number)(test))()


@each_body
def test_examples(body: str) -> None:
    run_examples(body, EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
@each_body
def test_many_examples(body: str, number: int) -> None:
    run_examples(body, settings(EXAMPLES, max_examples=400, derandomize=False, database=None), number)


# --- rows made to hurt, whole batches


def one_of_each(number: int) -> Division:
    return DIVISIONS[number % len(DIVISIONS)]


@pytest.mark.parametrize("number", range(len(agree.HOSTILE_ROWS)))
def test_hostile_rows(number: int) -> None:
    """Each kind of row with two of the filters, which meets each filter, and each filter with several divisions."""
    name = list(agree.HOSTILE_ROWS)[number]
    for place in (number, 5 * number + 4):
        filter_name = list(agree.FILTERS)[place % len(agree.FILTERS)]
        dtype = (torch.float32, torch.bfloat16, torch.float16)[place % 3]
        with policy.forced(fitting(one_of_each(place), 257)):
            agree.check_hostile_row(TRITON, name, 257, dtype, filter_name, batches=(1,))


@pytest.mark.slow
@pytest.mark.parametrize("division", [None, *DIVISIONS], ids=str)
@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_hostile_rows_in_every_division(name: str, division: Division | None) -> None:
    for filter_name in agree.FILTERS:
        for dtype in (torch.float32, torch.bfloat16):
            if division is None:  # what policy.py chooses for a row that is read by several programs
                agree.check_hostile_row(TRITON, name, 12289, dtype, filter_name)
            else:
                with policy.forced(fitting(division, 3001)):
                    agree.check_hostile_row(TRITON, name, 3001, dtype, filter_name)


@pytest.mark.parametrize("order", range(3))
def test_batches_of_mixed_rows(order: int) -> None:
    call = agree.mixed_call(17, 257)
    with policy.forced(one_of_each(3 + order)):
        agree.check_tokens(TRITON, call._replace(filters=call.filters._replace(order=order)))
    few = agree.of_rows(call, torch.arange(order, 17, 4))
    with policy.forced(fitting(one_of_each(order), 257)):
        agree.check_transforms(TRITON, few.logits, few.filters._replace(order=order))


@pytest.mark.parametrize(("filter_name", "number"), [("plain", 3), ("T .8, k 50, p .9", 1), ("p .9", 4), ("greedy", 6)])
def test_many_draws(filter_name: str, number: int) -> None:
    """More draws than there are tokens to take."""
    logits = agree.normal(50, 2.0)[None]
    with policy.forced(fitting(one_of_each(number), 50)):
        agree.check_tokens(TRITON, Call(logits, None, agree.FILTERS[filter_name], agree.SEEDED, 70))


def check_law_vectors(form: str, division: Division) -> None:
    with policy.forced(division):
        for replacement in (True, False):
            law_vectors.test_tokens(TRITON, form, replacement)
        law_vectors.test_kept_sets(TRITON, form)
        law_vectors.test_probabilities(TRITON, form)
        law_vectors.test_log_probabilities(TRITON, form)


def test_some_law_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(law_vectors, "VECTORS", law_vectors.VECTORS[::20])
    check_law_vectors("tensors", one_of_each(3))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["numbers", "tensors"])
def test_all_law_vectors(form: str) -> None:
    check_law_vectors(form, one_of_each(3 if form == "numbers" else 5))


LARGE = Division(64, 1 << 16, 4096, False, 2, 8)  # few blocks: the interpreter takes its time by the block


@pytest.mark.parametrize("filter_name", ["plain", "T .8, k 50, p .9", "p .9", "min_p .05", "greedy"])
def test_logits_of_a_real_model(filter_name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        row = real_logits()[3:4].to(dtype)
        agree.check_tokens(TRITON, Call(row, None, agree.FILTERS[filter_name], agree.SEEDED, 2))


def test_reads_of_logits_of_a_real_model() -> None:
    """Three for top_p alone, in each of them: a guess that misses takes more."""
    with policy.forced(LARGE._replace(block=1 << 14, parts=1)):
        for row in real_logits():
            assert 3.0 <= reads_of(row[None], agree.FILTERS["p .9"]) <= 3.03


@pytest.mark.slow
@pytest.mark.parametrize("filter_name", agree.FILTERS)
@pytest.mark.parametrize("name", agree.HOSTILE_ROWS)
def test_hostile_rows_of_2_to_the_18(name: str, filter_name: str) -> None:
    with policy.forced(LARGE):
        agree.check_hostile_row(TRITON, name, 2**18, torch.float32, filter_name, batches=(1,))


@pytest.mark.parametrize(
    "filter_name", ["plain", pytest.param("k 3000, p .95, min_p .01, min_p first", marks=pytest.mark.slow)]
)
def test_the_largest_vocabulary(filter_name: str) -> None:
    """2^22 tokens of the largest weight sum to the largest Z there can be, 2^62; and all of them tie."""
    with policy.forced(LARGE._replace(chunk=1024, block=1 << 20)), one_thread():
        logits, filters = agree.hostile_row("all equal", 2**22, torch.bfloat16), agree.FILTERS[filter_name]
        call = Call(logits, None, filters, agree.SEEDED, 2)
        expected = agree.what_the_reference_says("all equal", 2**22, torch.bfloat16, filter_name, 1)[2]
        found = agree.tokens_of(TRITON.sample, call._replace(num_samples=4), True)
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("scale", [2.0**-105, 1.0, 2.0**105])
def test_probabilities_of_any_scale(scale: float) -> None:
    """Ranks below that of 0 are no probability's; and what the sample of the row sees of this one is 0."""
    row = torch.full((256,), 0.8)
    chunk = torch.arange(16)
    sampled = (chunk * 0x9E3779B1 % 2**32 >> 16) % 16
    row[chunk * 16 + sampled] = 0.0
    row[chunk * 16 + (sampled + 1) % 16] = 1.0
    filters = agree.PLAIN._replace(top_p=0.9)
    with policy.forced(one_of_each(3)):
        agree.check_tokens(TRITON, Call(row[None] * scale, None, filters, agree.SEEDED, 3), probabilities=True)


@pytest.mark.slow
def test_probabilities_of_more_than_2_to_the_22_tokens() -> None:
    probabilities, expected = agree.many_probabilities()
    call = Call(probabilities, None, agree.PLAIN._replace(top_k=100_000), agree.SEEDED, 5)
    with policy.forced(LARGE._replace(chunk=2048, block=1 << 20)):
        found = agree.tokens_of(TRITON.sample, call, replacement=True, probabilities=True)
    assert torch.equal(found, expected)


# --- what a row's tokens must not depend on


def test_rows_do_not_depend_on_each_other() -> None:
    """Alone, in another order and division a row draws the same, and an invalid neighbour changes nothing."""
    call = agree.mixed_call(12, 301)
    together = agree.tokens_of(TRITON.sample, call, True)
    rows = torch.tensor([7, 0, 11, 7, 3])
    for division in (one_of_each(3), one_of_each(5)):
        with policy.forced(division):
            assert torch.equal(agree.tokens_of(TRITON.sample, agree.of_rows(call, rows), True), together[rows])
    mapped = agree.of_rows(call, rows)._replace(logits=call.logits, indices=rows)
    assert torch.equal(agree.tokens_of(TRITON.sample, mapped, True), together[rows])
    spoiled = call.logits.clone()
    spoiled[::3, 5] = float("nan")
    spoiled[1::3] = -float("inf")
    after = agree.tokens_of(TRITON.sample, call._replace(logits=spoiled), True)
    assert (after[::3] == -1).all()
    assert (after[1::3] == -1).all()
    assert torch.equal(after[2::3], together[2::3])


def test_scratch_memory_need_not_be_zero(poisoned_memory: None) -> None:
    call = agree.of_rows(agree.mixed_call(6, 257), torch.tensor([0, 3, 5]))
    for number in (3, 6):
        with policy.forced(fitting(one_of_each(number), 257)):
            agree.check_tokens(TRITON, call)
            agree.check_transforms(TRITON, call.logits, call.filters)


# --- through the public functions


def test_the_public_functions() -> None:
    logits = agree.normal(200, 2.0).view(2, 100)
    named = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    assert fastsample.backends()["triton"].usable
    for function in (fastsample.filter_logits, fastsample.filtered_probs):
        assert torch.equal(function(logits, **named, backend="triton"), function(logits, **named, backend="reference"))
    tokens = fastsample.sample(logits, **named, seed=3, backend="triton")
    assert torch.equal(tokens, fastsample.sample(logits, **named, seed=3, backend="reference"))
    torch.manual_seed(5)
    drawn = fastsample.sample(logits[0], num_samples=3, backend="triton")
    torch.manual_seed(5)
    assert torch.equal(drawn, fastsample.sample(logits[0], num_samples=3, backend="reference"))
    bad = logits.clone()
    bad[1, 7] = float("nan")
    with pytest.raises(ValueError, match="row 1: 1 of its logits are NaN, the first at token 7"):
        fastsample.sample(bad, seed=1, errors="raise", backend="triton")
    leaf = logits.clone().requires_grad_()
    fastsample.filtered_probs(leaf, **named, backend="triton")[:, 3].sum().backward()
    other = logits.clone().requires_grad_()
    fastsample.filtered_probs(other, **named, backend="reference")[:, 3].sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, other.grad)


def test_under_torch_compile() -> None:
    """The operators are opaque to the compiler, so that what it makes around them contracts nothing in them."""
    logits = agree.normal(600, 2.0).view(2, 300)

    def draw(logits: Tensor) -> Tensor:
        return fastsample.sample(logits * 2, 0.8, 20, 0.9, seed=3, backend="triton") + 1

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(logits), draw(logits))


@pytest.mark.parametrize("name", ["sample", "filter_logits", "filtered_probs", "log_probs"])
def test_opcheck(name: str) -> None:
    logits = agree.normal(40, 2.0).view(2, 20)
    filters = agree.FILTERS["T .8, k 50, p .9"]
    arguments = {
        "sample": (torch.zeros(2, 1, dtype=torch.int64), logits, None, *filters, *agree.SEEDED, True, False),
        "log_probs": (logits, torch.zeros(2, 1, dtype=torch.int64), *filters),
    }.get(name, (logits, *filters))
    torch.library.opcheck(getattr(torch.ops.fastsample_triton, name).default, arguments)


# --- how often a row is read


def reads_of(row: Tensor, filters: agree.Filters) -> float:
    """How many times its length a call reads of a row of logits."""
    call = Call(row, None, filters, agree.SEEDED, 1)
    return reads_during(row, lambda: agree.tokens_of(TRITON.sample, call, True))


def reads_during(row: Tensor, call: Callable[[], Any]) -> float:
    """How many times its length a call reads of a row of logits, counted by the interpreter's loads."""
    builder = interpreter.interpreter_builder
    load = builder.create_masked_load
    first = row.data_ptr()
    last = first + row.numel() * row.element_size()
    count = 0

    def counted(pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        nonlocal count
        addresses = pointers.data.astype("int64")
        # The interpreter works on a copy: its tensors lie where torch put that, in one piece as long as the row.
        count += int(((addresses >= copies[0]) & (addresses < copies[1]) & mask.data).sum())
        return load(pointers, mask, *rest, **named)

    copies = (first, last)
    builder.create_masked_load = counted
    try:
        call()
    finally:
        builder.create_masked_load = load
    return count / row.numel()


@pytest.mark.parametrize(
    ("filter_name", "vocab", "fewest", "most"),
    [
        ("k 50", 32768, 1.0, 1.15),
        ("T .8, k 50, p .9", 32768, 1.0, 1.15),
        ("greedy", 32768, 1.0, 1.01),
        ("plain", 32768, 2.0, 2.01),
        ("min_p .05", 32768, 2.0, 2.01),
        ("p .9", 32768, 3.0, 3.02),
        ("T .8, k 50, p .9", 4096, 1.0, 1.0),
        ("plain", 4096, 1.0, 1.02),
        ("p .9", 4096, 1.0, 1.04),
    ],
)
def test_reads_of_a_row(filter_name: str, vocab: int, fewest: float, most: float) -> None:
    """One where the row is resident, else one with top_k, two without, three with top_p alone; and a few chunks."""
    reads = reads_of(agree.normal(vocab, 1.0)[None], agree.FILTERS[filter_name])
    assert fewest <= reads <= most

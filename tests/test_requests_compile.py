"""The operators of requests under torch.compile and torch.library.opcheck: one graph, equal to eager by ==, histories
changed in place alike.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import BadWords, History, LogitBias, TokenLists, ops
from fastsample.adjustments import Adjustments
from fastsample.arguments import Details, Edits, Filters

ROWS, VOCAB = 3, 67
NUMBERS = Filters(0.8, None, 20, None, 0.9, None, 0.01, None, 0)
PER_ROW = Filters(
    1.0, torch.tensor([0.5, 1.0, 0.0]), 0, torch.tensor([5, 0, 9]), 1.0, torch.tensor(0.9), 0.0, torch.zeros(ROWS), 2
)
SEED = (7, None, 1, None, 2, None, True)
SEED_ROWS = (0, torch.tensor([1, 2, 3]), 0, torch.tensor([4, 5, 6]), 0, torch.tensor(7), False)

ADJUSTMENTS = Adjustments(
    1.0, torch.tensor([1.2, 1.0, 0.8]), 0.5, None, 0.0, torch.tensor(0.25),
    torch.tensor([[1, 2], [3, 4], [5, 6]]), torch.tensor([2, 1, 0]),
    torch.tensor([[7], [8], [9]]), torch.tensor([1, 1, 0]),
    torch.full((ROWS, 3), 5, dtype=torch.int32), torch.ones(ROWS, VOCAB, dtype=torch.int32),
    torch.tensor([3, 4]), torch.tensor([1.0, -1.0]), torch.tensor([0, 1, 1, 2]),
    torch.tensor([7, 2, 5]), torch.tensor([0, 2, 3]), torch.tensor([0, 1, 2, 2]), True,
    2, None, torch.tensor([0, 1]), torch.tensor([0, 1, 2, 2]), torch.full((ROWS, 3), -2, dtype=torch.int32),
)  # fmt: skip


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(2)) * 2


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


# --- each operator alone, in each namespace


# A minute in Triton's interpreter.
@pytest.fixture(params=["reference", "cpu", pytest.param("triton", marks=pytest.mark.slow)])
def backend(request: pytest.FixtureRequest) -> ops.Ops:
    if request.param == "triton" and (ops.triton_status() != "ok" or not ops.triton_is_interpreted()):
        pytest.skip("Triton does not run on the CPU here")
    return ops.for_backend(request.param)


def edits_of(logits: Tensor) -> Edits:
    return Edits(ADJUSTMENTS.allowed, *ops.reference_only.find_edits(logits, None, ROWS, *ADJUSTMENTS)[:3])


def room(num_samples: int, top: int) -> tuple[History, Details]:
    counts = torch.zeros(ROWS, VOCAB, dtype=torch.int32)
    tokens, drawn = (torch.zeros((ROWS, columns), dtype=torch.int64) for columns in (4, num_samples))
    listed = torch.zeros((ROWS, top), dtype=torch.int64)
    numbers = torch.zeros((ROWS, 8), dtype=torch.int64)
    details = Details(drawn.float(), drawn.float(), drawn.clone(), listed, listed.float(), numbers)
    return History(tokens, torch.zeros(ROWS, dtype=torch.int64), counts), details


def test_opcheck_of_find_edits(backend: ops.Ops, logits: Tensor) -> None:
    """With an edit of every token, since values beyond a row's edits may be anything."""
    torch.library.opcheck(backend.find_edits, (logits, None, ROWS, *ADJUSTMENTS))
    torch.library.opcheck(backend.find_edits, (logits, torch.tensor([2, 0, 2]), ROWS, *ADJUSTMENTS))


def test_opcheck_of_sample_full(backend: ops.Ops, logits: Tensor) -> None:
    out, indices = torch.empty(ROWS, 2, dtype=torch.int64), torch.tensor([2, 0, 5])
    history, details = room(2, 5)
    torch.library.opcheck(
        backend.sample_full, (out, logits, None, *NUMBERS, *SEED, True, *edits_of(logits), *history, *details)
    )
    torch.library.opcheck(
        backend.sample_full,
        (out, logits, indices, *PER_ROW, *SEED_ROWS, False, *Edits(ADJUSTMENTS.allowed), *History(), *Details()),
    )
    one_draw = Details(
        torch.empty(ROWS), top_tokens=out.clone(), top_logprobs=torch.empty(ROWS, 2), top_of_processed=True
    )
    torch.library.opcheck(
        backend.sample_full, (out[:, 0], logits, None, *NUMBERS, *SEED, True, *Edits(), *History(), *one_draw)
    )


def test_opcheck_of_sample_with_log_probabilities(backend: ops.Ops, logits: Tensor) -> None:
    out, logprobs = torch.empty(ROWS, 2, dtype=torch.int64), torch.empty(ROWS, 2)
    torch.library.opcheck(backend.sample, (out, logits, None, *NUMBERS, *SEED, True, False, logprobs))
    torch.library.opcheck(backend.sample, (out[:, 0], logits, None, *NUMBERS, *SEED, True, False, None))


def test_opcheck_of_kept_tokens(backend: ops.Ops, logits: Tensor) -> None:
    out, edits = torch.empty(ROWS, 1, dtype=torch.int64), edits_of(logits)
    details = Details(numbers=torch.empty(ROWS, 8, dtype=torch.int64))
    backend.sample_full(out, logits, None, *NUMBERS, *SEED, True, *edits, *History(), *details)
    assert details.numbers is not None
    offsets = torch.nn.functional.pad(details.numbers[:, 5].cumsum(0), (1, 0))
    torch.library.opcheck(backend.kept_tokens, (logits, None, *edits, details.numbers, offsets, int(offsets[-1])))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_kept_log_probs(backend: ops.Ops, logits: Tensor, requires_grad: bool) -> None:
    leaf = logits.clone().requires_grad_(requires_grad)
    kept = TokenLists.of([[3, 1, 9], [5], [66, 0]])
    tokens = torch.tensor([[1, 9], [5, 6], [0, 66]])
    torch.library.opcheck(backend.kept_log_probs, (leaf, tokens, *kept, 0.7, None))
    torch.library.opcheck(backend.kept_log_probs, (leaf, tokens, *kept, 1.0, torch.tensor([1.0, 0.5, 0.0])))


def test_opcheck_of_the_speculative_pieces(backend: ops.Ops, logits: Tensor) -> None:
    tokens, indices = torch.tensor([[1, 2], [3, 66], [4, 4]]), torch.tensor([2, 0, 5])
    torch.library.opcheck(backend.fixed_probs_at, (logits, None, tokens, *NUMBERS, False))
    torch.library.opcheck(backend.fixed_probs_at, (logits.softmax(1), indices, tokens, *PER_ROW, True))
    torch.library.opcheck(backend.random_words, (logits, ROWS, *SEED_ROWS, 1, 3))
    draft = torch.rand(5, VOCAB, generator=torch.Generator().manual_seed(3))
    out, drafted = torch.empty(ROWS, 1, dtype=torch.int64), torch.tensor([4, -1, 2])
    torch.library.opcheck(
        backend.sample_residual,
        (out, logits, indices, *NUMBERS, False, draft, drafted, *PER_ROW, True, *SEED),
    )


# --- the public functions


def given(logits: Tensor) -> dict[str, Any]:
    batch = logits.shape[0]
    return {
        "repetition_penalty": 1.2,
        "presence_penalty": torch.linspace(0, 1, batch),
        "frequency_penalty": torch.tensor(0.3),
        "prompt_tokens": torch.arange(2 * batch).view(batch, 2),
        "output_tokens": torch.arange(3 * batch).view(batch, 3) + 20,
        "output_lengths": torch.full((batch,), 3),
        "output_counts": torch.ones(batch, logits.shape[1], dtype=torch.int32),
        "prompt_mask": torch.full((batch, 3), 9, dtype=torch.int32),
        "logit_bias": LogitBias.of([{5: 2.0}] * batch),
        "bad_words": BadWords.of([[[22, 4], [7]]] * batch, in_prompt=True),
        "min_tokens": 4,
        "stop_tokens": TokenLists.of([[1, 2]] * batch),
        "allowed_tokens": TokenLists.of([list(range(50)), *[None] * (batch - 1)]),
        "bitmask": torch.full((1, 3), -17, dtype=torch.int32),
    }


each_compiler = pytest.mark.parametrize(
    "compiler",
    ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)],  # which compiles C++ for half a minute
)


def compiled(function: Callable[..., Any], compiler: str = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=compiler)


def assert_same(results: Any, eager: Any) -> None:
    for result, expected in zip(results, eager, strict=True):
        assert result is expected is None or (result.dtype is expected.dtype and torch.equal(result, expected))


@each_compiler
def test_sample_with_adjustments_compiles(logits: Tensor, compiler: str) -> None:
    def draw(logits: Tensor, adjustments: dict[str, Any]) -> tuple[Tensor, ...]:
        return (
            fastsample.sample(logits * 1, 0.8, 20, 0.9, seed=5, **adjustments),
            fastsample.sample(logits, seed=torch.arange(ROWS), num_samples=2, bitmask=adjustments["bitmask"]),
            fastsample.process_logits(logits, **adjustments),
        )

    assert_same(compiled(draw, compiler)(logits, given(logits)), draw(logits, given(logits)))


def test_two_draws_stay_two(logits: Tensor) -> None:
    wide, mask = logits[:1].expand(64, VOCAB), torch.full((1, 3), -1, dtype=torch.int32)

    def draw(logits: Tensor) -> tuple[Tensor, Tensor]:
        return fastsample.sample(logits, bitmask=mask), fastsample.sample(logits, bitmask=mask)

    first, second = compiled(draw)(wide)
    assert not torch.equal(first, second)


@each_compiler
def test_sample_full_compiles(logits: Tensor, compiler: str) -> None:
    def draw(logits: Tensor, adjustments: dict[str, Any]) -> tuple[Any, ...]:
        full = fastsample.sample_full(
            logits * 1, 0.8, 20, 0.9, seed=5, raw_logprobs=True, top_logprobs=4, distribution=True, **adjustments
        )
        many = fastsample.sample_full(
            logits, seed=5, num_samples=3, replacement=False, top_logprobs=40, top_logprobs_of="processed"
        )
        one = fastsample.sample_full(logits[0], min_p=0.1, seed=5)
        return (
            full.tokens, full.logprobs, full.raw_logprobs, full.ranks, full.top_tokens, full.top_logprobs, full.numbers,
            full.status, full.entropy, full.kept_mass, many.tokens, many.top_tokens, many.top_logprobs, one.tokens,
        )  # fmt: skip

    assert_same(compiled(draw, compiler)(logits, given(logits)), draw(logits, given(logits)))


def decode(logits: Tensor, tokens: Tensor, lengths: Tensor, counts: Tensor) -> tuple[Tensor, ...]:
    """Two steps whose history is the second one's penalty, offset and place."""
    drawn = []
    for _ in range(2):
        history = {"output_tokens": tokens, "output_lengths": lengths, "output_counts": counts, "offset": lengths}
        full = fastsample.sample_full(
            logits, presence_penalty=0.7, seed=3, **history, history=History(tokens, lengths, counts)
        )
        drawn.append(full.tokens)
    return *drawn, tokens + 0, lengths + 0


@each_compiler
def test_a_history_is_changed_in_place(logits: Tensor, compiler: str) -> None:
    def fresh() -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.full((ROWS, 5), -1),
            torch.tensor([0, 3, 5]),
            torch.zeros(ROWS, VOCAB, dtype=torch.int32),
        )

    in_graph, in_eager = fresh(), fresh()
    function = compiled(decode, compiler)
    for _ in range(2):
        assert_same(function(logits, *in_graph), decode(logits, *in_eager))
        assert_same(in_graph, in_eager)
    assert in_graph[1].tolist() == [4, 7, 9]


def test_batches_change_without_a_break(logits: Tensor) -> None:
    def draw(logits: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        return fastsample.sample(
            logits, torch.tensor(0.7), seed=9, presence_penalty=0.4, output_tokens=output, bitmask=mask
        )

    function = torch.compile(draw, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows, columns in ((3, 2), (5, 4), (7, 1)):
        many = logits.repeat(3, 1)[:rows]
        output = torch.arange(rows * columns).view(rows, columns)
        mask = torch.full((rows, 3), 0x5555FFFF, dtype=torch.int32)
        assert torch.equal(function(many, output, mask), draw(many, output, mask))


@each_compiler
def test_filtered_log_probs_compiles(logits: Tensor, compiler: str) -> None:
    kept, tokens = TokenLists.of([[3, 1, 9], [5, 7], [66, 0]]), torch.tensor([1, 7, 66])

    def loss(logits: Tensor, tokens: Tensor, kept_tokens: Tensor, kept_offsets: Tensor) -> Tensor:
        kept = TokenLists(kept_tokens, kept_offsets)
        return fastsample.filtered_log_probs(logits * 2, tokens, 0.7, kept=kept).sum()

    eager = logits.clone().requires_grad_()
    loss(eager, tokens, *kept).backward()
    leaf = logits.clone().requires_grad_()
    compiled(loss, compiler)(leaf, tokens, *kept).backward()
    assert torch.equal(leaf.grad, eager.grad)

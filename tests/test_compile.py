"""The operators under torch.compile and torch.export: one graph, equal to eager by `==`, no two draws merged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import fastsample
from fastsample import ops
from fastsample.arguments import Filters
from fastsample.graph_breaks import outside_of_graphs
from subprocesses import run_python

VOCAB = 67
Tensors = tuple[Tensor, ...]

NUMBERS = Filters(0.8, None, 20, None, 0.9, None, 0.01, None, 0)
ROWS = Filters(
    1.0, torch.tensor([0.5, 1.0, 0.0]), 0, torch.tensor([5, 0, 9]), 1.0, torch.tensor(0.9), 0.0, torch.zeros(3), 2
)
SEED = (7, None, 1, None, 2, None, True)
SEED_ROWS = (0, torch.tensor([1, 2, 3]), 0, torch.tensor([4, 5, 6]), 0, torch.tensor(7), False)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(2)) * 2


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def seeded(function: Callable[..., Tensors], *arguments: Any) -> Tensors:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return function(*arguments)


def assert_compiles(function: Callable[..., Tensors], *arguments: Any, compiler: str = "aot_eager") -> None:
    """One graph, whose results equal eager's, twice, from the same state of the default generator."""
    compiled = torch.compile(function, fullgraph=True, backend=compiler)

    def twice(function: Callable[..., Tensors]) -> Tensors:
        return *function(*arguments), *function(*arguments)

    expected = seeded(twice, function)
    for result, eager in zip(seeded(twice, compiled), expected, strict=True):
        assert result.dtype is eager.dtype
        assert torch.equal(result, eager)


def draws(logits: Tensor, temperature: Any, top_k: Any, top_p: Any) -> Tensors:
    """Calls a compiler might take for one: equal arguments, the default generator."""
    return (
        fastsample.sample(logits, temperature, top_k, top_p),
        fastsample.sample(logits, temperature, top_k, top_p),
        fastsample.sample(logits * 2, temperature, top_k, top_p, num_samples=3),
        fastsample.sample(logits, temperature, top_k, top_p, num_samples=2, replacement=False),
    )


def seeded_draws(logits: Tensor, seed: Any, offset: Any) -> Tensors:
    return (
        fastsample.sample(logits, 0.9, 30, seed=seed, offset=offset),
        fastsample.sample(logits, 0.9, 30, seed=seed, offset=offset, num_samples=2, order="joint"),
        fastsample.sample(logits, min_p=0.1, seed=seed, indices=torch.tensor([2, 0, 7])),
        fastsample.sample(logits[0], seed=5, stream=6),
    )


def transformed(logits: Tensor, tokens: Tensor) -> Tensors:
    return (
        fastsample.softmax(logits, 0.5),
        fastsample.filter_logits(logits, 0.7, 9),
        fastsample.filtered_probs(logits, torch.tensor([0.0, 0.5, 2.0]), 30, 0.9),
        fastsample.log_probs(logits, tokens, 0.7),
        fastsample.log_probs(logits[1], tokens, 0.7),
    )


def categories(probs: Tensor) -> Tensors:
    with fastsample.patch_torch():
        patched = torch.multinomial(probs, 2), Categorical(probs=probs, validate_args=False).sample((2,))
    return (
        fastsample.multinomial(probs, 4),
        fastsample.multinomial(probs, 4),
        fastsample.multinomial(probs.double() * 1e-200, 9, True),
        *patched,
    )


def test_two_draws_stay_two(logits: Tensor) -> None:
    wide = logits[:1].expand(64, VOCAB)
    compiled = torch.compile(
        lambda logits: (fastsample.sample(logits), fastsample.sample(logits)), fullgraph=True, backend="aot_eager"
    )
    first, second = compiled(wide)
    assert not torch.equal(first, second)


def test_sample_compiles(logits: Tensor) -> None:
    assert_compiles(draws, logits, 0.8, 20, 0.9)
    assert_compiles(draws, logits, torch.tensor([0.5, 1.0, 0.0]), torch.tensor([5, 0, 9]), torch.tensor(0.8))


@pytest.mark.parametrize(
    ("seed", "offset"), [(5, 9), (2**64 - 1, -1), (torch.tensor(5), 9), (torch.tensor([1, 2, 3]), torch.arange(3))]
)
def test_seeded_sample_compiles(logits: Tensor, seed: Any, offset: Any) -> None:
    assert_compiles(seeded_draws, logits, seed, offset)


def test_transforms_and_multinomial_compile(logits: Tensor) -> None:
    assert_compiles(transformed, logits, torch.tensor([1, 2, 3]))
    assert_compiles(categories, logits.softmax(-1))


def test_gradients_compile(logits: Tensor) -> None:
    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        function(leaf).backward()
        assert leaf.grad is not None
        return leaf.grad

    def loss(logits: Tensor) -> Tensor:
        of_tokens = fastsample.log_probs(logits, torch.tensor([0, 1, 2]), torch.tensor([0.5, 1.0, 2.0])).sum()
        of_probs = fastsample.filtered_probs(logits, 0.7, 9)[:, :5].sum()
        return of_tokens + of_probs + fastsample.filter_logits(logits, top_k=3).amax(dim=1).sum()

    assert torch.equal(gradient(torch.compile(loss, fullgraph=True, backend="aot_eager")), gradient(loss))


def test_inductor(logits: Tensor) -> None:
    def everything(logits: Tensor, temperature: Tensor, tokens: Tensor, probs: Tensor) -> Tensors:
        return (
            *draws(logits, temperature, 20, 0.9),
            *seeded_draws(logits, 5, 9),
            *transformed(logits, tokens),
            *categories(probs),
        )

    temperature = torch.tensor([0.5, 1.0, 0.0])
    probs = logits.softmax(-1)
    assert_compiles(everything, logits, temperature, torch.tensor([1, 2, 3]), probs, compiler="inductor")


def test_numbers_and_batch_change(logits: Tensor) -> None:
    compiled = torch.compile(
        lambda logits, temperature, top_k, seed: fastsample.sample(logits, temperature, top_k, seed=seed),
        fullgraph=True,
        backend="aot_eager",
    )
    many = logits.repeat(4, 1)
    for rows, temperature, top_k, seed in (
        (3, 0.5, 3, 1),
        (3, 0.6, 4, 2),
        (5, 0.7, 5, 2**64 - 1),
        (7, 1.0, 6, 2**63),
        (12, 0.0, -1, -3),
    ):
        eager = fastsample.sample(many[:rows], temperature, top_k, seed=seed)
        assert torch.equal(compiled(many[:rows], temperature, top_k, seed), eager)


def test_what_no_graph_can_hold_runs_beside_it_and_says_why() -> None:
    compiling = []
    torch._dynamo.utils.counters.clear()

    @outside_of_graphs("it looks at a value")
    def look(values: Tensor) -> Tensor:
        compiling.append(torch.compiler.is_compiling())
        return values * 2

    def function(values: Tensor) -> Tensor:
        return look(values + 1) + 1

    values = torch.ones(2)
    compiled = torch.compile(function, backend="aot_eager")
    assert compiled(values).tolist() == [5.0, 5.0]
    assert compiled(values).tolist() == [5.0, 5.0]
    with torch.compiler.set_stance("fail_on_recompile"):
        assert compiled(values).tolist() == [5.0, 5.0]
    assert compiling == [False] * 3
    # What is before it and what is after it; it breaks the graph once, and is not itself compiled.
    assert torch._dynamo.utils.counters["frames"] == {"total": 2, "ok": 2}
    (broken,) = torch._dynamo.utils.counters["graph_break"]
    assert "it looks at a value" in broken
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="it looks at a value"):
        torch.compile(function, backend="aot_eager", fullgraph=True)(values)


def test_an_import_leaves_the_compiler_alone() -> None:
    """It takes as long to import as torch itself, and imports Triton."""
    code = "import fastsample, sys; print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])"
    assert run_python("-c", code) == "[]\n"


def test_what_breaks_the_graph_still_works(logits: Tensor) -> None:
    """A generator object and errors="raise" cannot be in a graph; without fullgraph both run beside it."""

    def function(logits: Tensor, generator: torch.Generator) -> Tensors:
        return (
            fastsample.sample(logits * 1, generator=generator),
            fastsample.sample(logits * 1, seed=3, errors="raise"),
            fastsample.multinomial(logits.softmax(-1), 2, generator=generator),
        )

    expected = function(logits, torch.Generator().manual_seed(1))
    results = torch.compile(function, backend="aot_eager")(logits, torch.Generator().manual_seed(1))
    for result, eager in zip(results, expected, strict=True):
        assert torch.equal(result, eager)
    compiled = torch.compile(lambda logits: fastsample.sample(logits, errors="raise"), backend="aot_eager")
    logits[1, 2] = float("nan")
    with pytest.raises(ValueError, match="row 1"):
        compiled(logits)


def test_compiled_multinomial_asserts(logits: Tensor) -> None:
    compiled = torch.compile(lambda probs: fastsample.multinomial(probs, 1), fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        compiled(-logits.abs())


def test_export(logits: Tensor) -> None:
    class Model(torch.nn.Module):
        def forward(self, logits: Tensor, temperature: Tensor) -> Tensors:
            return (
                fastsample.sample(logits, temperature, 5),
                fastsample.sample(logits, temperature, 5),
                fastsample.sample(logits, temperature, 5, seed=3),
                fastsample.filtered_probs(logits, temperature),
            )

    batch = torch.export.Dim("batch")
    exported = torch.export.export(
        Model(), (logits, torch.tensor([0.5, 1.0, 0.0])), dynamic_shapes=({0: batch}, {0: batch})
    )
    for rows in (3, 5):
        given = logits.repeat(2, 1)[:rows], torch.linspace(0, 1, rows)
        for result, eager in zip(seeded(exported.module(), *given), seeded(Model(), *given), strict=True):
            assert torch.equal(result, eager)


# What a compiler sees of an operator does not depend on the instruction set: one stands for all.
both = pytest.mark.parametrize("backend", ["reference", "cpu-scalar"], indirect=True)


@both
@pytest.mark.parametrize(("filters", "requires_grad"), [(NUMBERS, False), (ROWS, True)])
def test_opcheck_of_the_transforms(backend: ops.Ops, logits: Tensor, filters: Filters, requires_grad: bool) -> None:
    leaf = logits.clone().requires_grad_(requires_grad)
    torch.library.opcheck(backend.filter_logits, (leaf, *filters))
    torch.library.opcheck(backend.filtered_probs, (leaf, *filters))
    torch.library.opcheck(backend.log_probs, (leaf, torch.tensor([[1, 2], [3, 66], [4, 4]]), *filters))


@both
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_sample(backend: ops.Ops, logits: Tensor, requires_grad: bool) -> None:
    leaf = logits.clone().requires_grad_(requires_grad)
    out = torch.empty(3, 2, dtype=torch.int64)
    indices = torch.tensor([2, 0, 5])
    torch.library.opcheck(backend.sample, (out, leaf, None, *NUMBERS, *SEED, True, False))
    torch.library.opcheck(backend.sample, (out, leaf, indices, *ROWS, *SEED_ROWS, False, False))
    torch.library.opcheck(backend.sample, (out, leaf.softmax(-1), indices, *NUMBERS, *SEED, False, True))


@both
def test_opcheck_of_draw_seed(backend: ops.Ops) -> None:
    # The other utilities run the operator twice and compare; this one is there to differ.
    torch.library.opcheck(
        backend.draw_seed, (torch.empty(2, dtype=torch.int64),), test_utils=("test_schema", "test_faketensor")
    )

"""`softmax`, `filter_logits`, `filtered_probs`, `log_probs`: values, shapes and gradients, on every backend."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import reference
from fastsample.arguments import ORDERS, Filters

VOCAB = 53
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PARAMETERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"top_k": 10},
    {"top_p": 0.8},
    {"min_p": 0.05},
    {"temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 0.0},
]
ROWS: dict[str, Any] = {
    "temperature": torch.tensor([0.0, 0.5, 1.0, 2.0]),
    "top_k": torch.tensor([0, 5, 20, 1]),
    "top_p": torch.tensor([0.9, 1.0, 0.5, 0.1]),
    "min_p": torch.tensor([0.0, 0.0, 0.1, 0.02]),
}


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(3)) * 2


def filters(parameters: dict[str, Any], order: int = 0) -> Filters:
    """What the reference takes for the parameters of a public function."""
    fields: list[Any] = []
    for name, unset in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        value = parameters.get(name, unset)
        fields += [unset, value] if isinstance(value, Tensor) else [value, None]
    return Filters(*fields, order)


def same(result: Tensor, expected: Tensor) -> bool:
    """Equal dtype, shape and values, where NaN equals NaN."""
    return result.dtype is expected.dtype and torch.equal(result.nan_to_num(nan=7e30), expected.nan_to_num(nan=7e30))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("parameters", [*PARAMETERS, ROWS])
def test_parameters_reach_the_law(
    backend_name: str, logits: Tensor, parameters: dict[str, Any], dtype: torch.dtype
) -> None:
    logits = logits.to(dtype)
    for number, order in enumerate(ORDERS):
        named = {**parameters, "order": order, "backend": backend_name}
        expected = filters(parameters, number)
        assert same(fastsample.filter_logits(logits, **named), reference.filter_logits(logits, *expected))
        assert same(fastsample.filtered_probs(logits, **named), reference.filtered_probs(logits, *expected))
        kept = fastsample.filter_logits(logits, **named).isfinite()
        assert torch.equal(kept, reference.kept_set(logits, expected))


def test_softmax(backend_name: str, logits: Tensor) -> None:
    for temperature in (0.3, 1.0, 2.5, torch.tensor(0.7), torch.tensor([0.3, 0.5, 1.0, 9.0])):
        probs = fastsample.softmax(logits, temperature, backend=backend_name)
        column = temperature.reshape(-1, 1) if isinstance(temperature, Tensor) else temperature
        # The exponent is rounded to float32, so what lies a nats below the maximum is off by about a * 1e-7.
        torch.testing.assert_close(probs, (logits.double() / column).softmax(-1).float(), rtol=1e-5, atol=0.0)
        assert torch.equal(probs, fastsample.filtered_probs(logits, temperature, backend=backend_name))
    greedy = fastsample.softmax(logits, 0.0, backend=backend_name)
    assert torch.equal(greedy, torch.nn.functional.one_hot(logits.argmax(-1), VOCAB).float())
    uniform = fastsample.softmax(logits, math.inf, backend=backend_name)
    assert bool((uniform == uniform[0, 0]).all())


def test_log_probs(backend_name: str, logits: Tensor) -> None:
    parameters: dict[str, Any] = {"temperature": 0.8, "top_k": 20}
    probs = fastsample.filtered_probs(logits, **parameters).double()
    tokens = torch.arange(VOCAB).expand(4, VOCAB)
    result = fastsample.log_probs(logits, tokens, **parameters, backend=backend_name)
    assert result.dtype is torch.float32
    assert torch.equal(result == -math.inf, probs == 0)
    torch.testing.assert_close(result.double().exp(), probs, rtol=2e-6, atol=0.0)
    # A token may weigh nothing and still have a log-probability (law section 5).
    wide = torch.tensor([[0.0, -60.0, -90.0, -math.inf]])
    light = fastsample.log_probs(wide, torch.arange(4)[None], backend=backend_name)
    torch.testing.assert_close(light, wide)


def test_token_shapes(backend_name: str, logits: Tensor) -> None:
    everything = fastsample.log_probs(logits, torch.arange(VOCAB).expand(4, VOCAB), 0.7, backend=backend_name)
    tokens = torch.tensor([3, 1, 4, 15])
    for given in (tokens, tokens.int(), tokens.to(torch.uint8), torch.stack([tokens, tokens], 1)[:, 1]):
        result = fastsample.log_probs(logits, given, 0.7, backend=backend_name)
        assert torch.equal(result, everything[torch.arange(4), tokens])
    several = torch.tensor([[1, 2, 3], [4, 5, 6], [0, 0, 0], [52, 51, 50]])
    for given in (several, several.t().contiguous().t()):
        result = fastsample.log_probs(logits, given, 0.7, backend=backend_name)
        assert torch.equal(result, everything.gather(1, several))
    assert torch.equal(fastsample.log_probs(logits[0], several[0], 0.7, backend=backend_name), everything[0, 1:4])
    one = fastsample.log_probs(logits[0], torch.tensor(5), 0.7, backend=backend_name)
    assert one.shape == ()
    assert torch.equal(one, everything[0, 5])
    assert fastsample.log_probs(logits, several[:, :0], backend=backend_name).shape == (4, 0)
    outside = torch.tensor([[-1, VOCAB, 2**40, 0]]).expand(4, 4)
    result = fastsample.log_probs(logits, outside, 0.7, backend=backend_name)
    assert bool(result[:, :3].isnan().all())
    assert torch.equal(result[:, 3], everything[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_row_and_views(backend_name: str, logits: Tensor, dtype: torch.dtype) -> None:
    logits = logits.to(dtype)
    for function in (fastsample.softmax, fastsample.filter_logits, fastsample.filtered_probs):
        whole = function(logits, 0.7, backend=backend_name)
        assert torch.equal(function(logits[1], 0.7, backend=backend_name), whole[1])
        assert function(logits[:0], 0.7, backend=backend_name).shape == (0, VOCAB)
        storage = torch.full((4, 2 * VOCAB + 9), math.nan, dtype=dtype)
        for view in (storage[:, 3 : 3 + VOCAB], storage[:, 5 : 5 + 2 * VOCAB : 2], logits.t().contiguous().t()):
            view.copy_(logits)
            result = function(view, 0.7, backend=backend_name)
            assert torch.equal(result, whole)
            assert result.is_contiguous()


def test_invalid_rows_are_nan(backend_name: str, logits: Tensor, poisoned_memory: None) -> None:
    logits[1, 7] = math.nan
    logits[3] = -math.inf
    tokens = torch.zeros(4, 2, dtype=torch.int64)
    for result in (
        fastsample.softmax(logits, backend=backend_name),
        fastsample.filter_logits(logits, top_k=3, backend=backend_name),
        fastsample.filtered_probs(logits, top_p=0.5, backend=backend_name),
        fastsample.log_probs(logits, tokens, backend=backend_name),
    ):
        assert result.isnan().all(dim=1).tolist() == [False, True, False, True]
        assert not bool(result[[0, 2]].isnan().any())
    bad = fastsample.filtered_probs(logits[[0, 2]], torch.tensor([1.0, -1.0]), backend=backend_name)
    assert bad.isnan().all(dim=1).tolist() == [False, True]


def softmax_of_kept(logits: Tensor, temperature: Tensor | float, kept: Tensor) -> Tensor:
    """The distribution over a fixed kept set, by torch alone."""
    return torch.where(kept, logits / temperature, -math.inf).softmax(dim=-1)


@pytest.mark.parametrize("parameters", [{"temperature": 0.7, "top_k": 9}, {"top_p": 0.8}, {**ROWS, "temperature": 1.3}])
def test_gradients(backend_name: str, logits: Tensor, parameters: dict[str, Any]) -> None:
    """The closed forms equal what autograd finds for the softmax over the kept set."""
    named = {**parameters, "backend": backend_name}
    temperature = parameters.get("temperature", 1.0)
    kept = fastsample.filter_logits(logits, **named).isfinite()
    tokens = torch.stack([logits.argmax(-1), logits.argmin(-1), logits.argmax(-1)], dim=1)
    incoming = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1))

    def gradient(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        result = function(leaf)
        finite = torch.where(result.isfinite(), result, 0.0)
        (finite * incoming[:, : result.shape[1]]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    for ours, plain in (
        (
            lambda leaf: fastsample.filtered_probs(leaf, **named),
            lambda leaf: softmax_of_kept(leaf, temperature, kept),
        ),
        (
            lambda leaf: fastsample.log_probs(leaf, tokens, **named),
            lambda leaf: (
                torch.where(kept, leaf / temperature, -math.inf).gather(1, tokens)
                - torch.where(kept, leaf / temperature, -math.inf).logsumexp(1, keepdim=True)
            ),
        ),
        (lambda leaf: fastsample.filter_logits(leaf, **named), lambda leaf: torch.where(kept, leaf, -math.inf)),
    ):
        torch.testing.assert_close(gradient(ours), gradient(plain), rtol=1e-5, atol=1e-6)


def test_gradients_of_edges(backend_name: str, logits: Tensor) -> None:
    leaf = logits.clone().requires_grad_()
    temperature = torch.tensor([0.0, 1.0, 1.0, math.inf])
    fastsample.filtered_probs(leaf, temperature, backend=backend_name)[:, 0].sum().backward()
    assert leaf.grad is not None
    assert not bool(leaf.grad[[0, 3]].any()), "where the distribution does not move"
    assert bool(leaf.grad[1].any())
    leaf = logits.clone().requires_grad_()
    outside = torch.tensor([[VOCAB], [0], [-1], [1]])
    result = fastsample.log_probs(leaf, outside, backend=backend_name)
    result[[1, 3]].sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.any(dim=1).tolist() == [False, True, False, True]
    half = logits.bfloat16().requires_grad_()
    fastsample.softmax(half, backend=backend_name)[:, 0].sum().backward()
    assert half.grad is not None
    assert half.grad.dtype is torch.bfloat16


def test_second_derivative(backend_name: str) -> None:
    logits = torch.tensor([[0.5, -1.0, 2.0, 0.0]], requires_grad=True)

    def curvature(function: Callable[[Tensor], Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(function(logits)[0, 0], logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), logits)
        return second

    ours = curvature(lambda leaf: fastsample.filtered_probs(leaf, 0.7, backend=backend_name))
    torch.testing.assert_close(ours, curvature(lambda leaf: (leaf / 0.7).softmax(-1)), rtol=1e-5, atol=1e-6)

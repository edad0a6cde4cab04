"""`sample`: shapes, views, per-row parameters, where the randomness comes from, sentinels and errors, on every backend.

What the law makes of a row is tested in test_law.py, and that the backends agree in test_backends_agree.py. Here the
question is whether `sample` hands the operators what its caller meant.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import reference
from fastsample.arguments import Filters

VOCAB = 61
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Sample = Callable[..., Tensor]


@pytest.fixture
def sample(backend_name: str) -> Sample:
    """`fastsample.sample` on the backend of the test."""

    def on_backend(logits: Tensor, *arguments: Any, **named: Any) -> Tensor:
        return fastsample.sample(logits, *arguments, backend=backend_name, **named)

    return on_backend


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(7)) * 2


@pytest.fixture
def _other_default_generator() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def row_by_row(logits: Tensor, filters: list[tuple[Any, ...]], words: list[tuple[int, int, int]], draws: int) -> Tensor:
    """Each row sampled alone by the reference: filters are (T, k, p, min_p), words (seed, offset, stream), per row."""
    rows = []
    for row, (temperature, top_k, top_p, min_p), (seed, offset, stream) in zip(logits, filters, words, strict=True):
        out = torch.empty(1, draws, dtype=torch.int64)
        number = Filters(temperature, None, top_k, None, top_p, None, min_p, None, 0)
        reference.sample(out, row[None], None, *number, seed, None, offset, None, stream, None, False, True, False)
        rows.append(out)
    return torch.cat(rows)


def test_shapes(sample: Sample, logits: Tensor) -> None:
    for tokens, shape in (
        (sample(logits), (6,)),
        (sample(logits, num_samples=1), (6, 1)),
        (sample(logits, num_samples=4), (6, 4)),
        (sample(logits[0]), ()),
        (sample(logits[0], num_samples=1), (1,)),
        (sample(logits[0], num_samples=4), (4,)),
        (sample(logits[:, :1]), (6,)),
        (sample(logits, indices=torch.tensor([3, 3])), (2,)),
        (sample(logits, indices=torch.tensor([3, 3]), num_samples=5), (2, 5)),
        (sample(logits[:0]), (0,)),
        (sample(logits[:0], num_samples=3), (0, 3)),
        (sample(logits, indices=torch.empty(0, dtype=torch.int64)), (0,)),
    ):
        assert tokens.shape == shape
        assert tokens.dtype is torch.int64
        assert bool(((tokens >= 0) & (tokens < VOCAB)).all())


def test_one_row_is_the_first_of_a_batch(sample: Sample, logits: Tensor) -> None:
    several = sample(logits, 0.9, 20, 0.95, seed=11, offset=5, num_samples=7)
    assert torch.equal(sample(logits[0], 0.9, 20, 0.95, seed=11, offset=5, num_samples=7), several[0])
    assert int(sample(logits[0], 0.9, 20, 0.95, seed=11, offset=5)) == int(several[0, 0])
    assert torch.equal(sample(logits, 0.9, 20, 0.95, seed=11, offset=5), several[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides_and_offset(sample: Sample, logits: Tensor, dtype: torch.dtype) -> None:
    logits = logits.to(dtype)
    expected = sample(logits, 0.8, 30, 0.9, seed=1, num_samples=3)
    for offset in range(1, 9):
        storage = torch.full((6, VOCAB + 19), float("nan"), dtype=dtype)
        view = storage[:, offset : offset + VOCAB]
        view.copy_(logits)
        assert torch.equal(sample(view, 0.8, 30, 0.9, seed=1, num_samples=3), expected)
    transposed = logits.t().contiguous().t()
    every_second = torch.stack([logits, torch.full_like(logits, float("nan"))], dim=-1).flatten(1)[:, ::2]
    backwards = torch.cat([logits, logits]).unflatten(0, (2, 6))[1]
    for view in (transposed, every_second, backwards):
        assert torch.equal(sample(view, 0.8, 30, 0.9, seed=1, num_samples=3), expected)
    same_row = logits[:1].expand(6, VOCAB)
    assert torch.equal(sample(same_row, seed=1, num_samples=3), sample(same_row.contiguous(), seed=1, num_samples=3))
    one_value = logits[:1, :1].expand(2, VOCAB)
    assert torch.equal(sample(one_value, seed=1), sample(one_value.contiguous(), seed=1))


def test_the_logits_are_not_changed(sample: Sample, logits: Tensor) -> None:
    before = logits.clone()
    sample(logits, 0.5, 5, 0.5, 0.1, num_samples=4, replacement=False)
    assert torch.equal(logits, before)


def test_parameters_per_row(sample: Sample, logits: Tensor) -> None:
    temperature, top_k = [0.0, 0.5, 1.0, 2.0, 0.1, 30.0], [0, 5, 1, 100, -1, 10]
    top_p, min_p = [0.5, 1.0, 0.9, 0.0, 0.99, 0.3], [0.0, 0.1, 0.0, 0.01, 1.0, 0.0]
    seeds, offsets, streams = [1, 2, 2**63 - 1, -5, 0, 9], [0, 1, 2, 3, -1, 2**40], [0, 0, 7, 2**32 - 1, 3, 1]
    tokens = sample(
        logits,
        torch.tensor(temperature),
        torch.tensor(top_k),
        torch.tensor(top_p),
        torch.tensor(min_p),
        seed=torch.tensor(seeds),
        offset=torch.tensor(offsets),
        stream=torch.tensor(streams),
        num_samples=5,
    )
    filters = list(zip(temperature, top_k, top_p, min_p, strict=True))
    words = list(zip(seeds, offsets, streams, strict=True))
    assert torch.equal(tokens, row_by_row(logits, filters, words, 5))


def test_parameters_with_strides(sample: Sample, logits: Tensor) -> None:
    def strided(values: Tensor) -> Tensor:
        return torch.stack([values, torch.zeros_like(values)], dim=1)[:, 0]

    temperature, top_k = torch.linspace(0.1, 2, 6), torch.arange(1, 7)
    top_p, min_p = torch.linspace(0.2, 1, 6), torch.linspace(0, 0.2, 6)
    parameters = (temperature, top_k, top_p, min_p)
    seeds = {"seed": torch.arange(6), "offset": torch.arange(6) * 3, "stream": torch.arange(6) + 2}
    expected = sample(logits, *parameters, **seeds, num_samples=4)
    views = {name: strided(values) for name, values in seeds.items()}
    assert torch.equal(sample(logits, *map(strided, parameters), **views, num_samples=4), expected)
    shared = sample(logits, torch.tensor(0.7).expand(6), 5, seed=torch.tensor(4).expand(6))
    assert torch.equal(shared, sample(logits, 0.7, 5, seed=torch.full((6,), 4)))


def test_a_number_on_the_device_is_that_number(sample: Sample, logits: Tensor) -> None:
    expected = sample(logits, 0.7, 10, 0.9, 0.05, seed=3, offset=4, stream=5, num_samples=3)
    numbers = (torch.tensor(0.7), torch.tensor(10), torch.tensor(0.9), torch.tensor(0.05))
    tokens = sample(
        logits, *numbers, seed=torch.tensor(3), offset=torch.tensor(4), stream=torch.tensor(5), num_samples=3
    )
    assert torch.equal(tokens, expected)


def test_python_numbers_are_rounded_to_float32(sample: Sample, logits: Tensor) -> None:
    for temperature, top_p, min_p in (
        (0.1, 0.9, 0.05),
        (1e-50, 1e-50, 1e-50),
        (1e300, 1.0, 0.0),
        (1 / 3, 2 / 3, 1 / 7),
    ):
        in_float32 = torch.tensor([temperature, top_p, min_p], dtype=torch.float64).float()
        tokens = sample(logits, temperature, 0, top_p, min_p, seed=1, num_samples=8)
        assert torch.equal(
            tokens, sample(logits, in_float32[0], 0, in_float32[1], in_float32[2], seed=1, num_samples=8)
        )


def test_streams(sample: Sample, logits: Tensor) -> None:
    """Law section 4: a shared seed adds the output row to the stream, per-request seeds do not."""
    same = logits[:1].expand(6, VOCAB)
    plain = [(1.0, 0, 1.0, 0.0)] * 6
    shared = row_by_row(same, plain, [(5, 9, 3 + row) for row in range(6)], 4)
    assert torch.equal(sample(same, seed=5, offset=9, stream=3, num_samples=4), shared)
    wrapped = row_by_row(same, plain, [(5, 9, (2**32 - 2 + row) % 2**32) for row in range(6)], 4)
    assert torch.equal(sample(same, seed=5, offset=9, stream=2**32 - 2, num_samples=4), wrapped)
    assert torch.equal(sample(same, seed=5, offset=9, stream=-2, num_samples=4), wrapped)
    requests = row_by_row(same, plain, [(5, 9, 3)] * 6, 4)
    assert torch.equal(sample(same, seed=torch.full((6,), 5), offset=9, stream=3, num_samples=4), requests)
    assert torch.equal(sample(same, seed=2**64 + 5, offset=9 - 2**64, stream=3 + 2**32, num_samples=4), shared)


def test_a_request_does_not_depend_on_its_place(sample: Sample, logits: Tensor) -> None:
    seeds, offsets = torch.tensor([3, 1, 4, 1, 5, 9]), torch.tensor([0, 7, 2, 8, 1, 8])
    tokens = sample(logits, 0.9, 40, 0.95, seed=seeds, offset=offsets)
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    assert torch.equal(sample(logits[order], 0.9, 40, 0.95, seed=seeds[order], offset=offsets[order]), tokens[order])
    for row in range(6):
        alone = sample(logits[row], 0.9, 40, 0.95, seed=seeds[row : row + 1], offset=offsets[row : row + 1])
        assert int(alone) == int(tokens[row])


def test_indices(sample: Sample, logits: Tensor) -> None:
    indices = torch.tensor([4, 0, 0, 5, 2, 2, 2])
    temperature = torch.linspace(0.2, 3, 7)
    expected = sample(logits[indices], temperature, 30, seed=2, num_samples=3)
    for given in (indices, indices.int(), indices.to(torch.uint8), torch.stack([indices, indices], 1)[:, 1]):
        assert torch.equal(sample(logits, temperature, 30, seed=2, num_samples=3, indices=given), expected)
    outside = sample(logits, seed=2, indices=torch.tensor([6, 0, -1, 2**40, 5]))
    assert (outside == -1).tolist() == [True, False, True, True, False]
    assert torch.equal(outside[[1, 4]], sample(logits, seed=2, indices=torch.tensor([0, 0, 0, 0, 5]))[[1, 4]])
    assert sample(logits[:0], indices=torch.tensor([0, 1])).tolist() == [-1, -1]


def test_out(sample: Sample, logits: Tensor, poisoned_memory: None) -> None:
    expected = sample(logits, seed=1, num_samples=3)
    wide = torch.full((6, 8), -7)
    for out in (torch.empty(6, 3, dtype=torch.int64), wide[:, 1:7:2], torch.empty(3, 6, dtype=torch.int64).t()):
        version = out._version
        assert sample(logits, seed=1, num_samples=3, out=out) is out
        assert torch.equal(out, expected)
        assert out._version > version
    assert bool((wide[:, ::2] == -7).all()), "nothing beside the view may be written"
    column = torch.full((6, 2), -7)
    assert torch.equal(sample(logits, seed=1, out=column[:, 1]), expected[:, 0])
    assert column[:, 0].tolist() == [-7] * 6
    scalar = torch.empty((), dtype=torch.int64)
    assert sample(logits[0], seed=1, out=scalar) is scalar
    assert int(scalar) == int(expected[0, 0])


def test_every_result_is_written(sample: Sample, logits: Tensor, poisoned_memory: None) -> None:
    logits[1, 3] = float("nan")
    tokens = sample(logits, num_samples=VOCAB + 5, replacement=False, top_k=4, seed=1)
    assert bool((tokens < VOCAB).all())
    assert (tokens >= 0).sum(dim=1).tolist() == [4, 0, 4, 4, 4, 4]


def test_without_replacement(sample: Sample, logits: Tensor) -> None:
    tokens = sample(logits, num_samples=VOCAB + 3, replacement=False, seed=3)
    assert torch.equal(tokens[:, :VOCAB].sort().values, torch.arange(VOCAB).expand(6, VOCAB))
    assert bool((tokens[:, VOCAB:] == -1).all())
    assert torch.equal(tokens[:, 0], sample(logits, seed=3))


@pytest.mark.usefixtures("_other_default_generator")
def test_generators(sample: Sample, logits: Tensor) -> None:
    torch.manual_seed(5)
    seed, offset = torch.empty(2, dtype=torch.int64).random_().tolist()
    expected = sample(logits, 0.9, seed=seed, offset=offset)
    torch.manual_seed(5)
    assert torch.equal(sample(logits, 0.9), expected)
    following = sample(logits, 0.9)
    assert not torch.equal(following, expected)
    generator = torch.Generator().manual_seed(5)
    default = torch.get_rng_state()
    assert torch.equal(sample(logits, 0.9, generator=generator), expected)
    assert torch.equal(sample(logits, 0.9, generator=generator), following)
    assert torch.equal(torch.get_rng_state(), default)
    sample(logits, seed=1)
    assert torch.equal(torch.get_rng_state(), default), "an explicit seed must leave the default generator alone"


def test_rows_that_cannot_be_sampled(sample: Sample, logits: Tensor) -> None:
    good = sample(logits, seed=1)
    logits[0, 5] = float("nan")
    logits[2] = float("-inf")
    bad = torch.tensor([True, False, True, False, True, False])
    temperature = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 1.0])
    tokens = sample(logits, temperature, seed=1, num_samples=2)
    assert bool((tokens[bad] == -1).all())
    assert torch.equal(tokens[~bad, 0], good[~bad])
    for name, value in (("temperature", float("nan")), ("top_p", 1.5), ("top_p", float("nan")), ("min_p", -0.5)):
        rows = torch.full((6,), 0.5)
        rows[3] = value
        assert (sample(logits[1:2].expand(6, VOCAB), **{name: rows}) == -1).nonzero().tolist() == [[3]]
        assert bool((sample(logits, **{name: torch.tensor(value)}) == -1).all())


def test_raising_names_rows_and_reasons(sample: Sample, logits: Tensor) -> None:
    good = sample(logits, seed=1, errors="raise")
    assert torch.equal(good, sample(logits, seed=1))
    logits[0, 5] = logits[0, 9] = float("nan")
    logits[2] = float("-inf")
    temperature, top_p = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.5, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="4 of 6 rows") as caught:
        sample(logits, temperature, 0, top_p, seed=1, errors="raise")
    message = str(caught.value)
    for reason in (
        "row 0: 2 of its logits are NaN, the first at token 5",
        "row 2: every logit is -inf",
        "row 4: temperature = -1.5",
        "row 5: top_p = 2",
    ):
        assert reason in message
    assert "row 1" not in message
    with pytest.raises(ValueError, match="row 1: indices = 9, accepted: 0 to 5"):
        sample(logits, indices=torch.tensor([1, 9]), errors="raise")
    with pytest.raises(ValueError, match="row 0: min_p = nan"):
        sample(logits[1], 1.0, 0, 1.0, torch.tensor(float("nan")), errors="raise")
    with pytest.raises(ValueError, match=r"20 of 20 rows.*; and 12 more$"):
        sample(logits[2:3].expand(20, VOCAB), errors="raise")
    assert sample(logits[:0], errors="raise").shape == (0,)
    few = sample(logits[1], top_k=2, num_samples=4, replacement=False, errors="raise", seed=1)
    assert few.tolist()[2:] == [-1, -1], "a row that runs out of tokens is no error"


def test_greedy_is_the_first_maximum(sample: Sample, logits: Tensor) -> None:
    logits[:, 40] = logits[:, 13] = 50.0
    for temperature in (0.0, -0.0, 0, 1e-60, torch.tensor(-0.0), torch.zeros(6)):
        assert sample(logits, temperature, num_samples=2).tolist() == [[13, 13]] * 6


def test_logits_that_require_grad(sample: Sample, logits: Tensor) -> None:
    expected = sample(logits, seed=1)
    tokens = sample(logits.clone().requires_grad_(), seed=1)
    assert torch.equal(tokens, expected)
    assert not tokens.requires_grad
    with torch.inference_mode():
        assert torch.equal(sample(logits.clone(), seed=1), expected)
    assert torch.equal(sample(torch.nn.Parameter(logits), seed=1), expected)


def test_auto_is_one_of_them(logits: Tensor) -> None:
    assert torch.equal(
        fastsample.sample(logits, 0.8, 20, 0.9, seed=1),
        fastsample.sample(logits, 0.8, 20, 0.9, seed=1, backend="reference"),
    )


def test_statuses() -> None:
    status = fastsample.backends()
    assert list(status) == ["reference", "cpu", "triton", "cuda"]
    assert status["reference"].usable
    for name, backend in status.items():
        assert backend.name == name
        assert backend.detail
        assert (backend.instruction_set is not None) == (name == "cpu" and backend.usable)
        if not backend.usable:
            with pytest.raises((ValueError, RuntimeError), match=name):
                fastsample.sample(torch.zeros(2, 3), backend=name)

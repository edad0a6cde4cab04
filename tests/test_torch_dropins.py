"""`multinomial` and `patch_torch`: torch's shapes, dtypes and errors, message by message, on the tokens of the law."""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

import fastsample
from fastsample import ops, torch_dropins
from fastsample.arguments import Filters
from fastsample.torch_dropins import MAX_DRAWS_WITHOUT_REPLACEMENT

PROBS = torch.tensor([0.2, 0.8])
TABLE = torch.rand(3, 5, generator=torch.Generator().manual_seed(1))
TWO_ROWS = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
INT64 = {"dtype": torch.int64}
NAN, INF = math.nan, math.inf
_NO_FILTERS = Filters(1.0, None, 0, None, 1.0, None, 0.0, None, 0)


def law(probs: Tensor, num_samples: int, replacement: bool, seed: int) -> Tensor:
    """The tokens of the reference for float32 `probs` [batch, categories] and a generator with this seed."""
    words = torch.empty(2, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(seed)).tolist()
    out = torch.empty(probs.shape[0], num_samples, dtype=torch.int64)
    randomness = (words[0], None, words[1], None, 0, None, True)
    ops.for_backend("reference").sample(out, probs, None, *_NO_FILTERS, *randomness, replacement, True)
    return out


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("replacement", [False, True])
def test_draws_by_the_law(replacement: bool) -> None:
    probs = torch.rand(4, 300, generator=generator()) ** 8
    for num_samples in (1, 2, 50):
        expected = law(probs, num_samples, replacement, 5)
        assert torch.equal(fastsample.multinomial(probs, num_samples, replacement, generator=generator()), expected)
        first = fastsample.multinomial(probs[0], num_samples, replacement, generator=generator())
        assert torch.equal(first, expected[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            assert torch.equal(fastsample.multinomial(probs, num_samples, replacement), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda multinomial: multinomial(PROBS, 1),
        lambda multinomial: multinomial(PROBS, 2),
        lambda multinomial: multinomial(PROBS, 7, True),
        lambda multinomial: multinomial(TABLE, 1),
        lambda multinomial: multinomial(TABLE, 5),
        lambda multinomial: multinomial(TABLE, 9, replacement=True),
        lambda multinomial: multinomial(TABLE[:0], 2),
        lambda multinomial: multinomial(TABLE[:0], 2, True),
        lambda multinomial: multinomial(torch.empty(0, 0), 1, True),
        lambda multinomial: multinomial(TABLE.t(), 2),
        lambda multinomial: multinomial(TABLE[:, ::2], 2),
        lambda multinomial: multinomial(TABLE[:1].expand(4, 5), 2),
        lambda multinomial: multinomial(TABLE.half(), 2),
        lambda multinomial: multinomial(TABLE.bfloat16(), 2),
        lambda multinomial: multinomial(TABLE.double(), 2),
        lambda multinomial: multinomial(TABLE * 1e30, 2),
        lambda multinomial: multinomial(input=TABLE, num_samples=2),
        lambda multinomial: multinomial(PROBS, np.int64(1)),
        lambda multinomial: multinomial(PROBS, torch.tensor(2)),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(3, 2, **INT64)),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(0, **INT64)),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(9, 9, **INT64)),
        lambda multinomial: multinomial(PROBS, 1, out=torch.empty(3, **INT64)),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(2, 3, **INT64).t()),
        lambda multinomial: multinomial(PROBS.clone().requires_grad_(), 1),
        lambda multinomial: multinomial(TABLE.to("meta"), 2),
    ],
)
def test_shapes_are_torchs(call: Callable[[Any], Tensor]) -> None:
    ours, torchs = call(fastsample.multinomial), call(torch.multinomial)
    assert ours.shape == torchs.shape
    assert ours.dtype is torchs.dtype is torch.int64
    assert ours.stride() == torchs.stride()
    assert ours.device == torchs.device
    assert ours.requires_grad is torchs.requires_grad is False


@pytest.mark.parametrize(
    "call",
    [
        # the arguments
        lambda multinomial: multinomial(PROBS, 0),
        lambda multinomial: multinomial(PROBS, -1),
        lambda multinomial: multinomial(PROBS, 3),
        lambda multinomial: multinomial(TABLE, 6),
        lambda multinomial: multinomial(PROBS, 1.0),
        lambda multinomial: multinomial(PROBS, True),
        lambda multinomial: multinomial(PROBS, None),
        lambda multinomial: multinomial(PROBS, "1"),
        lambda multinomial: multinomial(PROBS, [1]),
        lambda multinomial: multinomial(PROBS, torch.tensor(1.0)),
        lambda multinomial: multinomial(PROBS, torch.tensor([1, 1])),
        lambda multinomial: multinomial(PROBS, 1, 1),
        lambda multinomial: multinomial(PROBS, 1, "yes"),
        lambda multinomial: multinomial(PROBS, 1, generator=3),
        lambda multinomial: multinomial([0.2, 0.8], 1),
        lambda multinomial: multinomial(None, 1),
        # the kind of tensor
        lambda multinomial: multinomial(torch.tensor(1.0), 1),
        lambda multinomial: multinomial(torch.rand(2, 2, 2), 1),
        lambda multinomial: multinomial(torch.tensor([1, 2]), 1),
        lambda multinomial: multinomial(torch.tensor([True, True]), 1),
        lambda multinomial: multinomial(PROBS.to(torch.complex64), 1),
        lambda multinomial: multinomial(PROBS.to(torch.float8_e4m3fn), 1),
        lambda multinomial: multinomial(PROBS.to_sparse(), 1),
        lambda multinomial: multinomial(torch.empty(3, 0), 1),
        lambda multinomial: multinomial(torch.empty(0), 1),
        lambda multinomial: multinomial(torch.empty(0), 2, True),
        # out
        lambda multinomial: multinomial(PROBS, 1, out=[1]),
        lambda multinomial: multinomial(PROBS, 1, out=torch.empty(1)),
        lambda multinomial: multinomial(PROBS, 1, out=torch.empty(1, dtype=torch.int32)),
        lambda multinomial: multinomial(PROBS, 1, out=torch.empty(1, **INT64, device="meta")),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(1, **INT64).expand(3, 2)),
        lambda multinomial: multinomial(TABLE, 2, out=torch.empty(3, 1, **INT64).expand(3, 2)),
        # the values
        *(
            lambda multinomial, values=values, given=given: multinomial(torch.tensor(values), *given)
            for given in ((1,), (2,), (1, True), (2, True))
            for values in (
                [-0.2, 0.8],
                [NAN, 0.8],
                [INF, 0.8],
                [0.3, -INF],
                [0.0, 0.0],
                [0.0, -0.0],
                [[0.5, 0.5], [0.0, 0.0]],
                [[0.0, 0.0], [0.5, NAN]],
                [[0.5, INF], [-0.5, 0.5]],
                [[0.5, 0.5], [INF, -1.0]],
                [[0.5, 0.5], [-1.0, INF]],
            )
        ),
        lambda multinomial: multinomial(torch.tensor([-1e-300, 1.0], dtype=torch.float64), 1),
        lambda multinomial: multinomial(torch.tensor([1.0, NAN], dtype=torch.float64), 2, True),
        lambda multinomial: multinomial(torch.tensor([0.0, INF], dtype=torch.float16), 1),
        lambda multinomial: multinomial(torch.tensor([0.0, -1.0], dtype=torch.bfloat16), 2, True),
        lambda multinomial: multinomial(-PROBS, 0),
    ],
)
def test_errors_are_torchs(call: Callable[[Any], Tensor]) -> None:
    with pytest.raises((RuntimeError, TypeError)) as torchs:
        call(torch.multinomial)
    with pytest.raises((RuntimeError, TypeError)) as ours:
        call(fastsample.multinomial)
    assert ours.type is torchs.type
    assert str(ours.value) == str(torchs.value)
    with fastsample.patch_torch(), pytest.raises((RuntimeError, TypeError)) as patched:
        call(torch.multinomial)
    assert patched.type is torchs.type
    assert str(patched.value) == str(torchs.value)


def test_no_categories_with_replacement() -> None:
    """torch fails here too, but inside of itself (`aminmax(): cannot compute ...`); the type is the same."""
    with pytest.raises(RuntimeError):
        fastsample.multinomial(torch.empty(3, 0), 1, True)


def test_too_few_categories() -> None:
    """torch documents this as not allowed, and draws impossible categories; here it is an error."""
    for probs, row in ((torch.tensor([0.0, 1.0, 0.0]), 0), (torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]), 1)):
        with pytest.raises(RuntimeError, match=rf"row {row} has 1 elements > 0, fewer than the 2 samples"):
            fastsample.multinomial(probs, 2)
    assert fastsample.multinomial(torch.tensor([0.0, 1.0, 0.0]), 5, True).tolist() == [1] * 5


def test_categories_that_weigh_nothing() -> None:
    """Enough categories, but some below the law's resolution: torch draws them."""
    probs = torch.tensor([1.0, 1e-20, 0.0, 1e-30])
    assert sorted(fastsample.multinomial(probs, 3).tolist()) == [0, 1, 3]
    assert fastsample.multinomial(probs, 100, True).tolist() == [0] * 100


def test_float64_rows_are_scaled() -> None:
    ratios = torch.tensor([1.0, 3.0, 0.0, 5.0, 2.0], dtype=torch.float64)
    expected = fastsample.multinomial(ratios.float()[None].expand(6, 5), 400, True, generator=generator())
    scales = torch.tensor([5e-324, 2.0**-1000, 2.0**-126, 2.0**100, 2.0**1000, 2.0**1021], dtype=torch.float64)
    rows = scales[:, None] * ratios
    assert torch.equal(fastsample.multinomial(rows, 400, True, generator=generator()), expected)
    mixed = torch.tensor([1e308, 1e-308], dtype=torch.float64)
    assert fastsample.multinomial(mixed, 50, True).tolist() == [0] * 50
    assert sorted(fastsample.multinomial(mixed, 2).tolist()) == [0, 1]


def test_more_categories_than_torch_takes() -> None:
    probs = torch.zeros(2**24 + 1)
    probs[-1] = probs[12345] = 0.5
    with pytest.raises(RuntimeError, match=r"2\^24"):
        torch.multinomial(probs, 1)
    drawn = fastsample.multinomial(probs, 64, True, generator=generator())
    assert set(drawn.tolist()) == {12345, 2**24}
    assert sorted(fastsample.multinomial(probs, 2).tolist()) == [12345, 2**24]
    probs[0] = NAN
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        fastsample.multinomial(probs, 1)


def test_many_draws_are_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    probs = torch.rand(2, MAX_DRAWS_WITHOUT_REPLACEMENT + 1)
    handed_over = []
    original = torch_dropins._torch_multinomial
    monkeypatch.setattr(
        torch_dropins, "_torch_multinomial", lambda *given: handed_over.append(given[1]) or original(*given)
    )
    most = fastsample.multinomial(probs, MAX_DRAWS_WITHOUT_REPLACEMENT, generator=generator())
    assert handed_over == []
    assert torch.equal(most, law(probs, MAX_DRAWS_WITHOUT_REPLACEMENT, False, 5))
    count = MAX_DRAWS_WITHOUT_REPLACEMENT + 1
    everything = fastsample.multinomial(probs, count, generator=generator())
    assert handed_over == [count]
    assert torch.equal(everything, torch.multinomial(probs, count, generator=generator()))
    assert fastsample.multinomial(probs, 3 * count, True).shape == (2, 3 * count)
    assert handed_over == [count]


def test_out() -> None:
    expected = fastsample.multinomial(TABLE, 2, generator=generator())
    wide = torch.full((3, 5), -7)
    view = wide[:, 1:4:2]
    version = view._version
    assert fastsample.multinomial(TABLE, 2, generator=generator(), out=view) is view
    assert torch.equal(view, expected)
    assert wide[:, ::2].tolist() == [[-7] * 3] * 3
    assert view._version > version
    empty = torch.empty(0, dtype=torch.int64)
    assert fastsample.multinomial(TABLE, 2, generator=generator(), out=empty) is empty
    assert torch.equal(empty, expected)


def test_every_name_is_patched() -> None:
    expected = fastsample.multinomial(TABLE, 3, generator=generator())
    unpatched = torch.multinomial(TABLE, 3, generator=generator())
    assert not torch.equal(expected, unpatched)
    with fastsample.patch_torch():
        assert torch.equal(torch.multinomial(TABLE, 3, generator=generator()), expected)
        assert torch.equal(torch.multinomial(input=TABLE, num_samples=3, generator=generator()), expected)
        assert torch.equal(TABLE.multinomial(3, generator=generator()), expected)
        assert torch.equal(fastsample.multinomial(TABLE, 3, generator=generator()), expected)
        out = torch.empty(3, 3, dtype=torch.int64)
        assert torch.multinomial(TABLE, 3, generator=generator(), out=out) is out
        assert torch.equal(out, expected)
    assert torch.equal(torch.multinomial(TABLE, 3, generator=generator()), unpatched)


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (4,), (2, 5)])
def test_categorical(batch_shape: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    probs = torch.rand(*batch_shape, 7)
    for categorical in (Categorical(probs=probs), Categorical(logits=probs)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            with fastsample.patch_torch():
                drawn = categorical.sample(sample_shape)
            torch.manual_seed(3)
            rows = categorical.probs.reshape(-1, 7)
            expected = fastsample.multinomial(rows, math.prod(sample_shape), True).T.reshape(sample_shape + batch_shape)
        assert torch.equal(drawn, expected)


def test_what_is_not_served_passes_through() -> None:
    with fastsample.patch_torch():
        assert torch.multinomial(TABLE.to("meta"), 2).is_meta
        assert torch.equal(torch.arange(3) + 1, torch.tensor([1, 2, 3]))

        class Named(Tensor):
            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return "its own" if func is torch.multinomial else NotImplemented

        assert torch.multinomial(TABLE.as_subclass(Named), 2) == "its own"


def test_patch_nests_and_restores() -> None:
    expected = fastsample.multinomial(TABLE, 3, generator=generator())

    def patched() -> bool:
        return torch.equal(torch.multinomial(TABLE, 3, generator=generator()), expected)

    class Leave(Exception):
        pass

    assert not patched()
    with fastsample.patch_torch():
        with fastsample.patch_torch():
            assert patched()
        assert patched()
        with pytest.raises(Leave), fastsample.patch_torch():
            raise Leave
        assert patched()
    assert not patched()
    with pytest.raises(Leave), fastsample.patch_torch():
        raise Leave
    assert not patched()

    decorated = fastsample.patch_torch()(patched)
    assert decorated()
    assert decorated(), "a decorated function can be called again"
    assert not patched()

    @fastsample.patch_torch()
    def fails() -> None:
        raise Leave

    with pytest.raises(Leave):
        fails()
    assert not patched()


def test_patch_is_for_one_thread() -> None:
    expected = fastsample.multinomial(TABLE, 3, generator=generator())
    inside, left = threading.Event(), threading.Event()
    seen: dict[str, bool] = {}

    def patched() -> bool:
        return torch.equal(torch.multinomial(TABLE, 3, generator=generator()), expected)

    def other() -> None:
        inside.wait(30)
        seen["while another thread is patched"] = patched()
        with fastsample.patch_torch():
            left.wait(30)
            seen["in its own patch"] = patched()

    thread = threading.Thread(target=other)
    thread.start()
    with fastsample.patch_torch():
        inside.set()
        assert patched()
    left.set()
    assert not patched()
    thread.join(30)
    assert seen == {"while another thread is patched": False, "in its own patch": True}


def test_threads_at_once() -> None:
    expected = [fastsample.multinomial(TABLE, 3, generator=generator(seed)) for seed in range(8)]
    wrong: list[int] = []

    def draw(seed: int) -> None:
        for _ in range(50):
            with fastsample.patch_torch():
                if not torch.equal(torch.multinomial(TABLE, 3, generator=generator(seed)), expected[seed]):
                    wrong.append(seed)

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []

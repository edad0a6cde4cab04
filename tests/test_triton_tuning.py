"""How Triton's work is divided by default, and that a measured division is found again and changes no token."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import fastsample
from fastsample import ops
from missing import missing

if ops.triton_status() == "triton is not installed":
    missing("triton is not installed")

from fastsample.triton_kernels import call, policy, tuning
from fastsample.triton_kernels.policy import Division

CPU = torch.device("cpu")


@pytest.fixture
def tuning_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "of" / "this-user.json"
    monkeypatch.setenv(tuning.FILE_VARIABLE, str(path))
    tuning._known.cache_clear()
    yield path
    tuning._known.cache_clear()


def power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


@pytest.mark.parametrize("bytes_per_token", [4, 2])
def test_default_divisions(bytes_per_token: int) -> None:
    for vocab in (1, 31, 4096, 4097, 32000, 50257, 128256, 262144, 2**22):
        for rows in (1, 2, 16, 64, 133, 4096, 65536):
            for largest_k in (0, 1, 50, 1000, vocab):
                division = policy.by_default(vocab, rows, bytes_per_token, largest_k, 132)
                chunks = -(-vocab // division.chunk)
                assert all(map(power_of_two, (division.chunk, division.block, division.list, division.warps)))
                assert division.block % division.chunk == 0
                assert chunks <= 4096
                assert 4 <= division.warps <= 16
                assert 1 <= division.parts <= chunks
                # Every part has a block of its own, and more programs than four a multiprocessor only for more rows.
                assert division.parts * division.block < vocab + division.block
                assert division.parts * rows < 4 * 132 + rows
                if division.resident:
                    assert vocab <= division.block
                    assert division.parts == 1
                if 0 < largest_k <= 1024:
                    assert division.list >= min(4 * largest_k, vocab)
                assert policy.is_possible(division, vocab)


def test_the_default_depends_on_its_arguments_alone() -> None:
    first = policy.by_default(128256, 64, 4, 50, 132)
    assert first == policy.by_default.__wrapped__(128256, 64, 4, 50, 132)
    assert first == Division(64, 2048, 1024, False, 9, 8)


def timer_that_prefers(wanted: Callable[[Division], bool]) -> Callable[[Callable[[], object]], float]:
    """In place of a clock: says that some of the divisions take less time."""

    def milliseconds(function: Callable[[], object]) -> float:
        function()
        division = policy._forced.get()
        assert division is not None
        return 1.0 if wanted(division) else 2.0

    return milliseconds


@pytest.mark.skipif(not ops.triton_is_interpreted(), reason="there is a GPU: tests/gpu tunes on it")
def test_what_is_tuned_is_remembered(tuning_file: Path) -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1))
    expected = fastsample.sample(logits, seed=4, backend="reference")
    default = policy.choose(5000, 3, 4, 0, False, CPU)
    assert default == policy.by_default(5000, 3, 4, 0, 1)
    result = fastsample.triton_kernels.tune(
        logits, milliseconds=timer_that_prefers(lambda division: division.block == 4096 and division.warps == 16)
    )
    assert list(result.values()) == sorted(result.values())
    assert len(result) > 2
    chosen = policy.choose(5000, 3, 4, 0, False, CPU)
    assert (chosen.block, chosen.warps) == (4096, 16)
    assert chosen == policy.choose(5000, 4, 4, 0, False, CPU)  # to the next power of two of rows
    for other in ((5000, 5, 4, 0), (5000, 3, 2, 0), (5000, 3, 4, 50), (5001, 3, 4, 0)):
        assert policy.choose(*other, False, CPU) == policy.by_default(*other, 1)
    assert torch.equal(fastsample.sample(logits, seed=4, backend="triton"), expected)
    assert len(json.loads(tuning_file.read_text())) == 1
    assert list(tuning_file.parent.iterdir()) == [tuning_file]  # nothing half-written stays

    tuning._known.cache_clear()  # another process
    assert policy.choose(5000, 3, 4, 0, False, CPU) == chosen


KEY = "cpu|V=64|B=1|32 bit|plain"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        f'{{"{KEY}": [1, 2]}}',
        f'{{"{KEY}": "x"}}',
        f'{{"{KEY}": [64, 32, 256, 1, 1, 4]}}',  # the row does not fit into the block
        f'{{"{KEY}": [64, 64, 256, 1, 1, 3]}}',
        f'{{"{KEY}": [64, "64", 256, 1, 1, 4]}}',
        f'{{"{KEY}": [64, 64, 256, 0, 0, 4]}}',
    ],
)
def test_a_spoiled_file_is_as_good_as_none(tuning_file: Path, content: str) -> None:
    tuning_file.parent.mkdir()
    tuning_file.write_text(content)
    assert policy.choose(64, 1, 4, 0, False, CPU) == policy.by_default(64, 1, 4, 0, 1)


def test_the_list_is_never_that_of_another_top_k(tuning_file: Path) -> None:
    tuning_file.parent.mkdir()
    tuning_file.write_text('{"cpu|V=5000|B=1|32 bit|top_k": [64, 4096, 1024, 0, 1, 16]}')
    tuned = Division(64, 4096, 1024, False, 1, 16)
    assert policy.choose(5000, 1, 4, 50, False, CPU) == tuned
    assert policy.choose(5000, 1, 4, 500, False, CPU) == tuned._replace(list=4096)
    assert policy.choose(5000, 1, 4, 50, True, CPU) == policy.by_default(5000, 1, 4, 50, 1)


def test_tuning_needs_a_gpu(tuning_file: Path) -> None:
    with pytest.raises(RuntimeError, match="logits: on cpu; tuning measures a GPU"):
        tuning.tune(torch.zeros(1, 64))
    for logits, top_k in ((torch.zeros(64), 0), (torch.zeros(2, 64), torch.tensor([1, 2]))):
        with pytest.raises(ValueError, match=r"tuning takes logits \[batch, vocab\]"):
            tuning.tune(logits, top_k)
    assert not tuning_file.exists()


def test_forced_divisions_end_with_their_context() -> None:
    division = Division(64, 64, 256, True, 1, 4)
    with policy.forced(division):
        assert policy.choose(64, 1, 4, 0, False, CPU) == division
    with pytest.raises(TypeError), policy.forced(division):
        policy.choose()
    assert policy.choose(64, 1, 4, 0, False, CPU) == policy.by_default(64, 1, 4, 0, 1)


def test_integers_that_vary_never_look_special_to_triton() -> None:
    """1 and multiples of 16 would be kernels of their own."""
    from fastsample.triton_kernels import work

    for number in (-1, 0, 1, 2, 15, 16, 32, 2**22 - 1, 2**29):
        coded = work.coded(number)
        assert coded >> 2 == number
        assert coded != 1
        assert coded % 16 != 0
    for seed in (0, 1, 16, 2**22, 2**44, -1, -(2**63), 2**63 - 1):
        word = call.word_of(seed, None, torch.zeros(1))
        parts = [word.low >> 2, word.middle >> 2, word.high >> 2]
        assert (parts[0] | parts[1] << 22 | parts[2] << 44) == seed % 2**64
        assert all(-(2**31) <= coded < 2**31 for coded in word[:3])

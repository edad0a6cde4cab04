"""Bad arguments raise TypeError or ValueError that name argument, value and what is accepted, before any work."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import arguments
from fastsample.randomness import check_generator, seeded

BATCH, VOCAB = 3, 7
LOGITS = torch.zeros(BATCH, VOCAB)
CPU = torch.device("cpu")
NAN = float("nan")


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# (argument, value, exception, words that the message must hold besides the argument's name)
BAD_PARAMETERS = [
    ("temperature", -1.0, ValueError, ["-1.0", "at least 0"]),
    ("temperature", -1, ValueError, ["-1", "at least 0"]),
    ("temperature", -1e-50, ValueError, ["at least 0"]),
    ("temperature", NAN, ValueError, ["nan"]),
    ("temperature", -(10**400), ValueError, ["at least 0"]),
    ("temperature", np.float32(-2.0), ValueError, ["-2"]),
    ("temperature", True, TypeError, ["True", "bool"]),
    ("temperature", None, TypeError, ["None"]),
    ("temperature", "0.7", TypeError, ["'0.7'", "str"]),
    ("temperature", 1j, TypeError, ["complex"]),
    ("temperature", [0.5, 0.6, 0.7], TypeError, ["list"]),
    ("temperature", np.ones(3), TypeError, ["ndarray"]),
    ("temperature", torch.ones(BATCH, dtype=torch.int64), TypeError, ["torch.int64", "float32"]),
    ("temperature", torch.ones(BATCH, dtype=torch.bool), TypeError, ["torch.bool"]),
    ("temperature", torch.ones(BATCH, dtype=torch.complex64), TypeError, ["complex64"]),
    ("temperature", torch.ones(BATCH + 1), ValueError, ["[4]", "[3]"]),
    ("temperature", torch.ones(1), ValueError, ["[1]", "[3]"]),
    ("temperature", torch.ones(BATCH, 1), ValueError, ["[3, 1]", "[3]"]),
    ("temperature", torch.ones(BATCH).to_sparse(), TypeError, ["sparse"]),
    ("temperature", _meta(BATCH), ValueError, ["meta", "cpu"]),
    ("top_k", 2.0, TypeError, ["2.0", "float"]),
    ("top_k", None, TypeError, ["None"]),
    ("top_k", True, TypeError, ["True"]),
    ("top_k", np.float64(3.0), TypeError, ["float64"]),
    ("top_k", "50", TypeError, ["'50'"]),
    ("top_k", torch.ones(BATCH), TypeError, ["torch.float32", "integer"]),
    ("top_k", torch.ones(BATCH, dtype=torch.bool), TypeError, ["torch.bool"]),
    ("top_k", torch.ones(2, dtype=torch.int64), ValueError, ["[2]", "[3]"]),
    ("top_k", _meta(BATCH, dtype=torch.int64), ValueError, ["meta"]),
    ("top_p", 1.5, ValueError, ["1.5", "from 0 to 1"]),
    ("top_p", -0.1, ValueError, ["-0.1"]),
    ("top_p", NAN, ValueError, ["nan"]),
    ("top_p", 2, ValueError, ["2", "from 0 to 1"]),
    ("top_p", None, TypeError, ["None"]),
    ("top_p", False, TypeError, ["False"]),
    ("top_p", torch.ones(BATCH, dtype=torch.int32), TypeError, ["torch.int32"]),
    ("top_p", torch.ones(0), ValueError, ["[0]"]),
    ("top_p", _meta(), ValueError, ["meta"]),
    ("min_p", 1.0000001, ValueError, ["from 0 to 1"]),
    ("min_p", -1e-9, ValueError, ["-1e-09"]),
    ("min_p", NAN, ValueError, ["nan"]),
    ("min_p", None, TypeError, ["None"]),
    ("min_p", True, TypeError, ["True"]),
    ("min_p", torch.ones(BATCH, dtype=torch.uint8), TypeError, ["torch.uint8"]),
    ("min_p", torch.ones(BATCH, BATCH), ValueError, ["[3, 3]"]),
    ("min_p", _meta(BATCH), ValueError, ["meta"]),
    ("order", "top_p_first", ValueError, ["'top_p_first'", "'joint'"]),
    ("order", None, ValueError, ["None"]),
    ("order", 0, ValueError, ["0"]),
    ("backend", "gpu", ValueError, ["'gpu'", "reference"]),
    ("backend", None, ValueError, ["None"]),
]

BAD_SAMPLE_ARGUMENTS = [
    ("seed", 1.0, TypeError, ["1.0", "float"]),
    ("seed", True, TypeError, ["True"]),
    ("seed", "1", TypeError, ["'1'"]),
    ("seed", torch.ones(BATCH), TypeError, ["torch.float32"]),
    ("seed", torch.ones(2, dtype=torch.int64), ValueError, ["[2]", "[3]"]),
    ("seed", torch.ones(BATCH, 2, dtype=torch.int64), ValueError, ["[3, 2]"]),
    ("seed", _meta(BATCH, dtype=torch.int64), ValueError, ["meta"]),
    ("generator", 3, TypeError, ["3", "torch.Generator"]),
    ("replacement", 1, TypeError, ["1", "True or False"]),
    ("replacement", None, TypeError, ["None"]),
    ("num_samples", 0, ValueError, ["0", "at least 1"]),
    ("num_samples", -1, ValueError, ["-1"]),
    ("num_samples", 1.0, TypeError, ["1.0"]),
    ("num_samples", True, TypeError, ["True"]),
    ("num_samples", torch.tensor(2), TypeError, ["shape []"]),
    ("indices", [0, 1], TypeError, ["list"]),
    ("indices", torch.ones(2), TypeError, ["torch.float32"]),
    ("indices", torch.ones(2, dtype=torch.bool), TypeError, ["torch.bool"]),
    ("indices", torch.ones(2, 1, dtype=torch.int64), ValueError, ["[2, 1]", "[batch]"]),
    ("indices", torch.tensor(1), ValueError, ["[]"]),
    ("indices", _meta(2, dtype=torch.int64), ValueError, ["meta", "cpu"]),
    ("out", [1, 2, 3], TypeError, ["list"]),
    ("out", torch.empty(BATCH, dtype=torch.int32), TypeError, ["torch.int32", "torch.int64"]),
    ("out", torch.empty(BATCH, 1, dtype=torch.int64), ValueError, ["[3, 1]", "[3]"]),
    ("out", torch.empty(BATCH + 1, dtype=torch.int64), ValueError, ["[4]", "[3]"]),
    ("out", _meta(BATCH, dtype=torch.int64), ValueError, ["meta", "cpu"]),
    ("out", torch.empty(1, dtype=torch.int64).expand(BATCH), ValueError, ["one place"]),
    ("errors", "ignore", ValueError, ["'ignore'", "sentinel"]),
    ("errors", None, ValueError, ["None"]),
]

with warnings.catch_warnings():
    # torch calls these kinds of tensors deprecated, beta and prototype as they are made.
    warnings.simplefilter("ignore")
    QUANTIZED = torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8)
    COMPRESSED = torch.eye(3).to_sparse_csr()
    NESTED = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])

BAD_LOGITS = [
    ([[1.0, 2.0]], TypeError, ["list", "torch.Tensor"]),
    (np.zeros((2, 3), dtype=np.float32), TypeError, ["ndarray"]),
    (None, TypeError, ["None"]),
    (torch.zeros(2, 3, dtype=torch.float64), TypeError, ["torch.float64", "float32"]),
    (torch.zeros(2, 3, dtype=torch.int64), TypeError, ["torch.int64"]),
    (torch.zeros(2, 3, dtype=torch.complex64), TypeError, ["complex64"]),
    (torch.zeros(2, 3, dtype=torch.bool), TypeError, ["torch.bool"]),
    (torch.zeros(2, 3).to(torch.float8_e4m3fn), TypeError, ["float8_e4m3fn"]),
    (QUANTIZED, TypeError, ["qint8"]),
    (torch.eye(3).to_sparse(), TypeError, ["sparse"]),
    (COMPRESSED, TypeError, ["sparse"]),
    (NESTED, TypeError, ["nested"]),
    (torch.zeros(()), ValueError, ["[]", "[batch, vocab]"]),
    (torch.zeros(2, 3, 4), ValueError, ["[2, 3, 4]", "[batch, vocab]"]),
    (torch.zeros(2, 0), ValueError, ["[2, 0]", "at least 1"]),
    (torch.zeros(0), ValueError, ["[0]", "at least 1"]),
    (torch.zeros(1).expand(2**22 + 1), ValueError, ["4194305", "2^22"]),
    (_meta(2, 3), ValueError, ["meta"]),
]

BAD_TOKENS = [
    (LOGITS, [1, 2, 3], TypeError, ["list"]),
    (LOGITS, torch.ones(BATCH), TypeError, ["torch.float32"]),
    (LOGITS, torch.ones(BATCH, dtype=torch.bool), TypeError, ["torch.bool"]),
    (LOGITS, torch.ones(BATCH + 1, dtype=torch.int64), ValueError, ["[4]", "[3]"]),
    (LOGITS, torch.tensor(1), ValueError, ["[]"]),
    (LOGITS, torch.ones(1, 2, dtype=torch.int64), ValueError, ["[1, 2]"]),
    (LOGITS, torch.ones(BATCH, 1, 1, dtype=torch.int64), ValueError, ["[3, 1, 1]"]),
    (LOGITS, _meta(BATCH, dtype=torch.int64), ValueError, ["meta"]),
    (LOGITS[0], torch.ones(2, 2, dtype=torch.int64), ValueError, ["[2, 2]", "1-D"]),
]


def _raises(call: Callable[[], object], exception: type[Exception], argument: str, words: list[str]) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert caught.type is exception
    message = str(caught.value)
    for word in (argument, *words):
        assert word in message


@pytest.mark.parametrize(("argument", "value", "exception", "words"), BAD_PARAMETERS + BAD_SAMPLE_ARGUMENTS)
def test_sample_rejects(argument: str, value: Any, exception: type[Exception], words: list[str]) -> None:
    before = torch.get_rng_state()
    _raises(lambda: fastsample.sample(LOGITS, **{argument: value}), exception, argument, words)
    assert torch.equal(torch.get_rng_state(), before), "a failed call must not advance the generator"


@pytest.mark.parametrize("function", [fastsample.filter_logits, fastsample.filtered_probs, fastsample.log_probs])
@pytest.mark.parametrize(("argument", "value", "exception", "words"), BAD_PARAMETERS)
def test_transforms_reject(
    function: Callable[..., Tensor], argument: str, value: Any, exception: type[Exception], words: list[str]
) -> None:
    given = (LOGITS, torch.zeros(BATCH, dtype=torch.int64)) if function is fastsample.log_probs else (LOGITS,)
    _raises(lambda: function(*given, **{argument: value}), exception, argument, words)


@pytest.mark.parametrize(("logits", "exception", "words"), BAD_LOGITS)
def test_logits_rejected(logits: Any, exception: type[Exception], words: list[str]) -> None:
    _raises(lambda: fastsample.sample(logits), exception, "logits", words)
    _raises(lambda: fastsample.softmax(logits), exception, "logits", words)
    _raises(lambda: fastsample.filter_logits(logits), exception, "logits", words)
    _raises(lambda: fastsample.filtered_probs(logits), exception, "logits", words)
    _raises(lambda: fastsample.log_probs(logits, torch.zeros(2, dtype=torch.int64)), exception, "logits", words)


@pytest.mark.parametrize(("logits", "tokens", "exception", "words"), BAD_TOKENS)
def test_tokens_rejected(logits: Tensor, tokens: Any, exception: type[Exception], words: list[str]) -> None:
    _raises(lambda: fastsample.log_probs(logits, tokens), exception, "tokens", words)


@pytest.mark.parametrize("argument", ["offset", "stream"])
def test_offset_and_stream_need_a_seed(argument: str) -> None:
    for value in (0, 5, torch.zeros(BATCH, dtype=torch.int64)):
        _raises(lambda value=value: fastsample.sample(LOGITS, **{argument: value}), ValueError, argument, ["seed"])
        generator = torch.Generator()
        _raises(
            lambda value=value, generator=generator: fastsample.sample(
                LOGITS, generator=generator, **{argument: value}
            ),
            ValueError,
            argument,
            ["seed"],
        )
    for value, exception in ((1.5, TypeError), (True, TypeError), (torch.zeros(BATCH), TypeError)):
        _raises(
            lambda value=value: fastsample.sample(LOGITS, seed=1, **{argument: value}),
            exception,
            argument,
            ["accepted"],
        )


def test_seed_and_generator_contradict() -> None:
    _raises(lambda: fastsample.sample(LOGITS, seed=1, generator=torch.Generator()), ValueError, "generator", ["seed"])


def test_generator_of_another_device() -> None:
    # There is no second device here: the device of the logits plays it.
    _raises(
        lambda: check_generator(torch.Generator(), torch.device("cuda", 0)), ValueError, "generator", ["cuda:0", "cpu"]
    )


def test_indices_need_two_dimensions() -> None:
    _raises(
        lambda: fastsample.sample(LOGITS[0], indices=torch.tensor([0])), ValueError, "indices", ["[7]", "[rows, vocab]"]
    )


def test_parameter_lengths_follow_the_output_rows() -> None:
    indices = torch.tensor([0, 1, 2, 0, 1])
    assert fastsample.sample(LOGITS, torch.ones(5), indices=indices).shape == (5,)
    _raises(
        lambda: fastsample.sample(LOGITS, torch.ones(3), indices=indices), ValueError, "temperature", ["[3]", "[5]"]
    )
    _raises(
        lambda: fastsample.sample(LOGITS, seed=torch.arange(3), indices=indices), ValueError, "seed", ["[3]", "[5]"]
    )


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(TypeError, match="temperature") as caught:
        fastsample.sample(LOGITS, "x" * 10_000)
    assert len(str(caught.value)) < 300


def _filters(**given: Any) -> arguments.Filters:
    defaults = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "order": "top_k_first"}
    return arguments.normalise_filters(**{**defaults, **given}, batch=BATCH, device=CPU)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": np.float32(0.5)}, {"temperature": 0.5}),
        ({"temperature": np.int64(2)}, {"temperature": 2.0}),
        ({"temperature": Fraction(1, 4)}, {"temperature": 0.25}),
        ({"temperature": 10**400}, {"temperature": float("inf")}),
        ({"temperature": float("inf")}, {"temperature": float("inf")}),
        ({"temperature": -0.0}, {"temperature": 0.0}),
        ({"top_k": np.int32(5)}, {"top_k": 5}),
        ({"top_k": -1}, {"top_k": -1}),
        ({"top_k": -(2**70)}, {"top_k": -1}),
        ({"top_k": 2**70}, {"top_k": 2**63 - 1}),
        ({"top_p": 1}, {"top_p": 1.0}),
        ({"top_p": 0}, {"top_p": 0.0}),
        ({"min_p": np.float64(0.25)}, {"min_p": 0.25}),
        ({"order": "joint"}, {"order": 2}),
    ],
)
def test_numbers_are_normalised(given: dict[str, Any], expected: dict[str, float]) -> None:
    filters = _filters(**given)
    for name, value in expected.items():
        normalised = getattr(filters, name)
        assert normalised == value
        assert type(normalised) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_real_tensors_become_float32(dtype: torch.dtype) -> None:
    rows = torch.tensor([0.1, 0.2, 0.3], dtype=dtype)
    filters = _filters(temperature=rows, top_p=rows, min_p=rows[0])
    for normalised, given in (
        (filters.temperature_rows, rows),
        (filters.top_p_rows, rows),
        (filters.min_p_rows, rows[0]),
    ):
        assert normalised is not None
        assert normalised.dtype is torch.float32
        assert torch.equal(normalised, given.to(torch.float32))
        assert (normalised.data_ptr() == given.data_ptr()) == (dtype is torch.float32), "float32 must not be copied"


def test_bad_values_in_tensors_are_left_to_the_kernels() -> None:
    filters = _filters(temperature=torch.tensor([-1.0, NAN, 1.0]), top_p=torch.tensor(7.0))
    assert filters.temperature_rows is not None
    assert filters.top_p_rows is not None


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64],
)
def test_integer_tensors_become_int64(dtype: torch.dtype) -> None:
    rows = torch.tensor([0, 1, 100], dtype=torch.int64).to(dtype)
    for normalised in (_filters(top_k=rows).top_k_rows, seeded(rows, rows, rows, BATCH, CPU).offset_rows):
        assert normalised is not None
        assert normalised.dtype is torch.int64
        assert normalised.tolist() == [0, 1, 100]


def test_seeds_keep_their_64_bits() -> None:
    bits = [0, 2**63, 2**64 - 1]
    rows = torch.from_numpy(np.array(bits, dtype=np.uint64))
    normalised = seeded(rows, None, None, BATCH, CPU).seed_rows
    assert normalised is not None
    assert normalised.tolist() == [0, -(2**63), -1]
    for number, signed in ((2**63, -(2**63)), (2**64 - 1, -1), (-1, -1), (2**64 + 5, 5), (-(2**70) + 7, 7)):
        randomness = seeded(number, number, number, BATCH, CPU)
        assert randomness.seed == randomness.offset == signed
        assert randomness.stream == number % 2**32
    assert seeded(np.uint64(2**64 - 1), None, None, BATCH, CPU).seed == -1


def test_which_seeds_share_a_stream() -> None:
    assert seeded(3, None, None, BATCH, CPU).stream_per_row
    assert seeded(torch.tensor(3), None, None, BATCH, CPU).stream_per_row
    assert not seeded(torch.tensor([1, 2, 3]), None, None, BATCH, CPU).stream_per_row
    assert not seeded(torch.tensor([1]), None, None, 1, CPU).stream_per_row

"""Bad arguments of requests raise TypeError or ValueError that name argument, value and what is accepted, before any
work; errors="raise" names the rows that adjustments spoil.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsample
from fastsample import BadWords, History, LogitBias, TokenLists

BATCH, VOCAB = 3, 70
LOGITS = torch.zeros(BATCH, VOCAB)
NAN, INFINITY = float("nan"), float("inf")
IDS = torch.zeros(BATCH, 2, dtype=torch.int64)
COUNTS = torch.zeros(BATCH, VOCAB, dtype=torch.int32)
MASK = torch.zeros(BATCH, 3, dtype=torch.int32)
LISTS = TokenLists.of([[1], [2], None])
BIAS = LogitBias.of([{1: 2.0}, None, None])
WORDS = BadWords.of([[[1, 2]], None, None])
LENGTHS = torch.zeros(BATCH, dtype=torch.int64)
REALS = torch.ones(BATCH)


def _meta(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# (arguments, exception, words that the message must hold, first of all the argument's name)
BAD_ADJUSTMENTS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"repetition": 1.2}, TypeError, ["'repetition'", "repetition_penalty"]),
    ({"repetition_penalty": 0.0}, ValueError, ["repetition_penalty", "0.0", "above 0"]),
    ({"repetition_penalty": -1}, ValueError, ["repetition_penalty", "-1", "above 0"]),
    ({"repetition_penalty": NAN}, ValueError, ["repetition_penalty", "nan"]),
    ({"repetition_penalty": INFINITY}, ValueError, ["repetition_penalty", "inf"]),
    ({"repetition_penalty": True}, TypeError, ["repetition_penalty", "True"]),
    ({"repetition_penalty": "1.2"}, TypeError, ["repetition_penalty", "'1.2'"]),
    ({"repetition_penalty": None}, TypeError, ["repetition_penalty", "None"]),
    ({"repetition_penalty": [1.0, 1.1, 1.2]}, TypeError, ["repetition_penalty", "list"]),
    ({"repetition_penalty": LENGTHS}, TypeError, ["repetition_penalty", "torch.int64"]),
    ({"repetition_penalty": torch.ones(2)}, ValueError, ["repetition_penalty", "[2]", "[3]"]),
    ({"repetition_penalty": _meta(BATCH, dtype=torch.float32)}, ValueError, ["repetition_penalty", "meta"]),
    ({"repetition_penalty": REALS.to_sparse()}, TypeError, ["repetition_penalty", "sparse"]),
    ({"presence_penalty": INFINITY}, ValueError, ["presence_penalty", "inf", "finite"]),
    ({"presence_penalty": -INFINITY}, ValueError, ["presence_penalty", "inf", "finite"]),
    ({"presence_penalty": NAN}, ValueError, ["presence_penalty", "nan"]),
    ({"presence_penalty": 1j}, TypeError, ["presence_penalty", "complex"]),
    ({"frequency_penalty": NAN}, ValueError, ["frequency_penalty", "nan", "finite"]),
    ({"frequency_penalty": False}, TypeError, ["frequency_penalty", "False"]),
    ({"frequency_penalty": torch.ones(BATCH, 1)}, ValueError, ["frequency_penalty", "[3, 1]"]),
    ({"repetition_penalty": 1.2}, ValueError, ["repetition_penalty", "1.2", "prompt_tokens", "output_counts", "empty"]),
    ({"repetition_penalty": REALS}, ValueError, ["repetition_penalty", "[3]", "prompt_mask", "output_tokens"]),
    ({"presence_penalty": 0.5}, ValueError, ["presence_penalty", "0.5", "output_tokens or output_counts"]),
    ({"presence_penalty": 0.5, "prompt_tokens": IDS}, ValueError, ["presence_penalty", "without output_tokens"]),
    ({"frequency_penalty": REALS[0], "prompt_mask": MASK}, ValueError, ["frequency_penalty", "output_counts"]),
    ({"prompt_tokens": [[1], [2], [3]]}, TypeError, ["prompt_tokens", "list", "integer tensor"]),
    ({"prompt_tokens": IDS.float()}, TypeError, ["prompt_tokens", "torch.float32"]),
    ({"prompt_tokens": IDS.bool()}, TypeError, ["prompt_tokens", "torch.bool"]),
    ({"prompt_tokens": IDS[:, 0]}, ValueError, ["prompt_tokens", "[3]", "[3, any]"]),
    ({"prompt_tokens": IDS[:2]}, ValueError, ["prompt_tokens", "[2, 2]", "[3, any]"]),
    ({"prompt_tokens": _meta(BATCH, 2)}, ValueError, ["prompt_tokens", "meta"]),
    ({"prompt_tokens": IDS.to_sparse()}, TypeError, ["prompt_tokens", "sparse"]),
    ({"prompt_lengths": LENGTHS}, ValueError, ["prompt_lengths", "prompt_tokens"]),
    ({"prompt_tokens": IDS, "prompt_lengths": 2}, TypeError, ["prompt_lengths", "2 (int)"]),
    ({"prompt_tokens": IDS, "prompt_lengths": LENGTHS[:2]}, ValueError, ["prompt_lengths", "[2]", "[3]"]),
    ({"prompt_tokens": IDS, "prompt_lengths": REALS}, TypeError, ["prompt_lengths", "torch.float32"]),
    ({"output_tokens": 5}, TypeError, ["output_tokens", "5 (int)"]),
    ({"output_tokens": IDS, "output_lengths": LENGTHS[None]}, ValueError, ["output_lengths", "[1, 3]"]),
    ({"prompt_mask": MASK.long()}, TypeError, ["prompt_mask", "torch.int64", "int32"]),
    ({"prompt_mask": MASK[:, :2]}, ValueError, ["prompt_mask", "[3, 2]", "at least 3"]),
    ({"prompt_mask": MASK[:2]}, ValueError, ["prompt_mask", "[2, 3]"]),
    ({"output_counts": COUNTS.long()}, TypeError, ["output_counts", "torch.int64", "int32"]),
    ({"output_counts": COUNTS[:, 1:]}, ValueError, ["output_counts", "[3, 69]", "[3, 70]"]),
    ({"output_counts": [0] * VOCAB}, TypeError, ["output_counts", "list"]),
    ({"logit_bias": {1: 2.0}}, TypeError, ["logit_bias", "dict", "LogitBias.of"]),
    ({"logit_bias": BIAS._replace(tokens=BIAS.tokens.float())}, TypeError, ["logit_bias.tokens", "torch.float32"]),
    ({"logit_bias": BIAS._replace(values=torch.ones(2))}, ValueError, ["logit_bias.values", "[2]", "[1]"]),
    ({"logit_bias": BIAS._replace(values=BIAS.tokens)}, TypeError, ["logit_bias.values", "torch.int64"]),
    ({"logit_bias": BIAS._replace(values=[1.0])}, ValueError, ["logit_bias.values", "list"]),
    ({"logit_bias": BIAS._replace(offsets=LENGTHS)}, ValueError, ["logit_bias.offsets", "[3]", "[4]"]),
    ({"bad_words": [[[1, 2]]]}, TypeError, ["bad_words", "list", "BadWords.of"]),
    ({"bad_words": WORDS._replace(tokens=IDS)}, ValueError, ["bad_words.tokens", "[3, 2]"]),
    ({"bad_words": WORDS._replace(word_offsets=LENGTHS[:0])}, ValueError, ["bad_words.word_offsets", "no entry"]),
    ({"bad_words": WORDS._replace(row_offsets=LENGTHS)}, ValueError, ["bad_words.row_offsets", "[3]", "[4]"]),
    ({"bad_words": WORDS._replace(in_prompt="no")}, TypeError, ["bad_words.in_prompt", "'no'", "True or False"]),
    ({"min_tokens": 3}, ValueError, ["min_tokens", "stop_tokens"]),
    ({"stop_tokens": LISTS, "output_tokens": IDS}, ValueError, ["min_tokens", "stop_tokens"]),
    ({"min_tokens": 3, "stop_tokens": LISTS}, ValueError, ["min_tokens", "output_tokens", "output_lengths"]),
    ({"min_tokens": 3.0, "stop_tokens": LISTS, "output_tokens": IDS}, TypeError, ["min_tokens", "3.0"]),
    ({"min_tokens": REALS, "stop_tokens": LISTS, "output_tokens": IDS}, TypeError, ["min_tokens", "torch.float32"]),
    ({"min_tokens": 3, "stop_tokens": [7], "output_tokens": IDS}, TypeError, ["stop_tokens", "list", "TokenLists.of"]),
    ({"allowed_tokens": [[1]]}, TypeError, ["allowed_tokens", "list", "TokenLists.of"]),
    ({"allowed_tokens": LISTS._replace(offsets=LENGTHS)}, ValueError, ["allowed_tokens.offsets", "[3]", "[4]"]),
    ({"bitmask": MASK.bool()}, TypeError, ["bitmask", "torch.bool", "int32"]),
    ({"bitmask": MASK[0]}, ValueError, ["bitmask", "[3]", "[3, at least 3]"]),
    ({"bitmask": MASK[:, :2]}, ValueError, ["bitmask", "[3, 2]"]),
    ({"bitmask": _meta(BATCH, 3, dtype=torch.int32)}, ValueError, ["bitmask", "meta"]),
]

BAD_HISTORIES: list[tuple[Any, type[Exception], list[str]]] = [
    ((IDS, LENGTHS, None), TypeError, ["history", "tuple", "fastsample.History"]),
    (History(tokens=IDS), ValueError, ["history.tokens", "history.lengths"]),
    (History(IDS.int(), LENGTHS), TypeError, ["history.tokens", "torch.int32", "torch.int64"]),
    (History(IDS[:2], LENGTHS), ValueError, ["history.tokens", "[2, 2]", "[3, any]"]),
    (History(IDS, LENGTHS.int()), TypeError, ["history.lengths", "torch.int32"]),
    (History(IDS, LENGTHS[:2]), ValueError, ["history.lengths", "[2]", "[3]"]),
    (History(IDS, LENGTHS[:1].expand(BATCH)), ValueError, ["history.lengths", "share one place"]),
    (History(IDS[:, :1].expand(BATCH, 4), LENGTHS), ValueError, ["history.tokens", "share one place"]),
    (History(counts=COUNTS.long()), TypeError, ["history.counts", "torch.int64", "torch.int32"]),
    (History(counts=COUNTS[:, :5]), ValueError, ["history.counts", "[3, 5]", "[3, 70]"]),
    (History(counts=_meta(BATCH, VOCAB, dtype=torch.int32)), ValueError, ["history.counts", "meta"]),
]

BAD_WISHES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"raw_logprobs": 1}, TypeError, ["raw_logprobs", "1 (int)", "True or False"]),
    ({"distribution": None}, TypeError, ["distribution", "None"]),
    ({"kept_set": "yes"}, TypeError, ["kept_set", "'yes'"]),
    ({"replacement": 0}, TypeError, ["replacement", "0 (int)"]),
    ({"top_logprobs": -1}, ValueError, ["top_logprobs", "-1", "at least 0"]),
    ({"top_logprobs": 2.0}, TypeError, ["top_logprobs", "2.0"]),
    ({"top_logprobs": torch.tensor(2)}, TypeError, ["top_logprobs", "tensor"]),
    ({"top_logprobs_of": "kept"}, ValueError, ["top_logprobs_of", "'kept'", "'raw' or 'processed'"]),
    ({"num_samples": 0}, ValueError, ["num_samples", "0"]),
    ({"errors": "ignore"}, ValueError, ["errors", "'ignore'"]),
    ({"backend": "gpu"}, ValueError, ["backend", "'gpu'"]),
    ({"seed": 1, "generator": torch.Generator()}, ValueError, ["generator", "seed"]),
    ({"temperature": -1.0}, ValueError, ["temperature", "-1.0"]),
    ({"indices": [0]}, TypeError, ["indices", "list"]),
]


# (a call of `of`, exception, words that the message must hold, first of all the row)
BAD_LISTS: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
    (lambda: TokenLists.of(5), TypeError, ["lists", "5 (int)", "for each row"]),
    (lambda: TokenLists.of([[torch.tensor(True)]]), TypeError, ["lists[0][0]", "torch.bool", "token id"]),
    (lambda: TokenLists.of("12"), TypeError, ["lists", "'12'", "for each row"]),
    (lambda: TokenLists.of({1: [2]}), TypeError, ["lists", "dict", "for each row"]),
    (lambda: TokenLists.of([1, 2]), TypeError, ["lists[0]", "1 (int)", "a list of token ids"]),
    (lambda: TokenLists.of([None, [3], [1, "2"]]), TypeError, ["lists[2][1]", "'2' (str)", "token id"]),
    (lambda: TokenLists.of([[1], [True]]), TypeError, ["lists[1][0]", "True", "token id"]),
    (lambda: TokenLists.of([[1], [0.5]]), TypeError, ["lists[1][0]", "0.5", "whole number"]),
    (lambda: TokenLists.of([[1], [2**63]]), ValueError, ["lists[1]", str(2**63), "64 bits"]),
    (lambda: TokenLists.of([[1], REALS]), TypeError, ["lists[1]", "torch.float32"]),
    (lambda: LogitBias.of({1: 2.0}), TypeError, ["rows", "dict", "for each row"]),
    (lambda: LogitBias.of([None, [1]]), TypeError, ["rows[1]", "[1] (list)", "a mapping of token id to bias"]),
    (lambda: LogitBias.of([{}, {7: "2"}]), TypeError, ["rows[1][7]", "'2' (str)", "a number"]),
    (lambda: LogitBias.of([{}, {7: None}]), TypeError, ["rows[1][7]", "None", "-inf"]),
    (lambda: LogitBias.of([{}, {7: 10**400}]), ValueError, ["rows[1][7]", "1000", "float"]),
    (lambda: LogitBias.of([{}, {"7": 1.0}]), TypeError, ["rows[1], a key", "'7' (str)", "token id"]),
    (lambda: BadWords.of([[[1]], 2]), TypeError, ["rows[1]", "2 (int)", "a list of words"]),
    (lambda: BadWords.of([[[1]], [2]]), TypeError, ["rows[1][0]", "2 (int)", "a list of token ids"]),
    (lambda: BadWords.of([[[1]], [[2], [3, None]]]), TypeError, ["rows[1][1][1]", "None", "token id"]),
]


def names(cases: list[tuple[Any, type[Exception], list[str]]]) -> list[str]:
    return [f"{words[0]} {number}" for number, (_, _, words) in enumerate(cases)]


def check_message(call: Callable[[], Any], exception: type[Exception], words: list[str]) -> None:
    with pytest.raises(exception) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(("given", "exception", "words"), BAD_ADJUSTMENTS, ids=names(BAD_ADJUSTMENTS))
def test_bad_adjustments(given: dict[str, Any], exception: type[Exception], words: list[str]) -> None:
    for function in (fastsample.sample, fastsample.sample_full, fastsample.process_logits):
        check_message(lambda function=function: function(LOGITS, **given), exception, words)


@pytest.mark.parametrize(
    "given",
    [
        {"repetition_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": -0.0},
        {"repetition_penalty": 1.2, "prompt_tokens": IDS[:, :0]},
        {"repetition_penalty": REALS, "prompt_mask": MASK},
        {"repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": REALS, "output_tokens": IDS[:, :0]},
        {"repetition_penalty": 1.2, "presence_penalty": 1, "frequency_penalty": REALS, "output_counts": COUNTS},
    ],
    ids=str,
)
def test_penalties_that_are_off_or_have_something_to_look_at_are_accepted(given: dict[str, Any]) -> None:
    assert torch.equal(fastsample.process_logits(LOGITS, **given), LOGITS)


@pytest.mark.parametrize(("call", "exception", "words"), BAD_LISTS, ids=names(BAD_LISTS))
def test_bad_lists_name_their_row(call: Callable[[], Any], exception: type[Exception], words: list[str]) -> None:
    check_message(call, exception, words)


def test_lists_of_what_is_no_list() -> None:
    """Whatever has numbers one after another: ranges, tensors, arrays, tuples of tensors without a dimension."""
    lists = [range(3), torch.tensor([3, 4], dtype=torch.int32), np.array([5]), (torch.tensor(6), np.int64(7)), None]
    tokens, offsets = TokenLists.of(lists)
    assert tokens.tolist() == list(range(8))
    assert offsets.tolist() == [0, 3, 5, 6, 8, 8]
    assert tokens.dtype is offsets.dtype is torch.int64
    words = BadWords.of([lists[:-1], None])
    assert [each.tolist() for each in words[:3]] == [list(range(8)), [0, 3, 5, 6, 8], [0, 4, 4]]
    bias = LogitBias.of([None, {np.int64(4): np.float32(0.5), 2: 1e300}])
    assert [each.tolist() for each in bias] == [[4, 2], [0.5, INFINITY], [0, 0, 2]]


@pytest.mark.parametrize(("history", "exception", "words"), BAD_HISTORIES, ids=names(BAD_HISTORIES))
def test_bad_histories(history: Any, exception: type[Exception], words: list[str]) -> None:
    check_message(lambda: fastsample.sample_full(LOGITS, history=history), exception, words)


@pytest.mark.parametrize(("given", "exception", "words"), BAD_WISHES, ids=names(BAD_WISHES))
def test_bad_wishes(given: dict[str, Any], exception: type[Exception], words: list[str]) -> None:
    check_message(lambda: fastsample.sample_full(LOGITS, **given), exception, words)


def test_nothing_is_recorded_by_a_call_that_raises() -> None:
    counts, lengths = COUNTS.clone(), LENGTHS.clone()
    with pytest.raises(ValueError, match="top_p"):
        fastsample.sample_full(LOGITS, top_p=2.0, history=History(lengths=lengths, counts=counts))
    assert not counts.any()
    assert not lengths.any()


def test_details_that_were_not_asked_for_say_what_they_need() -> None:
    full = fastsample.sample_full(LOGITS, seed=1)
    for name in ("kept_size", "kept_mass", "entropy"):
        with pytest.raises(ValueError, match="distribution=True"):
            getattr(full, name)
    assert full.raw_logprobs is full.ranks is full.top_tokens is full.top_logprobs is full.kept is full.numbers is None


@pytest.mark.parametrize("function", [fastsample.sample, fastsample.sample_full])
def test_raise_names_the_rows(function: Callable[..., Any]) -> None:
    raising = {"seed": 1, "errors": "raise"}
    with pytest.raises(ValueError, match=r"1 of 3 rows.*row 1: a penalty is out of range.*repetition_penalty above 0"):
        function(LOGITS, repetition_penalty=torch.tensor([1.0, 0.0, 2.0]), prompt_tokens=IDS, **raising)
    with pytest.raises(ValueError, match=r"2 of 3 rows \(0, 2\).*token id outside the vocabulary"):
        function(LOGITS, logit_bias=LogitBias.of([{VOCAB: 1.0}, {2: 1.0}, {-1: 1.0}]), **raising)
    lengths = torch.tensor([0, 3, 2])
    with pytest.raises(ValueError, match=r"1 of 3 rows \(1\)"):
        function(LOGITS, presence_penalty=1.0, output_tokens=IDS, output_lengths=lengths, **raising)
    with pytest.raises(ValueError, match=r"1 of 3 rows.*row 2: the adjustments leave no token"):
        function(LOGITS, bitmask=torch.tensor([[-1] * 3, [1, 0, 0], [0] * 3], dtype=torch.int32), **raising)
    with pytest.raises(ValueError, match=r"1 of 3 rows.*row 0: the adjustments leave no token, or make a logit NaN"):
        function(LOGITS, logit_bias=LogitBias.of([{3: NAN}, None, None]), **raising)
    with pytest.raises(ValueError, match=r"1 of 3 rows.*row 1: temperature = -1"):
        function(LOGITS, torch.tensor([1.0, -1.0, 0.0]), bitmask=MASK + 1, **raising)


def test_sentinels_say_what_raise_would() -> None:
    full = fastsample.sample_full(
        LOGITS,
        torch.tensor([1.0, 1.0, -1.0]),
        seed=1,
        presence_penalty=torch.tensor([1.0, NAN, 1.0]),
        output_tokens=torch.tensor([[VOCAB], [VOCAB], [3]]),
    )
    assert full.status.tolist() == [2, 1, 1]
    assert (full.tokens < 0).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temprature": 0.8}, ["'temprature'", "did you mean 'temperature'?"]),
        ({"top_logprobs": 3}, ["'top_logprobs'", "`fastsample.sample_full`"]),
        ({"zzz": 1}, ["'zzz'; accepted: allowed_tokens, "]),
    ],
)
def test_unknown_arguments(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(TypeError) as raised:
        fastsample.sample(torch.zeros(1, 5), **given)
    assert all(word in str(raised.value) for word in words), raised.value


def test_lists_of_selected_rows_and_of_several_batches() -> None:
    lists = [[5, 6], [], [7], [8, 9, 4]]
    packed = TokenLists.of(lists)
    for rows in ([3, 0, 0, 1], [], [2]):
        selected = packed.select(torch.tensor(rows, dtype=torch.int32))
        expected = TokenLists.of([lists[row] for row in rows])
        assert selected.tokens.tolist() == expected.tokens.tolist()
        assert selected.offsets.tolist() == expected.offsets.tolist()
    both = TokenLists.cat([packed, packed.select(torch.tensor([2, 3]))])
    assert both.tokens.tolist() == [5, 6, 7, 8, 9, 4, 7, 8, 9, 4]
    assert both.offsets.tolist() == [0, 2, 2, 3, 6, 7, 10]
    with pytest.raises(ValueError, match=r"rows: got -1 to 2; accepted: 0 to 3"):
        packed.select(torch.tensor([2, -1]))


@pytest.mark.parametrize("vocab", [1, 32, 70])
def test_a_bitmask_of_bools(vocab: int) -> None:
    allowed = torch.rand(3, vocab, generator=torch.Generator().manual_seed(1)) < 0.5
    lists = TokenLists.of([row.nonzero()[:, 0].tolist() for row in allowed])
    packed = fastsample.pack_bitmask(allowed, vocab)
    assert torch.equal(packed, fastsample.pack_bitmask(lists, vocab, empty=False))
    for wrong in (torch.zeros(3, vocab + 2).bool(), allowed[0], torch.tensor(True)):
        with pytest.raises(TypeError, match=rf"a bool tensor \[batch, {vocab + 1}\]"):
            fastsample.pack_bitmask(wrong, vocab + 1)
    with pytest.raises(TypeError, match=r"bitmask: .*fastsample\.pack_bitmask makes one of bools"):
        fastsample.sample(torch.zeros(3, vocab), bitmask=allowed)


def test_processed_logits_are_detached() -> None:
    """And the documented way around it has the gradient of the softmax over them."""
    logits = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).requires_grad_()
    bitmask = torch.tensor([[0x1F5]] * 2, dtype=torch.int32)
    given = {"frequency_penalty": 0.5, "output_tokens": torch.tensor([[2, 2], [2, 4]]), "bitmask": bitmask}
    processed = fastsample.process_logits(logits, **given)
    assert not processed.requires_grad
    assert not fastsample.process_logits(logits, bitmask=bitmask).requires_grad
    full = fastsample.sample_full(logits.detach(), 0.8, top_p=0.9, seed=1, kept_set=True, **given)
    trained = logits + (fastsample.process_logits(logits, **given) - logits).detach()
    logprobs = fastsample.filtered_log_probs(trained, full.tokens, 0.8, kept=full.kept)
    assert (logprobs.detach() - full.logprobs).abs().max() < 1e-6
    logprobs.sum().backward()
    assert logits.grad is not None
    assert full.kept is not None
    kept = full.kept.select(torch.tensor([0])).tokens
    plain = processed[0, kept].requires_grad_()
    torch.log_softmax(plain / 0.8, dim=0)[(kept == full.tokens[0]).nonzero()[0, 0]].backward()
    assert plain.grad is not None
    assert (logits.grad[0, kept] - plain.grad).abs().max() < 1e-6

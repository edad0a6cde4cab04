"""`Sampler`: whatever comes, changes and goes beside it, each request draws the tokens that it draws by itself, by
`==`; nothing on the device is allocated anew, and only what changed is copied there.
"""

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from torch import Tensor

import fastsample
from fastsample import BadWords, LogitBias, Sampler, TokenLists, ops, pack_bitmask
from fastsample.request import FEATURES
from missing import missing

SLOTS, VOCAB, LIST_CAPACITY = 4, 37, 24
STEPS = 25  # of the state machine, each at most 8 of the sampler
MAX_TOKENS = 8 * STEPS + 6
WORDS = 2
WITHOUT_BAD_WORDS = ("penalties", "logit_bias", "min_tokens", "bitmask")  # and so without a list of the output

Parameters = dict[str, Any]


def alone(request: Parameters, output: list[int], logits: Tensor, mask: Tensor | None = None) -> int:
    """The token that one request draws from one row, [vocab], by a plain call of the reference."""
    given = {"output_tokens": torch.tensor([output], dtype=torch.int64)}
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        if name in request:
            given[name] = request[name]
    if "prompt_tokens" in request:
        given["prompt_tokens"] = torch.tensor([request["prompt_tokens"]], dtype=torch.int64)
    if "logit_bias" in request:
        given["logit_bias"] = LogitBias.of([request["logit_bias"]])
    if "bad_words" in request:
        given["bad_words"] = BadWords.of([request["bad_words"]])
    if "stop_tokens" in request:
        given["stop_tokens"] = TokenLists.of([request["stop_tokens"]])
        given["min_tokens"] = request.get("min_tokens", 0)
    if "allowed_tokens" in request:
        given["allowed_tokens"] = TokenLists.of([request["allowed_tokens"]])
    masks = [each[:WORDS] for each in (request.get("bitmask"), mask) if each is not None]
    if masks:
        given["bitmask"] = functools.reduce(torch.bitwise_and, masks)[None]
    filters = {name: request[name] for name in ("temperature", "top_k", "top_p", "min_p") if name in request}
    seed, offset = torch.tensor([request["seed"]]), torch.tensor([len(output)])
    return int(fastsample.sample(logits[None], seed=seed, offset=offset, backend="reference", **filters, **given))


def random_logits(number: int, rows: int) -> Tensor:
    """Rows with ties, a few of them invalid."""
    generator = torch.Generator().manual_seed(number)
    logits = (torch.randn(rows, VOCAB, generator=generator) * 2).round() / 2
    if number % 7 == 0 and rows > 0:
        logits[number % rows, number % VOCAB] = math.nan
    return logits.to((torch.float32, torch.float16, torch.bfloat16)[number % 3])


def random_bitmask(number: int, *shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, generator=torch.Generator().manual_seed(number), dtype=torch.int32)


TOKEN = st.integers(0, VOCAB - 1)
SOME_TOKENS = st.lists(TOKEN, max_size=6)
NUMBERS = st.integers(0, 2**31 - 1)
PARAMETERS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": st.sampled_from((0.0, 0.7, 1.0, 5.0)),
    "top_k": st.sampled_from((-1, 0, 1, 5, 30)),
    "top_p": st.sampled_from((0.0, 0.5, 0.9, 1.0)),
    "min_p": st.sampled_from((0.0, 0.02, 0.5)),
    "repetition_penalty": st.sampled_from((1.0, 1.3, 0.6)),
    "presence_penalty": st.sampled_from((0.0, 0.8, -2.0)),
    "frequency_penalty": st.sampled_from((0.0, 0.3, 4.0)),
    "logit_bias": st.dictionaries(TOKEN, st.sampled_from((1.5, -3.0, 0.0, -math.inf, 100.0)), max_size=4),
    "min_tokens": st.integers(0, 12),
    "stop_tokens": st.lists(TOKEN, min_size=1, max_size=4),
    "allowed_tokens": st.lists(TOKEN, max_size=20),
    "bad_words": st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), max_size=2),
}
HISTORIES = {"prompt_tokens": SOME_TOKENS, "output_tokens": SOME_TOKENS}


class Engine(RuleBasedStateMachine):
    """Requests that come, change, wait and go; beside each what it was given and what it has drawn."""

    def __init__(self, backend: str, features: tuple[str, ...]) -> None:
        super().__init__()
        self.sampler = Sampler(
            SLOTS, VOCAB, features=features, max_tokens=MAX_TOKENS, list_capacity=LIST_CAPACITY, backend=backend
        )
        left_out = {name for feature in FEATURES.keys() - set(features) for name in FEATURES[feature]}
        self.parameters = {name: values for name, values in PARAMETERS.items() if name not in left_out}
        self.has_grammars = "bitmask" in features
        self.requests: dict[int, Parameters] = {}
        self.outputs: dict[int, list[int]] = {}
        self.waiting: list[tuple[Parameters, list[int]]] = []
        self.places = [buffer.data_ptr() for buffer in self.sampler.buffers]

    def some_parameters(self, data: st.DataObject, at_least: dict[str, Any]) -> Parameters:
        given = data.draw(st.fixed_dictionaries(at_least, optional={**self.parameters, **HISTORIES}))
        if given.get("min_tokens", 0) > 0 and "stop_tokens" not in given:
            del given["min_tokens"]
        return given

    def one_of(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.requests)))

    @precondition(lambda self: len(self.requests) < SLOTS)
    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        given = self.some_parameters(data, {"seed": st.sampled_from((0, 1, -1, 2**63, 123456789))})
        slot = self.sampler.add(**given)
        assert slot == min(set(range(SLOTS)) - self.requests.keys())
        self.outputs[slot] = given.pop("output_tokens", [])
        given["seed"] = (given["seed"] + 2**63) % 2**64 - 2**63
        self.requests[slot] = given

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def update(self, data: st.DataObject) -> None:
        slot, given = self.one_of(data), self.some_parameters(data, {})
        self.sampler.update(slot, **given)
        self.outputs[slot] = given.pop("output_tokens", self.outputs[slot])
        self.requests[slot].update(given)

    @precondition(lambda self: self.requests and self.has_grammars)
    @rule(data=st.data(), number=NUMBERS)
    def grammar(self, data: st.DataObject, number: int) -> None:
        slot = self.one_of(data)
        mask = random_bitmask(number, WORDS + 1)
        self.requests[slot]["bitmask"] = mask.clone() if number % 5 else None
        self.sampler.update(slot, bitmask=mask if number % 5 else None)
        mask.zero_()  # grammars write into the same memory again

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        slot = self.one_of(data)
        self.sampler.remove(slot)
        del self.requests[slot], self.outputs[slot]

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        slot = self.one_of(data)
        self.sampler.remove(slot)
        self.waiting.append((self.requests.pop(slot), self.outputs.pop(slot)))

    @precondition(lambda self: self.waiting and len(self.requests) < SLOTS)
    @rule()
    def resume(self) -> None:
        request, output = self.waiting.pop(0)
        slot = self.sampler.add(output_tokens=output, **request)
        self.requests[slot], self.outputs[slot] = request, output

    @precondition(lambda self: self.requests)
    @rule(number=NUMBERS, count=st.integers(3, 8), columns=st.sampled_from((None, WORDS, WORDS + 1)))
    def steps(self, number: int, count: int, columns: int | None) -> None:
        for each in range(count):
            logits = random_logits(number + each, SLOTS)
            # Of several steps some have a mask, and the next has it no more.
            mask = random_bitmask(number + each, SLOTS, columns) if columns and each % 3 else None
            self.check(self.sampler.step(logits, bitmask=mask), {slot: logits[slot] for slot in self.requests}, mask)

    @precondition(lambda self: self.requests)
    @rule(number=NUMBERS, rows=st.lists(st.integers(-1, 6), min_size=SLOTS, max_size=SLOTS), masked=st.booleans())
    def step_of_some(self, number: int, rows: list[int], masked: bool) -> None:
        logits = random_logits(number, 5)
        mask = random_bitmask(number, SLOTS, WORDS) if masked else None
        tokens = self.sampler.step(logits, torch.tensor(rows), mask)
        self.check(tokens, {slot: logits[rows[slot]] for slot in self.requests if rows[slot] in range(5)}, mask)

    def check(self, tokens: Tensor, logits: dict[int, Tensor], mask: Tensor | None) -> None:
        expected = [-1] * SLOTS
        for slot, row in logits.items():
            of_slot = None if mask is None else mask[slot]
            expected[slot] = alone(self.requests[slot], self.outputs[slot], row, of_slot)
            if expected[slot] >= 0:
                self.outputs[slot] = [*self.outputs[slot], expected[slot]]
        assert tokens.tolist() == expected
        lengths = self.sampler.lengths.tolist()
        assert {slot: lengths[slot] for slot in self.requests} == {s: len(out) for s, out in self.outputs.items()}
        assert self.sampler.flush() == 0, "a step leaves nothing to copy"

    @invariant()
    def nothing_is_allocated_anew(self) -> None:
        assert [buffer.data_ptr() for buffer in self.sampler.buffers] == self.places


def run(backend: str, features: tuple[str, ...], examples: int) -> None:
    if backend == "cpu" and ops.cpu_status != "ok":
        missing(f"the native CPU kernels are not loaded ({ops.cpu_status})")
    run_state_machine_as_test(
        lambda: Engine(backend, features),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


ALL = tuple(FEATURES)


@pytest.mark.parametrize(
    ("backend_name", "features"),
    [("reference", ALL), ("cpu", ALL), ("cpu", WITHOUT_BAD_WORDS), ("cpu", ())],
    ids=["reference", "cpu", "cpu-without-bad-words", "cpu-without-features"],
)
def test_each_request_draws_what_it_draws_alone(backend_name: str, features: tuple[str, ...]) -> None:
    run(backend_name, features, examples=8)


@pytest.mark.slow
@pytest.mark.parametrize("features", [ALL, WITHOUT_BAD_WORDS, ()], ids=["all", "without-bad-words", "none"])
@pytest.mark.parametrize("backend_name", ["reference", "cpu"])
def test_each_request_draws_what_it_draws_alone_again(backend_name: str, features: tuple[str, ...]) -> None:
    run(backend_name, features, examples=150)


def test_triton_draws_the_same() -> None:
    """A short run: its interpreter takes long."""
    if ops.triton_status() != "ok" or not ops.triton_is_interpreted():
        missing("Triton's interpreter is not to be had here")
    engine = Engine("triton", ALL)
    slots = [
        engine.sampler.add(seed=1, top_k=5, repetition_penalty=1.3, prompt_tokens=[1, 2]),
        engine.sampler.add(seed=2, logit_bias={3: 2.0, 4: -math.inf}, min_tokens=2, stop_tokens=[5]),
    ]
    engine.requests = {
        slots[0]: {"seed": 1, "top_k": 5, "repetition_penalty": 1.3, "prompt_tokens": [1, 2]},
        slots[1]: {"seed": 2, "logit_bias": {3: 2.0, 4: -math.inf}, "min_tokens": 2, "stop_tokens": [5]},
    }
    engine.outputs = {slot: [] for slot in slots}
    engine.steps(1, 2, WORDS)


# --- what is copied


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(SLOTS, VOCAB, max_tokens=MAX_TOKENS, list_capacity=LIST_CAPACITY)


FLOATS, INTEGERS, LENGTH, LOGITS_ROW = 6, 3, 1, 1
A_REQUEST = FLOATS + INTEGERS + LENGTH + LOGITS_ROW


def test_a_request_copies_its_own_rows_alone(sampler: Sampler) -> None:
    assert sampler.flush() == 0
    for _ in range(3):
        sampler.add(seed=1)
    assert sampler.flush() == 3 * A_REQUEST
    sampler.add(seed=1, prompt_tokens=[1, 2], output_tokens=[4, 5, 6], allowed_tokens=[7])
    assert sampler.flush() == A_REQUEST + WORDS + 2 * 3 + WORDS, "the output is listed, and counted"


@pytest.mark.parametrize(
    ("change", "copied"),
    [
        ({}, 0),
        ({"temperature": 0.5}, FLOATS),
        ({"top_k": 3, "seed": 4}, INTEGERS),
        ({"prompt_tokens": [1, 2, 3]}, WORDS),
        ({"output_tokens": [1, 2, 3]}, 2 * 3 + LENGTH),
        ({"bitmask": torch.ones(WORDS, dtype=torch.int32)}, WORDS),
        ({"logit_bias": {1: 2.0, 2: 2.0}}, 2 + 2 + SLOTS - 1),  # tokens, values, and the offsets behind slot 1
        ({"stop_tokens": [5]}, 1 + SLOTS - 1),
    ],
    ids=str,
)
def test_an_update_copies_what_it_changes(sampler: Sampler, change: Parameters, copied: int) -> None:
    for _ in range(SLOTS):
        sampler.add(seed=1)
    sampler.flush()
    sampler.update(1, **change)
    assert sampler.flush() == copied
    assert sampler.flush() == 0


def test_lists_move_only_from_where_they_change(sampler: Sampler) -> None:
    for slot in range(SLOTS):
        sampler.add(seed=1, logit_bias={slot: 1.0, slot + 10: 2.0})
    sampler.flush()
    sampler.update(SLOTS - 1, logit_bias={SLOTS - 1: 1.0, 30: 2.0})
    assert sampler.flush() == 1, "one token differs"
    sampler.update(0, logit_bias={})
    assert sampler.flush() == 3 * 2 + SLOTS, "the other three move up, and what follows them means nothing"


@pytest.mark.parametrize("seed", range(20))
def test_lists_are_packed_as_those_of_all_slots_are(seed: int) -> None:
    """Whatever grew, shrank, moved or stayed between two flushes."""
    random = torch.Generator().manual_seed(seed)

    def below(number: int) -> int:
        return int(torch.randint(number, (), generator=random))

    def tokens(most: int) -> list[int]:
        return torch.randint(5, (below(most + 1),), generator=random).tolist()

    sampler = Sampler(SLOTS, VOCAB, max_tokens=9, features=["logit_bias", "bad_words"], list_capacity=4 * SLOTS)
    packed = sampler._tensors._lists
    biases: list[dict[int, float]] = [{} for _ in range(SLOTS)]
    words: list[list[list[int]]] = [[] for _ in range(SLOTS)]
    for _ in range(SLOTS):
        sampler.add(seed=1)
    for _ in range(15):
        for _ in range(below(4)):
            slot = below(SLOTS)
            biases[slot] = {token: float(below(3)) for token in tokens(4)}
            words[slot] = [word for word in (tokens(2), tokens(2)) if word]
            sampler.update(slot, logit_bias=biases[slot], bad_words=words[slot])
        sampler.flush()
        for name, expected in (("logit_bias", LogitBias.of(biases)), ("bad_words", BadWords.of(words)[:3])):
            for part, values in zip(packed[name], expected, strict=True):
                assert part.tensor[: len(values)].tolist() == values.tolist()
        assert sampler.flush() == 0


def test_what_no_request_uses_is_left_out(sampler: Sampler) -> None:
    """`edit_status` is None of a call without adjustments that can fail."""
    logits = random_logits(1, SLOTS)
    first = sampler.add(seed=1)
    assert sampler.step_full(logits).edit_status is None
    second = sampler.add(seed=2, presence_penalty=1.0)
    assert sampler.step_full(logits).edit_status is not None
    sampler.remove(second)
    assert sampler.step_full(logits).edit_status is None
    sampler.update(first, logit_bias={1: 1.0})
    assert sampler.step_full(logits).edit_status is not None
    sampler.update(first, logit_bias={})
    assert sampler.step_full(logits).edit_status is None


# --- steps


def test_step_full_says_what_sample_full_says(sampler: Sampler) -> None:
    slots = [sampler.add(seed=seed, top_k=5, presence_penalty=0.5) for seed in (1, 2)]
    logits = random_logits(1, SLOTS)
    asked = {"raw_logprobs": True, "top_logprobs": 3, "distribution": True, "kept_set": True}
    found = sampler.step_full(logits, **asked)
    expected = fastsample.sample_full(logits[:2], top_k=5, seed=torch.tensor([1, 2]), **asked)
    for name in ("tokens", "logprobs", "raw_logprobs", "ranks", "top_tokens", "top_logprobs", "numbers"):
        assert torch.equal(getattr(found, name)[slots], getattr(expected, name)), name
    assert found.kept is not None
    assert expected.kept is not None
    assert torch.equal(found.kept.tokens, expected.kept.tokens)
    assert found.status.tolist() == [0, 0, 1, 1]


def test_beyond_max_tokens_bad_words_see_the_beginning_and_flag() -> None:
    """What is beyond is neither seen nor lost: a request that is resumed goes on alike."""
    likely = torch.zeros(1, VOCAB)
    likely[0, 7] = 9.0
    request = {"seed": 5, "temperature": 0.0, "bad_words": [[1, 2, 7]]}
    sampler = Sampler(1, VOCAB, max_tokens=2)
    sampler.add(output_tokens=[1], **request)
    statuses, output = [], [1]
    for number, logits in enumerate((-likely + torch.arange(VOCAB).eq(2), *[likely] * 3)):
        resumed = Sampler(1, VOCAB, max_tokens=2)
        resumed.add(output_tokens=output, **request)
        found = sampler.step_full(logits)
        statuses.append(int(found.status))
        assert resumed.step(logits).tolist() == found.tokens.tolist()
        output.append(int(found.tokens))
        assert output[-1] == (2 if number == 0 else 0)
    assert statuses == [0, 0, 2, 2]
    assert sampler.lengths.tolist() == [5]


@pytest.mark.parametrize("features", [["penalties"], ["penalties", "bad_words"]], ids=str)
def test_penalties_see_all_of_the_longest_output(features: list[str]) -> None:
    sampler = Sampler(1, VOCAB, max_tokens=2, features=features)
    sampler.add(seed=5, frequency_penalty=0.5, output_tokens=[1, 1, 2])
    output = [1, 1, 2]
    for number in (1, 2, 3, 4, 5):
        logits = random_logits(number, 1)
        expected = alone({"seed": 5, "frequency_penalty": 0.5}, output, logits[0])
        found = sampler.step_full(logits)
        output.append(int(found.tokens))
        assert output[-1] == expected
        assert found.status.tolist() == [0]


def test_numbers_that_float32_has_not_do_what_they_do_in_a_call(sampler: Sampler) -> None:
    logits = random_logits(1, 1).expand(SLOTS, VOCAB)
    parameters = ({"temperature": 1e300}, {"temperature": 1e-300}, {"top_k": 2**80})
    for given in parameters:
        sampler.add(seed=1, **given)
    expected = [alone({"seed": 1, **given}, [], logits[0]) for given in parameters]
    assert sampler.step(logits).tolist() == [*expected, -1]
    with pytest.raises(ValueError, match="rounded to float32"):
        sampler.add(repetition_penalty=1e300)


def test_inference_mode_makes_no_difference() -> None:
    tokens = []
    for modes in ((False, False, False), (True, False, True), (False, True, False)):
        with torch.inference_mode(modes[0]):
            sampler = Sampler(1, VOCAB, max_tokens=9)
            sampler.add(seed=1, presence_penalty=1.0)
        for number, mode in enumerate(modes[1:], 1):
            with torch.inference_mode(mode):
                sampler.update(0, temperature=0.5 * number)
                tokens.append((number, int(sampler.step(random_logits(number, 1)))))
    assert len(set(tokens)) == 2


def test_without_a_seed_each_request_draws_its_own() -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        sampler = Sampler(SLOTS, VOCAB, max_tokens=9)
        for _ in range(SLOTS):
            sampler.add()
        runs.append([sampler.step(torch.zeros(SLOTS, VOCAB)).tolist() for _ in range(5)])
    assert runs[0] == runs[1]
    assert len({tuple(tokens) for tokens in zip(*runs[0], strict=True)}) == SLOTS


def test_prompt_tokens_outside_the_vocabulary_are_passed_over(sampler: Sampler) -> None:
    sampler.add(seed=1, repetition_penalty=2.0, prompt_tokens=[3, VOCAB, -1, 2**40])
    sampler.add(seed=1, repetition_penalty=2.0, prompt_tokens=torch.tensor([3], dtype=torch.int32))
    logits = random_logits(2, 1).expand(SLOTS, VOCAB)
    tokens = sampler.step_full(logits)
    assert tokens.tokens[0] == tokens.tokens[1]
    assert tokens.status[:2].tolist() == [0, 0]


# --- bad arguments


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, r"temperature: got -1.0; .* \(slot 1\)"),
        ({"temperature": torch.ones(())}, TypeError, r"temperature: got a tensor .*\(slot 1\)"),
        ({"top_k": 1.5}, TypeError, r"top_k: got 1.5 \(float\); accepted: a whole number \(0 keeps all\) \(slot"),
        ({"top_p": None}, TypeError, r"top_p: got None \(NoneType\); accepted: a number \(slot"),
        ({"min_p": 2.0}, ValueError, "min_p: got 2.0"),
        ({"seed": "one"}, TypeError, "seed: got 'one'"),
        ({"seed": torch.ones(1)}, TypeError, "seed: got a tensor .*; accepted: a whole number, or None"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty: got 0.0"),
        ({"presence_penalty": math.nan}, ValueError, "presence_penalty: got nan"),
        ({"frequency_penalty": "1"}, TypeError, "frequency_penalty: got '1'"),
        ({"prompt_tokens": [3, 0.5]}, TypeError, r"prompt_tokens\[1\]: got 0.5 .* a token id, .* \(slot 1\)"),
        ({"prompt_tokens": [[1]]}, TypeError, r"prompt_tokens\[0\]: got \[1\] \(list\); accepted: a token id"),
        ({"prompt_tokens": [1, True]}, TypeError, r"prompt_tokens\[1\]: got True"),
        ({"prompt_tokens": "abc"}, TypeError, "prompt_tokens: got 'abc' .* a list of token ids"),
        ({"prompt_tokens": 5}, TypeError, "prompt_tokens: got 5 .* a list of token ids"),
        ({"prompt_tokens": [2**70]}, ValueError, "prompt_tokens: got the token 1180591620717411303424"),
        ({"prompt_tokens": torch.ones(1, 1).int()}, ValueError, r"prompt_tokens: got a tensor of shape \[1, 1\]"),
        ({"prompt_tokens": torch.ones(2)}, TypeError, "prompt_tokens: got dtype torch.float32"),
        ({"prompt_tokens": torch.ones(2, device="meta")}, ValueError, "prompt_tokens: got a tensor on meta"),
        (
            {"output_tokens": [1, VOCAB]},
            ValueError,
            f"output_tokens: got the token {VOCAB}; accepted: ids from 0 to 36",
        ),
        ({"logit_bias": [1]}, TypeError, r"logit_bias: got \[1\] .* a mapping of token id to bias"),
        ({"logit_bias": {1: math.nan}}, ValueError, r"logit_bias\[1\]: got nan"),
        ({"logit_bias": {1: "2"}}, TypeError, r"logit_bias\[1\]: got '2'"),
        ({"logit_bias": {"1": 2.0}}, TypeError, r"logit_bias, a key: got '1' \(str\); accepted: a token id"),
        ({"logit_bias": {-1: 0.5}}, ValueError, "logit_bias: got the token -1"),
        ({"logit_bias": dict.fromkeys(range(21), 1.0)}, ValueError, "logit_bias: got 21 entries, with 4 of other"),
        ({"bad_words": [[2], 1]}, TypeError, r"bad_words\[1\]: got 1 \(int\); accepted: a list of token ids"),
        ({"bad_words": [[1], [2, None]]}, TypeError, r"bad_words\[1\]\[1\]: got None"),
        ({"bad_words": [[1], []]}, ValueError, r"bad_words\[1\]: got an empty word"),
        ({"bad_words": [[1, VOCAB]]}, ValueError, "bad_words: got the token 37"),
        ({"bad_words": 5}, TypeError, "bad_words: got 5 .* a list of words"),
        ({"bad_words": [[1] * 25]}, ValueError, "bad_words: got 25 entries"),
        ({"min_tokens": 3}, ValueError, "min_tokens: got 3 without stop_tokens"),
        ({"min_tokens": 0.5, "stop_tokens": [1]}, TypeError, "min_tokens: got 0.5"),
        (
            {"min_tokens": MAX_TOKENS + 1, "stop_tokens": [1]},
            ValueError,
            f"min_tokens: got {MAX_TOKENS + 1}; accepted: at most max_tokens = {MAX_TOKENS}",
        ),
        ({"stop_tokens": [-1]}, ValueError, "stop_tokens: got the token -1"),
        ({"allowed_tokens": [99]}, ValueError, "allowed_tokens: got the token 99"),
        ({"bitmask": torch.ones(WORDS)}, TypeError, r"bitmask: got .* dtype torch.float32"),
        (
            {"bitmask": torch.ones(1, dtype=torch.int32)},
            ValueError,
            r"bitmask: .* accepted: an int32 tensor \[at least 2",
        ),
        ({"top": 1}, TypeError, "got an unknown argument 'top'"),
        ({"temprature": 1.0}, TypeError, "got an unknown argument 'temprature', did you mean 'temperature'?"),
    ],
    ids=str,
)
def test_bad_parameters_change_nothing(
    sampler: Sampler, given: Parameters, error: type[Exception], message: str
) -> None:
    sampler.add(seed=1, logit_bias=dict.fromkeys(range(4), 1.0))
    with pytest.raises(error, match=message):
        sampler.add(**given)
    sampler.add(seed=2)
    sampler.flush()
    with pytest.raises(error, match=message):
        sampler.update(1, **given)
    assert sampler.flush() == 0


def test_a_feature_that_was_left_out_is_named() -> None:
    sampler = Sampler(1, VOCAB, max_tokens=9, features=["min_tokens"])
    sampler.add(seed=1, min_tokens=2, stop_tokens=[1], prompt_tokens=[1], output_tokens=[2])
    for given, feature in (
        ({"presence_penalty": 1.0}, "penalties"),
        ({"logit_bias": {1: 1.0}}, "logit_bias"),
        ({"bad_words": [[1]]}, "bad_words"),
        ({"allowed_tokens": [1]}, "bitmask"),
        ({"bitmask": torch.ones(WORDS, dtype=torch.int32)}, "bitmask"),
    ):
        with pytest.raises(ValueError, match=rf"{next(iter(given))}.*'min_tokens'.*accepted: with '{feature}'.*slot 0"):
            sampler.update(0, **given)


def test_slots_that_are_full_or_empty(sampler: Sampler) -> None:
    for _ in range(SLOTS):
        sampler.add(seed=1)
    with pytest.raises(RuntimeError, match="all 4 slots are taken"):
        sampler.add(seed=1)
    sampler.remove(2)
    for call in (sampler.remove, sampler.update):
        with pytest.raises(ValueError, match=r"slot: got 2; accepted: one with a request \(\[0, 1, 3\]\)"):
            call(2)


def test_bad_steps(sampler: Sampler) -> None:
    for logits, rows, message in (
        (torch.zeros(SLOTS, VOCAB + 1), None, r"logits: got .* accepted: shape \[any, 37\] on cpu"),
        (torch.zeros(VOCAB), None, "logits: got"),
        (torch.zeros(SLOTS - 1, VOCAB), None, "accepted: 4 rows, one a slot"),
        (torch.zeros(2, VOCAB), torch.zeros(2, dtype=torch.int64), r"rows: got .* accepted: an integer tensor \[4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.step(logits, rows)
    for mask, error in ((torch.zeros(SLOTS, WORDS - 1).int(), ValueError), (torch.zeros(SLOTS, WORDS), TypeError)):
        with pytest.raises(error, match=r"bitmask: got .* accepted: an int32 tensor \[4, at least 2\]"):
            sampler.step(torch.zeros(SLOTS, VOCAB), bitmask=mask)
    with pytest.raises(TypeError, match=r"rows: got dtype torch\.float32"):
        sampler.step(torch.zeros(SLOTS, VOCAB), torch.zeros(SLOTS))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"slots": 0}, "slots: got 0; accepted: 1 to"),
        ({"vocab": 2**22 + 1}, "vocab: got 4194305; accepted: 1 to 4194304"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"list_capacity": -1}, "list_capacity: got -1"),
        ({"features": ["penalty"]}, "features: got .*penalty.*accepted: of 'penalties'"),
        ({"features": "penalties"}, "features: got 'penalties' .* a list, of 'penalties'"),
        ({"order": "any"}, "order: got 'any'"),
        ({"backend": "any"}, "backend: got 'any'"),
    ],
    ids=str,
)
def test_bad_samplers(given: Parameters, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Sampler(**{"slots": 1, "vocab": VOCAB, "max_tokens": 9, **given})


def test_allowed_lists_and_grammars_hold_together(sampler: Sampler) -> None:
    mask = pack_bitmask(TokenLists.of([[3, 4, 5]]), VOCAB)[0]
    slot = sampler.add(seed=1, allowed_tokens=[2, 3], bitmask=mask)
    for _ in range(3):
        assert sampler.step(torch.zeros(SLOTS, VOCAB))[slot] == 3
    sampler.update(slot, bitmask=None, allowed_tokens=[2])
    assert sampler.step(torch.zeros(SLOTS, VOCAB))[slot] == 2


def test_what_a_step_allows_is_forgotten_after_it(sampler: Sampler) -> None:
    logits, slot = torch.arange(VOCAB).expand(SLOTS, VOCAB).float(), sampler.add(seed=1, temperature=0.0)
    mask = pack_bitmask(TokenLists.of([[3, 4, 5]] * SLOTS), VOCAB)
    drawn = [sampler.step(logits, bitmask=each)[slot].item() for each in (mask, None, mask[:1])]
    sampler.update(slot, allowed_tokens=[2, 3, 9])
    drawn += [sampler.step_full(logits, None, each).tokens[slot].item() for each in (mask, None)]
    assert drawn == [5, VOCAB - 1, 5, 3, 9]

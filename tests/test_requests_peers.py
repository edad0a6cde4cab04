"""Adjustments and details against those who define them: transformers' processors as `generate` runs them and the masks
of xgrammar and llguidance by ==, vLLM's formulas in float64.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import llguidance
import llguidance.torch
import pytest
import torch
import xgrammar
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import PrefixConstrainedLogitsProcessor, RepetitionPenaltyLogitsProcessor

import fastsample
from conftest import BACKENDS
from fastsample import BadWords, LogitBias, TokenLists
from request_backends import backend_of, name

__all__ = ["name"]

public = pytest.mark.parametrize("name", BACKENDS, indirect=True)


# --- transformers


VOCABULARY, EOS = 300, 7


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A Llama of two narrow layers, random but for a scale that spreads its logits."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=EOS, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 20
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=EOS, bos_token_id=1)
    return model


PROMPTS = torch.tensor([[5, 20, 31, 9], [250, 20, 20, 3], [8, 9, 10, 11]])
STEPS = 16
WORDS = [[3], [20, 31], [9, 40, 41], [60, 60], [299, 298]]
BIAS = {12: 3.5, 77: -4.0, 20: 0.3, 150: float("inf"), 151: float("-inf")}

# What `generate` is asked for, and the same for `process_logits` at a step: its prompts and its output so far.
Adjusted = Callable[[Tensor, Tensor], dict[str, Any]]
GENERATIONS: dict[str, tuple[dict[str, Any], Adjusted]] = {
    "repetition_penalty": (
        {"repetition_penalty": 1.3},
        lambda prompt, output: {"repetition_penalty": 1.3, "prompt_tokens": prompt, "output_tokens": output},
    ),
    "a repetition_penalty that rewards": (
        {"repetition_penalty": 0.7},
        lambda prompt, output: {"repetition_penalty": 0.7, "prompt_tokens": prompt, "output_tokens": output},
    ),
    "bad_words_ids": (
        {"bad_words_ids": WORDS},
        lambda prompt, output: {
            "bad_words": BadWords.of([WORDS] * len(prompt), in_prompt=True),
            "prompt_tokens": prompt,
            "output_tokens": output,
        },
    ),
    "min_new_tokens": (
        {"min_new_tokens": 9},
        lambda prompt, output: {
            "min_tokens": 9,
            "stop_tokens": TokenLists.of([[EOS]] * len(prompt)),
            "output_tokens": output,
        },
    ),
    "min_length, which counts the prompt": (
        {"min_length": 9},
        lambda prompt, output: {
            "min_tokens": 9 - prompt.shape[1],
            "stop_tokens": TokenLists.of([[EOS]] * len(prompt)),
            "output_lengths": torch.full((len(prompt),), output.shape[1]),
        },
    ),
    "sequence_bias of single tokens": (
        {"sequence_bias": {(token,): value for token, value in BIAS.items() if value != math.inf}},
        lambda prompt, output: {
            "logit_bias": LogitBias.of([{t: value for t, value in BIAS.items() if value != math.inf}] * len(prompt))
        },
    ),
    "suppress_tokens": (
        {"suppress_tokens": [4, 5, 6, 250]},
        lambda prompt, output: {"bad_words": BadWords.of([[[4], [5], [6], [250]]] * len(prompt))},
    ),
    "prefix_allowed_tokens_fn": (
        {"prefix_allowed_tokens_fn": lambda row, ids: list(range(int(ids[-1]) % 7, VOCABULARY, 3))},
        lambda prompt, output: {
            "allowed_tokens": TokenLists.of(
                [list(range(int(ids[-1]) % 7, VOCABULARY, 3)) for ids in torch.cat((prompt, output), dim=1)]
            )
        },
    ),
}
SINGLE = tuple(GENERATIONS.values())


def _everything(prompt: Tensor, output: Tensor) -> dict[str, Any]:
    adjusted = {key: value for _, at in SINGLE for key, value in at(prompt, output).items()}
    words = BadWords.of([[*WORDS, [4], [5], [6], [250]]] * len(prompt), in_prompt=True)
    return adjusted | {"bad_words": words, "min_tokens": 9}


GENERATIONS["everything"] = (
    {key: value for asked, _ in SINGLE for key, value in asked.items() if key != "min_length"},
    _everything,
)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_process_logits_gives_the_scores_of_generate(model: LlamaForCausalLM, generation: str) -> None:
    """By ==, at each step of a `generate`, in its order. It computes in float32 as well, operation by operation.

    Where it does not: on a GPU torch divides by a number as it multiplies by the number's reciprocal, so there the
    penalised scores may be off by a unit in the last place. `x + -inf` is NaN for an x of NaN or +inf, which the law
    bans all the same. An allowed set of which every score is -inf is given scores of 0 (test below).
    """
    asked, adjusted = GENERATIONS[generation]
    found = model.generate(
        PROMPTS, do_sample=False, max_new_tokens=STEPS, **asked,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    output = found.sequences[:, PROMPTS.shape[1] :]
    changed = 0
    for step, (raw, scores) in enumerate(zip(found.logits, found.scores, strict=True)):
        going_on = (output[:, :step] != EOS).all(dim=1)  # of a row that is done, generate's scores mean nothing
        mine = fastsample.process_logits(raw, **adjusted(PROMPTS, output[:, :step]))
        assert torch.equal(mine[going_on], scores[going_on]), step
        tokens = fastsample.sample(raw, 0.0, seed=1, **adjusted(PROMPTS, output[:, :step]))
        assert torch.equal(tokens[going_on], output[going_on, step])
        changed += int((mine != raw).any(dim=1).sum())
    assert changed > 0


def test_left_padding_is_a_shorter_prompt() -> None:
    """transformers pads prompts on the left; here they stand on the left with their length."""
    padding = torch.tensor([0, 2, 1])
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(5)) * 4
    expected = RepetitionPenaltyLogitsProcessor(1.4, prompt_ignore_length=padding)(PROMPTS, logits)
    prompts = torch.stack([row.roll(-int(pad)) for row, pad in zip(PROMPTS, padding, strict=True)])
    given = {"repetition_penalty": 1.4, "prompt_tokens": prompts, "prompt_lengths": PROMPTS.shape[1] - padding}
    assert torch.equal(fastsample.process_logits(logits, **given), expected)


def test_a_constraint_that_leaves_nothing() -> None:
    """transformers then draws from the allowed tokens as if they were equal; here the row is invalid, and says so."""
    logits = torch.tensor([[1.0, -math.inf, -math.inf, 2.0]])
    processor = PrefixConstrainedLogitsProcessor(lambda row, ids: [1, 2], num_beams=1)
    assert processor(torch.zeros(1, 1, dtype=torch.int64), logits).tolist() == [[-math.inf, 0, 0, -math.inf]]
    allowed = TokenLists.of([[1, 2]])
    assert fastsample.sample(logits, allowed_tokens=allowed).tolist() == [-1]
    with pytest.raises(ValueError, match="the adjustments leave no token"):
        fastsample.sample(logits, allowed_tokens=allowed, errors="raise")


# --- vLLM


class VllmRequest:
    """A request with vLLM's parameters, and its formulas for one row in float64."""

    def __init__(self, row: int, logits: Tensor) -> None:
        random = torch.Generator().manual_seed(100 + row)
        best = logits.topk(20).indices.tolist()
        vocab = logits.shape[0]
        self.repetition = [1.0, 1.1, 1.8, 0.6][row % 4]
        self.presence = [0.0, 0.7, -0.5, 2.0][row // 2 % 4]
        self.frequency = [0.3, 0.0, 1.5, -0.2][row // 3 % 4]
        self.prompt = torch.randint(vocab, (10 + row,), generator=random).tolist() + best[:4]
        self.output = [best[i] for i in torch.randint(8, (1 + 3 * row,), generator=random).tolist()]
        self.bias = {best[1]: -1.5, best[2]: 4.0, int(best[3]): 100.0} if row % 2 else {}
        self.min_tokens, self.stops = 10, [best[0], best[5]]
        self.bad_words = [[best[6]], [*self.output[-2:], best[7]], [best[0], best[0], best[0], best[8]]]
        self.allowed = set(range(0, vocab, 2)) | set(best) if row % 3 == 0 else None

    def processed(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """float64 logits after allowed ids, bad words, minimum length, bias and penalties, and the largest number met.

        The order of vLLM's V1 sampler (Sampler.apply_logits_processors, apply_penalties).
        """
        x = logits.double()
        size = x.abs()
        if self.allowed is not None:
            for token in set(range(len(x))) - self.allowed:
                x[token] = -math.inf
        for word in self.bad_words:
            before = len(word) - 1
            if before <= len(self.output) and (before == 0 or self.output[-before:] == word[:-1]):
                x[word[-1]] = -math.inf
        if len(self.output) < self.min_tokens:
            x[self.stops] = -math.inf
        for token, value in self.bias.items():
            x[token] += value
            size[token] += abs(value)
        for token in set(self.prompt) | set(self.output):
            x[token] *= 1 / self.repetition if x[token] > 0 else self.repetition
            size[token] *= max(self.repetition, 1 / self.repetition)
        for token in set(self.output):
            x[token] -= self.frequency * self.output.count(token)
            x[token] -= self.presence
            size[token] += abs(self.frequency * self.output.count(token)) + abs(self.presence)
        return x, size


def vllm_adjustments(requests: list[VllmRequest]) -> dict[str, Any]:
    def padded(lists: list[list[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, lists))
        rows = [row + [2**31 - 1] * (longest - len(row)) for row in lists]
        return torch.tensor(rows), torch.tensor([len(row) for row in lists])

    prompts, prompt_lengths = padded([request.prompt for request in requests])
    outputs, output_lengths = padded([request.output for request in requests])
    return {
        "repetition_penalty": torch.tensor([request.repetition for request in requests]),
        "presence_penalty": torch.tensor([request.presence for request in requests]),
        "frequency_penalty": torch.tensor([request.frequency for request in requests]),
        "prompt_tokens": prompts, "prompt_lengths": prompt_lengths,
        "output_tokens": outputs, "output_lengths": output_lengths,
        "logit_bias": LogitBias.of([request.bias for request in requests]),
        "bad_words": BadWords.of([request.bad_words for request in requests]),
        "min_tokens": torch.tensor([request.min_tokens for request in requests]),
        "stop_tokens": TokenLists.of([request.stops for request in requests]),
        "allowed_tokens": TokenLists.of([sorted(request.allowed or ()) for request in requests]),
    }  # fmt: skip


@public
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_process_logits_follows_vllms_formulas(name: str, dtype: torch.dtype) -> None:
    """To within the rounding of at most five float32 operations; vLLM itself multiplies by a reciprocal."""
    logits = (torch.randn(12, 1000, generator=torch.Generator().manual_seed(6)) * 5).to(dtype)
    requests = [VllmRequest(row, logits[row]) for row in range(len(logits))]
    found = fastsample.process_logits(logits, backend=backend_of(name), **vllm_adjustments(requests)).double()
    for row, request in enumerate(requests):
        expected, size = request.processed(logits[row])
        banned = expected == -math.inf
        assert torch.equal(found[row] == -math.inf, banned)
        assert banned.any()
        assert ((found[row] - expected).abs() <= 6 * 2.0**-24 * size)[~banned].all()
        untouched = sorted(set(range(1000)) - set(request.prompt) - set(request.output) - request.bias.keys())
        kept = [token for token in untouched if not banned[token]]
        assert torch.equal(found[row, kept], logits[row, kept].double())


@public
def test_log_probabilities_and_ranks_of_vllm(name: str) -> None:
    """What its gather_logprobs returns of raw logits: log_softmax, the largest, and the rank.

    Its rank counts the tokens whose log-probability is at least the token's: among equals all have the last one's rank.
    Here the rank is the place in the law's order, where equals stand by index, so that the list of the largest, the
    ranks in it and the token that greedy draws fit each other. Where no two are equal the ranks are.
    """
    logits = torch.randn(8, 500, generator=torch.Generator().manual_seed(7)) * 3
    tied = (logits * 2).round() / 2
    for raw, has_ties in ((logits, False), (tied, True)):
        found = fastsample.sample_full(
            raw, 0.7, top_p=0.95, seed=3, num_samples=4, raw_logprobs=True, top_logprobs=20, backend=backend_of(name)
        )
        exact = torch.log_softmax(raw.double(), dim=1)
        drawn = exact.gather(1, found.tokens)
        assert (found.raw_logprobs - drawn).abs().max() < 2e-6
        assert (found.top_logprobs - exact.topk(20).values).abs().max() < 2e-6
        assert (found.top_logprobs - exact.gather(1, found.top_tokens)).abs().max() < 2e-6
        vllm_ranks = (exact[:, None] >= drawn[:, :, None]).sum(dim=2)
        index = torch.arange(raw.shape[1])
        equals_after = ((exact[:, None] == drawn[:, :, None]) & (index > found.tokens[:, :, None])).sum(dim=2)
        assert torch.equal(found.ranks, vllm_ranks - equals_after)
        assert bool(equals_after.any()) == has_ties


# --- grammars


STOP = 0
MERGED = ["true", "false", "null", '": ', '", "', '":', "name", '"name', "age", '{"', '"}', "12", "007", "é", "\n\n"]
# One token a printable character, some longer ones, and a stop token; no multiple of 32 in all.
TOKENS = ["</s>", *(chr(code) for code in range(32, 127)), "\n", "\t", *MERGED]
SCHEMAS = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}}},
    {"type": "array", "items": {"enum": ["true", "name", 12, None]}, "maxItems": 6},
    {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False},
    {"type": "number"},
]  # fmt: skip


def grammar_logits(step: int, dtype: torch.dtype) -> Tensor:
    """Logits that end what they began: else a number of a thousand digits would be as likely as any."""
    logits = torch.randn(len(SCHEMAS), len(TOKENS), generator=torch.Generator().manual_seed(step)) * 2
    logits[:, [STOP, TOKENS.index('"'), TOKENS.index("}"), TOKENS.index("]")]] += 3.0
    logits[1, 5] = math.nan if step % 5 == 0 else 0.0  # a space within a string, which is never due here
    return logits.to(dtype)


@public
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_masks_of_xgrammar(name: str, dtype: torch.dtype) -> None:
    """Its own application of a mask and ours give the same logits; its matchers accept every token drawn."""
    info = xgrammar.TokenizerInfo(TOKENS, stop_token_ids=[STOP])
    compiler = xgrammar.GrammarCompiler(info, max_threads=1)
    grammars = [compiler.compile_json_schema(json.dumps(schema), any_whitespace=False) for schema in SCHEMAS]
    matchers = [xgrammar.GrammarMatcher(grammar) for grammar in grammars]
    mask = xgrammar.allocate_token_bitmask(len(SCHEMAS), info.vocab_size)
    text: list[list[int]] = [[] for _ in SCHEMAS]
    finished = 0
    for step in range(120):
        logits = grammar_logits(step, dtype)
        for row, matcher in enumerate(matchers):
            matcher.fill_next_token_bitmask(mask, row)
        expected = logits.clone()
        xgrammar.apply_token_bitmask_inplace(expected, mask, backend="cpu")
        assert torch.equal(fastsample.process_logits(logits, bitmask=mask, backend=backend_of(name)), expected.float())
        tokens = fastsample.sample(logits, 1.2, top_p=0.97, seed=step, bitmask=mask, backend=backend_of(name))
        assert torch.equal(tokens, fastsample.sample(expected, 1.2, top_p=0.97, seed=step))
        for row, token in enumerate(tokens.tolist()):
            assert matchers[row].accept_token(token), (row, TOKENS[token])
            text[row].append(token)
            if matchers[row].is_terminated():
                json.loads("".join(TOKENS[token] for token in text[row][:-1]))
                finished += 1
                matchers[row].reset()
                text[row].clear()
    assert finished >= len(SCHEMAS)


class Tokenizer:
    """What llguidance asks of one: the bytes of each token, and some way to tokenize."""

    eos_token_id = STOP
    bos_token_id = None
    tokens = tuple(token.encode() for token in TOKENS)
    special_token_ids = (STOP,)

    def __call__(self, text: str) -> list[int]:
        return [TOKENS.index(character) for character in text]


@public
def test_the_masks_of_llguidance(name: str) -> None:
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Tokenizer()))
    grammars = [
        llguidance.LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        for schema in SCHEMAS
    ]
    matchers = [llguidance.LLMatcher(tokenizer, grammar) for grammar in grammars]
    mask = llguidance.torch.allocate_token_bitmask(len(SCHEMAS), tokenizer.vocab_size)
    text: list[list[int]] = [[] for _ in SCHEMAS]
    finished = 0
    for step in range(120):
        logits = grammar_logits(step, torch.float32)
        for row, matcher in enumerate(matchers):
            llguidance.torch.fill_next_token_bitmask(matcher, mask, row)
        expected = logits.clone()
        with torch.compiler.set_stance("force_eager"):  # its application is compiled, which takes half a minute
            llguidance.torch.apply_token_bitmask_inplace(expected, mask)
        assert torch.equal(fastsample.process_logits(logits, bitmask=mask, backend=backend_of(name)), expected)
        tokens = fastsample.sample(logits, seed=step, bitmask=mask, backend=backend_of(name))
        for row, token in enumerate(tokens.tolist()):
            assert matchers[row].consume_token(token), (row, TOKENS[token], matchers[row].get_error())
            text[row].append(token)
            if token == STOP:
                json.loads("".join(TOKENS[token] for token in text[row][:-1]))
                finished += 1
                matchers[row].reset()
                text[row].clear()
    assert finished >= len(SCHEMAS)


def test_lists_of_allowed_tokens_are_the_same_bitmask() -> None:
    """`pack_bitmask` lays tokens out as both libraries do."""
    lists = [[0, 31, 32, 63, 64, 110], list(range(len(TOKENS))), [5]]
    mask = xgrammar.allocate_token_bitmask(len(lists), len(TOKENS))
    for row, tokens in enumerate(lists):
        for word in range(mask.shape[1]):
            bits = sum(1 << token % 32 for token in tokens if token // 32 == word)
            mask[row, word] = bits - 2**32 if bits >= 2**31 else bits
    assert torch.equal(fastsample.pack_bitmask(TokenLists.of(lists), len(TOKENS)), mask)
    logits = torch.randn(len(lists), len(TOKENS))
    expected = logits.clone()
    xgrammar.apply_token_bitmask_inplace(expected, mask, backend="cpu")
    assert torch.equal(fastsample.process_logits(logits, allowed_tokens=TokenLists.of(lists)), expected)

"""Speculative decoding: the law's tokens by == against plain integers, and the target's distribution by statistics."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample
import speculative_oracle
from fastsample import ops
from fastsample.arguments import ORDERS
from fastsample.distribution import distribution
from missing import missing
from speculative_oracle import Parameters, Source
from strategies import one_thread
from test_statistics import LEAST_P_VALUE, p_value

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _on_one_thread() -> Iterator[None]:
    with one_thread():
        yield


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


# --- by == against the law in integers


class Requests:
    """A batch for `verify_chain` or `verify_tree`, and the same a request at a time for the oracle."""

    def __init__(self, number: int, drafted: bool, tree: bool) -> None:
        self.random = random = np.random.default_rng(number)
        self.batch, self.count = int(random.integers(1, 6)), int(random.integers(0, 7))
        self.vocab = int(random.choice([1, 2, 3, 5, 8, 33]))
        self.order = str(random.choice(ORDERS))
        self.draft_probabilities = drafted and random.random() < 0.3
        self.target_probabilities = random.random() < 0.3
        draft_rows = self.count + 1 if tree else self.count
        self.target = self._rows(self.count + 1, self.target_probabilities)
        self.draft = self._rows(draft_rows, self.draft_probabilities) if drafted else None
        if drafted and self.target_probabilities == self.draft_probabilities and random.random() < 0.7:
            close = self.target[:, :draft_rows].float()
            noise = torch.from_numpy(random.normal(0, 0.3, close.shape)).float()
            self.draft = close * noise.abs() if self.draft_probabilities else close + noise
        self.parameters = [self._parameters(self.target_probabilities) for _ in range(self.batch)]
        self.draft_parameters = self.parameters
        if self.draft_probabilities:
            self.draft_parameters = [Parameters()] * self.batch
        self.draft_filters: Any = None
        if drafted and random.random() < 0.4:
            self.draft_parameters = [self._parameters(self.draft_probabilities) for _ in range(self.batch)]
            self.draft_filters = columns(self.draft_parameters)
        self.tokens = torch.from_numpy(random.integers(0, self.vocab, (self.batch, self.count)))
        self._draw_likely_tokens()
        bad = torch.from_numpy(random.random(self.tokens.shape) < 0.1)
        self.tokens = torch.where(bad, int(random.choice([-1, self.vocab, 2**40, -(2**63)])), self.tokens)
        self.lengths = torch.from_numpy(random.integers(0, self.count + 1, self.batch))
        shape = int(random.integers(3))
        parents = [[self._parent(i, shape) for i in range(self.count)] for _ in range(self.batch)]
        self.parents = torch.tensor(parents, dtype=torch.int64).view(self.batch, self.count)
        per_request = random.random() < 0.6
        big = [0, 5, 2**32 - 1, 2**63 - 2, 2**64 - 2]
        self.seed: Any = (
            torch.from_numpy(random.integers(-(2**63), 2**63 - 1, self.batch)) if per_request else 2**64 - 3
        )
        self.offset: Any = int(random.choice(np.array(big, dtype=object)))
        if random.random() < 0.5:
            self.offset = torch.from_numpy(random.choice(np.array(big, dtype=np.uint64), self.batch)).view(torch.int64)
        self.stream: Any = int(random.choice([0, 7, 2**32 - 1]))
        self.sources = [
            Source(
                int(self.seed[b]) if per_request else self.seed,
                int(self.offset[b]) if isinstance(self.offset, Tensor) else self.offset,
                self.stream + (0 if per_request else b),
            )
            for b in range(self.batch)
        ]

    def _rows(self, count: int, probabilities: bool) -> Tensor:
        random = self.random
        values = random.normal(0, random.choice([0.1, 1, 5]), (self.batch, count, self.vocab))
        if random.random() < 0.4:
            values = np.round(values)
        values = np.where(random.random(values.shape) < 0.1, -np.inf, values)
        values = np.where(random.random(values.shape) < 0.02, np.inf, values)
        if probabilities:
            values = np.exp(np.minimum(values, 3))
        values = np.where(random.random((self.batch, count, 1)) < 0.05, np.nan, values)
        padding = int(random.integers(0, 3))
        rows = torch.from_numpy(values).to(DTYPES[int(random.integers(3))])
        return torch.nn.functional.pad(rows, (0, padding))[..., : self.vocab] if padding else rows

    def _parameters(self, probabilities: bool) -> Parameters:
        random = self.random
        return Parameters(
            1.0
            if probabilities
            else float(random.choice([0.0, 0.5, 1.0, 1.0, 2.0, np.nan], p=[0.1, 0.2, 0.2, 0.2, 0.25, 0.05])),
            int(random.choice([0, 0, 1, 3, 20])),
            float(np.float32(random.choice([1.0, 0.9, 0.3]))),
            float(np.float32(random.choice([0.0, 0.0, 0.1]))),
            self.order,
        )

    def _parent(self, node: int, shape: int) -> int:
        """In a chain, a tree two levels deep or any tree; some nodes are not used, by -2 or by following themselves."""
        if self.random.random() < 0.05:
            return int(self.random.choice([-2, node, node + 1]))
        first = (node - 1, -1, -1)[shape]
        return int(self.random.integers(first, (node, min(node, 1), node)[shape]))

    def _draw_likely_tokens(self) -> None:
        """Half of the drafts the likeliest tokens, so that some are accepted."""
        if self.count == 0:
            return
        rows = self.target[:, : self.count] if self.draft is None else self.draft[:, : self.count]
        likely = rows.float().nan_to_num().argmax(dim=2)
        half = torch.from_numpy(self.random.random(self.tokens.shape) < 0.6)
        self.tokens = torch.where(half, likely, self.tokens)

    def keywords(self) -> dict[str, Any]:
        filters = columns(self.parameters)
        if self.target_probabilities:
            filters["temperature"] = 1.0
        draft_filters = self.draft_filters
        if draft_filters is not None and self.draft_probabilities:
            draft_filters["temperature"] = 1.0
        return {
            **filters,
            "draft_filters": draft_filters,
            "target_probabilities": self.target_probabilities,
            "draft_probabilities": self.draft_probabilities,
            "seed": self.seed,
            "offset": self.offset,
            "stream": self.stream,
        }

    def rows_of(self, request: int) -> tuple[list[speculative_oracle.Row], list[speculative_oracle.Row] | None]:
        def described(values: Tensor | None, parameters: Parameters, probabilities: bool) -> Any:
            if values is None:
                return None
            return [speculative_oracle.row(row, parameters, probabilities) for row in values[request].float().tolist()]

        return (
            described(self.target, self.parameters[request], self.target_probabilities),
            described(self.draft, self.draft_parameters[request], self.draft_probabilities),
        )


def columns(parameters: list[Parameters]) -> dict[str, Any]:
    """Parameters of requests as tensors."""
    temperature, top_k, top_p, min_p, order = zip(*parameters, strict=True)
    return {
        "temperature": torch.tensor(temperature),
        "top_k": torch.tensor(top_k),
        "top_p": torch.tensor(top_p),
        "min_p": torch.tensor(min_p),
        "order": order[0],
    }


def padded(values: list[int], length: int) -> list[int]:
    return values + [-1] * (length - len(values))


@pytest.mark.parametrize("drafted", [True, False], ids=["with draft", "without draft"])
def test_chains_are_the_laws(backend_name: str, drafted: bool) -> None:
    """Every request of 150 batches; `accepted` spans 0 to n."""
    lengths_seen = set()
    for number in range(150):
        requests = Requests(number, drafted, tree=False)
        found = fastsample.verify_chain(
            requests.target,
            requests.tokens,
            requests.draft,
            draft_lengths=requests.lengths,
            backend=backend_name,
            **requests.keywords(),
        )
        for b in range(requests.batch):
            length = int(requests.lengths[b])
            target, draft = requests.rows_of(b)
            tokens, acceptable = speculative_oracle.chain(
                target[: length + 1], requests.tokens[b, :length].tolist(), draft, requests.sources[b]
            )
            assert found.tokens[b].tolist() == padded(tokens, requests.count + 1), (number, b)
            assert int(found.accepted[b]) == len(tokens) - 1
            assert found.acceptable[b].tolist() == acceptable + [False] * (requests.count - length)
            lengths_seen.add((len(tokens) - 1, length))
    assert {(0, 0), (0, 3), (1, 3), (3, 3), (4, 4)} <= lengths_seen


@pytest.mark.parametrize("drafted", [True, False], ids=["with draft", "without draft"])
def test_trees_are_the_laws(backend_name: str, drafted: bool) -> None:
    depths_seen = set()
    for number in range(80):
        requests = Requests(1000 + number, drafted, tree=True)
        found = fastsample.verify_tree(
            requests.target,
            requests.tokens,
            requests.parents,
            requests.draft,
            backend=backend_name,
            **requests.keywords(),
        )
        for b in range(requests.batch):
            target, draft = requests.rows_of(b)
            tokens, path = speculative_oracle.tree(
                target, requests.tokens[b].tolist(), requests.parents[b].tolist(), draft, requests.sources[b]
            )
            assert found.tokens[b].tolist() == padded(tokens, requests.count + 1), (number, b)
            assert found.path[b].tolist() == padded(path, requests.count), (number, b)
            assert int(found.accepted[b]) == len(path)
            depths_seen.add(len(path))
    assert {0, 1, 2, 3} <= depths_seen


EXACT_PAIRS = {
    "random": ([5, 1, 9, 3, 2**40], [2**39, 7, 2**40, 3, 2**38]),
    "equal": ([2**40, 12345, 2**33, 1], [2**40, 12345, 2**33, 1]),
    "disjoint": ([2**40, 2**30, 0, 0], [0, 0, 2**40, 2**39]),
    "peaked": ([2**40, 1, 1, 2], [1, 2**40, 2**39, 2]),
    "one in the other": ([2**40, 0, 2**39, 0], [2**40, 2**38, 2**40, 2**40]),
    "greedy": ([0, 2**40, 0], [2**39, 2**40, 2**37]),
    "flat": ([2**40] * 50, list(range(2**40 - 49, 2**40 + 1))),
}


@pytest.mark.parametrize("children", [1, 2, 3])
@pytest.mark.parametrize("pair", EXACT_PAIRS)
def test_the_laws_exact_distribution_is_the_targets(pair: str, children: int) -> None:
    """As fractions: each child loses less than 2^-40 per token to p^, q^ and the residual's rounding."""
    p, q = EXACT_PAIRS[pair]
    found = speculative_oracle.output_distribution(p, q, children)
    assert sum(found) == 1
    distance = sum(abs(share - weight / sum(p)) for share, weight in zip(found, p, strict=True))
    assert distance < 3 * children * len(p) * 2.0**-40


# --- by statistics: REACHED draws of a position show that its probabilities are off by 1 %, some up and some down

REQUESTS, VOCAB = 500_000, 4
REACHED = 350_000


def target_rows(count: int) -> Tensor:
    return normal(count, VOCAB, seed=2, scale=0.6)


def test_the_statistics_would_notice_one_per_cent() -> None:
    for p in distribution(target_rows(3)).numpy():
        wrong = p * np.where(np.arange(VOCAB) % 2 == 0, 1.01, 0.99)
        counts = np.random.default_rng(1).multinomial(REACHED, p / p.sum())
        assert p_value(counts, p) > LEAST_P_VALUE
        assert p_value(counts, wrong / wrong.sum()) < LEAST_P_VALUE


def check_positions(tokens: Tensor, accepted: Tensor, target: Tensor, least_draws: int) -> int:
    """Of each position, the tokens against the row (probabilities [n + 1, vocab]); how many had enough draws."""
    enough = 0
    for position, row in enumerate(target):
        reached = tokens[accepted >= position, position]
        enough += len(reached) >= least_draws
        counts = torch.bincount(reached, minlength=len(row)).numpy()
        assert len(reached) < 1000 or p_value(counts, row.numpy()) > LEAST_P_VALUE, position
    return enough


def near(rows: Tensor) -> Tensor:
    return rows + normal(*rows.shape, seed=5, scale=0.5)


def disjoint(rows: Tensor) -> Tensor:
    odd = torch.arange(rows.shape[-1]) % 2 == 1
    rows.masked_fill_(odd, -torch.inf)
    return torch.where(odd, 0.5, -torch.inf).expand(rows.shape).clone()


PAIRS: dict[str, Any] = {
    "near": near,
    "equal": torch.clone,
    "far": lambda rows: -rows,
    "disjoint": disjoint,
    "flat draft": torch.zeros_like,
    "peaked draft": lambda rows: near(rows) * 5,
}
FILTERS = {"temperature": 0.8, "top_k": 3, "top_p": 0.9, "min_p": 0.02}
OWN, PROBABILITIES = "the draft's own filters", "probabilities"


@pytest.mark.parametrize(
    ("pair", "case"),
    [
        ("near", ""),
        ("near", "filters"),
        ("near", PROBABILITIES),
        ("disjoint", ""),
        *(pytest.param(pair, "", marks=pytest.mark.slow) for pair in ("equal", "far", "flat draft", "peaked draft")),
        *(pytest.param("far", case, marks=pytest.mark.slow) for case in ("filters", OWN, PROBABILITIES)),
        pytest.param("near", OWN, marks=pytest.mark.slow),
    ],
)
def test_each_position_is_distributed_as_the_target(pair: str, case: str) -> None:
    requests, count, vocab = REQUESTS, 2, VOCAB
    target = target_rows(count + 1)
    draft = PAIRS[pair](target[:count])
    filters: dict[str, Any] = FILTERS if "filters" in case else {}
    own: dict[str, Any] = {"temperature": 1.3, "top_k": 3} if case == OWN else filters
    seeds = torch.arange(requests)
    tokens = torch.stack(
        [
            fastsample.sample_draft(row.expand(requests, vocab), **own, seed=seeds, offset=7 + position)
            for position, row in enumerate(draft)
        ],
        dim=1,
    )
    probabilities = case == PROBABILITIES
    if probabilities:
        target, draft = target.softmax(-1) * 3, draft.softmax(-1)
    found = fastsample.verify_chain(
        target.expand(requests, count + 1, vocab),
        tokens,
        draft.expand(requests, count, vocab),
        **filters,
        draft_filters=own if case == OWN else None,
        target_probabilities=probabilities,
        draft_probabilities=probabilities,
        seed=seeds,
        offset=7,
    )
    expected = (
        target.double() / target.double().sum(-1, keepdim=True) if probabilities else distribution(target, **filters)
    )
    enough = check_positions(found.tokens, found.accepted, expected, REACHED)
    assert enough == (count + 1 if pair in ("near", "equal") and case in ("", PROBABILITIES) else max(enough, 1))
    if pair == "disjoint":
        assert bool((found.accepted == 0).all())


@pytest.mark.parametrize("requests", [40_000, pytest.param(REQUESTS, marks=pytest.mark.slow)])
def test_trees_of_independent_children_are_distributed_as_the_target(requests: int) -> None:
    """Three children of the context, two of the first and of the third of them, and one below."""
    vocab = VOCAB
    parents = torch.tensor([-1, -1, -1, 0, 0, 2, 2, 3])
    nodes = len(parents)
    # All rows of a depth alike, so that a position has one distribution.
    depth = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 3])
    target = target_rows(4)[depth]
    draft = target + normal(4, vocab, seed=4, scale=1.0)[depth]
    seeds = torch.arange(requests)
    tokens = torch.empty((requests, nodes), dtype=torch.int64)
    for parent in (-1, 0, 2, 3):
        children = (parents == parent).nonzero().flatten()
        tokens[:, children] = fastsample.sample_draft(
            draft[1 + parent].expand(requests, vocab),
            children=len(children),
            seed=seeds,
            offset=int(depth[1 + parent]),
        )
    found = fastsample.verify_tree(
        target.expand(requests, nodes + 1, vocab),
        tokens,
        parents.expand(requests, nodes),
        draft.expand(requests, nodes + 1, vocab),
        seed=seeds,
    )
    expected = distribution(target[[0, 1, 4, 8]])
    assert check_positions(found.tokens, found.accepted, expected, int(0.6 * requests)) >= 2
    assert int(found.accepted.max()) == 3


def test_a_text_is_distributed_as_the_targets_over_rounds() -> None:
    """A model whose next logits depend on the last token, decoded in rounds whose offset advances by what was drawn:
    the words that refused drafts were drawn by serve again, and the joint distribution of three tokens is right."""
    requests, vocab, length, drafts = 100_000, 3, 3, 2
    model = normal(vocab, vocab, seed=8, scale=1.0)
    drafter = model + normal(vocab, vocab, seed=9, scale=1.0)
    seeds = torch.arange(requests)
    text = torch.zeros((requests, length + drafts + 2), dtype=torch.int64)  # begins with token 0
    drawn = torch.zeros(requests, dtype=torch.int64)
    while int(drawn.min()) < length:
        last = text.gather(1, drawn[:, None])[:, 0]
        context, tokens, rows = last, [], []
        for step in range(drafts):
            rows.append(drafter[context])
            context = fastsample.sample_draft(rows[-1], seed=seeds, offset=drawn + step)
            tokens.append(context)
        drafted = torch.stack(tokens, dim=1)
        target = model[torch.cat((last[:, None], drafted), dim=1)]
        found = fastsample.verify_chain(target, drafted, torch.stack(rows, dim=1), seed=seeds, offset=drawn)
        # A request that is done is decoded on for the others' sake, into the last columns.
        place = (drawn[:, None] + 1 + torch.arange(drafts + 1)).clamp(max=text.shape[1] - 1)
        done = (drawn >= length)[:, None] | (found.tokens < 0)
        text.scatter_(1, torch.where(done, text.shape[1] - 1, place), found.tokens)
        drawn = torch.where(drawn >= length, drawn, drawn + found.accepted + 1)
    places = vocab ** torch.arange(length)
    counts = torch.bincount((text[:, 1 : length + 1] * places).sum(dim=1), minlength=vocab**length)
    step = distribution(model).numpy()
    expected = np.zeros(vocab**length)
    for number in range(vocab**length):
        digits = [number // vocab**i % vocab for i in range(length)]
        expected[number] = np.prod([step[a, b] for a, b in zip([0, *digits], digits, strict=False)])
    assert p_value(counts.numpy(), expected) > LEAST_P_VALUE


# --- what a request's tokens depend on, and what they do not


def test_drafts_without_probabilities_give_the_tokens_of_decoding_without_drafts(backend_name: str) -> None:
    batch, count, vocab = 40, 4, 9
    target = normal(batch, count + 1, vocab, seed=1)
    temperature, seed, offset = torch.linspace(0, 2, batch), torch.arange(batch) * 31, torch.arange(batch)
    plain = torch.stack(
        [
            fastsample.sample(target[:, j], temperature, top_p=0.9, seed=seed, offset=offset + j, backend=backend_name)
            for j in range(count + 1)
        ],
        dim=1,
    )
    drafted = torch.where(normal(batch, count, seed=2) > -1, plain[:, :count], 3)
    keywords: Any = {"top_p": 0.9, "seed": seed, "offset": offset, "backend": backend_name}
    found = fastsample.verify_chain(target, drafted, None, temperature, **keywords)
    chain = torch.arange(-1, count - 1).expand(batch, count)
    tree = fastsample.verify_tree(target, drafted, chain, None, temperature, **keywords)
    emitted = torch.arange(count + 1) <= found.accepted[:, None]
    assert torch.equal(found.tokens, torch.where(emitted, plain, -1))
    assert torch.equal(tree.tokens, found.tokens)
    assert found.accepted.unique().tolist() == [0, 1, 2, 3, 4]
    shared = fastsample.verify_chain(target, drafted, seed=5, offset=11, backend=backend_name)
    assert torch.equal(shared.tokens[:, 0], fastsample.sample(target[:, 0], seed=5, offset=11, backend=backend_name))


def test_a_chain_is_a_tree(backend_name: str) -> None:
    batch, count, vocab = 30, 3, 7
    target = normal(batch, count + 1, vocab, seed=1)
    draft = target + normal(batch, count + 1, vocab, seed=2, scale=1.0)
    drafted = torch.randint(vocab, (batch, count), generator=torch.Generator().manual_seed(3))
    keywords: Any = {"top_k": 5, "seed": torch.arange(batch), "backend": backend_name}
    chain = fastsample.verify_chain(target, drafted, draft[:, :count], **keywords)
    tree = fastsample.verify_tree(target, drafted, torch.arange(-1, count - 1).expand(batch, count), draft, **keywords)
    assert torch.equal(chain.tokens, tree.tokens)
    assert torch.equal(chain.accepted, tree.accepted)
    assert len(chain.accepted.unique()) == count + 1


@pytest.mark.parametrize("drafted", [True, False], ids=["with draft", "without draft"])
def test_a_request_alone_gives_the_tokens_of_the_batch(backend_name: str, drafted: bool) -> None:
    batch, count, vocab = 6, 3, 300
    target = normal(batch, count + 1, vocab, seed=1)
    draft = target + normal(batch, count + 1, vocab, seed=2, scale=1.0)
    tokens = draft[:, :count].argmax(dim=2)
    parents = torch.tensor([[-1, -1, 0]]).expand(batch, count)
    seed, offset, top_k = torch.arange(batch) + 9, torch.arange(batch) * 2, torch.tensor([0, 1, 5, 300, 20, 0])

    def verified(part: slice, seed: Any, stream: int) -> list[Tensor]:
        keywords: Any = {"top_k": top_k[part], "seed": seed, "offset": offset[part], "stream": stream}
        keywords["backend"] = backend_name
        chain = fastsample.verify_chain(
            target[part], tokens[part], draft[part, :count] if drafted else None, 0.7, **keywords
        )
        tree = fastsample.verify_tree(
            target[part], tokens[part], parents[part], draft[part] if drafted else None, 0.7, **keywords
        )
        return [*chain, *tree]

    for seeds in (seed, 77):
        together = verified(slice(None), seeds, 0)
        for b in range(batch):
            part = slice(b, b + 1)
            alone = verified(part, seed[part], 0) if isinstance(seeds, Tensor) else verified(part, 77, b)
            assert all(torch.equal(one, all_[part]) for one, all_ in zip(alone, together, strict=True))


def test_memory_layout_does_not_matter(backend_name: str) -> None:
    batch, count, vocab = 3, 2, 40
    target = normal(count + 1, batch, 2 * vocab, seed=1)[..., ::2].transpose(0, 1)
    draft = normal(vocab, count, batch, seed=2).permute(2, 1, 0)
    tokens = torch.tensor([[3, 5, 7], [1, 30, 2]], dtype=torch.int32).t()
    keywords: Any = {"seed": 3, "backend": backend_name}
    strided = fastsample.verify_chain(target, tokens, draft, **keywords)
    dense = fastsample.verify_chain(target.contiguous(), tokens.contiguous().long(), draft.contiguous(), **keywords)
    assert all(torch.equal(a, b) for a, b in zip(strided, dense, strict=True))


def test_a_draft_of_minus_one_is_not_what_an_invalid_row_draws() -> None:
    target = torch.full((1, 3, 4), torch.nan)
    tokens = torch.full((1, 2), -1)
    assert fastsample.verify_chain(target, tokens, seed=1).tokens.tolist() == [[-1, -1, -1]]
    assert fastsample.verify_chain(target, tokens, seed=1).accepted.tolist() == [0]
    tree = fastsample.verify_tree(target, tokens, torch.tensor([[-1, 0]]), seed=1)
    assert tree.accepted.tolist() == [0]
    assert tree.path.tolist() == [[-1, -1]]


def test_no_drafts_and_no_requests(backend_name: str) -> None:
    target = normal(2, 1, 9)
    nothing = torch.empty((2, 0), dtype=torch.int64)
    plain = fastsample.sample(target[:, 0], seed=4, backend=backend_name)
    keywords: Any = {"seed": 4, "backend": backend_name}
    for draft in (None, torch.empty(2, 0, 9)):
        found = fastsample.verify_chain(target, nothing, draft, **keywords)
        assert found.tokens[:, 0].tolist() == plain.tolist()
        assert found.accepted.tolist() == [0, 0]
    for draft in (None, torch.empty(2, 1, 9)):
        tree = fastsample.verify_tree(target, nothing, nothing, draft, **keywords)
        assert tree.tokens[:, 0].tolist() == plain.tolist()
        assert tree.path.shape == (2, 0)
    empty = torch.empty((0, 3, 9))
    for draft in (None, empty[:, :2]):
        found = fastsample.verify_chain(empty, nothing[:0].new_empty((0, 2)), draft, **keywords)
        assert found.tokens.shape == (0, 3)
        assert found.accepted.shape == (0,)


def test_drafts_are_drawn_by_odd_words(backend_name: str) -> None:
    logits, seed, offset = normal(5, 100), torch.arange(5), torch.arange(5) * 3
    keywords: Any = {"top_p": 0.9, "seed": seed, "offset": offset, "backend": backend_name}
    draws = fastsample.sample(logits, 0.7, num_samples=6, **keywords)
    assert torch.equal(fastsample.sample_draft(logits, 0.7, children=3, **keywords), draws[:, 1::2])
    assert torch.equal(fastsample.sample_draft(logits, 0.7, **keywords), draws[:, 1])
    assert fastsample.sample_draft(logits[0], seed=1).shape == ()
    assert fastsample.sample_draft(logits[0], seed=1, children=2).shape == (2,)


def test_a_generator_reproduces() -> None:
    target, draft = normal(20, 4, 9), normal(20, 3, 9, seed=1)
    tokens = draft.argmax(dim=2)
    generator = torch.Generator().manual_seed(3)
    first, second = (fastsample.verify_chain(target, tokens, draft, generator=generator) for _ in range(2))
    again = fastsample.verify_chain(target, tokens, draft, generator=generator.manual_seed(3))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, second.tokens)
    torch.manual_seed(3)
    assert torch.equal(fastsample.verify_chain(target, tokens, draft).tokens, first.tokens)


# --- compilers, CUDA graphs, Triton


class SeenOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("drafted", [True, False], ids=["with draft", "without draft"])
def test_one_graph_without_a_look_at_the_data(drafted: bool) -> None:
    target = normal(3, 4, 20)
    tokens = target[:, :3].argmax(dim=2)
    parents = torch.tensor([[-1, -1, 0]]).expand(3, 3)
    draft = normal(3, 4, 20, seed=1) if drafted else None
    seeds, lengths = torch.arange(3), torch.tensor([3, 0, 2])

    def both(target: Tensor, tokens: Tensor, parents: Tensor, draft: Tensor | None) -> list[Tensor]:
        of_chain = None if draft is None else draft[:, :3]
        chain = fastsample.verify_chain(target, tokens, of_chain, 0.8, draft_lengths=lengths, seed=seeds)
        return [*chain, *fastsample.verify_tree(target, tokens, parents, draft, 0.8, seed=seeds)]

    with SeenOperators() as seen:
        eager = both(target, tokens, parents, draft)
    synchronising = re.compile(r"_local_scalar_dense|nonzero|masked_select|item|_to_copy\.default.*cpu|unique")
    assert seen.names
    assert not [name for name in seen.names if synchronising.search(name)]
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for found, expected in zip(compiled(target, tokens, parents, draft), eager, strict=True):
        assert torch.equal(found, expected)


def test_triton_gives_the_same() -> None:
    status = ops.triton_status()
    if status != "ok":
        missing(f"Triton cannot be used ({status})")
    target = normal(2, 3, 50)
    draft = near(target)
    tokens = draft[:, :2].argmax(dim=2)
    parents = torch.tensor([[-1, -1]]).expand(2, 2)
    for of_tree in (draft, None):
        of_chain = None if of_tree is None else of_tree[:, :2]
        found, expected = (
            [
                *fastsample.verify_chain(target, tokens, of_chain, 0.8, 20, seed=5, backend=backend),
                *fastsample.verify_tree(target, tokens, parents, of_tree, 0.8, 20, seed=5, backend=backend),
                fastsample.sample_draft(target[:, 0], seed=5, backend=backend),
            ]
            for backend in ("triton", "reference")
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# --- FlashInfer's contract


def test_flashinfers_example() -> None:
    """The example in the documentation of flashinfer.sampling.chain_speculative_sampling; its outcome is certain."""
    draft = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.1]]])
    drafted = torch.tensor([[2, 1]], dtype=torch.int32)
    target = torch.tensor([[[0.0, 0.1, 0.6, 0.3], [1.0, 0.0, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]]])
    for dtype in (torch.float32, torch.float64):
        tokens, accepted, emitted = fastsample.chain_speculative_sampling(draft.to(dtype), drafted, target.to(dtype))
        assert tokens.dtype == accepted.dtype == emitted.dtype == torch.int32
        assert tokens.tolist() == [[2, 0, -1]]
        assert accepted.tolist() == [1]
        assert emitted.tolist() == [1]


def test_flashinfers_counters_are_added_to_in_place() -> None:
    batch, count, vocab = 200, 4, 5
    target = normal(batch, count + 1, vocab).softmax(-1)
    draft = normal(batch, count, vocab, seed=1).softmax(-1)
    drafted = fastsample.multinomial(draft.flatten(0, 1), 1).view(batch, count).to(torch.int32)
    accepted, emitted = (torch.full((batch,), 10, dtype=torch.int32) for _ in range(2))
    result = fastsample.chain_speculative_sampling(draft, drafted, target, accepted, emitted, seed=1, offset=2)
    assert result[1] is accepted
    assert result[2] is emitted
    law = fastsample.verify_chain(
        target, drafted, draft, target_probabilities=True, draft_probabilities=True, seed=1, offset=2
    )
    assert torch.equal(result[0], law.tokens.int())
    assert torch.equal(emitted, 10 + law.accepted.int())
    assert torch.equal(accepted, 10 + law.acceptable.sum(dim=1).int())
    assert bool((accepted >= emitted).all())
    assert bool((accepted > emitted).any())
    shared = fastsample.chain_speculative_sampling(
        draft, drafted, target, seed=torch.tensor([1]), offset=torch.tensor([2])
    )
    assert torch.equal(shared[0], result[0])
    for counter in (accepted[:-1], accepted.float(), 3):
        with pytest.raises(ValueError, match="maybe_output_accepted_token_num"):
            fastsample.chain_speculative_sampling(draft, drafted, target, counter)  # type: ignore[arg-type]


# --- arguments


TARGET, DRAFT, TOKENS = normal(2, 4, 9), normal(2, 3, 9), torch.zeros((2, 3), dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"target": TARGET[0]}, ValueError, "target: got a tensor of shape"),
        ({"target": [1.0]}, TypeError, "target: got"),
        ({"target": TARGET.double()}, TypeError, "target: got"),
        ({"target": TARGET[:, :3]}, ValueError, r"target: got shape \[2, 3, 9\] with 3 draft tokens"),
        ({"target": TARGET[..., :0]}, ValueError, "target: got"),
        ({"target": TARGET.to("meta")}, ValueError, "a meta tensor"),
        ({"draft": TARGET}, ValueError, r"draft: got shape \[2, 4, 9\]; accepted: \[2, 3, 9\]"),
        ({"draft": DRAFT[..., :8]}, ValueError, r"draft: got shape"),
        ({"draft_tokens": TOKENS.float()}, TypeError, "draft_tokens"),
        ({"draft_tokens": TOKENS[:1]}, ValueError, "draft_tokens"),
        ({"draft_lengths": TOKENS}, ValueError, "draft_lengths"),
        ({"draft_lengths": 3}, TypeError, "draft_lengths"),
        ({"draft_filters": {"typical_p": 0.3}}, TypeError, "draft_filters: got 'typical_p'; accepted: temperature"),
        ({"draft_filters": 0.3}, TypeError, "draft_filters"),
        ({"draft_filters": {}, "draft": None}, ValueError, "draft_filters: given without draft"),
        ({"draft_probabilities": True, "draft": None}, ValueError, "draft_probabilities: given without draft"),
        ({"draft_probabilities": 1}, TypeError, "draft_probabilities"),
        ({"target_probabilities": True, "temperature": 0.5}, ValueError, "temperature: got 0.5"),
        ({"draft_probabilities": True, "draft_filters": {"temperature": 2}}, ValueError, "temperature: got 2"),
        ({"temperature": -1.0}, ValueError, "temperature"),
        ({"top_p": torch.ones(4)}, ValueError, "top_p"),
        ({"seed": None, "offset": 3}, ValueError, "offset"),
        ({"order": "first"}, ValueError, "order"),
        ({"backend": "cude"}, ValueError, "backend"),
        ({"errors": "ignore"}, ValueError, "errors"),
    ],
)
def test_bad_arguments(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {"target": TARGET, "draft_tokens": TOKENS, "draft": DRAFT, "seed": 1, **changed}
    with pytest.raises(error, match=message):
        fastsample.verify_chain(**arguments)


def test_bad_arguments_of_trees_and_drafts() -> None:
    with pytest.raises(ValueError, match=r"parents: got shape \[2, 2\]; accepted: \[2, 3\]"):
        fastsample.verify_tree(TARGET, TOKENS, TOKENS[:, :2])
    with pytest.raises(ValueError, match=r"draft: got shape \[2, 3, 9\]; accepted: \[2, 4, 9\]"):
        fastsample.verify_tree(TARGET, TOKENS, TOKENS, DRAFT)
    for children in (0, -1):
        with pytest.raises(ValueError, match="children"):
            fastsample.sample_draft(TARGET[0], children=children)
    with pytest.raises(TypeError, match="children"):
        fastsample.sample_draft(TARGET[0], children=1.5)  # type: ignore[arg-type]


def test_errors_raise_names_the_requests() -> None:
    target, tokens = normal(3, 3, 4), torch.zeros((3, 2), dtype=torch.int64)
    target[0, 0, 0] = 50.0
    target[0, 1, 2] = torch.nan
    target[1, 2] = -torch.inf
    target[1, :2, 1] = 50.0
    with pytest.raises(ValueError, match="1 of 3 requests cannot be sampled: request 0 after 1 accepted drafts"):
        fastsample.verify_chain(target, tokens, seed=1, errors="raise")
    assert fastsample.verify_chain(target[1:], tokens[1:], seed=1, errors="raise").accepted[0] == 0
    with pytest.raises(ValueError, match="request 0 after 1 accepted drafts"):
        fastsample.verify_tree(target, tokens, torch.tensor([[-1, 0]] * 3), seed=1, errors="raise")


def test_the_readmes_example_runs() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    section = readme.split("### Speculative decoding", 1)[1].split("\n#", 1)[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"torch": torch, "fastsample": fastsample})

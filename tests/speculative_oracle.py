"""Law section 8 straight from its text, a request at a time, in Python integers. It imports neither torch nor
fastsample, as `law_oracle.py`, whose rows and words it takes.

A row is the list of its kept weights, 0 for what is not kept, or None where it is invalid.
"""

from fractions import Fraction
from typing import NamedTuple

import numpy as np

import law_oracle

Row = list[int] | None


class Parameters(NamedTuple):
    """What a request asks of a model's rows."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    order: str = "top_k_first"


class Source(NamedTuple):
    """Where a request's words come from."""

    seed: int
    offset: int
    stream: int

    def word(self, position: int, number: int) -> int:
        return law_oracle.word(self.seed % 2**64, (self.offset + position) % 2**64, self.stream % 2**32, number)


def row(values: list[float], parameters: Parameters, probabilities: bool) -> Row:
    """The kept weights of a row of logits or probabilities."""
    case = law_oracle.Case(
        [np.float32(value) for value in values],
        *(np.float32(number) if isinstance(number, float) else number for number in parameters),
        probabilities,
        0,
        0,
        0,
        1,
    )
    answer = law_oracle.answer(case)
    if not answer.valid:
        return None
    if parameters.temperature == 0 and not probabilities:
        return [2**40 if i == answer.kept[0] else 0 for i in range(len(values))]
    return [answer.weights[i] if i in answer.kept else 0 for i in range(len(values))]


def fixed(weights: list[int]) -> list[int]:
    """p^ of a valid row."""
    return [(w * (2**102 // sum(weights))) >> 62 for w in weights]


def mulhi(r: int, a: int) -> int:
    return (r * a) // 2**64


def decoded(target: Row, word: int) -> int:
    """The draw of law section 4."""
    return -1 if target is None else law_oracle.draw(target, word)


def chain(
    target: list[Row], drafted: list[int], draft: list[Row] | None, source: Source
) -> tuple[list[int], list[bool]]:
    """The tokens of a request, and whether each draft would be accepted on its own."""
    acceptable = [
        _accepts(target[j], x, None if draft is None else draft[j], draft is None, source, j)
        for j, x in enumerate(drafted)
    ]
    count = acceptable.index(False) if False in acceptable else len(drafted)
    refused = draft[count] if draft is not None and count < len(drafted) else None
    p, word = target[count], source.word(count, 0)
    if p is not None and refused is not None and 0 <= drafted[count] < len(p):
        u = [max(a - b, 0) for a, b in zip(fixed(p), fixed(refused), strict=True)]
        last = law_oracle.draw(u if sum(u) > 0 else fixed(p), word)
    else:
        last = decoded(p, word)
    return [*drafted[:count], last], acceptable


def _accepts(p: Row, x: int, q: Row, plain: bool, source: Source, position: int) -> bool:
    if p is None or not 0 <= x < len(p):
        return False
    if plain:
        return x == decoded(p, source.word(position, 0))
    return q is not None and mulhi(source.word(position, 2), fixed(q)[x]) < fixed(p)[x]


def tree(
    target: list[Row], drafted: list[int], parents: list[int], draft: list[Row] | None, source: Source
) -> tuple[list[int], list[int]]:
    """The tokens of a request and the accepted nodes, from the context down."""
    path: list[int] = []
    while True:
        present = path[-1] if path else -1
        p, position = target[1 + present], len(path)
        # A parent of present's own number or more is no parent.
        children = [i for i in range(present + 1, len(parents)) if parents[i] == present]
        word = source.word(position, 0)
        if p is None:
            return [*(drafted[i] for i in path), -1], path
        if draft is None:
            token = decoded(p, word)
            accepted = next((i for i in children if drafted[i] == token), None)
        else:
            accepted, u = _first_accepted(p, draft[1 + present], [drafted[i] for i in children], source, position)
            accepted = None if accepted is None else children[accepted]
            token = decoded(p, word) if u is None else law_oracle.draw(u, word)
        if accepted is None:
            return [*(drafted[i] for i in path), token], path
        path.append(accepted)


def _first_accepted(
    p: list[int], q: Row, tokens: list[int], source: Source, position: int
) -> tuple[int | None, list[int] | None]:
    """The child that is accepted, if any, and what the token is drawn from when none is (None: section 4)."""
    hat, u = fixed(p), None
    for k, x in enumerate(tokens):
        if q is None or not 0 <= x < len(p):
            continue
        if u is not None and sum(u) > 0:
            hat = normalised(u)
        if mulhi(source.word(position, 2 * k + 2), fixed(q)[x]) < hat[x]:
            return k, None
        u = [max(a - b, 0) for a, b in zip(hat, fixed(q), strict=True)]
    return None, (hat if u is not None and sum(u) == 0 else u)


def normalised(u: list[int]) -> list[int]:
    s = max(0, 40 - (sum(u).bit_length() - 1))
    return [((a << s) * (2**102 // (sum(u) << s))) >> 62 for a in u]


def output_distribution(p: list[int], q: list[int], children: int) -> list[Fraction]:
    """The exact distribution of the token at a position whose `children` were drawn from q by section 4 (chain: 1).

    Exact but for the words, which are taken as real numbers in [0, 1): the law's differ by less than 2^-64.
    """
    share = [Fraction(w, sum(q)) for w in q]
    hat_q, hat = fixed(q), fixed(p)
    result, left = [Fraction(0)] * len(p), Fraction(1)
    u = hat
    for _ in range(children):
        accept = [Fraction(min(a, b), b) if b > 0 else Fraction(int(a > 0)) for a, b in zip(hat, hat_q, strict=True)]
        for i, (s, a) in enumerate(zip(share, accept, strict=True)):
            result[i] += left * s * a
        left *= 1 - sum(s * a for s, a in zip(share, accept, strict=True))
        u = [max(a - b, 0) for a, b in zip(hat, hat_q, strict=True)]
        if sum(u) == 0:
            u = hat
        else:
            hat = normalised(u)
    return [total + left * Fraction(a, sum(u)) for total, a in zip(result, u, strict=True)]

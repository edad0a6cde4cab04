"""Speculative decoding over a tree of drafts (law section 8)."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastsample import arguments, reference
from fastsample.speculative import ACCEPTANCE_WORD, is_accepted, sample_positions
from fastsample.speculative_arguments import (
    Distributions,
    DraftFilters,
    Sources,
    Verification,
    at_positions,
    prepare,
    raise_for_invalid_requests,
)


class VerifiedTree(NamedTuple):
    """What `verify_tree` returns.

    Attributes:
        tokens: int64 [batch, nodes + 1]: the tokens of the accepted nodes, then one token more, then -1.
        accepted: int64 [batch]: how many nodes were accepted; `accepted + 1` tokens are the request's.
        path: int64 [batch, nodes]: the accepted nodes from the context down, then -1; what to keep of a key-value
            cache.
    """

    tokens: Tensor
    accepted: Tensor
    path: Tensor


class _Tree(NamedTuple):
    """Where the nodes hang. Row 0 of a request is its context, row 1 + i its node i."""

    used: Tensor  # bool [batch, nodes]
    parent_row: Tensor  # int64 [batch, nodes], 0 of a node that is not used
    depth: Tensor  # int64 [batch, nodes + 1], how many nodes lie above a row, itself included
    earlier_siblings: Tensor  # bool [batch, nodes, nodes]: whether node j comes before node i under the same parent


def verify_tree(
    target: Tensor,
    draft_tokens: Tensor,
    parents: Tensor,
    draft: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    *,
    draft_filters: DraftFilters | None = None,
    target_probabilities: bool = False,
    draft_probabilities: bool = False,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    stream: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    order: Literal["top_k_first", "min_p_first", "joint"] = "top_k_first",
    backend: str = "auto",
    errors: Literal["sentinel", "raise"] = "sentinel",
) -> VerifiedTree:
    """Accept a path of drafts from the context down, and draw one token more.

    As `verify_chain`, for drafts of which several follow one another's parent. Without `draft` the tokens are those of
    decoding without drafts, bit for bit, whatever the tree: each row of the target is sampled once, in parallel. With
    `draft` the children of a node must be what `sample_draft` drew from the node's row, all of them and in that order:
    independent draws, of which the same token twice is part.

    With `draft` the nodes are tried one after the other, each with 52 operations on int64 [batch, vocab], whatever the
    shape of the tree, and torch.compile unrolls them. A tree that is a chain is `verify_chain`'s to verify, which gives
    the same tokens from a fraction of the work. Nothing synchronises with a GPU but errors="raise".

    Args:
        target: [batch, nodes + 1, vocab], float32, float16 or bfloat16: the target's logits after the context, then
            after each node.
        draft_tokens: integer [batch, nodes]. An id outside [0, vocab) is refused.
        parents: integer [batch, nodes]: the node that each follows, which comes before it, or -1 for the context. Any
            other number, such as -2, marks a node that is not used, and so nothing under it is.
        draft: [batch, nodes + 1, vocab]: the logits that the children of the context, then of each node, were drawn
            from, or None. The row of a node without children is not looked at.
        temperature, top_k, top_p, min_p, order: as for `sample`, a number or a tensor [batch]; of the target.
        draft_filters, target_probabilities, draft_probabilities: as for `verify_chain`.
        seed, offset, stream, generator: as for `verify_chain`: the token at depth d is drawn at offset + d.
        backend, errors: as for `verify_chain`.

    Returns:
        `VerifiedTree(tokens, accepted, path)`.

    Raises:
        TypeError, ValueError, RuntimeError: as `verify_chain` does.

    Source: Miao et al. 2024 (SpecInfer), by docs/law.md, section 8.
    """
    call = prepare(
        target,
        draft_tokens,
        draft,
        1,
        (temperature, top_k, top_p, min_p, order),
        draft_filters,
        target_probabilities,
        draft_probabilities,
        Sources(seed, offset, stream, generator),
        backend,
        errors,
    )
    batch, nodes = call.draft_tokens.shape
    parents = arguments.integer_matrix("parents", parents, batch, target.device)
    if parents.shape[1] != nodes:
        raise ValueError(f"parents: got shape {list(parents.shape)}; accepted: [{batch}, {nodes}], as draft_tokens")
    tree = _describe(parents)
    if call.draft is None or nodes == 0:
        on_path, last = _decode(call, tree)
    else:
        on_path, last = _walk(call, call.draft, tree)

    node = torch.arange(nodes, device=target.device)
    accepted = on_path.sum(dim=1)
    # A node comes after its parent, so the path is its nodes in index order.
    path = torch.where(on_path, node, nodes).sort(dim=1).values
    path = torch.where(node < accepted[:, None], path, -1)
    position = torch.arange(nodes + 1, device=target.device)
    drafts = torch.nn.functional.pad(call.draft_tokens.gather(1, path.clamp(min=0)), (0, 1))
    tokens = torch.where(position == accepted[:, None], last, drafts)
    tokens = torch.where(position <= accepted[:, None], tokens, reference.INVALID_TOKEN)
    if errors == "raise":
        raise_for_invalid_requests(accepted, last[:, 0])
    return VerifiedTree(tokens, accepted, path)


def _describe(parents: Tensor) -> _Tree:
    nodes = parents.shape[1]
    node = torch.arange(nodes, device=parents.device)
    used = (parents >= -1) & (parents < node)
    parent_row = torch.where(used, parents + 1, 0)
    siblings = (parent_row[:, :, None] == parent_row[:, None, :]) & used[:, None, :]
    above = torch.nn.functional.pad(torch.ones_like(parents), (1, 0))
    depth = _along_ancestors(above, parent_row, torch.add)
    return _Tree(used, parent_row, depth, siblings & (node[None, :] < node[:, None]))


def _along_ancestors(values: Tensor, parent_row: Tensor, combine: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Combine each row's value with those of all rows above it, by doubling the distance that is bridged.

    values: [batch, nodes + 1]; the context's must be neutral, since it is its own ancestor.
    """
    link = torch.nn.functional.pad(parent_row, (1, 0))
    for _ in range(parent_row.shape[1].bit_length()):
        values, link = combine(values, values.gather(1, link)), link.gather(1, link)
    return values


def _decode(call: Verification, tree: _Tree) -> tuple[Tensor, Tensor]:
    """Drafts without probabilities: the nodes on the path, bool [batch, nodes], and the token after it [batch, 1]."""
    drawn = sample_positions(call, None, tree.depth)
    # A draft of -1 must not equal what an invalid row draws.
    equal = tree.used & (call.draft_tokens == drawn.gather(1, tree.parent_row)) & (call.draft_tokens >= 0)
    first = equal & ~(tree.earlier_siblings & equal[:, None, :]).any(dim=2)
    on_path = _along_ancestors(torch.nn.functional.pad(first, (1, 0), value=True), tree.parent_row, torch.logical_and)
    rows = torch.arange(drawn.shape[1], device=drawn.device)
    last_row = torch.where(on_path, rows, 0).amax(dim=1, keepdim=True)
    return on_path[:, 1:], drawn.gather(1, last_row)


def _walk(call: Verification, draft: Distributions, tree: _Tree) -> tuple[Tensor, Tensor]:
    """Drafts with probabilities: as `_decode`.

    One pass over the nodes in index order: a child of the present node is tried when all children before it have been
    refused, and the children of a node all come after it.
    """
    batch, nodes = call.draft_tokens.shape
    target, device = call.target, call.target.rows.device
    vocab = target.rows.shape[1]
    tokens = torch.arange(vocab, device=device).expand(batch, vocab)
    context = torch.arange(batch, device=device) * (nodes + 1)

    def fixed_probs(of: Distributions, row: Tensor | int) -> Tensor:
        return call.operators.fixed_probs_at(of.rows, context + row, tokens, *of.filters, of.probabilities)

    words = _acceptance_words(call, tree)
    present = torch.zeros(batch, dtype=torch.int64, device=device)
    on_path = torch.zeros((batch, nodes), dtype=torch.bool, device=device)
    judged = torch.zeros((batch, 1), dtype=torch.bool, device=device)  # whether a child of the present node was
    weight = fixed_probs(target, 0)  # the law's u, or u^ where that is said to be normalised
    normalised = ~judged
    for node in range(nodes):
        token = call.draft_tokens[:, node, None]
        q = fixed_probs(draft, present)
        known = (token >= 0) & (token < vocab) & (q[:, :1] >= 0) & (weight[:, :1] >= 0)
        tried = known & (tree.used[:, node] & (tree.parent_row[:, node] == present))[:, None]
        weight = torch.where(tried & ~normalised, normalise(weight), weight)
        at = token.clamp(0, vocab - 1)
        accepted = tried & is_accepted(words[:, node, None], weight.gather(1, at), q.gather(1, at))
        refused = tried & ~accepted

        rest = (weight - q).clamp(min=0)
        is_left = rest.sum(dim=1, keepdim=True) > 0
        weight = torch.where(refused & is_left, rest, weight)
        weight = torch.where(accepted, fixed_probs(target, node + 1), weight)
        normalised = torch.where(tried, accepted | ~is_left, normalised)
        judged = torch.where(tried, refused, judged)
        on_path[:, node] = accepted[:, 0]
        present = torch.where(accepted[:, 0], node + 1, present)

    position = on_path.sum(dim=1, keepdim=True)
    randomness = at_positions(call.randomness, position)
    from_residual = reference.draw(
        weight.clamp(min=0), call.operators.random_words(target.rows, batch, *randomness, 0, 1), True
    )
    return on_path, torch.where(judged, from_residual, sample_positions(call, context + present, position))


def _acceptance_words(call: Verification, tree: _Tree) -> Tensor:
    """The word that decides on each node, int64 [batch, nodes]: 2k + 2 of child k, at the parent's position."""
    batch, nodes = tree.used.shape
    randomness = at_positions(call.randomness, tree.depth.gather(1, tree.parent_row))
    # All that a node could need, since the operator gives consecutive words.
    words = call.operators.random_words(call.target.rows, batch * nodes, *randomness, ACCEPTANCE_WORD, 2 * nodes)
    return words.view(batch, nodes, -1).gather(2, 2 * tree.earlier_siblings.sum(dim=2, keepdim=True))[:, :, 0]


def normalise(u: Tensor) -> Tensor:
    """Law section 8: u^_i = ((u_i << s) * floor(2^102 / (U << s))) >> 62, int64 [rows, vocab], of u with U <= 2^40."""
    total = u.clamp(min=0).sum(dim=1, keepdim=True).clamp(min=1)
    # frexp of a float64 is exact for U below 2^53: its exponent is floor(log2 U) + 1.
    shift = (41 - torch.frexp(total.double()).exponent.long()).clamp(min=0)
    divisor = total << shift  # in [2^40, 2^41], so that two more steps of at most 21 bits stay within 63
    quotient, rest = (1 << 62) // divisor, (1 << 62) % divisor
    for bits in (21, 19):
        rest = rest << bits
        quotient = (quotient << bits) + rest // divisor
        rest = rest % divisor
    return reference.multiply_high(quotient, u.clamp(min=0) << (shift + 2))

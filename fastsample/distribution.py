"""The distribution that the law approximates, in float64: softmax and the same filters, written out plainly.

Shares no code with `reference.py` and knows nothing of integer weights, so that one can judge the other.
"""

import torch
from torch import Tensor

from fastsample.arguments import ORDERS


def distribution(
    logits: Tensor,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    order: str = "top_k_first",
) -> Tensor:
    """Probabilities of the next token under temperature, top_k, top_p and min_p, in float64.

    It agrees with the law to within float32 rounding, apart from two things that the law settles by integers: which
    token lies on the boundary of top_p or min_p where masses differ by less than that, and the tokens below 2^-40 of
    the maximum, which the law never draws and which have their tiny probability here.

    Args:
        logits: [rows, vocab], any floating dtype; +inf shares all the mass, -inf never has any.
        temperature: >= 0, a number or a [rows] tensor; 0 puts everything on the lowest index among the maxima.
        top_k: how many tokens to keep, a number or a [rows] tensor; <= 0 keeps all.
        top_p: mass to keep, in [0, 1], a number or a [rows] tensor; 1 keeps all.
        min_p: least probability relative to the largest one, in [0, 1], a number or a [rows] tensor.
        order: which tokens top_p's mass refers to: what top_k keeps ("top_k_first"), what top_k and min_p keep
            ("min_p_first"), or all ("joint").

    Returns:
        float64 [rows, vocab]; each row sums to 1, or is all NaN where the law calls it invalid.

    Raises:
        ValueError: `order` is none of the three.

    Source: law sections 1 to 3, of which this is the real-number counterpart; top_p after Holtzman et al. 2019, "The
    curious case of neural text degeneration".
    """
    if order not in ORDERS:
        raise ValueError(f"order: got {order!r}; accepted: {', '.join(ORDERS)}")
    rows, vocab = logits.shape
    x = logits.detach().double()
    t, p, floor = (_column(value, rows, x.device) for value in (temperature, top_p, min_p))
    k = torch.as_tensor(top_k, device=x.device).expand(rows)[:, None]
    if vocab == 0:
        return torch.empty_like(x)

    largest = x.amax(dim=1, keepdim=True)
    valid = (largest > -torch.inf) & (t >= 0) & (p >= 0) & (p <= 1) & (floor >= 0) & (floor <= 1)  # NaN fails each

    distance = torch.where(x == largest, 0.0, x - largest)  # +inf - +inf would be NaN
    scaled = torch.where(distance == 0, 0.0, distance / t)  # as would 0 / 0
    relative = torch.where(x == -torch.inf, 0.0, torch.exp(scaled))  # -inf / inf would be NaN
    relative = torch.where((largest == torch.inf) & (x < largest), 0.0, relative)

    ranked = torch.sort(x, dim=1, descending=True, stable=True).indices
    place = torch.empty_like(ranked).scatter_(1, ranked, torch.arange(vocab, device=x.device).expand(rows, vocab))
    within_k = (place < k) | (k <= 0)
    heavy_enough = relative >= floor
    base = torch.ones_like(within_k)
    if order != "joint":
        base = base & within_k
    if order == "min_p_first":
        base = base & heavy_enough

    base_mass = torch.where(base, relative, 0.0).gather(1, ranked)
    up_to_here = base_mass.cumsum(dim=1)
    above = (up_to_here - base_mass).gather(1, place)
    within_p = (above < p * up_to_here[:, -1:]) | (p == 1) | (place == 0)

    kept = torch.where(t == 0, place == 0, within_k & heavy_enough & within_p)
    mass = torch.where(kept, relative, 0.0)
    return torch.where(valid, mass / mass.sum(dim=1, keepdim=True), torch.nan)


def _column(value: float | Tensor, rows: int, device: torch.device) -> Tensor:
    """A parameter as float64 [rows, 1], rounded to float32 first as the law asks of Python numbers."""
    return torch.as_tensor(value, dtype=torch.float32, device=device).double().expand(rows)[:, None]

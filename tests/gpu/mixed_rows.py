"""Random rows of many kinds, each with parameters of its own, made on the device that they are tested on."""

from typing import Any

import torch
from torch import Tensor

from strategies import MIN_PS, TEMPERATURES, TOP_KS, TOP_PS

_SCALES = (1e-3, 0.3, 1.0, 3.0, 10.0, 100.0)
_BAD_ROWS = 200  # one row in so many has a parameter that makes it invalid


def mixed_logits(rows: int, vocab: int, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Normals of several widths, ties, equal rows, two values, slopes, and rows with infinities or a NaN."""
    generator = torch.Generator(device).manual_seed(seed)
    kind = torch.randint(16, (rows, 1), generator=generator, device=device)
    width = _chosen(_SCALES, rows, generator, torch.float32)[:, None]
    logits = torch.randn(rows, vocab, generator=generator, device=device) * width
    uniform = torch.rand(rows, vocab, generator=generator, device=device)
    slope = torch.linspace(0, 30, vocab, device=device)
    inf = torch.inf
    for number, row in (
        (0, (logits * 2).round() / 2),
        (1, (logits * 2).round() / 2),
        (2, torch.full_like(logits, -1.25)),
        (3, (uniform < 0.3) * 4.0),
        (4, slope.expand_as(logits)),
        (5, slope.flip(0).expand_as(logits)),
        (6, torch.where(uniform < 0.9, -inf, logits)),
        (7, torch.where(uniform < 2 / vocab, inf, logits)),
        (8, torch.where(uniform < 0.5 / vocab, torch.nan, logits)),
        (9, torch.where(uniform < 0.5, -0.0, 0.0)),
    ):
        logits = torch.where(kind == number, row, logits)
    return logits.to(dtype)


def mixed_parameters(rows: int, device: torch.device, seed: int) -> dict[str, Any]:
    """The keyword arguments of `fastsample.sample`: every filter off in about half of the rows, seeds of their own."""
    generator = torch.Generator(device).manual_seed(seed)

    def some(values: tuple[float, ...], off: float, dtype: torch.dtype = torch.float32) -> Tensor:
        chosen = _chosen(values, rows, generator, dtype)
        switch = torch.rand(rows, generator=generator, device=device)
        return torch.where(switch < 0.5, torch.tensor(off, dtype=dtype, device=device), chosen)

    def bad(values: Tensor, *what: float) -> Tensor:
        spoil = torch.randint(_BAD_ROWS, (rows,), generator=generator, device=device) == 0
        return torch.where(spoil, _chosen(what, rows, generator, values.dtype), values)

    def word() -> Tensor:
        return torch.randint(-(2**62), 2**62, (rows,), generator=generator, device=device)

    return {
        "temperature": bad(some(TEMPERATURES, 1.0), -1.0, torch.nan),
        "top_k": some(TOP_KS, 0, torch.int64),
        "top_p": bad(some(TOP_PS, 1.0), 1.5, torch.nan, -0.1),
        "min_p": bad(some(MIN_PS, 0.0), 1.5, torch.nan, -0.1),
        "seed": word(),
        "offset": word(),
    }


def _chosen(values: tuple[float, ...], rows: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    # Rounded once, from Python's floats.
    table = torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else dtype).to(dtype)
    device = generator.device
    return table.to(device)[torch.randint(len(values), (rows,), generator=generator, device=device)]

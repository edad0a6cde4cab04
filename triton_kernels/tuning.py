"""Measured divisions: `tune` times a few on this GPU and remembers the fastest in a file, `remembered` looks it up.

Nothing is ever timed unless it is asked for, so that the first request of a server does not stall; and what is
remembered changes how long a call takes, never its result.
"""

import functools
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .policy import Division

FILE_VARIABLE = "FASTSAMPLE_TRITON_TUNING"

_FIELDS = 6  # of a division
_writing = threading.Lock()  # from reading the file to replacing it, so that no thread's division is lost


class Key(NamedTuple):
    """The calls that share a measured division."""

    gpu: str
    vocab: int
    rows: int  # rounded up to a power of two
    bytes_per_token: int
    filters: str  # which of top_k and top_p there are

    def __str__(self) -> str:
        return f"{self.gpu}|V={self.vocab}|B={self.rows}|{8 * self.bytes_per_token} bit|{self.filters}"


def key_of(vocab: int, rows: int, bytes_per_token: int, largest_k: int, has_top_p: bool, device: torch.device) -> Key:
    filters = " ".join(("top_k",) * (largest_k > 0) + ("top_p",) * has_top_p) or "plain"
    return Key(_name(device), vocab, 1 << (rows - 1).bit_length(), bytes_per_token, filters)


@functools.cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def file() -> Path:
    """Where divisions are remembered: the environment's FASTSAMPLE_TRITON_TUNING, or the user's cache folder."""
    given = os.environ.get(FILE_VARIABLE)
    return Path(given) if given else Path.home() / ".cache" / "fastsample" / "triton-tuning.json"


@functools.cache
def _known() -> dict[str, list[int]]:
    """What the file says; where there is none, or it is none of ours, nothing."""
    try:
        known = json.loads(file().read_text())
    except (OSError, ValueError, RuntimeError):  # a user without a home is the last
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: fields for key, fields in known.items() if isinstance(fields, list) and len(fields) == _FIELDS}


def remembered(
    vocab: int, rows: int, bytes_per_token: int, largest_k: int, has_top_p: bool, device: torch.device
) -> "Division | None":
    """The division that `tune` found fastest for such calls, or None. The file is read once a process."""
    known = _known()
    if not known:
        return None
    from .policy import Division

    fields = known.get(str(key_of(vocab, rows, bytes_per_token, largest_k, has_top_p, device)))
    if fields is None:
        return None
    chunk, block, candidates, resident, parts, warps = fields
    return Division(chunk, block, candidates, bool(resident), parts, warps)


def candidates(default: "Division", vocab: int) -> list["Division"]:
    """The default and a few others: larger blocks, more and fewer warps, half and twice the parts, one part."""
    if default.resident:
        choices = [default._replace(warps=warps) for warps in (2, 4, 8, 16)]
    else:
        choices = [default._replace(parts=parts) for parts in (1, max(1, default.parts // 2), 2 * default.parts)]
        larger = default._replace(block=2 * default.block, parts=max(1, default.parts // 2))
        choices += [larger._replace(warps=warps) for warps in (8, 16)]
        choices = [choice for choice in choices if choice.parts * choice.block <= max(vocab, choice.block)]
    return [default, *(choice for choice in dict.fromkeys(choices) if choice != default)]


def tune(
    logits: Tensor,
    top_k: int = 0,
    top_p: float = 1.0,
    *,
    milliseconds: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, float]:
    """Measure how best to divide calls like one, and remember it for every process of this user.

    Each of `candidates` is compiled, run and timed. Later calls of the same vocabulary, dtype and GPU, with as many
    rows (to the next power of two) and the same of top_k and top_p, whatever their values, take the fastest.

    Args:
        logits: [batch, vocab] on a GPU, like those to be sampled: the same dtype, size and kind of rows.
        top_k, top_p: as in `fastsample.sample`.
        milliseconds: times a function; None is the median of replays of a CUDA graph.

    Returns:
        Milliseconds by division, the fastest first.

    Raises:
        TypeError, ValueError: bad logits, top_k or top_p.
        RuntimeError: the logits are not on a GPU and nothing else is given to time with.
    """
    import fastsample
    from fastsample import arguments

    from . import policy

    arguments.check_logits(logits)
    filters = arguments.normalise_filters(0.8, top_k, top_p, 0.0, "top_k_first", logits.shape[0], logits.device)
    if logits.dim() != 2 or filters.top_k_rows is not None or filters.top_p_rows is not None:
        raise ValueError("logits, top_k, top_p: tuning takes logits [batch, vocab], and numbers for top_k and top_p")
    if milliseconds is None:
        if not logits.is_cuda:
            raise RuntimeError(f"logits: on {logits.device}; tuning measures a GPU, so they have to be on one")
        from triton.testing import do_bench_cudagraph

        milliseconds = do_bench_cudagraph
    rows, vocab = logits.shape
    largest_k = max(0, min(top_k, vocab))
    like = (vocab, rows, logits.element_size(), largest_k)
    default = policy.by_default(*like, policy.multiprocessors_of(logits.device))

    def draw() -> Tensor:
        return fastsample.sample(logits, 0.8, top_k, top_p, seed=1, backend="triton")

    measured: dict[policy.Division, float] = {}
    for division in candidates(default, vocab):
        with policy.forced(division):
            draw()  # compiles
            measured[division] = milliseconds(draw)
    fastest = sorted(measured, key=lambda division: measured[division])
    _remember(key_of(*like, top_p < 1, logits.device), fastest[0])
    return {str(division): measured[division] for division in fastest}


def _remember(key: Key, division: Iterable[int]) -> None:
    with _writing:
        _known.cache_clear()  # what other processes have written since
        known = {**_known(), str(key): [int(field) for field in division]}
        path = file()
        path.parent.mkdir(parents=True, exist_ok=True)
        # A reader sees the old file or the new one, never half of it.
        written = path.with_name(f"{path.name}.{os.getpid()}")
        written.write_text(json.dumps(known, indent=1))
        written.replace(path)
        _known.cache_clear()

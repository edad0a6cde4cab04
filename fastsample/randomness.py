"""Where the random words of a call come from (law section 4): an explicit seed, or two words of a torch generator."""

from typing import Any

import torch
from torch import Tensor

from fastsample.arguments import Randomness, describe, integer_number, integer_rows
from fastsample.ops import Ops

_INT64_MAX = 2**63 - 1


def check_sources(seed: Any, offset: Any, stream: Any, generator: Any, device: torch.device) -> None:
    """Raise where seed, offset, stream and generator contradict each other. `seeded` checks the values."""
    if seed is None:
        for name, value in (("offset", offset), ("stream", stream)):
            if value is not None:
                raise ValueError(
                    f"{name}: got {describe(value)} without a seed; a generator fixes seed, offset and stream "
                    f"together, so give seed as well or leave {name} out"
                )
    elif generator is not None:
        raise ValueError("generator: got one together with seed; give one of them, since each fixes the random words")
    if generator is not None:
        check_generator(generator, device)


def check_generator(generator: Any, device: torch.device) -> None:
    """Raise unless `generator` is a torch.Generator of `device` that can be used here."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {describe(generator)}; accepted: a torch.Generator on {device}, or None")
    if not is_on_device(generator, device):
        raise ValueError(
            f"generator: got one on {generator.device}; accepted: one on the device of the logits, {device} "
            f'(torch.Generator(device="{device}"))'
        )


def is_on_device(generator: torch.Generator, device: torch.device) -> bool:
    """Whether `generator` makes random numbers on `device`; one without an index serves every device of its type."""
    return generator.device.type == device.type and generator.device.index in (None, device.index)


def seeded(seed: Any, offset: Any, stream: Any, batch: int, device: torch.device) -> Randomness:
    """Check an explicit seed with its offset and stream, and bring them to what the operators take.

    A seed tensor of [batch] holds per-request seeds: each row's stream is `stream` itself. A single seed (a number or a
    0-d tensor) is shared by the rows, so the output row is added to the stream.
    """
    seed_rows = offset_rows = stream_rows = None
    if not (type(seed) is int and 0 <= seed <= _INT64_MAX):
        if isinstance(seed, Tensor):
            seed_rows = integer_rows("seed", seed, batch, device)
            seed = 0
        else:
            seed = _signed(integer_number("seed", seed))
    if offset is None:
        offset = 0
    elif not (type(offset) is int and 0 <= offset <= _INT64_MAX):
        if isinstance(offset, Tensor):
            offset_rows = integer_rows("offset", offset, batch, device)
            offset = 0
        else:
            offset = _signed(integer_number("offset", offset))
    if stream is None:
        stream = 0
    elif isinstance(stream, Tensor):
        stream_rows = integer_rows("stream", stream, batch, device)
        stream = 0
    else:
        stream = integer_number("stream", stream) % 2**32
    stream_per_row = seed_rows is None or seed_rows.dim() == 0
    return Randomness(seed, seed_rows, offset, offset_rows, stream, stream_rows, stream_per_row)


def generated(generator: torch.Generator | None, operators: Ops, device: torch.device) -> Randomness:
    """Draw seed and offset from `generator`, or the device's default one; the stream is the output row."""
    seed_and_offset = torch.empty(2, dtype=torch.int64, device=device)
    if generator is None and torch.compiler.is_compiling():
        # Opaque, so that a compiler neither replaces it by its own random numbers nor merges two of them.
        operators.draw_seed(seed_and_offset)
    else:
        seed_and_offset.random_(generator=generator)
        if seed_and_offset.is_cpu:
            seed, offset = seed_and_offset.tolist()
            return Randomness(seed, None, offset, None, 0, None, True)
    # Two 0-d views, read on the device: no synchronisation, and under CUDA graph replay each replay draws anew.
    seed_word, offset_word = seed_and_offset.unbind()
    return Randomness(0, seed_word, 0, offset_word, 0, None, True)


def _signed(value: int) -> int:
    """The number mod 2^64 as the signed 64-bit integer of the same bits."""
    return (value + 2**63) % 2**64 - 2**63

"""The seeds of a batch's requests, which SGLang hands its sampler only under --enable-deterministic-inference.

A request with a seed draws from (its seed, its position in the sequence), so that neither its batch nor its row
matters; one without draws from torch's generator. Of a request with n > 1 SGLang makes n that have one seed and no
number of their own: they would draw the same tokens, so they draw as if without one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import SamplingParams
from torch import Tensor

from fastsample.integrations.sglang import plugin

_ATTRIBUTE = "_fastsample_seeds"


class RowSeeds:
    """The seed of each row of a batch, None for a request without; its values never change."""

    def __init__(self, values: Sequence[int | None]) -> None:
        self.values = tuple(values)
        self._on_device: tuple[Tensor, Tensor] | None = None

    def on_device(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which rows have a seed, in rising order, and their seeds; int64."""
        if self._on_device is None:
            rows = [row for row, value in enumerate(self.values) if value is not None]
            both = torch.tensor([rows, [self.values[row] for row in rows]], dtype=torch.int64)
            # One copy for as long as the batch stays as it is.
            chosen = both.to(device, non_blocking=True)
            self._on_device = chosen[0], chosen[1]
        return self._on_device


def register_hooks() -> None:
    """Have SGLang tell of each batch when it is made, filtered, merged with another and copied for a step."""
    batch = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
    for method, hook in (
        ("adjusted_from_schedule_batch", _made),
        ("adjusted_filter_batch", _filtered),
        ("adjusted_merge_batch", _merged),
        ("copy_for_forward", _copied),
    ):
        HookRegistry.register(f"{batch}.{method}", hook, HookType.AFTER)


def words(sampling_info: SamplingBatchInfo, positions: Tensor) -> dict[str, Any]:
    """Seed and offset of each row, as `fastsample.sample` takes them; nothing where no request has a seed.

    Args:
        sampling_info: of the batch.
        positions: integers [batch]: of the token that precedes the one to be drawn.
    """
    if sampling_info.sampling_seed is not None:
        return {"seed": sampling_info.sampling_seed, "offset": positions}
    known = _seeds_of(sampling_info)
    if known is None:
        return {}
    rows, values = known.on_device(positions.device)
    seed = torch.empty(len(sampling_info), dtype=torch.int64, device=positions.device).random_()
    return {"seed": seed.index_copy_(0, rows, values), "offset": positions}


def _seeds_of(sampling_info: SamplingBatchInfo) -> RowSeeds | None:
    seeds: RowSeeds | None = getattr(sampling_info, _ATTRIBUTE, None)
    return seeds


def _keep(sampling_info: SamplingBatchInfo, values: Sequence[int | None]) -> None:
    seeds = RowSeeds(values) if any(value is not None for value in values) else None
    setattr(sampling_info, _ATTRIBUTE, seeds)


def _values(sampling_info: SamplingBatchInfo, batch: int) -> Sequence[int | None]:
    seeds = _seeds_of(sampling_info)
    return (None,) * batch if seeds is None else seeds.values


def _made(_result: None, sampling_info: SamplingBatchInfo, batch: Any, vocab_size: int) -> None:
    # With SGLang's own seeds on the device, `words` does not ask for these.
    if sampling_info.sampling_seed is None:
        _keep(sampling_info, [_seed(request.sampling_params) for request in batch.reqs])


def _seed(parameters: SamplingParams) -> int | None:
    if parameters.sampling_seed is not None and parameters.n > 1:
        plugin.warn_once(
            "passes over the seed of requests with n > 1, whose n samples SGLang gives one seed: "
            "send n requests with a seed each"
        )
        return None
    return parameters.sampling_seed


def _filtered(
    _result: None, sampling_info: SamplingBatchInfo, keep_indices: Sequence[int], keep_indices_device: Tensor
) -> None:
    seeds = _seeds_of(sampling_info)
    if seeds is not None:
        _keep(sampling_info, [seeds.values[row] for row in keep_indices])


def _merged(_result: None, sampling_info: SamplingBatchInfo, other: SamplingBatchInfo) -> None:
    # By now the batch has the rows of both.
    before = len(sampling_info) - len(other)
    _keep(sampling_info, (*_values(sampling_info, before), *_values(other, len(other))))


def _copied(result: SamplingBatchInfo, sampling_info: SamplingBatchInfo) -> None:
    """The copy is made of the declared fields alone."""
    setattr(result, _ATTRIBUTE, _seeds_of(sampling_info))

"""Part: what the features of a request add to a draw, each beside `fastsample.sample` alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from fastsample.benchmarks import features_run
from fastsample.benchmarks.check import WrongTokensError
from fastsample.benchmarks.features import FEATURES, Feature, FeatureSession, Inputs
from fastsample.benchmarks.peers.base import Work

from .contestants import ours
from .inputs import Inputs as LogitsInputs
from .options import PartFailedError, PartOptions
from .records import Recorder
from .results import OUR_LABELS, Place
from .timing import CudaTimer, HostTimer, Timer, measure

_WORKS = ("t0.8-k50-p0.9", "plain")
_PLACES = tuple(Place(128256, batch, "float32", "real") for batch in (64, 1))
_REHEARSED = (Place(1004, 2, "float32", "real"),)
_REHEARSED_FEATURES = 2  # Triton's interpreter takes seconds a call
_REHEARSED_CACHE = 2**16
_SECONDS = 0.03  # each feature in each setting
_MOST_INPUTS = 64
# The kept set's size is read by the host, so a call that asks for it cannot be captured.
_CAPTURED = tuple(feature for feature in FEATURES if feature.key not in ("kept-set", "everything"))
_ALONE = "alone"


def run(recorder: Recorder, options: PartOptions) -> None:
    """Measure the features until the time is up.

    Raises:
        PartFailedError: a feature drew a token that is not the CPU's, or none of fastsample's kernels can run here.
    """
    end = time.monotonic() + options.seconds - 3
    device = torch.device(options.device)
    timer: Timer = HostTimer()
    cache = _REHEARSED_CACHE
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        timer = CudaTimer(3 * cache)
    logits = LogitsInputs(device, cache)
    backends = ours(options)
    if not backends:
        raise PartFailedError("none of fastsample's kernels can be measured here")
    failures = []
    features = _CAPTURED[:_REHEARSED_FEATURES] if options.rehearsal else _CAPTURED
    for place in _REHEARSED if options.rehearsal else _PLACES:
        batches = logits.batches(place.rows, place.vocab, place.batch, place.dtype, rows_kept=2 * place.batch)
        inputs = Inputs.make(place.batch, place.vocab)
        for who, backend in backends.items():
            for work in _WORKS[:1] if options.rehearsal else _WORKS:
                if time.monotonic() >= end:
                    recorder.add("note", text=f"the time was up before the features of {OUR_LABELS[who]}, {work}")
                    break
                turns = {_ALONE: timer.prepare(_session(None, inputs, work, backend, device), batches, _MOST_INPUTS)}
                for feature in features:
                    try:
                        features_run.check(feature, inputs, Work.parse(work), backend, batches[0], device)
                    except WrongTokensError as error:
                        failures.append(f"{OUR_LABELS[who]}: {error}")
                        continue
                    session = _session(feature, inputs, work, backend, device)
                    turns[feature.key] = timer.prepare(session, batches, _MOST_INPUTS)
                times = {key: one._asdict() for key, one in measure(turns, _SECONDS).items()}
                recorder.add("features", **place._asdict(), who=who, work=work, times=times)
    if failures:
        raise PartFailedError(f"{len(failures)} wrong, the first: {failures[0]}")


def _session(feature: Feature | None, inputs: Inputs, work: str, backend: str, device: torch.device) -> FeatureSession:
    session = FeatureSession(feature, inputs, Work.parse(work), backend, device)
    # Per-request seeds on the device, which a graph can replay, as the grid's sessions have them.
    session.arguments["seed"] = torch.arange(inputs.batch, device=device)
    session.arguments["offset"] = torch.zeros(inputs.batch, dtype=torch.int64, device=device)
    return session


def table(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The features as lines of Markdown: times, and ratios to `sample` alone."""
    labels = {feature.key: feature.label for feature in FEATURES}
    for record in records:
        alone = record["times"][_ALONE]["median"]
        place = ", ".join(str(record[name]) for name in Place._fields)
        work = Work.parse(record["work"]).label
        yield f"{OUR_LABELS[record['who']]}, {work} ({place}); `sample` alone {alone:.1f} us:"
        yield from ("", "| feature | us | of `sample` alone |", "| --- | ---: | ---: |")
        for key, times in record["times"].items():
            if key != _ALONE:
                yield f"| {labels[key]} | {times['median']:.1f} | {times['median'] / alone:.2f} |"
        yield ""

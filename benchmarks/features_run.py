"""`fastsample bench --features`: what each feature of a request adds to the time of `fastsample.sample` alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastsample import doctor

from . import json_files, machine, rows
from .check import ROWS, WrongTokensError
from .features import CPU, FEATURES, Feature, FeatureSession, Inputs, ProcessorSession
from .json_files import named_in_errors
from .ours import OneRead
from .peers.base import Work, missing_package
from .report import COLD, microseconds, ratio
from .timing import Contestant, Times, measure, rotation

_SEED = 3
# Turns of each feature. What is looked for is a tenth; in 5 turns the machine's speed drifted by two between them.
_ROUNDS = 60
# The limits: what a log-probability and 20 of them may cost, as a ratio to none.
LIMITS = {"logprob": 1.10, "top-20-processed": 1.25, "top-20": 1.25}


@dataclass(frozen=True)
class Setting:
    """Where the features are measured."""

    threads: int
    batch: int
    vocab: int
    rows: str
    work: str

    @property
    def label(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{Work.parse(self.work).label}, V {self.vocab}, B {self.batch}, {rows.label(self.rows)}, {threads}"


@dataclass(frozen=True)
class Measured:
    """The features' times in one setting, by key, beside `fastsample.sample` alone and one read of the logits."""

    setting: Setting
    alone: Times
    one_read: Times
    features: dict[str, Times]
    hugging_face: dict[str, Times]


@dataclass
class FeatureResults:
    """Everything that a run found, and what it was."""

    date: str
    command: str
    machine: dict[str, str]
    backend: str
    rotated_mib: int
    measured: list[Measured]
    skipped: list[str]
    cold: bool = False


def run(
    settings: Sequence[Setting],
    backend: str,
    seconds: float,
    rotated_mib: int,
    cold: bool,
    real: rows.RealLogits,
    command: str,
    on_setting: Callable[[str, int, int], None],
) -> FeatureResults:
    """Check, then time every feature in every setting, in about `seconds`.

    Raises:
        WrongTokensError: a feature's tokens differ from the reference's.
    """
    results = FeatureResults(
        datetime.now().astimezone().isoformat(timespec="seconds"),
        command,
        machine.describe(doctor.examine()),
        backend,
        rotated_mib,
        [],
        [],
        cold,
    )
    missing = missing_package("transformers")
    if missing:
        results.skipped.append(f"Hugging Face: {missing}")
    threads = torch.get_num_threads()
    try:
        for place, setting in enumerate(settings):
            on_setting(setting.label, place, len(settings))
            torch.set_num_threads(setting.threads)
            share = seconds / len(settings)
            results.measured.append(_measure(setting, backend, share, rotated_mib, cold, real, not missing))
    except KeyboardInterrupt:
        results.skipped.append(f"the run was interrupted after {len(results.measured)} of {len(settings)} settings")
    finally:
        torch.set_num_threads(threads)
    return results


def _measure(
    setting: Setting,
    backend: str,
    seconds: float,
    rotated_mib: int,
    cold: bool,
    real: rows.RealLogits,
    with_peer: bool,
) -> Measured:
    work = Work.parse(setting.work)
    inputs = Inputs.make(setting.batch, setting.vocab)
    count = rotation(setting.batch * setting.vocab * 4, rotated_mib * 2**20)
    batches = rows.make(setting.rows, setting.batch * count, setting.vocab, real).split(setting.batch)
    contestants: dict[tuple[str, str], Contestant] = {
        ("", "alone"): Contestant(FeatureSession(None, inputs, work, backend), batches),
        ("", "floor"): Contestant(OneRead(), batches),
    }
    for feature in FEATURES:
        check(feature, inputs, work, backend, batches[0])
        contestants["ours", feature.key] = Contestant(FeatureSession(feature, inputs, work, backend), batches)
        if with_peer and feature.processors is not None:
            contestants["peer", feature.key] = Contestant(ProcessorSession(feature, inputs), batches, brief=True)
    times = measure(contestants, seconds, _ROUNDS, cold)
    return Measured(
        setting,
        times["", "alone"],
        times["", "floor"],
        {key: time for (who, key), time in times.items() if who == "ours"},
        {key: time for (who, key), time in times.items() if who == "peer"},
    )


def check(
    feature: Feature,
    inputs: Inputs,
    work: Work,
    backend: str,
    logits: Tensor,
    device: torch.device = CPU,
) -> None:
    """Compare a feature's first tokens on a device with the reference's on the CPU, from its first rows alone.

    Raises:
        WrongTokensError: one differs.
    """
    few = Inputs(
        min(ROWS, inputs.batch),
        inputs.vocab,
        inputs.prompt[:ROWS],
        inputs.output[:ROWS],
        inputs.biases[:ROWS],
        inputs.words[:ROWS],
        inputs.allowed[:ROWS],
    )
    ours = _tokens(FeatureSession(feature, few, work, backend, device), logits[: few.batch])
    expected = _tokens(FeatureSession(feature, few, work, "reference"), logits[: few.batch].cpu())
    if not torch.equal(ours, expected):
        raise WrongTokensError(f"{feature.label}: drew {ours.tolist()}, the reference {expected.tolist()}")


def _tokens(session: FeatureSession, logits: Tensor) -> Tensor:
    session.arguments["seed"] = _SEED
    session.load(logits)
    drawn = session.draw()
    tokens: Tensor = drawn if isinstance(drawn, Tensor) else drawn.tokens
    return tokens.cpu()


def show(results: FeatureResults, console: Console) -> None:
    """Print a table for each setting, and how to read it."""
    for measured in results.measured:
        table = Table(title=measured.setting.label, title_justify="left")
        for column in ("feature", "time", "of sample alone", "Hugging Face's processors", "of sample alone"):
            table.add_column(column, justify="left" if column == "feature" else "right")
        alone = measured.alone.median
        table.add_row("sample alone", microseconds(alone), "1.00", "", "")
        for feature in FEATURES:
            if (time := measured.features.get(feature.key)) is None:
                continue
            peer = measured.hugging_face.get(feature.key)
            of_peer = (microseconds(peer.median), ratio(peer.median / alone)) if peer else ("", "")
            table.add_row(feature.label, microseconds(time.median), ratio(time.median / alone), *of_peer)
        console.print(table)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def notes(results: FeatureResults) -> list[str]:
    """How to read the tables, and which limits are kept."""
    lines = [
        f"Medians; inputs rotate over {results.rotated_mib} MiB{f', with {COLD}' if results.cold else ''}.",
        "Every feature is timed with the draw, by turns with `sample` alone, after a look at its tokens.",
        "Hugging Face's processors of a feature are timed alone, without the warpers and the draw that follow them.",
        *(f"skipped: {reason}" for reason in results.skipped),
    ]
    for key, limit in LIMITS.items():
        ratios = [one.features[key].median / one.alone.median for one in results.measured if key in one.features]
        kept = sum(value <= limit for value in ratios)
        lines.append(f"{key}: at most {limit:g} of `sample` alone in {kept} of {len(ratios)} settings")
    return lines


def save(results: FeatureResults, file: Path) -> None:
    """Write a run as JSON."""
    file.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")


def load(file: Path) -> FeatureResults:
    """Read what `save` wrote. Raises ValueError, with the file's name, where it did not."""
    data = json_files.read(file)
    with named_in_errors(file, "not a file of fastsample bench --features: "):
        measured = [
            Measured(
                Setting(**one["setting"]),
                Times.checked(*one["alone"]),
                Times.checked(*one["one_read"]),
                {key: Times.checked(*time) for key, time in one["features"].items()},
                {key: Times.checked(*time) for key, time in one["hugging_face"].items()},
            )
            for one in data.pop("measured")
        ]
        return FeatureResults(measured=measured, **data)

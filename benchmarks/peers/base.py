"""What a benchmark asks of a sampler, and what a sampler is to a benchmark: every one, ours among them, is a `Peer`."""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

# What the rows of the work "mixed" ask for, in turn: settings that differ most in what a sampler has to do.
_MIXED = ("t0.8-k50-p0.9", "greedy", "p0.9", "k50", "plain", "m0.05", "k1000", "t0.7-k40-p0.95-m0.02")


class NotServedError(Exception):
    """This sampler does not do this work; the message says why, for the list of what was skipped."""


class Filters(NamedTuple):
    """The filters of each row [batch]: top_k (int32, the vocabulary where there is none), top_p and min_p (float32)."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor


class Work(NamedTuple):
    """The parameters of a draw, one set for the whole batch.

    Attributes:
        temperature, top_k, top_p, min_p: as `fastsample.sample` takes them.
        half_neutral: every second row takes no filter, so that the parameters differ by row.
        mixed: neighbouring rows take settings of their own, and the other attributes are not read.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    half_neutral: bool = False
    mixed: bool = False

    @classmethod
    def parse(cls, key: str) -> Work:
        """Work from its key: "plain", "greedy", "mixed", or parts joined by "-": t0.8, k50, p0.9, m0.05, half.

        Raises:
            ValueError: the key has another part, one twice, one beside t0, or a number out of its range.
        """
        if key == "plain":
            return cls()
        if key == "greedy":
            return cls(temperature=0.0)
        if key == "mixed":
            return cls(mixed=True)
        values: dict[str, Any] = {}
        for part in key.split("-"):
            name, value = _parse_part(part, key)
            if name in values:
                raise ValueError(f"work: got {key!r}, which has {name} twice; give it once")
            values[name] = value
        if values.get("temperature") == 0 and len(values) > 1:
            raise ValueError(f"work: got {key!r}; a temperature of 0 is greedy and takes no other part: give greedy")
        return cls(**values)

    @property
    def key(self) -> str:
        """The key from which `parse` makes the same work."""
        if self.greedy:
            return "greedy"
        if self.mixed:
            return "mixed"
        parts = [
            f"t{_exact(self.temperature)}" if self.temperature != 1 else "",
            f"k{self.top_k}" if self.top_k else "",
            f"p{_exact(self.top_p)}" if self.top_p != 1 else "",
            f"m{_exact(self.min_p)}" if self.min_p else "",
            "half" if self.half_neutral else "",
        ]
        return "-".join(filter(None, parts)) or "plain"

    @property
    def label(self) -> str:
        """The name in tables."""
        if self.greedy:
            return "greedy"
        if self.mixed:
            return "mixed rows"
        parts = [
            f"T {_exact(self.temperature)}" if self.temperature != 1 else "",
            f"k {self.top_k}" if self.top_k else "",
            f"p {_exact(self.top_p)}" if self.top_p != 1 else "",
            f"min-p {_exact(self.min_p)}" if self.min_p else "",
            "half neutral" if self.half_neutral else "",
        ]
        return ", ".join(filter(None, parts)) or "plain"

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def per_row(self) -> bool:
        """Whether the rows of a batch take different parameters."""
        return self.half_neutral or self.mixed

    def parameters(self, batch: int) -> dict[str, Any]:
        """The keyword arguments of `fastsample.sample` for `batch` rows."""
        if self.mixed:
            works = [Work.parse(key) for key in _MIXED]
            rows = [works[row % len(works)] for row in range(batch)]
            return {
                name: torch.tensor([getattr(row, name) for row in rows])
                for name in ("temperature", "top_k", "top_p", "min_p")
            }
        parameters = {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
        }
        if not self.half_neutral:
            return parameters
        neutral = {"temperature": self.temperature, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        odd = torch.arange(batch) % 2 == 1
        return {name: torch.where(odd, neutral[name], value) for name, value in parameters.items()}

    def filters(self, batch: int, vocab: int, device: torch.device) -> Filters:
        """The filters as a tensor each, a number for each row, by which servers give them to their samplers."""
        parameters = self.parameters(batch)
        top_k, top_p, min_p = (torch.as_tensor(parameters[name]).expand(batch) for name in ("top_k", "top_p", "min_p"))
        top_k = torch.where(top_k == 0, vocab, top_k).clamp(max=vocab)
        return Filters(top_k.to(device, torch.int32), top_p.to(device, torch.float32), min_p.to(device, torch.float32))


def _parse_part(part: str, key: str) -> tuple[str, Any]:
    """A parameter of `Work` and its value, from a part of a key."""
    if part == "half":
        return "half_neutral", True
    if match := re.fullmatch(r"k(\d+)", part):
        return "top_k", int(match[1])
    match = re.fullmatch(r"([tpm])(\d*\.?\d+)", part)
    if match is None:
        raise ValueError(
            f"work: got {key!r}; accepted: plain, mixed, greedy, or parts joined by '-' out of t0.8 "
            "(temperature), k50 (top_k), p0.9 (top_p), m0.05 (min_p), half (every second row is neutral)"
        )
    name, value = {"t": "temperature", "p": "top_p", "m": "min_p"}[match[1]], float(match[2])
    if not (math.isfinite(value) if name == "temperature" else value <= 1):
        accepted = "a finite number" if name == "temperature" else "a number from 0 to 1"
        raise ValueError(f"work: got {key!r}, whose {name} is {value:g}; accepted: {accepted}")
    return name, value


def _exact(value: float) -> str:
    """The shortest decimal that is read back as this number, without an exponent."""
    return np.format_float_positional(value, trim="-")


class Job(NamedTuple):
    """What one sampler is to do again and again.

    Attributes:
        work: its parameters.
        batch, vocab, dtype: of the logits.
        threads: how many it may use.
    """

    work: Work
    batch: int
    vocab: int
    threads: int
    dtype: torch.dtype


class Session(Protocol):
    """A sampler made ready for one job."""

    def load(self, logits: Tensor) -> None:
        """Take over the logits of the next draw: [batch, vocab]. Not timed on the CPU."""

    def draw(self) -> Sequence[int] | Tensor:
        """Draw a token of every row of the loaded logits. This is what is timed."""


class Peer(Protocol):
    """A sampler that the benchmark can run.

    Attributes:
        key: its name on the command line.
        label: its name in tables.
        package: the distribution whose version is reported.
        note: what is and is not in its time.
    """

    key: str
    label: str
    note: str

    @property
    def package(self) -> str: ...

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def start(self, job: Job) -> Session:
        """Make ready for a job. Raises NotServedError if it does not do this work."""


def version_of(package: str) -> str | None:
    """The version of a distribution that is installed, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing_package(package: str) -> str | None:
    """Why a peer cannot run: its distribution is not installed. None if it is."""
    return None if version_of(package) else f"the package {package} is not installed (make peers)"


def refuse_per_row(job: Job) -> None:
    """Raises NotServedError for work whose parameters differ by row."""
    if job.work.per_row:
        raise NotServedError("it takes one set of parameters for the whole batch")


def refuse_mixed(job: Job) -> None:
    """Raises NotServedError for rows of which some are greedy, for peers that take filters by row."""
    if job.work.mixed:
        raise NotServedError("it takes filters by row, and no batch of which a part is greedy")


def refuse_bfloat16(job: Job) -> None:
    """Raises NotServedError unless the logits are float32."""
    if job.dtype is not torch.float32:
        raise NotServedError("it takes float32 logits")

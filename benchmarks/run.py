"""One run of the benchmark: every setting of a plan, checked, then measured, within the time budget."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import check, machine, rows
from .grid import Plan, Setting, settings
from .ours import FastsampleSession, OneRead, Softmax
from .peers import PEERS
from .peers.base import Job, NotServedError, Session, Work
from .results import Measurement, Results
from .timing import Contestant, Times, measure, rotation

_SOFTMAX = "x"
_ONE_READ = "floor"


class _Timed(NamedTuple):
    """Who is timed: "fastsample" or a peer's key with its work, or a reference point with None."""

    who: str
    work: Work | None


class _Inputs:
    """The last logits that were made: the settings are ordered so that the next one often needs them too."""

    def __init__(self, real: rows.RealLogits) -> None:
        self.real = real
        self.kind = ""
        self.logits = torch.empty(0, 0)
        self.expected: dict[tuple[torch.dtype, Work], Tensor] = {}

    def take(self, kind: str, count: int, vocab: int) -> Tensor:
        """float32 [count, vocab] of this kind."""
        if self.kind != kind or self.logits.shape[1] != vocab or len(self.logits) < count:
            self.logits = torch.empty(0, 0)  # the memory is needed for the new ones
            self.expected.clear()
            self.logits = rows.make(kind, count, vocab, self.real)
            self.kind = kind
        return self.logits[:count]

    def expected_tokens(self, dtype: torch.dtype, work: Work) -> Tensor:
        """The reference's tokens for the first rows."""
        if (dtype, work) not in self.expected:
            self.expected[dtype, work] = check.expected_tokens(self.logits[: check.ROWS].to(dtype), work)
        return self.expected[dtype, work]


class Runner:
    """Measures a plan into `results`.

    Args:
        plan: what is measured.
        results: filled with measurements, and with what was skipped and why.
        real: where real rows come from.
        rotated_bytes: the least memory that the inputs of one contestant take together.
        started: when the time budget began (`time.perf_counter`).
    """

    def __init__(self, plan: Plan, results: Results, real: rows.RealLogits, rotated_bytes: int, started: float) -> None:
        self.plan = plan
        self.results = results
        self.rotated_bytes = rotated_bytes
        self.started = started
        self.inputs = _Inputs(real)
        self.peers = [key for key in plan.peers if results.peers[key].missing is None]

    def run(self, on_setting: Callable[[str, int, int], None]) -> None:
        """Measure every setting.

        Args:
            on_setting: called before each with its label, how many are done, and how many there are.

        Raises:
            WrongTokensError: fastsample disagrees with the reference: a wrong sampler has no speed.
        """
        todo = settings(self.plan)
        weights = [self._weight(setting) for setting in todo]
        for place, setting in enumerate(todo):
            on_setting(setting.label, place, len(todo))
            left = self.started + self.plan.seconds - time.perf_counter()
            if left <= 0:
                self.results.skipped += [f"{skipped.label}: the time budget was spent" for skipped in todo[place:]]
                break
            try:
                self._measure(setting, left * weights[place] / sum(weights[place:]))
            except rows.NoRowsError as error:
                self.results.skipped.append(f"{setting.label}: {error}")
        on_setting("done", len(todo), len(todo))

    def _weight(self, setting: Setting) -> int:
        works = len(self.plan.works)
        return 2 + works + (works * len(self.peers) if setting.with_peers else 0)

    def _measure(self, setting: Setting, seconds: float) -> None:
        end = time.perf_counter() + seconds
        threads_before = torch.get_num_threads()
        torch.set_num_threads(setting.threads)
        try:
            contestants, checked = self._contestants(setting)
            if contestants:
                # At least something where making the inputs has eaten the share; the settings to come pay for it.
                times = measure(contestants, max(end - time.perf_counter(), 0.2 * seconds))
                self._record(setting, times, checked)
        finally:
            torch.set_num_threads(threads_before)

    def _contestants(self, setting: Setting) -> tuple[dict[_Timed, Contestant], dict[Work, int]]:
        """Everything that is timed in a setting, checked; empty, with a note in the results, if it does not fit."""
        dtype = getattr(torch, setting.dtype)
        numbers = setting.batch * setting.vocab
        # As many as 16-bit logits need, which are the next to come.
        count = setting.batch * rotation(2 * numbers, self.rotated_bytes)
        # In float32 and in bfloat16; and what peers keep for a draw, at most 12 bytes a logit and a copy of it.
        needed = 6 * count * setting.vocab
        needed += 16 * numbers * len(self.plan.works) * len(self.peers) if setting.with_peers else 0
        if not machine.fits(needed):
            self.results.skipped.append(f"{setting.label}: its inputs do not fit into half of the memory that is free")
            return {}, {}
        batches = rotation(dtype.itemsize * numbers, self.rotated_bytes)
        logits32 = self.inputs.take(setting.rows, count, setting.vocab)[: batches * setting.batch]
        logits = logits32.to(dtype)
        turns = logits.split(setting.batch)
        contestants: dict[_Timed, Contestant] = {
            # x is float32 whatever the dtype of the logits.
            _Timed(_SOFTMAX, None): Contestant(Softmax(setting.batch, setting.vocab), logits32.split(setting.batch)),
            _Timed(_ONE_READ, None): Contestant(OneRead(), turns),
        }
        checked = {}
        for work in self.plan.works:
            expected = self.inputs.expected_tokens(dtype, work)
            checked[work] = check.check_fastsample(turns[0], work, self.results.backend, expected)
            job = Job(work, setting.batch, setting.vocab, setting.threads, dtype, self.rotated_bytes > 0)
            session: Session = FastsampleSession(job, self.results.backend)
            contestants[_Timed("fastsample", work)] = Contestant(session, turns)
            for key in self.peers if setting.with_peers else ():
                try:
                    session = PEERS[key].start(job)
                except NotServedError as error:
                    self._skip_peer(key, work, error)
                else:
                    accepts = partial(self._accepts, key, work)
                    contestants[_Timed(key, work)] = Contestant(session, turns, accepts, brief=True)
        return contestants, checked

    def _accepts(self, peer: str, work: Work, drawn: Any, logits: Tensor) -> bool:
        try:
            check.check_peer(PEERS[peer].label, drawn, logits, work)
        except check.WrongTokensError as error:
            self._skip_peer(peer, work, error)
            return False
        return True

    def _skip_peer(self, peer: str, work: Work, reason: Exception) -> None:
        note = f"{PEERS[peer].label}, {work.label}: {reason}"
        if note not in self.results.skipped:
            self.results.skipped.append(note)

    def _record(self, setting: Setting, times: dict[_Timed, Times], checked: dict[Work, int]) -> None:
        for work in self.plan.works:
            self.results.measurements.append(
                Measurement(
                    setting=setting,
                    work=work,
                    fastsample=times[_Timed("fastsample", work)],
                    softmax=times[_Timed(_SOFTMAX, None)],
                    one_read=times[_Timed(_ONE_READ, None)],
                    peers={key: times[_Timed(key, work)] for key in self.peers if _Timed(key, work) in times},
                    tokens_checked=checked[work],
                )
            )

"""One run of the benchmark: every setting of a plan, checked, then measured, within the time budget."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from .timing import NO_TIME, Contestant, Times, measure, rotation

_SOFTMAX = "x"
_ONE_READ = "floor"
# Of the budget, that making a peer ready may take in all: torch.compile takes seconds for each shape and kind of work.
_READYING = 0.15
# A logit costs its own 4 bytes and the 2 of its 16-bit copy; what a draw makes on the way; what a peer keeps for one.
_INPUT_BYTES, _DRAW_BYTES, _KEPT_BYTES = 6, 32, 16


class _Timed(NamedTuple):
    """Who is timed: "fastsample" or a peer's key with its work, or a reference point with None."""

    who: str
    work: Work | None


class _Shape(NamedTuple):
    """On what the time of a row depends, as far as it can be told beforehand."""

    peer: str
    work: Work
    vocab: int
    threads: int


class _Inputs:
    """The last logits that were made: the settings are ordered so that the next one often needs them too."""

    def __init__(self, real: rows.RealLogits) -> None:
        self.real = real
        self.kind = ""
        self.logits = torch.empty(0, 0)
        self.expected: dict[tuple[torch.dtype, Work], Tensor] = {}

    def take(self, kind: str, count: int, vocab: int, reserve: int) -> Tensor:
        """float32 [count, vocab] of this kind; where they have to be made, `reserve` of them, if that is more."""
        if self.kind != kind or self.logits.shape[1] != vocab or len(self.logits) < count:
            self.logits = torch.empty(0, 0)  # the memory is needed for the new ones
            self.expected.clear()
            self.logits = rows.make(kind, max(count, reserve), vocab, self.real)
            self.kind = kind
        return self.logits[:count]

    def expected_tokens(self, dtype: torch.dtype, work: Work) -> Tensor:
        """The reference's tokens for the first rows."""
        if (dtype, work) not in self.expected:
            self.expected[dtype, work] = check.expected_tokens(self.logits[: check.ROWS].to(dtype), work)
        return self.expected[dtype, work]


class _LeftOut:
    """What was not measured of the peers: the kinds of work, by what keeps them from it."""

    def __init__(self) -> None:
        self.works: dict[str, dict[str, None]] = {}

    def add(self, reason: str, work: Work) -> None:
        self.works.setdefault(reason, {})[work.label] = None

    def told(self, of: int) -> Iterator[str]:
        """A line for each reason; `of` is how many kinds of work there are."""
        for reason, works in self.works.items():
            yield f"{reason} ({'all work' if len(works) == of else '; '.join(works)})"


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
        self.end = started + plan.seconds
        self.inputs = _Inputs(real)
        self.peers = [key for key in plan.peers if results.peers[key].missing is None]
        self.left_out = _LeftOut()
        self.readying: defaultdict[str, float] = defaultdict(float)  # seconds, by peer
        self.seconds_a_row: dict[_Shape, float] = {}

    def run(self, on_setting: Callable[[str, int, int], None]) -> None:
        """Measure every setting.

        Args:
            on_setting: called before each with its label, how many are done, and how many there are.

        Raises:
            WrongTokensError: fastsample disagrees with the reference: a wrong sampler has no speed.
        """
        todo = settings(self.plan)
        weights = [self._weight(setting) for setting in todo]
        try:
            for place, setting in enumerate(todo):
                on_setting(setting.label, place, len(todo))
                if self.end <= time.perf_counter():
                    self.results.skipped.append(
                        f"the time budget was spent after {place} of {len(todo)} settings; the first that was not "
                        f"measured: {setting.label}; the last: {todo[-1].label}"
                    )
                    break
                try:
                    self._measure(setting, weights[place] / sum(weights[place:]))
                except rows.NoRowsError as error:
                    self.results.skipped.append(f"{setting.label}: {error}")
        finally:  # of an interrupted run as well
            self.results.skipped += self.left_out.told(len(self.plan.works))
        on_setting("done", len(todo), len(todo))

    def _weight(self, setting: Setting) -> int:
        works = len(self.plan.works)
        return 2 + works + (works * len(self.peers) if setting.with_peers else 0)

    def _measure(self, setting: Setting, share: float) -> None:
        threads_before = torch.get_num_threads()
        torch.set_num_threads(setting.threads)
        try:
            if not machine.fits(self._bytes(setting)):
                self.results.skipped.append(
                    f"{setting.label}: its inputs do not fit into half of the memory that is free"
                )
                return
            logits32, logits = self._logits(setting)
            checked = {work: self._check(setting, work, logits) for work in self.plan.works}
            # The share is of what is left now: every setting pays for the inputs of this one.
            seconds = share * max(self.end - time.perf_counter(), 0)
            groups = self._groups(setting)
            for number, works in enumerate(groups):
                part = seconds / (len(groups) - number)
                contestants = self._contestants(setting, works, logits32, logits, part)
                # So does it for making the peers ready, which is limited for itself.
                started = time.perf_counter()
                times = measure(contestants, part, cold=self.results.cold)
                self._record(setting, works, times, checked)
                seconds = max(seconds - (time.perf_counter() - started), 0)
        finally:
            torch.set_num_threads(threads_before)

    def _rows(self, vocab: int, batch: int) -> int:
        """How many rows of float32 a setting takes: as many as 16-bit logits need, which may come next."""
        return batch * rotation(2 * batch * vocab, self.rotated_bytes)

    def _bytes(self, setting: Setting) -> int:
        rows_made = self._rows(setting.vocab, setting.batch)
        return setting.vocab * (_INPUT_BYTES * rows_made + _DRAW_BYTES * setting.batch)

    def _logits(self, setting: Setting) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The batches of a setting, as float32 and as its dtype."""
        dtype = getattr(torch, setting.dtype)
        count = setting.batch * rotation(dtype.itemsize * setting.batch * setting.vocab, self.rotated_bytes)
        logits32 = self.inputs.take(setting.rows, count, setting.vocab, self._rows(setting.vocab, setting.batch))
        return logits32.split(setting.batch), logits32.to(dtype).split(setting.batch)

    def _check(self, setting: Setting, work: Work, logits: Sequence[Tensor]) -> int:
        expected = self.inputs.expected_tokens(getattr(torch, setting.dtype), work)
        return check.check_fastsample(logits[0], work, self.results.backend, expected)

    def _groups(self, setting: Setting) -> list[tuple[Work, ...]]:
        """The kinds of work, as many together as what the peers keep for them leaves memory for."""
        works = self.plan.works
        if not setting.with_peers or not self.peers:
            return [works]
        of_each = _KEPT_BYTES * setting.batch * setting.vocab * len(self.peers)
        size = len(works)
        while size > 1 and not machine.fits(size * of_each):
            size -= 1
        return [works[first : first + size] for first in range(0, len(works), size)]

    def _contestants(
        self,
        setting: Setting,
        works: Sequence[Work],
        logits32: Sequence[Tensor],
        logits: Sequence[Tensor],
        seconds: float,
    ) -> dict[_Timed, Contestant]:
        """Everyone who is timed at some kinds of work in a setting, in so many seconds."""
        contestants: dict[_Timed, Contestant] = {
            # x is float32 whatever the dtype of the logits.
            _Timed(_SOFTMAX, None): Contestant(Softmax(setting.batch, setting.vocab), logits32),
            _Timed(_ONE_READ, None): Contestant(OneRead(), logits),
        }
        jobs = [Job(work, setting.batch, setting.vocab, setting.threads, logits[0].dtype) for work in works]
        for job in jobs:
            session: Session = FastsampleSession(job, self.results.backend)
            contestants[_Timed("fastsample", job.work)] = Contestant(session, logits)
        if not setting.with_peers:
            return contestants
        # Who is known to be fast comes first: what the slow ones take is not there for the others.
        theirs = [(key, job) for job in jobs for key in self.peers]
        for key, job in sorted(theirs, key=lambda one: self._expected_seconds(*one)):
            peer = self._session(key, job, logits[0], seconds)
            if peer is not None:
                left_out = partial(self._leave_out, key, job)
                contestants[_Timed(key, job.work)] = Contestant(
                    peer, logits, partial(_check_peer, PEERS[key].label, job.work), brief=True, left_out=left_out
                )
        return contestants

    def _expected_seconds(self, peer: str, job: Job) -> float:
        """What a call of a peer may take, by what it took with smaller batches; 0 where that is not known."""
        return job.batch * self.seconds_a_row.get(_Shape(peer, job.work, job.vocab, job.threads), 0.0)

    def _session(self, key: str, job: Job, logits: Tensor, seconds: float) -> Session | None:
        """A peer made ready for a job; None, with a note, where it cannot be or where there is no time."""
        started = time.perf_counter()
        if self._expected_seconds(key, job) >= seconds or started >= self.end:
            self._leave_out(key, job, NO_TIME)
        elif self.readying[key] > _READYING * self.plan.seconds:
            self._leave_out(key, job, f"making it ready has taken {_READYING:.0%} of the time budget")
        else:
            try:
                session = PEERS[key].start(job)
                session.load(logits)
            except NotServedError as error:
                self.left_out.add(f"{PEERS[key].label}: {error}", job.work)
            except Exception as error:  # whatever another's code does wrong
                self.left_out.add(f"{PEERS[key].label} cannot be made ready: {_first_line(error)}", job.work)
            else:
                return session
            finally:
                self.readying[key] += time.perf_counter() - started
        return None

    def _leave_out(self, key: str, job: Job, reason: str) -> None:
        self.left_out.add(f"{PEERS[key].label}, B {job.batch}: {_first_line(reason)}", job.work)

    def _record(
        self, setting: Setting, works: Sequence[Work], times: dict[_Timed, Times], checked: dict[Work, int]
    ) -> None:
        for work in works:
            peers = {key: times[_Timed(key, work)] for key in self.peers if _Timed(key, work) in times}
            for key, one in peers.items():
                shape = _Shape(key, work, setting.vocab, setting.threads)
                self.seconds_a_row[shape] = one.median / 1e6 / setting.batch
            self.results.measurements.append(
                Measurement(
                    setting=setting,
                    work=work,
                    fastsample=times[_Timed("fastsample", work)],
                    softmax=times[_Timed(_SOFTMAX, None)],
                    one_read=times[_Timed(_ONE_READ, None)],
                    peers=peers,
                    tokens_checked=checked[work],
                )
            )


def _first_line(reason: Exception | str) -> str:
    text = reason if isinstance(reason, str) else f"{type(reason).__name__}: {reason}"
    return text.strip().partition("\n")[0][:300]


def _check_peer(label: str, work: Work, drawn: Any, logits: Tensor) -> None:
    check.check_peer(label, drawn, logits, work)

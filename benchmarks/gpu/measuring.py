"""Part: the benchmark grid. Every contestant's tokens are checked before it is timed."""

from __future__ import annotations

import time
from collections import ChainMap
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastsample
from fastsample.benchmarks.check import WrongTokensError, check_peer
from fastsample.benchmarks.ours import OneRead
from fastsample.benchmarks.peers.base import Job, NotServedError, Peer, Session, Work

from . import grid, packed_peers
from .contestants import COMPILED, OUR_BACKENDS, PEERS, FastsampleSession, SoftmaxSession, ours, why_not
from .floor import READ_SHAPES, Floor, FloorError, LaunchSession, ReadSession, build
from .grid import Setting
from .inputs import Inputs
from .options import PartFailedError, PartOptions
from .records import Recorder
from .results import FLOOR, LAUNCH, OUR_LABELS, OURS, SOFTMAX, TRITON, Place
from .timing import CudaTimer, GpuTimes, HostTimer, Timer, Turn, measure

_CHECKED_ROWS = 32  # against the native CPU kernels, which take a tenth of a millisecond a row
_CHECKED_PEER_ROWS = 4
_SECONDS = 0.04  # each contestant in each setting
_PEER_SECONDS = 0.12
_QUICK_SECONDS = 0.01
_COMPILE_SECONDS = 60  # left of the time, or torch.compile is not begun
# Inputs of one graph: more of a contestant that is one kernel than of one that is twenty.
_MOST_INPUTS = 512
_MOST_INPUTS_OF_CHAINS = 64
_REHEARSED_CACHE = 2**16


_REFERENCE = ""


class _Timed(NamedTuple):
    """Who is timed, on what (the key of the work, or `_REFERENCE` for what has none), and whether
    its calls are launched one by one."""

    who: str
    work: str
    eager: bool = False


def run(recorder: Recorder, options: PartOptions) -> None:
    """Measure settings until the time is up.

    Raises:
        PartFailedError: fastsample drew a wrong token somewhere, or none of its kernels can run here.
    """
    end = time.monotonic() + options.seconds - 5
    if not options.rehearsal:
        packed_peers.put_in_place()
    runner = _Runner(recorder, options, end)
    todo = grid.rehearsal() if options.rehearsal else grid.settings(options.axes)
    for done, setting in enumerate(todo):
        if time.monotonic() >= end:
            recorder.add("note", text=f"the time was up after {done} of {len(todo)} settings of the grid")
            break
        runner.measure(setting)
    for vocab in dict.fromkeys(setting.place.vocab for setting in todo if setting.place.rows == "real"):
        recorder.add("rows", vocab=vocab, made=runner.inputs.describe(vocab))
    if runner.failures:
        raise PartFailedError(f"{len(runner.failures)} failures, the first: {runner.failures[0]}")


class _Runner:
    def __init__(self, recorder: Recorder, options: PartOptions, end: float) -> None:
        self.recorder, self.options, self.end = recorder, options, end
        self.device = torch.device(options.device)
        cache = _REHEARSED_CACHE
        self.timer: Timer = HostTimer()
        self.floor: Floor | None = None
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            cache = properties.L2_cache_size
            self.timer = CudaTimer(3 * cache)
            try:
                self.floor = Floor(build(f"sm_{properties.major}{properties.minor}"))
            except FloorError as error:
                recorder.add("note", text=str(error))
        self.inputs = Inputs(self.device, cache)
        self.ours = ours(options)
        missing = {
            OUR_LABELS[who]: why_not(backend, options.rehearsal)
            for who, backend in OUR_BACKENDS.items()
            if backend in options.backends and who not in self.ours
        }
        for label, reason in missing.items():
            recorder.add("note", text=f"{label} is not measured: {reason}")
        if not self.ours:
            raise PartFailedError(f"none of fastsample's kernels can be measured here: {missing}")
        self.peers = {key: peer for key, peer in PEERS.items() if key not in options.unusable_peers}
        self.failures: list[str] = []

    def measure(self, setting: Setting) -> None:
        """Measure one setting and record it; what goes wrong is recorded and costs the setting only."""
        try:
            self._measure(setting)
        except Exception as error:
            self.recorder.add("note", text=f"{setting.place}: {type(error).__name__}: {str(error)[:500]}")
            self.failures.append(f"{setting.place}: {error}")
            if self.device.type == "cuda":
                torch.cuda.synchronize()  # raises if nothing can run on the GPU any more, and ends the part
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _measure(self, setting: Setting) -> None:
        place = setting.place
        batches = self.inputs.batches(
            place.rows, place.vocab, place.batch, place.dtype, rows_kept=2 * max(grid.BATCHES)
        )
        jobs = {key: Job(Work.parse(key), place.batch, place.vocab, 1, batches[0].dtype) for key in setting.works}
        references = {_Timed(key, _REFERENCE): turn for key, turn in self._references(place, batches).items()}
        ours: dict[str, dict[_Timed, Turn]] = {key: {} for key in jobs}
        for key, job in jobs.items():
            for who, backend in self.ours.items():
                session = FastsampleSession(job, backend, self.device)
                try:
                    check_ours(session, OUR_LABELS[who], batches[0], job.work)
                except WrongTokensError as error:
                    self.failures.append(f"{place}: {error}")
                    self.recorder.add("wrong", text=f"{place}: {error}")
                    continue
                for eager in self._ways(setting):
                    timed = _Timed(who, key, eager)
                    ours[key][timed] = self.timer.prepare(session, batches, _MOST_INPUTS, not eager)
        shape, divisions = self._shape(batches[0]), self._divisions(batches, jobs)
        if not self._peers_of(setting):
            turns = dict(ChainMap(references, *ours.values()))
            self._record(place, shape, divisions, setting.works, measure(turns, _SECONDS))
            return
        # One kind of work after the other, with a record each: what the peers' graphs keep of the memory is too much
        # for all of them. Ours and the references take turns with them, so that no ratio is of two moments.
        for key, job in jobs.items():
            theirs = {
                _Timed(peer.key, key, eager): turn
                for peer in self._peers_of(setting)
                for eager in self._ways(setting)
                if (turn := self._peer_turn(peer, job, batches, eager)) is not None
            }
            times = measure({**references, **ours[key], **theirs}, _PEER_SECONDS)
            self._record(place, shape, divisions, (key,), times)

    def _references(self, place: Place, batches: Sequence[Tensor]) -> dict[str, Turn]:
        job = Job(Work(), place.batch, place.vocab, 1, batches[0].dtype)
        turns = {SOFTMAX: self.timer.prepare(SoftmaxSession(job, self.device), batches, _MOST_INPUTS)}
        if self.device.type == "cpu":
            turns[FLOOR] = self.timer.prepare(OneRead(), batches, _MOST_INPUTS)
        elif self.floor is not None:
            shapes = {
                shape: self.timer.prepare(ReadSession(self.floor, shape), batches, _MOST_INPUTS)
                for shape in READ_SHAPES
            }
            quick = measure(shapes, _QUICK_SECONDS)
            turns[FLOOR] = shapes[min(quick, key=lambda shape: quick[shape].median)]
            turns[LAUNCH] = self.timer.prepare(LaunchSession(self.floor), batches, _MOST_INPUTS)
        return turns

    def _peers_of(self, setting: Setting) -> list[Peer]:
        if setting.compiled:
            return [COMPILED] if self.end - time.monotonic() > _COMPILE_SECONDS else []
        return list(self.peers.values()) if setting.peers else []

    def _ways(self, setting: Setting) -> tuple[bool, ...]:
        """Whether calls are launched one by one: not, and where that is asked for in a place with peers, as well."""
        return (False, True) if self.options.eager and (setting.peers or setting.compiled) else (False,)

    def _peer_turn(self, peer: Peer, job: Job, batches: Sequence[Tensor], eager: bool) -> Turn | None:
        try:
            session: Session = peer.start(job)
            session.load(batches[0])
            tokens = torch.as_tensor(session.draw())[:_CHECKED_PEER_ROWS].cpu()
            check_peer(peer.label, tokens, batches[0][:_CHECKED_PEER_ROWS].cpu(), job.work)
            return self.timer.prepare(session, batches, _MOST_INPUTS_OF_CHAINS, not eager)
        except NotServedError:
            return None
        except Exception as error:  # another's failure is a note, whatever it is
            self.recorder.add("note", text=f"{peer.label}, {job.work.label}, B {job.batch}: {str(error)[:300]}")
            return None

    def _record(
        self,
        place: Place,
        shape: dict[str, int] | None,
        divisions: dict[str, list[int]],
        works: Sequence[str],
        times: dict[_Timed, GpuTimes],
    ) -> None:
        def of(work: str, eager: bool = False) -> dict[str, dict[str, Any]]:
            return {
                timed.who: one._asdict() for timed, one in times.items() if (timed.work, timed.eager) == (work, eager)
            }

        self.recorder.add(
            "setting",
            **place._asdict(),
            shape=shape,
            divisions=divisions,
            references=of(_REFERENCE),
            works={work: of(work) for work in works},
            eager={work: found for work in works if (found := of(work, eager=True))},
        )

    def _shape(self, logits: Tensor) -> dict[str, int] | None:
        """How the CUDA kernels divide a row here, for tuning their launch table."""
        if self.device.type != "cuda" or OURS not in self.ours:
            return None
        blocks, threads, cluster, resident = torch.ops.fastsample.cuda_shape(logits, len(logits))
        return {"blocks": blocks, "threads": threads, "cluster": cluster, "resident": resident}

    def _divisions(self, batches: Sequence[Tensor], jobs: dict[str, Job]) -> dict[str, list[int]]:
        """How the Triton kernels divide each kind of work here."""
        if TRITON not in self.ours:
            return {}
        from fastsample.triton_kernels import policy

        first = batches[0]
        found = {}
        for key, job in jobs.items():
            largest_k = job.vocab if job.work.per_row else min(job.work.top_k, job.vocab)
            division = policy.choose(
                job.vocab,
                job.batch,
                first.element_size(),
                largest_k,
                job.work.per_row or job.work.top_p < 1,
                first.device,
            )
            found[key] = [int(field) for field in division]
        return found


def check_ours(session: FastsampleSession, label: str, logits: Tensor, work: Work) -> None:
    """Compare what a session draws with the CPU's, by `==`: its first rows, and of the rest that they are tokens.

    Raises:
        WrongTokensError: they differ, or there is a token that is none.
    """
    session.load(logits)
    tokens = session.draw().cpu()
    first = logits[:_CHECKED_ROWS].cpu()
    rows = len(first)
    expected = fastsample.sample(
        first, seed=session.seed[:rows].cpu(), offset=session.offset[:rows].cpu(), **work.parameters(rows)
    )
    if not torch.equal(tokens[:rows], expected):
        differ = (tokens[:rows] != expected).nonzero().flatten().tolist()
        raise WrongTokensError(
            f"{label} ({work.label}): rows {differ[:5]} differ from the CPU's; the first drew "
            f"{int(tokens[differ[0]])}, not {int(expected[differ[0]])}"
        )
    if not bool(((tokens >= 0) & (tokens < logits.shape[1])).all()):
        raise WrongTokensError(f"{label} ({work.label}) drew tokens outside the vocabulary")

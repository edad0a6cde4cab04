"""The GPU command: every part in a process of its own, the JSON written anew after each, a report at the end."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from . import ahead, parts, records, report
from .contestants import OUR_BACKENDS, PEERS
from .options import ROOT, Axes, PartFailedError, PartOptions
from .parts import PartPlan
from .results import COMMITTED, GpuResults, Part, load, refuse_unmeasured, save
from .subprocesses import GRACE_OF_PARTS, Running, end_politely, part_command, tail

_LEAST_SECONDS = 5.0
_NO_GPU = 2


class _ToldToEndError(Exception):
    """The command was told to end: what it has found is to be kept."""


def main(arguments: Sequence[str] | None = None, plans: Sequence[PartPlan] = parts.PARTS) -> int:
    """Run the GPU command.

    Args:
        arguments: the command line; None takes it from `sys.argv`.
        plans: the parts there are.

    Returns:
        The exit status: 0 if every part is ok, 1 if one is not, 2 without a GPU. Goals that are missed do not matter.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(plans).parse_args(given)
    if options.run_part:
        return _run_part(options.run_part, Path(options.records), options.options)
    if options.show:
        return _show(options)
    if options.rehearse and options.out is None:
        print("--rehearse: give --out as well, outside benchmarks/results")
        return 1
    try:
        command = _Command(options, given, plans)
    except ValueError as error:  # the result must not be written there
        print(error)
        return 1
    before = signal.signal(signal.SIGTERM, _told_to_end)
    try:
        return command.run()
    finally:
        signal.signal(signal.SIGTERM, before)


def _told_to_end(number: int, frame: FrameType | None) -> NoReturn:
    raise _ToldToEndError(f"signal {number}")


class _Command:
    def __init__(self, options: argparse.Namespace, given: list[str], plans: Sequence[PartPlan]) -> None:
        self.options = options
        self.started = time.monotonic()
        self.todo = [plan for plan in plans if plan.name in options.parts or plan.name == plans[0].name]
        self.results = GpuResults(
            date=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=shlex.join(["python", "-m", "fastsample.benchmarks.gpu", *given]),
            budget=options.budget,
            kind="rehearsal" if options.rehearse else "measured",
        )
        self.base: Path | None = None  # known, and written to, only once a GPU is found
        if options.out is not None:
            refuse_unmeasured(self.results, options.out)
            options.out.parent.mkdir(parents=True, exist_ok=True)  # not after nine minutes

    def run(self) -> int:
        with tempfile.TemporaryDirectory() as folder:
            try:
                for place, plan in enumerate(self.todo):
                    self._run(plan, self.todo[place + 1 :], Path(folder) / f"{plan.name}.jsonl")
                    if place == 0 and not self._on_gpu():
                        reason = self.results.parts[plan.name].message
                        print(f"There is no GPU here, so nothing was run or written: {reason}")
                        return _NO_GPU
            except (KeyboardInterrupt, _ToldToEndError):
                print("told to end: what was found is kept")
        _attempt("the table", self._write_table)
        _attempt("the pictures", lambda: _draw(self.results, self.base))
        _attempt("the summary", lambda: print(report.brief(self.results)))
        return 0 if all(part.status == "ok" for part in self.results.parts.values()) else 1

    def _on_gpu(self) -> bool:
        gpu = self.results.environment.get("GPU")
        if not gpu and not self.options.rehearse:
            return False
        self.base = self.options.out or COMMITTED / f"gpu-{_slug(str(gpu))}"
        self._save()
        return True

    def _run(self, plan: PartPlan, later: list[PartPlan], path: Path) -> None:
        left = self.options.budget - (time.monotonic() - self.started)
        seconds = parts.limit(plan, later, left, self.options.budget)
        part = self.results.parts[plan.name] = Part("not run", limit=round(seconds, 1))
        if seconds < _LEAST_SECONDS:
            part.message = "the time was spent"
            self._save()
            return
        print(f"{plan.name}: up to {seconds:.0f} s", flush=True)
        part_options = PartOptions(
            seconds,
            self.options.rehearse,
            self.options.commit,
            self._unusable_peers(),
            tuple(self.options.backends),
            Axes(**{axis: tuple(getattr(self.options, axis)) for axis in Axes._fields}),
            eager=self.options.eager,
        )
        command = part_command(plan.module, path, part_options)
        cache = {ahead.CACHE_VARIABLE: os.environ.get(ahead.CACHE_VARIABLE, str(ahead.CACHE))}
        running = Running(command, cache, folder=ROOT, grace=GRACE_OF_PARTS)
        try:
            ended = running.wait(seconds)
        except BaseException:
            part.status, part.message = "failed", "interrupted"
            raise
        else:
            part.seconds = ended.seconds
            part.status = {None: "timed out", 0: "ok"}.get(ended.code, "failed")
            part.message = "" if part.status == "ok" else tail(ended.output)
        finally:
            part.records = records.read(path)
            part.message = next(
                (record["text"] for record in part.records if record["kind"] == "failure"), part.message
            )
            self.results.elapsed = round(time.monotonic() - self.started, 1)
            self._save()
        print(f"{plan.name}: {part.status}, {part.seconds:.0f} s", flush=True)

    def _unusable_peers(self) -> tuple[str, ...]:
        missing = {record["key"]: record["missing"] for record in self.results.records("peer")}
        unusable = {key for key, reason in missing.items() if reason is not None}
        return tuple(sorted(unusable | (PEERS.keys() - self.options.peers)))

    def _save(self) -> None:
        if self.base is not None:
            save(self.results, self.base.with_name(self.base.name + ".json"))

    def _write_table(self) -> None:
        if self.base is not None:
            self.base.with_name(self.base.name + ".md").write_text(report.markdown(self.results))


def _attempt(what: str, action: Callable[[], None]) -> None:
    """Do what the run must not fail for: its JSON is written already."""
    try:
        action()
    except Exception as error:
        print(f"{what} failed: {type(error).__name__}: {error}")


def _draw(results: GpuResults, base: Path | None) -> None:
    from . import plot  # needs matplotlib

    for path in plot.save(results, base) if base is not None else ():
        print(f"wrote {path}")


def _show(options: argparse.Namespace) -> int:
    try:
        results = load(options.show)
        if options.out is not None:
            refuse_unmeasured(results, options.out)
    except (OSError, ValueError) as error:
        print(f"--show: {error}")
        return 1
    print(report.markdown(results) if options.markdown else report.brief(results))
    _attempt("the pictures", lambda: _draw(results, options.out))
    return 0


def _run_part(module: str, path: Path, options: str) -> int:
    """What a part's own process does."""
    end_politely()
    part = importlib.import_module(f".{module}", __package__)
    recorder = records.Recorder(path)
    try:
        part.run(recorder, PartOptions.from_json(json.loads(options)))
    except PartFailedError as error:
        recorder.add("failure", text=str(error))
        return 1
    return 0


def _slug(name: str) -> str:
    """A GPU's name for a file: "NVIDIA H200" is "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("nvidia", "")).strip("-")


def _parser(plans: Sequence[PartPlan]) -> argparse.ArgumentParser:
    names = [plan.name for plan in plans]
    parser = argparse.ArgumentParser(
        prog="python -m fastsample.benchmarks.gpu",
        description="Builds fastsample for the GPU at hand, tests it, measures it, and writes one JSON file, a table "
        "and pictures; docs/gpu-notes.md says what each part means.",
    )
    parser.add_argument(
        "--budget", type=float, default=parts.BUDGET, metavar="SECONDS", help="for all of it (%(default)g)"
    )
    parser.add_argument("--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names))
    parser.add_argument(
        "--out",
        type=Path,
        metavar="BASE",
        help="write BASE.json, BASE.md, BASE-time.png and BASE-peers.png (benchmarks/results/gpu-NAME)",
    )
    backends = list(OUR_BACKENDS.values())
    parser.add_argument("--backends", nargs="+", choices=backends, default=backends, help="of fastsample, to measure")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS), help="to compare with")
    for axis, kind, text in (
        ("vocabs", int, "tokens in a row"),
        ("batches", int, "rows in a batch"),
        ("dtypes", str, "of the logits"),
        ("rows", str, "kinds of rows"),
        ("works", str, "keys of work"),
    ):
        parser.add_argument(
            f"--{axis}", type=kind, nargs="+", default=(), help=f"{text}: what of the benchmark's grid to measure (all)"
        )
    parser.add_argument(
        "--eager", action="store_true", help="time calls that are launched one by one as well, beside graph replay"
    )
    parser.add_argument("--commit", default="", help="of the sources, where they are a copy without git")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small: nothing is measured")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing, show a JSON file; with --out, draw it"
    )
    parser.add_argument("--markdown", action="store_true", help="with --show, print everything")
    for hidden in ("--run-part", "--records", "--options"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())

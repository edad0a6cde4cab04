"""`fastsample bench`: how long sampling takes on this machine, beside a softmax, one read of the logits, and peers."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastsample import backends, doctor

from . import compare, end_to_end, end_to_end_results, features_run, json_files, machine, markdown, memory, report, rows
from .check import WrongTokensError
from .gpu import bench as gpu_bench
from .gpu.contestants import PEERS as GPU_PEERS
from .gpu.options import Axes
from .gpu.parts import BUDGET as GPU_BUDGET
from .grid import DTYPES, GOAL_BATCHES, GOAL_VOCAB, PRESETS, Plan
from .peers import PEERS
from .peers.base import Work, version_of
from .results import PeerStatus, Results, load, save
from .run import Runner
from .timing import COOLING_MIB

_MIB = 2**20
_FEATURES_BUDGET = 120
_ON_A_GPU = ("cuda", "triton")
_OF_THE_CPU = ("threads", "rotate", "cold", "real_logits", "memory", "plot")
_WHOLE = "full"  # the preset that on a GPU is the grid of the GPU command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `fastsample bench`, `fastsample bench compare` or `fastsample bench end-to-end`.

    Args:
        arguments: the command line without "fastsample bench"; None takes it from `sys.argv`.

    Returns:
        The exit status: 1 if fastsample drew a wrong token, or a file cannot be used; 2 without the GPU that a backend
        is timed on; else 0, whatever the speed. `compare` and `end-to-end` have their own.
    """
    started = time.perf_counter()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        return compare.main(given[1:])
    if given[:1] == ["end-to-end"]:
        return end_to_end.main(given[1:])
    options = _parser().parse_args(given)
    # A pipe or a file has no width of its own, and tables cut to 80 columns are of no use there.
    console = Console(width=None if sys.stdout.isatty() else 160)
    errors = Console(stderr=True)
    if options.quick:
        options.preset = "quick"
    if options.show:
        return _show_file(options, console, errors)
    if options.features:
        return _features(options, given, console, errors)
    if options.backend in _ON_A_GPU:
        return _on_a_gpu(options, errors)
    if reason := _why_not_here(options):
        return _failed(errors, reason)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)  # not after ten minutes
        results = _measure(options, given, started, errors)
    except (OSError, WrongTokensError, rows.NoRowsError) as error:
        return _failed(errors, str(error))
    save(results, options.out)
    errors.print(f"wrote {options.out}", soft_wrap=True)
    return _show(results, options, console, errors)


def _show_file(options: argparse.Namespace, console: Console, errors: Console) -> int:
    """Show a file of whichever kind."""
    try:
        content = json_files.read(options.show)
        if "parts" in content:
            return gpu_bench.show(options.show, options.markdown, options.plot)
        if "decoding" in content:
            end_to_end.present(end_to_end_results.load(options.show), options.markdown, console)
            return 0
        if "measured" in content or options.features:
            features_run.show(features_run.load(options.show), console)
            return 0
        results = load(options.show)
    except (OSError, ValueError) as error:
        return _failed(errors, f"--show: {error}")
    return _show(results, options, console, errors)


def _show(results: Results, options: argparse.Namespace, console: Console, errors: Console) -> int:
    if options.markdown:
        try:
            print(markdown.table(results))
        except ValueError as error:
            return _failed(errors, f"--markdown: {error}")
    else:
        report.show(results, console)
    picture = options.plot or (None if options.show else options.out.with_suffix(".png"))
    if picture and results.measurements:
        try:
            from . import plot
        except ModuleNotFoundError as error:  # an environment of a peer's own need not have it
            package = (error.name or "").partition(".")[0]
            errors.print(f"{picture} is not drawn: {package} is not installed", soft_wrap=True)
        else:
            plot.save(results, picture)
            errors.print(f"wrote {picture}", soft_wrap=True)
    return 0


def _on_a_gpu(options: argparse.Namespace, errors: Console) -> int:
    """The GPU command's benchmark, as far as the options are about it."""
    defaults = _parser()
    given = [name for name in _OF_THE_CPU if getattr(options, name) != defaults.get_default(name)]
    peers = set(options.peers or ["all"])
    if unknown := peers - {"all", "none", *GPU_PEERS}:
        given.append(f"peers {' '.join(sorted(unknown))}")
    if given:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        return _failed(errors, f"{named}: of the benchmark on the CPU, and not of --backend {options.backend}")
    chosen = list(GPU_PEERS) if "all" in peers else [key for key in GPU_PEERS if key in peers]
    plan = PRESETS[options.preset]
    try:
        return gpu_bench.run(
            options.backend, _axes(options), chosen, options.budget or GPU_BUDGET, options.out, plan.eager
        )
    except gpu_bench.CannotMeasureError as error:
        _failed(errors, str(error))
        return error.status
    except rows.NoRowsError as error:
        return _failed(errors, str(error))


def _axes(options: argparse.Namespace) -> Axes:
    """What of the grid of the GPU command is measured: the preset with what the command line changes in it."""
    asked = Axes(
        *(
            tuple(dict.fromkeys(axis or ()))
            for axis in (options.vocab, options.batch, options.dtype, options.rows, (w.key for w in options.work or ()))
        )
    )
    if options.preset == _WHOLE:
        return asked
    plan = _preset(options, _real_logits(options))
    preset = Axes(plan.vocabs, plan.batches, plan.dtypes, plan.rows, tuple(work.key for work in plan.works))
    return Axes._make(given or of_preset for given, of_preset in zip(asked, preset, strict=True))


def _real_logits(options: argparse.Namespace) -> rows.RealLogits:
    return rows.RealLogits(options.real_logits or [file for file in (rows.REAL_LOGITS,) if file.exists()])


def _features(options: argparse.Namespace, given: list[str], console: Console, errors: Console) -> int:
    """What each feature of a request costs beside the draw."""
    if options.backend in _ON_A_GPU:
        return _failed(errors, f"--features: timed on the CPU, and not with --backend {options.backend}")
    if reason := _why_not_here(options):
        return _failed(errors, reason)
    settings = [
        features_run.Setting(threads, batch, vocab, kind, work.key)
        for threads in options.threads or (1,)
        for vocab in options.vocab or (GOAL_VOCAB,)
        for batch in options.batch or GOAL_BATCHES
        for kind in options.rows or ("real",)
        for work in options.work or (Work.parse("k50-p0.9"), Work.parse("p0.9"), Work.parse("plain"))
    ]
    budget = options.budget or _FEATURES_BUDGET
    options.out.parent.mkdir(parents=True, exist_ok=True)  # not after two minutes
    command = shlex.join(["fastsample", "bench", *given])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        real = _real_logits(options)
        with Progress(*columns, console=errors, auto_refresh=False, transient=True) as progress:
            task = progress.add_task("", total=len(settings))

            def on_setting(label: str, done: int, total: int) -> None:
                progress.update(task, description=label, completed=done, total=total, refresh=True)

            results = features_run.run(
                settings, options.backend, budget, options.rotate, options.cold, real, command, on_setting
            )
    except (OSError, WrongTokensError, rows.NoRowsError) as error:
        return _failed(errors, str(error))
    features_run.save(results, options.out)
    features_run.show(results, console)
    errors.print(f"wrote {options.out}")
    return 0


def _why_not_here(options: argparse.Namespace) -> str | None:
    """Why what is asked of the CPU cannot be measured."""
    if unknown := set(options.peers or ()) - {"all", "none", *PEERS}:
        return f"--peers: {', '.join(sorted(unknown))} run on a GPU, with --backend cuda or triton"
    if options.backend != "auto" and not (status := backends()[options.backend]).usable:
        return f"--backend {options.backend}: {status.detail}"
    return None


def _failed(errors: Console, message: str) -> int:
    errors.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    return 1


def _measure(options: argparse.Namespace, given: list[str], started: float, console: Console) -> Results:
    real = _real_logits(options)
    plan = _plan(options, real)
    load_average, used_by_others, busy = machine.busyness()
    with console.status("checking this installation"):
        examined = doctor.examine()
    if not examined.healthy:
        raise WrongTokensError("the backends disagree with the reference here: see fastsample doctor")
    results = Results(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=shlex.join(["fastsample", "bench", *given]),
        machine=machine.describe(examined),
        backend=options.backend,
        budget_seconds=plan.seconds,
        load_average=round(load_average, 2),
        used_by_others=round(used_by_others, 3),
        rotated_mib=options.rotate,
        cold=options.cold,
        rows_made=_rows_made(plan, real),
        peers={key: _status(key) for key in plan.peers},
    )
    if busy:
        results.warnings.append(busy)
        console.print(f"[bold yellow]WARNING: {busy}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn between the settings only, since drawing takes time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=None)

        def on_setting(label: str, done: int, total: int) -> None:
            progress.update(task, description=label, completed=done, total=total, refresh=True)

        try:
            if plan.memory:
                on_setting("peak extra memory", 0, 1)
                for threads in plan.threads:
                    try:
                        results.memory += memory.measure(threads)
                    except RuntimeError as error:
                        results.skipped.append(str(error))
            Runner(plan, results, real, int(options.rotate * _MIB), started).run(on_setting)
        except KeyboardInterrupt:
            results.warnings.append("the run was interrupted: what follows is what it had measured")
    results.elapsed_seconds = round(time.perf_counter() - started, 1)
    return results


def _preset(options: argparse.Namespace, real: rows.RealLogits) -> Plan:
    """The preset, with the vocabularies of the real logits where it has none of its own."""
    plan = PRESETS[options.preset]
    if plan.vocabs or options.vocab:
        return plan
    if not real.arrays:
        raise rows.NoRowsError(f"--preset {options.preset}: {rows.NO_REAL_LOGITS}")
    return replace(plan, vocabs=tuple(sorted(real.arrays)))


def _plan(options: argparse.Namespace, real: rows.RealLogits) -> Plan:
    """The preset with what the command line changes in it."""
    plan = _preset(options, real)
    changes: dict[str, Any] = {
        name: tuple(dict.fromkeys(value))
        for name, value in (
            ("threads", options.threads),
            ("vocabs", options.vocab),
            ("batches", options.batch),
            ("dtypes", options.dtype),
            ("rows", options.rows),
            ("works", options.work),
        )
        if value
    }
    if options.threads is None:
        changes["threads"] = tuple(n for n in plan.threads if n <= machine.usable_cpus()) or (1,)
    if options.rows:
        changes["hurt"] = ()  # what is asked for, and nothing else
    if options.memory is not None:
        changes["memory"] = options.memory
    if options.budget is not None:
        changes["seconds"] = options.budget
    peers = options.peers or ["all"]
    changes["peers"] = tuple(PEERS) if "all" in peers else tuple(key for key in peers if key != "none")
    changes["peers_everywhere"] = plan.peers_everywhere or bool(options.peers)
    return replace(plan, **changes)


def _rows_made(plan: Plan, real: rows.RealLogits) -> dict[str, str]:
    made = {}
    if "real" in plan.rows:
        for vocab in plan.vocabs:
            try:
                made[f"real logits, V {vocab}"] = real.describe(vocab)
            except rows.NoRowsError as error:
                made[f"real logits, V {vocab}"] = f"none: {error}"
    return made


def _status(key: str) -> PeerStatus:
    peer = PEERS[key]
    missing = peer.missing()
    version = None if missing else version_of(peer.package)
    return PeerStatus(peer.label, version, peer.note, missing)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsample bench",
        description=__doc__,
        epilog="Without options: the full grid in 10 minutes, with every peer that is installed (make peers) at the "
        "shapes of the goals. Peers that are named run everywhere, and so do all in the presets flashinfer, "
        "tensorrt-llm and real. With --backend triton or cuda: the grid or preset, the floor and the peers of the GPU "
        "command (make gpu), in 9 minutes on the GPU that is there; options about the CPU are refused, and without a "
        "GPU nothing is measured. What there was no time for is named; Ctrl-C keeps what was measured. "
        "fastsample bench compare A.json B.json compares two runs; fastsample bench end-to-end times real models in "
        "generate, without and with fastsample.",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=_WHOLE,
        help="what to measure: the grid of the project's goals (full), one minute of it (quick), the inputs of the "
        "benchmarks of FlashInfer (flashinfer) or TensorRT-LLM (tensorrt-llm), or a model's own logits (real); "
        "default: %(default)s",
    )
    parser.add_argument(
        "--features",
        action="store_true",
        help="measure what penalties, masks, log-probabilities and the rest add to a draw, and nothing else",
    )
    parser.add_argument("--quick", action="store_true", help="the preset quick: one minute")
    parser.add_argument("--threads", type=_positive, nargs="+", metavar="N", help="of torch")
    parser.add_argument("--vocab", type=_positive, nargs="+", metavar="V", help="tokens in a row")
    parser.add_argument("--batch", type=_positive, nargs="+", metavar="B", help="rows in a batch")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", help="of the logits")
    parser.add_argument(
        "--rows",
        type=_checked(rows.check_kind),
        nargs="+",
        metavar="KIND",
        help=f"real, normal-1, gumbel-1, or made to hurt: {', '.join(rows.HURT)}",
    )
    parser.add_argument(
        "--work",
        type=_checked(Work.parse),
        nargs="+",
        metavar="WORK",
        help="greedy, plain, or filters such as k50-p0.9 and t0.8-m0.05",
    )
    parser.add_argument(
        "--peers",
        choices=list(dict.fromkeys((*PEERS, *GPU_PEERS, "all", "none"))),
        nargs="+",
        metavar="PEER",
        help=f"to compare with: all, none, or of {', '.join(PEERS)}; on a GPU of {', '.join(GPU_PEERS)}",
    )
    parser.add_argument("--budget", type=_positive, metavar="SECONDS", help="for the whole run")
    parser.add_argument(
        "--backend",
        choices=["auto", *backends()],
        default="auto",
        help="of fastsample: auto, cpu and reference are timed on the CPU, cuda and triton on a GPU (default: auto)",
    )
    parser.add_argument(
        "--rotate",
        type=int,
        default=64,
        metavar="MIB",
        help="memory that the inputs of a setting go round in, at least (default: %(default)s, past the L2 cache; "
        "an L3 cache may hold them, as it holds what a model has just written; 0 takes the same batch again and again)",
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help=f"as a model's forward pass leaves the caches: {COOLING_MIB} MiB of other memory is read before each draw "
        "of every contestant",
    )
    parser.add_argument("--real-logits", type=Path, nargs="+", metavar="FILE", help=".npz with an array 'logits'")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=None, help="measure memory as well")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fastsample-bench.json"),
        metavar="FILE",
        help="JSON to write, over what is there (%(default)s)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG to write (default: beside the JSON)")
    parser.add_argument("--markdown", action="store_true", help="print the README's table instead of everything")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what was written before")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """`parse` with its own message, which argparse shows only of its own errors."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed

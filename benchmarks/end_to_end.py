"""`fastsample bench end-to-end`: real models write, without and with fastsample in `generate` of transformers."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastsample import doctor

from . import end_to_end_report, end_to_end_results, machine
from .check import WrongTokensError
from .end_to_end_results import EndToEnd
from .model import MODELS, SMOLLM2, add_terms_option, converted_folder
from .model_packages import ModelUnavailableError
from .peers.base import Work

# For each model that is asked for. Loading it and checking its tokens are in it; fetching it once, and examining the
# installation, are not.
BUDGET_OF_A_MODEL = 240
BATCHES = (1, 8, 32)
WORKS = (Work.parse("t0.8-k50-p0.9"), Work.parse("t0.8-p0.9"))
TOKENS = 16
_NEEDED = ("transformers", "accelerate", "gguf", "sentencepiece")


def main(arguments: Sequence[str]) -> int:
    """Run `fastsample bench end-to-end`.

    Args:
        arguments: the command line without "fastsample bench end-to-end".

    Returns:
        The exit status: 1 if fastsample drew a wrong token, a model is not there or its terms were not accepted, a
        package is missing or a file cannot be used; else 0, whatever the speed.
    """
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    errors = Console(stderr=True)
    try:
        if options.show:
            results = end_to_end_results.load(options.show)
        else:
            options.out.parent.mkdir(parents=True, exist_ok=True)  # not after eight minutes
            results = _measure(options, shlex.join(["fastsample", "bench", "end-to-end", *arguments]), errors)
            end_to_end_results.save(results, options.out)
            errors.print(f"wrote {options.out}")
    except (OSError, ValueError, ModelUnavailableError, WrongTokensError, _MissingPackageError) as error:
        errors.print(str(error), style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 1
    present(results, options.markdown, console)
    return 0


def present(results: EndToEnd, in_markdown: bool, console: Console) -> None:
    """Print a run, for documentation or for a terminal."""
    if in_markdown:
        print(end_to_end_report.markdown(results))
    else:
        end_to_end_report.show(results, console)


class _MissingPackageError(Exception):
    pass


def _measure(options: argparse.Namespace, command: str, console: Console) -> EndToEnd:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise _MissingPackageError(
            f"fastsample bench end-to-end needs {', '.join(missing)}: install the extra that brings them with "
            "pip install 'fastsample[bench,demo]'"
        )
    from . import end_to_end_run

    models = [MODELS[key] for key in dict.fromkeys(options.model)]
    for model in models:
        converted_folder(model, options.terms_accepted)
    load_average, used_by_others, busy = machine.busyness()
    with console.status("checking this installation"):
        examined = doctor.examine()
    if not examined.healthy:
        raise WrongTokensError("the backends disagree with the reference here: see fastsample doctor")
    plan = end_to_end_run.Plan(
        models=models,
        batches=tuple(dict.fromkeys(options.batch)),
        works=tuple(dict.fromkeys(options.work)),
        tokens=options.tokens,
        threads=options.threads or torch.get_num_threads(),
        seconds=options.budget or BUDGET_OF_A_MODEL * len(models),
    )
    results = EndToEnd(
        date=datetime.now().astimezone().isoformat(timespec="seconds"),
        command=command,
        machine={**machine.describe(examined), "transformers": importlib.metadata.version("transformers")},
        tokens=plan.tokens,
        budget_seconds=plan.seconds,
        load_average=round(load_average, 2),
        used_by_others=round(used_by_others, 3),
    )
    if busy:
        results.warnings.append(busy)
        console.print(f"[bold yellow]WARNING: {busy}")
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn between the turns only, since drawing takes time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=plan.seconds)

        def on_turn(label: str) -> None:
            progress.update(task, description=label, completed=time.perf_counter() - started, refresh=True)

        try:
            end_to_end_run.run(plan, results, started, on_turn)
        except KeyboardInterrupt:
            results.warnings.append("the run was interrupted: what follows is what it had measured")
    results.elapsed_seconds = round(time.perf_counter() - started, 1)
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastsample bench end-to-end",
        description=__doc__,
        epilog=f"The time budget is {BUDGET_OF_A_MODEL} s for each model. Its batches of B rows share it in proportion "
        "to 1 + B / 16, and in each the ways of sampling write by turns; loading and checking are in it. A model is "
        "fetched once, before that. fastsample bench compare A.json B.json compares two runs.",
    )
    parser.add_argument(
        "--model", choices=MODELS, nargs="+", default=[SMOLLM2.key], help=f"default: {SMOLLM2.key}; gemma3 has terms"
    )
    add_terms_option(parser)
    parser.add_argument("--batch", type=_at_least(1), nargs="+", default=BATCHES, metavar="B", help="rows in a batch")
    parser.add_argument(
        "--work",
        type=_sampling,
        nargs="+",
        default=WORKS,
        metavar="WORK",
        help=f"filters such as t0.8-m0.05, or plain (default: {' '.join(work.key for work in WORKS)}); greedy search "
        "is measured besides",
    )
    parser.add_argument(
        "--tokens", type=_at_least(2), default=TOKENS, metavar="N", help="written in a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=_at_least(1), metavar="N", help="of torch, one number for a run (default: its own choice)"
    )
    parser.add_argument("--budget", type=_at_least(1), metavar="SECONDS", help="for the whole run")
    parser.add_argument(
        "--out", type=Path, default=Path("fastsample-end-to-end.json"), metavar="FILE", help="JSON to write"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table for documentation")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing, show what was written before")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is not at least {least}")
        return value

    return number


def _sampling(text: str) -> Work:
    try:
        work = Work.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if work.greedy or work.per_row:
        raise argparse.ArgumentTypeError(
            f"{text}: generate has one set of filters for all rows; greedy is measured anyway"
        )
    return work

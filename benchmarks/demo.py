"""`make demo`: a real model writes, with transformers' own sampling and with fastsample.

Text by greedy search, top-k, top-p and plain sampling side by side; then, for several batch sizes, tokens per second
and the share of each decoding step that goes into sampling, both ways.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from transformers.utils import logging as transformers_logging

import fastsample
from fastsample.benchmarks.generation import QUESTIONS, Generation, Run
from fastsample.benchmarks.model import MODEL_NAME, load_model
from fastsample.benchmarks.model_packages import ModelUnavailableError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOP_K, TOP_P = 50, 0.9


def methods(temperature: float) -> dict[str, dict[str, Any]]:
    """The options of `generate` for each method of the demo."""
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    return {
        "greedy": {"do_sample": False},
        "top-k": {**sampling, "top_k": TOP_K},
        "top-p": {**sampling, "top_p": TOP_P},
        "top-k, top-p": {**sampling, "top_k": TOP_K, "top_p": TOP_P},
        "plain": sampling,
    }


SHOWN = ("greedy", "top-k", "top-p", "plain")


def text(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> str:
    """What a row of tokens says, with an ellipsis where it was cut off."""
    ids = tokens.tolist()
    end = tokenizer.eos_token_id
    finished = end in ids
    written = str(tokenizer.decode(ids[: ids.index(end)] if finished else ids))
    return written if finished else f"{written} …"


Runs = dict[tuple[int, str, bool], Run]
"""By batch size, method, and whether with fastsample."""


def measure(generation: Generation, temperature: float, steps: dict[int, int], console: Console) -> Runs:
    """Every method, without and with fastsample; `steps` says how many steps to take for each batch size."""
    runs: Runs = {}
    chosen = methods(temperature)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawn between the runs only, since drawing takes time from what is measured.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        task = progress.add_task("", total=2 * len(chosen) * sum(steps.values()))
        for batch, count in steps.items():
            progress.update(task, description=f"batch {batch}, warming up", refresh=True)
            generation.run(chosen["plain"], batch, 2, True)
            for name, options in chosen.items():
                for with_fastsample in (False, True):
                    progress.update(task, description=f"batch {batch}, {name}", refresh=True)
                    runs[batch, name, with_fastsample] = generation.run(options, batch, count, with_fastsample)
                    progress.advance(task, count)
    return runs


def text_panels(generation: Generation, runs: Runs) -> Table:
    panels = Table.grid(expand=True)
    for _ in SHOWN:
        panels.add_column(ratio=1)
    panels.add_row(*(Panel(text(generation.tokenizer, runs[1, name, True].tokens[0]), title=name) for name in SHOWN))
    return panels


def timing_table(runs: Runs) -> Table:
    table = Table(
        box=SIMPLE, pad_edge=False, collapse_padding=True, title="Without and with fastsample", title_justify="left"
    )
    table.add_column("\nbatch", justify="right", no_wrap=True)
    table.add_column("\nmethod", no_wrap=True)
    for title in ("tokens/s", "ms/step", "share"):
        for who in ("without", "with"):
            table.add_column(f"{title}\n{who}", justify="right", style="bold" if who == "with" else None, no_wrap=True)
    previous = None
    for batch, name, with_fastsample in runs:
        if with_fastsample:
            continue
        if previous not in (None, batch):
            table.add_section()
        previous = batch
        pair = [runs[batch, name, with_fastsample].times for with_fastsample in (False, True)]
        table.add_row(
            str(batch),
            name,
            *(f"{times.tokens_per_second():.1f}" for times in pair),
            *(f"{times.milliseconds():.3f}" for times in pair),
            *(f"{times.share():.1%}" for times in pair),
        )
    return table


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make demo", description="A real model writes, without and with fastsample.", usage="make demo ARGS='...'"
    )
    parser.add_argument("--prompt", help="what to ask the model (default: questions of the demo's own)")
    parser.add_argument("--tokens", type=int, default=48, help="length of the texts (default: 48)")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes to time (default: 1 8)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of all but greedy (default: 0.8)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="of torch (default: its own choice)"
    )
    arguments = parser.parse_args()
    if arguments.tokens < 2 or min(arguments.batch) < 1 or arguments.threads < 1 or not arguments.temperature > 0:
        parser.error("--tokens is at least 2, --batch and --threads at least 1, --temperature above 0")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    transformers_logging.set_verbosity_error()
    console = Console()
    try:
        console.print(f"Loading {MODEL_NAME} ...")
        model, tokenizer = load_model()
    except ModelUnavailableError as error:
        sys.exit(str(error))
    generation = Generation(model, tokenizer, [arguments.prompt] if arguments.prompt else QUESTIONS)

    # Fewer steps where each step is longer: a median over 16 steps of 8 rows is as steady as one over 48 of one row.
    steps = {batch: max(2, arguments.tokens // 3) for batch in sorted(arguments.batch)} | {1: arguments.tokens}
    runs = measure(generation, arguments.temperature, dict(sorted(steps.items())), console)
    for batch in steps:
        if not torch.equal(runs[batch, "greedy", True].tokens, runs[batch, "greedy", False].tokens):
            sys.exit(f"greedy text is not that of transformers at batch {batch}: this is a defect of fastsample")

    console.print(f"\n{MODEL_NAME}: [bold]{generation.prompts[0]}[/bold]\n")
    console.print(text_panels(generation, runs))
    console.print("fastsample drew these tokens; the greedy text is equal to that of transformers without it.\n")
    console.print(timing_table(runs))
    console.print(
        "ms/step: time spent in sampling; share: its part of the whole step. "
        f"Medians over the decoding steps; temperature {arguments.temperature:g}, top-k {TOP_K}, top-p {TOP_P}; "
        f"{arguments.threads} threads; torch {torch.__version__}; fastsample: {fastsample.backends()['cpu'].detail}.",
        style="dim",
    )


if __name__ == "__main__":
    main()

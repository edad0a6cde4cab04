"""`make demo`: a real model writes, with transformers' own sampling and with fastsample.

Text by greedy search, top-k, top-p and plain sampling side by side; then, for several batch sizes, tokens per second
and the share of each decoding step that goes into sampling, both ways.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from transformers import BatchEncoding, LogitsProcessorList
from transformers.utils import logging as transformers_logging

import fastsample
from fastsample.benchmarks.model import MODEL_NAME, ModelUnavailableError, load_model
from fastsample.integrations.transformers import enable

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

PROMPTS = (
    "Write three sentences about the sea in winter.",
    "Explain to a child why the sky is blue.",
    "Name an animal and describe how it sleeps.",
    "What makes a good friend?",
    "Describe a train journey at night.",
    "Why do leaves fall in autumn?",
    "Tell me about an unusual musical instrument.",
    "Give me a simple recipe with eggs.",
)


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


class Timing(NamedTuple):
    """Seconds of each decoding step of one `generate`, and of the sampling in it; the prompt's own step is left out."""

    batch: int
    steps: list[float]
    sampling: list[float]

    def tokens_per_second(self) -> float:
        return self.batch / median(self.steps)

    def milliseconds(self) -> float:
        return 1000 * median(self.sampling)

    def share(self) -> float:
        return median(self.sampling) / median(self.steps)


@contextlib.contextmanager
def sampling_clock(batch: int, on_step: Callable[[], None]) -> Iterator[Timing]:
    """Time what `generate` spends between the logits and the tokens, in the same way whoever does the sampling.

    Sampling begins where `generate` calls its chain of logits processors, and ends where multinomial (or argmax, in
    greedy search) has returned tokens. A step lasts from one end of sampling to the next.
    """
    timing = Timing(batch, [], [])
    began: float | None = None
    ended: float | None = None

    def chain(self: LogitsProcessorList, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal began
        began = time.perf_counter()
        return original_chain(self, *args, **kwargs)

    def ending(select: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def timed(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal began, ended
            tokens = select(*args, **kwargs)
            now = time.perf_counter()
            if began is not None:
                if ended is not None:
                    timing.steps.append(now - ended)
                    timing.sampling.append(now - began)
                began, ended = None, now
                on_step()
            return tokens

        return timed

    original_chain = LogitsProcessorList.__call__
    with (
        mock.patch.object(LogitsProcessorList, "__call__", chain),
        mock.patch.object(torch, "multinomial", ending(torch.multinomial)),
        mock.patch.object(torch, "argmax", ending(torch.argmax)),
    ):
        yield timing


class Run(NamedTuple):
    timing: Timing
    tokens: Tensor


class Generation:
    """The model with its prompts, and every run the demo makes of it."""

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: str | None) -> None:
        self.model: Any = model
        self.tokenizer = tokenizer
        self.prompts = [prompt] if prompt else list(PROMPTS)

    def inputs(self, batch: int) -> BatchEncoding:
        questions = [self.prompts[row % len(self.prompts)] for row in range(batch)]
        chats = [[{"role": "user", "content": question}] for question in questions]
        inputs = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        assert isinstance(inputs, BatchEncoding)
        return inputs

    def run(
        self, options: dict[str, Any], batch: int, steps: int, with_fastsample: bool, on_step: Callable[[], None]
    ) -> Run:
        inputs = self.inputs(batch)
        torch.manual_seed(0)
        sampler = enable(self.model) if with_fastsample else contextlib.nullcontext()
        with sampler, sampling_clock(batch, on_step) as timing:
            # No end of sequence, so that both ways of sampling take equally many steps of equally many rows.
            tokens = self.model.generate(**inputs, max_new_tokens=steps, eos_token_id=None, **options)
        return Run(timing, tokens[:, inputs["input_ids"].shape[1] :])

    def text(self, tokens: Tensor) -> str:
        ids = tokens.tolist()
        end = self.tokenizer.eos_token_id
        finished = end in ids
        text = str(self.tokenizer.decode(ids[: ids.index(end)] if finished else ids))
        return text if finished else f"{text} …"


Runs = dict[tuple[int, str, bool], Run]
"""By batch size, method, and whether with fastsample."""


def measure(generation: Generation, temperature: float, steps: dict[int, int], console: Console) -> Runs:
    """Every method, without and with fastsample; `steps` says how many steps to take for each batch size."""
    runs: Runs = {}
    chosen = methods(temperature)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Seldom redrawn, since drawing takes time from what is measured.
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as progress:
        task = progress.add_task("", total=2 * len(chosen) * sum(steps.values()))
        for batch, count in steps.items():
            progress.update(task, description=f"batch {batch}, warming up")
            generation.run(chosen["plain"], batch, 2, True, lambda: None)
            for name, options in chosen.items():
                progress.update(task, description=f"batch {batch}, {name}")
                for with_fastsample in (False, True):
                    run = generation.run(options, batch, count, with_fastsample, lambda: progress.advance(task))
                    runs[batch, name, with_fastsample] = run
    return runs


def text_panels(generation: Generation, runs: Runs) -> Table:
    panels = Table.grid(expand=True)
    for _ in SHOWN:
        panels.add_column(ratio=1)
    panels.add_row(*(Panel(generation.text(runs[1, name, True].tokens[0]), title=name) for name in SHOWN))
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
        pair = [runs[batch, name, with_fastsample].timing for with_fastsample in (False, True)]
        table.add_row(
            str(batch),
            name,
            *(f"{timing.tokens_per_second():.1f}" for timing in pair),
            *(f"{timing.milliseconds():.3f}" for timing in pair),
            *(f"{timing.share():.1%}" for timing in pair),
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
    generation = Generation(model, tokenizer, arguments.prompt)

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

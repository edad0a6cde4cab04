"""The table of `fastsample bench end-to-end`, on a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .end_to_end_results import GOAL, EndToEnd, Measured
from .report import microseconds

_WAYS = ("before", "after")
_COLUMNS = ("tokens/s", "sampling", "of the step")


def show(results: EndToEnd, console: Console) -> None:
    """Print the machine, a table for each model and number of threads, and how to read it."""
    facts = Table(title="Where and what", show_header=False, title_justify="left")
    for name, fact in {
        **results.machine,
        "date": results.date,
        "command": results.command,
        "took": f"{results.elapsed_seconds:.0f} s, budget {results.budget_seconds:.0f} s",
        "before the run": f"load average {results.load_average:.2f}, {results.used_by_others:.0%} of the CPUs in use",
    }.items():
        facts.add_row(name, Text(fact))
    console.print(facts)
    for title, measured in _by_model(results):
        table = Table(title=title, title_justify="left")
        table.add_column("B", justify="right")
        table.add_column("filters")
        for column in _COLUMNS:
            for way in _WAYS:
                table.add_column(f"{column}\n{way}", justify="right")
        for _, group in groupby(measured, lambda one: one.setting.batch):
            for one in group:
                table.add_row(str(one.setting.batch), one.work.label, *_cells(one))
            table.add_section()
        console.print(table)
    for line in notes(results):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for warning in results.warnings:
        console.print(f"WARNING: {warning}", style="bold yellow", markup=False, soft_wrap=True)


def markdown(results: EndToEnd) -> str:
    """The same as one table for documentation, with where it comes from below."""
    lines = [
        _line(["model", "B", "filters", *(f"{column}, {way}" for column in _COLUMNS for way in _WAYS)]),
        _line(["---", "---:", "---", *(["---:"] * len(_COLUMNS) * len(_WAYS))]),
    ]
    for title, measured in _by_model(results):
        lines += [_line([title, str(one.setting.batch), one.work.label, *_cells(one)]) for one in measured]
    machine = results.machine
    source = (
        f"{machine['CPU']} ({machine['instruction set']}), torch {machine['torch']}, "
        f"transformers {machine['transformers']}, commit {machine['commit']}, {results.date[:10]}, `{results.command}`."
    )
    warnings = [f"**Warning:** {warning}." for warning in results.warnings]
    return "\n".join([*lines, "", *notes(results), source, *warnings])


def notes(results: EndToEnd) -> Iterator[str]:
    """How to read the numbers, whether they are fair, what was skipped, and where the goal is met; a line each."""
    yield (
        "Before: transformers' own sampling; after: fastsample.integrations.transformers.enable(model). Medians over "
        f"decoding steps, by turns of {results.tokens} tokens; the step of the prompt is left out. Tokens/s: rows "
        "through the time of a step."
    )
    yield (
        "Sampling: from the call of the logits processors to the tokens that torch.multinomial returns (torch.argmax "
        "in greedy search), so with the filters, the softmax and the draw on both sides. Greedy search, which "
        "fastsample leaves to transformers, is there to compare with."
    )
    moved = [one.moved for one in results.decoding if one.moved is not None]
    if moved:
        yield (
            f"At most {_percent(max(moved))} of a step can have moved from sampling to the rest: by so much, at most, "
            "is the rest's median longer after than before."
        )
        checked = sum(one.tokens_checked for one in results.decoding)
        yield (
            f"Before anything was timed, {checked} tokens of generate were equal to the reference's on the model's "
            "logits, and all that either side drew were in the kept set."
        )
    one_round = [one.setting.label for one in results.decoding if one.before.step.calls == results.tokens - 1]
    for label in dict.fromkeys(one_round):
        yield f"one round, for which alone there was time: {label}"
    for reason in results.skipped:
        yield f"skipped: {reason}"
    judged = [one for one in results.decoding if one.met is not None]
    if judged:
        shown = sum(bool(one.met and one.resolved) for one in judged)
        below = sum(bool(one.met) for one in judged)
        yield (
            f"goal, less than {GOAL:.0%} of a step: {below} of {len(judged)} below it, {shown} of them resolved: the "
            f"rest neither longer nor spread (p10 - p90) by more than {GOAL:.0%} of a step"
        )
    argmax = {one.setting: one.before for one in results.decoding if one.work.greedy}
    for one in judged:
        if one.met and not one.resolved and one.moved is not None and one.rest_spread is not None:
            yield (
                f"  not resolved: {one.setting.label}, {one.work.label}: the rest is longer by {_percent(one.moved)} "
                f"of a step, and its spread is {_percent(one.rest_spread)}"
            )
        if not one.met and one.after is not None:
            yield (
                f"  not met: {one.setting.label}, {one.work.label}: {_percent(one.after.share)} "
                f"(greedy search's torch.argmax: {_percent(argmax[one.setting].share)})"
            )


def _by_model(results: EndToEnd) -> Iterator[tuple[str, list[Measured]]]:
    def title(one: Measured) -> str:
        threads = one.setting.threads
        return f"{one.setting.model}, V {one.setting.vocab}, {threads} thread{'s' if threads > 1 else ''}"

    for name, group in groupby(results.decoding, title):
        yield name, list(group)


def _cells(one: Measured) -> list[str]:
    ways = [(way.tokens_per_second(one.setting.batch), way) for way in (one.before, one.after) if way is not None]
    missing = ["-"] * (len(_WAYS) - len(ways))
    return [
        *(f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}" for rate, _ in ways),
        *missing,
        *(microseconds(way.sampling.median) for _, way in ways),
        *missing,
        *(_percent(way.share) for _, way in ways),
        *missing,
    ]


def _percent(share: float) -> str:
    """Two digits after the point below a tenth: the goal is a hundredth."""
    return f"{share:.2%}" if share < 0.1 else f"{share:.1%}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""The result of a GPU run as text: a few lines for the terminal, and the whole as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fastsample.benchmarks import rows
from fastsample.benchmarks.peers.base import Work
from fastsample.benchmarks.report import ratio

from . import goals, grid, request_features
from .goals import Verdict
from .results import FLOOR, LAUNCH, OUR_LABELS, SOFTMAX, TRITON, GpuResults, Place, Point

_MOST_LINES = 40
_WARNINGS = {
    "rehearsal": "A REHEARSAL ON A CPU. Nothing here was measured on a GPU.",
    "sample": "MADE-UP SAMPLE DATA for a test. Nothing here was measured.",
}
_REFERENCES = {FLOOR: "floor: one read", LAUNCH: "empty launch", SOFTMAX: "torch.softmax"}


def brief(results: GpuResults) -> str:
    """What became of the parts, and the goals: for the end of a terminal's output."""
    lines = list(_warning(results))
    for name, part in results.parts.items():
        lines.append(f"{name}: {part.status}, {part.seconds:.0f} s" + _one_line(part.message, ". "))
    found = goals.verdicts(results)
    lines += [f"{goal}: {met} of {count} met; worst {worst}" for goal, met, count, worst in _by_goal(found)]
    triton = _by_goal(goals.verdicts(results, TRITON))
    lines += [f"{goal}, the Triton kernels (no goal of theirs): worst {worst}" for goal, _, _, worst in triton]
    return "\n".join(lines)


def markdown(results: GpuResults) -> str:
    """Everything that is to be read of a run."""
    sections = (_head, _parts, _goals, _times, _peers, _eager, _features, _counters, _tests, _notes)
    return "\n".join(line for section in sections for line in section(results)) + "\n"


def _features(results: GpuResults) -> Iterator[str]:
    lines = list(request_features.table(results.records("features")))
    if lines:
        yield from _section("What the features of a request add")
        yield from lines


def _warning(results: GpuResults) -> Iterator[str]:
    if results.kind != "measured":
        yield _WARNINGS[results.kind]


def _head(results: GpuResults) -> Iterator[str]:
    facts = results.environment
    yield f"# fastsample on {facts.get('GPU') or 'no GPU'}"
    yield ""
    for warning in _warning(results):
        yield f"**{warning}**"
        yield ""
    named = ("driver_version", "torch", "triton", "nvcc", "python", "commit", "clocks.max.sm", "clocks.max.mem")
    told = ", ".join(f"{name} {facts[name]}" for name in named if facts.get(name))
    yield f"{results.date}, `{results.command}`; {told}."
    yield (
        "Medians in microseconds; CUDA graph replay, inputs rotated past three times the second-level cache; the floor "
        "is a kernel that only reads the logits (never below an empty launch), measured in the same run."
    )


def _parts(results: GpuResults) -> Iterator[str]:
    yield from _section("Parts")
    cells = [
        (name, part.status, f"{part.seconds:.0f} of {part.limit:.0f} s", _one_line(part.message))
        for name, part in results.parts.items()
    ]
    yield from _table(("part", "status", "time", ""), cells)


def _goals(results: GpuResults) -> Iterator[str]:
    found = goals.verdicts(results)
    yield from _section("Goals")
    triton = {goal: worst for goal, _, _, worst in _by_goal(goals.verdicts(results, TRITON))}
    if not found and not triton:
        yield "Nothing that the goals are about was measured."
        return
    yield "They are goals of the CUDA kernels. What the Triton kernels reach at the same points stands beside."
    yield ""
    cuda = {goal: (f"{met} of {count}", worst) for goal, met, count, worst in _by_goal(found)}
    all_goals = dict.fromkeys((*cuda, *triton))
    cells = [(goal, *cuda.get(goal, ("not measured", "-")), triton.get(goal, "-")) for goal in all_goals]
    yield from _table(("goal", "met", "worst", "Triton's worst"), cells)
    missed = [one for one in found if not one.met]
    if missed:
        yield ""
        yield "Missed:"
        yield ""
        yield from _capped([f"- {one.goal}: {_told(one)}" for one in missed])


def _times(results: GpuResults) -> Iterator[str]:
    points = results.points
    for vocab in dict.fromkeys((*grid.VOCABULARIES, *(point.place.vocab for point in points))):
        for dtype in grid.DTYPES:
            here = [point for point in points if point.place.vocab == vocab and point.place.dtype == dtype]
            if here:
                yield from _section(f"V = {vocab}, {dtype}: time, and in brackets its ratio to the floor")
                yield from _grid_table(here)
    for record in results.records("rows"):
        yield f"\nReal logits, V = {record['vocab']}: {record['made']}."


def _grid_table(here: list[Point]) -> Iterator[str]:
    batches = sorted({point.place.batch for point in here})
    by_batch: dict[tuple[str, str, str], dict[int, str]] = {}
    for point in here:
        for who in OUR_LABELS:
            if (median := point.median(who)) is not None:
                of_floor = point.ratio_to_floor(who)
                text = f"{median:.1f}" + ("" if of_floor is None else f" ({ratio(of_floor)})")
                by_batch.setdefault((point.work, point.place.rows, who), {})[point.place.batch] = text
    for key, label in _REFERENCES.items():
        for point in here:
            if key in point.references:
                by_batch.setdefault((label, "", ""), {})[point.place.batch] = f"{point.references[key].median:.1f}"
    cells = [
        (
            _work(work),
            rows.label(kind) if kind else "",
            OUR_LABELS.get(who, ""),
            *(texts.get(batch, "-") for batch in batches),
        )
        for (work, kind, who), texts in by_batch.items()
    ]
    yield from _table(("work", "rows", "who", *(f"B = {batch}" for batch in batches)), cells, 3)


def _peers(results: GpuResults) -> Iterator[str]:
    with_peers = [point for point in results.points if set(point.times) - set(OUR_LABELS) and point.first_of_ours]
    if not with_peers:
        return
    keys = list(dict.fromkeys(key for point in with_peers for key in point.times if key not in OUR_LABELS))
    ours = [who for who in OUR_LABELS if any(who in point.times for point in with_peers)]
    labels = results.labels
    yield from _section(f"Peers: microseconds, and in brackets how many times as long as {labels[ours[0]]}")
    cells = []
    for point in with_peers:
        theirs = [_theirs(point, key, ours[0]) for key in keys]
        medians = [point.median(who) for who in ours]
        cells.append(
            (
                _point(point.work, point.place),
                *("-" if median is None else f"{median:.1f}" for median in medians),
                *theirs,
            )
        )
    yield from _table(("work", *(labels.get(key, key) for key in (*ours, *keys))), cells, 1)
    if any(_how(point, key) for point in with_peers for key in keys if key in point.times):
        yield ""
        yield "\\* could not be captured into a graph: launched one by one."
    yield ""
    latest = {record["key"]: record for record in results.records("peer")}
    for record in latest.values():
        told = f"not measured: {record['missing']}" if record["missing"] else record["note"]
        yield f"- {record['label']} {record['version'] or ''}: {told}"


def _eager(results: GpuResults) -> Iterator[str]:
    measured = [point for point in results.points if point.eager]
    if not measured:
        return
    yield from _section("Launched one by one: microseconds, and in brackets of the replay of a graph")
    keys = list(dict.fromkeys(key for point in measured for key in point.eager))
    cells = []
    for point in measured:
        texts = []
        for key in keys:
            eager, replayed = point.eager.get(key), point.times.get(key)
            compared = "" if eager is None or replayed is None else f" ({ratio(eager.median / replayed.median)})"
            texts.append("-" if eager is None else f"{eager.median:.1f}{compared}")
        cells.append((_point(point.work, point.place), *texts))
    yield from _table(("work", *(results.labels.get(key, key) for key in keys)), cells, 1)


def _theirs(point: Point, key: str, ours: str) -> str:
    if key not in point.times:
        return "-"
    speedup = point.speedup(key, ours)
    compared = "" if speedup is None else f" ({ratio(speedup)})"
    return f"{point.times[key].median:.1f}{compared}{_how(point, key)}"


def _how(point: Point, key: str) -> str:
    return "\\*" if point.times[key].how == "eager" else ""


def _counters(results: GpuResults) -> Iterator[str]:
    records = list(results.records("counters"))
    if not records:
        return
    yield from _section("Counters (ncu)")
    names = list(dict.fromkeys(name for record in records for name in record["counters"]))
    cells = []
    for record in records:
        point = record["point"]
        place = Place(*(point[name] for name in Place._fields)) if point else None
        label = _point(point["work"], place) if place else record["kernel"]
        stalls = ", ".join(f"{name} {value:.2f}" for name, value in list(record["stalls"].items())[:4])
        cells.append((label, *(f"{record['counters'].get(name, float('nan')):.4g}" for name in names), stalls))
    yield from _table(("call", *names, "warps stalled per issue"), cells, 1)


def _tests(results: GpuResults) -> Iterator[str]:
    tests = list(results.records("test"))
    sanitizers = list(results.records("sanitizer"))
    if not tests and not sanitizers:
        return
    yield from _section("Tests and sanitizers")
    if tests:
        counts = Counter(record["outcome"] for record in tests)
        yield "Tests: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) + "."
        failed = [record for record in tests if record["outcome"] == "failed"]
        yield from _capped([f"- failed: {record['name']}{_one_line(record['message'], ': ')}" for record in failed])
        reasons = Counter(_one_line(record["message"]) for record in tests if record["outcome"] == "skipped")
        yield from _capped([f"- {count} skipped: {reason}" for reason, count in reasons.items()])
    for record in sanitizers:
        yield f"- compute-sanitizer {record['tool']}: {record['verdict']}, {record['seconds']:.0f} s"


def _notes(results: GpuResults) -> Iterator[str]:
    texts = [record["text"] for kind in ("wrong", "note") for record in results.records(kind)]
    if texts:
        yield from _section("Notes")
        yield from _capped([f"- {text}" for text in dict.fromkeys(texts)])


def _by_goal(found: list[Verdict]) -> Iterator[tuple[str, int, int, str]]:
    """Each goal with how many points meet it, of how many, and the one furthest from it."""
    for goal in dict.fromkeys(one.goal for one in found):
        of_goal = [one for one in found if one.goal == goal]
        worst = max(of_goal, key=lambda one: (one.limit / one.value) if one.at_least else one.value / one.limit)
        yield goal, sum(one.met for one in of_goal), len(of_goal), _told(worst)


def _told(one: Verdict) -> str:
    wanted = "at least" if one.at_least else "at most"
    return f"{ratio(one.value)} {one.unit} ({wanted} {one.limit:g}), {one.where}"


def _work(key: str) -> str:
    try:
        return Work.parse(key).label
    except ValueError:  # a reference's label
        return key


def _point(work: str, place: Place) -> str:
    return f"{_work(work)}, {rows.label(place.rows)}, V {place.vocab}, B {place.batch}, {place.dtype}"


def _section(title: str) -> tuple[str, str, str]:
    return "", f"## {title}", ""


def _table(header: Sequence[str], cells: Iterable[Sequence[str]], left: int | None = None) -> Iterator[str]:
    """Rows of Markdown; all columns but the first `left` are numbers."""
    count = len(header) if left is None else left
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join('---' if place < count else '---:' for place in range(len(header)))} |"
    for row in cells:
        yield f"| {' | '.join(text.replace('|', '/') for text in row)} |"


def _capped(lines: list[str]) -> Iterator[str]:
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield f"- and {len(lines) - _MOST_LINES} more, which the JSON file has"


def _one_line(text: str, before: str = "") -> str:
    """The line of a message that says most, if there is one, cut to a table's width."""
    lines = text.strip().splitlines()
    if not lines:
        return ""
    # A traceback says it last.
    return before + (lines[-1] if any("Traceback" in line for line in lines) else lines[0])[:300]

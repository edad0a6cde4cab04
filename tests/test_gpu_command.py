"""The GPU command, as far as a machine without a GPU goes: what it does when parts fail, what it writes and shows, and
every part with stand-ins for what only a GPU machine has. No number here was measured on a GPU.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsample
from fastsample.benchmarks import rows
from fastsample.benchmarks.gpu import (
    __main__ as command,
)
from fastsample.benchmarks.gpu import (
    ahead,
    building,
    calls,
    compiled_ahead,
    compiling,
    contestants,
    counting,
    environment,
    flashinfer,
    floor,
    goals,
    grid,
    inputs,
    measuring,
    parts,
    plot,
    readying,
    records,
    report,
    results,
    sanitizing,
    subprocesses,
    testing,
    testing_triton,
    timing,
    vllm_triton,
    wheel,
)
from fastsample.benchmarks.gpu.options import ROOT, Axes, PartFailedError, PartOptions
from fastsample.benchmarks.gpu.parts import PartPlan
from fastsample.benchmarks.gpu.records import Recorder
from fastsample.benchmarks.gpu.results import FLOOR, LAUNCH, OURS, SOFTMAX, TRITON, GpuResults, Part, Place
from fastsample.benchmarks.gpu.subprocesses import Ended
from fastsample.benchmarks.gpu.timing import GpuTimes
from fastsample.benchmarks.peers.base import Job, NotServedError, Work
from fastsample.benchmarks.peers.torch_compiled import TorchCompiled
from fastsample.benchmarks.report import ratio
from missing import missing

REHEARSAL = PartOptions(seconds=100, rehearsal=True)
PLACE = Place(128256, 64, "float32", "real")


# --- the command


STAND_IN = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

_, _, part, _, records, _, options = sys.argv
options = json.loads(options)

def record(**content):
    with open(records, "a") as file:
        file.write(json.dumps(content) + "\\n")

if part == "finds_a_gpu":
    record(kind="environment", facts={"GPU": "NVIDIA Stand-In 1", "torch": "0"})
elif part == "finds_none":
    record(kind="environment", facts={"GPU": None})
    record(kind="failure", text="torch sees no CUDA GPU")
    sys.exit(1)
elif part == "fine":
    record(kind="peer", key="slow", label="Slow", version=None, note="", missing="too slow")
    record(kind="note", text=f"given {options['seconds'] > 1}")
elif part == "tells_the_cache":
    record(kind="note", text=os.environ["TRITON_CACHE_DIR"])
    record(kind="note", text=json.dumps([options["backends"], options["axes"]]))
elif part == "tells_the_peers":
    record(kind="note", text=f"not measured: {options['unusable_peers']}")
elif part == "fails":
    record(kind="note", text="found before it failed")
    record(kind="failure", text="2 of 3 tests failed")
    sys.exit(1)
elif part == "crashes":
    raise RuntimeError("a bug")
elif part == "is_killed":
    record(kind="note", text="found before it was killed")
    with open(records, "a") as file:
        file.write('{"kind": "note", "te')
    os.kill(os.getpid(), signal.SIGKILL)
elif part == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    record(kind="note", text="found before it hung")
    record(kind="child", pid=child.pid)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
elif part == "ends_the_command":
    record(kind="note", text="found before the end")
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(600)
"""


def plan(module: str, limit: float = 60) -> PartPlan:
    return PartPlan(module, module, limit, 0)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Runs the command over stand-ins for its parts. Returns its exit status, output and JSON."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(subprocesses, "_SCRIPT", script)
    monkeypatch.setattr(command, "GRACE_OF_PARTS", 0.5)

    def run_command(*plans: PartPlan, arguments: Sequence[str] = ()) -> tuple[int, str, dict[str, Any]]:
        base = tmp_path / "new folder" / "gpu"
        status = command.main(["--out", str(base), *arguments], plans)
        written = base.with_name("gpu.json")
        return status, capsys.readouterr().out, json.loads(written.read_text()) if written.exists() else {}

    return run_command


def notes(content: dict[str, Any], part: str) -> list[str]:
    return [record["text"] for record in content["parts"][part]["records"] if record["kind"] == "note"]


def test_no_part_takes_the_others_along(run: Callable[..., Any], tmp_path: Path) -> None:
    names = ("finds_a_gpu", "fails", "crashes", "is_killed", "fine", "tells_the_peers")
    status, output, content = run(*map(plan, names))
    assert status == 1
    assert {name: part["status"] for name, part in content["parts"].items()} == {
        "finds_a_gpu": "ok",
        "fails": "failed",
        "crashes": "failed",
        "is_killed": "failed",
        "fine": "ok",
        "tells_the_peers": "ok",
    }
    assert content["parts"]["fails"]["message"] == "2 of 3 tests failed"
    assert notes(content, "fails") == ["found before it failed"]
    assert "RuntimeError: a bug" in content["parts"]["crashes"]["message"]
    assert notes(content, "is_killed") == ["found before it was killed"]  # and not the line that was cut off
    assert notes(content, "fine") == ["given True"]
    assert notes(content, "tells_the_peers") == ["not measured: ['slow']"]
    assert "crashes: failed, " in output
    assert "RuntimeError: a bug" in output
    table = (tmp_path / "new folder" / "gpu.md").read_text()
    assert "# fastsample on NVIDIA Stand-In 1" in table
    assert "| fails | failed |" in table
    assert run(plan("finds_a_gpu"))[0] == 0


def test_what_triton_compiles_stays_between_calls(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    plans = plan("finds_a_gpu"), plan("tells_the_cache")
    _, _, content = run(*plans)
    everything = '[["cuda", "triton"], [[], [], [], [], []]]'
    assert notes(content, "tells_the_cache") == [str(ROOT / "build" / "triton"), everything]
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    chosen = ["--backends", "triton", "--batches", "1", "64", "--works", "p0.9"]
    _, _, content = run(*plans, arguments=chosen)
    assert notes(content, "tells_the_cache") == ["/elsewhere", '[["triton"], [[], [1, 64], [], [], ["p0.9"]]]']


def test_a_part_is_told_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = Axes((1, 2), (), ("float32",), (), ("k50",))
    options = PartOptions(9.0, True, "abc", ("torch",), ("triton",), axes, (3, 16), True)
    module, path = "measuring", Path("/records")
    written = subprocesses.part_command(module, path, options)
    assert written[-6:-1] == ["--run-part", module, "--records", str(path), "--options"]
    assert PartOptions.from_json(json.loads(written[-1])) == options
    assert written[1] == str(ROOT / "benchmarks/gpu/from_source.py")
    monkeypatch.setattr(subprocesses, "CHECKOUT", False)
    assert subprocesses.part_command(module, path, options)[1:4] == ["-m", "fastsample.benchmarks.gpu", "--run-part"]


def test_what_others_need_stays_on_pythons_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/carried")
    assert subprocesses.with_python_path(Path("/first")) == {"PYTHONPATH": os.pathsep.join(("/first", "/carried"))}
    monkeypatch.delenv("PYTHONPATH")
    assert subprocesses.with_python_path(Path("/first")) == {"PYTHONPATH": "/first"}


def test_a_part_that_hangs_is_stopped_with_its_children(run: Callable[..., Any]) -> None:
    started = time.monotonic()
    status, _, content = run(plan("finds_a_gpu"), plan("hangs", limit=6), plan("fine"))
    assert status == 1
    assert time.monotonic() - started < 30
    assert content["parts"]["hangs"]["status"] == "timed out"
    assert notes(content, "hangs") == ["found before it hung"]
    assert content["parts"]["fine"]["status"] == "ok"
    (child,) = [record["pid"] for record in content["parts"]["hangs"]["records"] if record["kind"] == "child"]
    # Gone, or a zombie that whoever adopted it has yet to bury.
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_told_to_end_it_keeps_what_was_found(run: Callable[..., Any]) -> None:
    status, output, content = run(plan("finds_a_gpu"), plan("fine"), plan("ends_the_command"), plan("fails"))
    assert status == 1
    assert "what was found is kept" in output
    assert notes(content, "ends_the_command") == ["found before the end"]
    assert content["parts"]["ends_the_command"]["message"] == "interrupted"
    assert "fails" not in content["parts"]


def test_parts_can_be_chosen_and_the_first_always_runs(run: Callable[..., Any]) -> None:
    _, _, content = run(*map(plan, ("finds_a_gpu", "crashes", "fine")), arguments=["--parts", "fine"])
    assert list(content["parts"]) == ["finds_a_gpu", "fine"]


def test_a_spent_budget_is_said(run: Callable[..., Any]) -> None:
    _, _, content = run(plan("finds_a_gpu"), plan("fine", limit=1.0))
    assert content["parts"]["fine"] == {
        "status": "not run", "seconds": 0.0, "limit": 1.0, "message": "the time was spent", "records": [],
    }  # fmt: skip


def test_without_a_gpu_nothing_is_written(run: Callable[..., Any]) -> None:
    status, output, content = run(plan("finds_none"), plan("fine"))
    assert status == 2
    assert "no GPU here, so nothing was run or written: torch sees no CUDA GPU" in output
    assert content == {}


def test_the_whole_command_here(tmp_path: Path) -> None:
    """With the real parts, in processes of their own, from a checkout that need not be installed."""
    if torch.cuda.is_available():
        pytest.skip("here it would run for nine minutes")
    before = sorted(results.COMMITTED.iterdir())
    script = ROOT / "benchmarks/gpu/from_source.py"
    ended = subprocesses.run([sys.executable, str(script)], 120, folder=tmp_path)
    assert ended.code == 2, ended.output
    assert "There is no GPU here" in ended.output
    assert sorted(results.COMMITTED.iterdir()) == before


def test_a_rehearsal_needs_a_place_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--rehearse"]) == 1
    assert "give --out" in capsys.readouterr().out
    assert command.main(["--rehearse", "--out", str(results.COMMITTED / "gpu-x")]) == 1
    assert "is no result" in capsys.readouterr().out


@pytest.mark.parametrize("budget", [540.0, 300.0, 60.0])
def test_the_limits_fit_into_the_budget(budget: float) -> None:
    """Each part at its limit; and with every part before it at its limit, each still gets what is kept for it."""
    left = budget
    for place, one in enumerate(parts.PARTS):
        limit = parts.limit(one, list(parts.PARTS[place + 1 :]), left, budget)
        assert limit >= one.kept * budget / parts.BUDGET - 1e-9
        left -= limit
    assert left >= parts.REPORT * budget / parts.BUDGET - 1e-9
    assert parts.limit(parts.PARTS[0], list(parts.PARTS[1:]), 0.0, budget) == 0.0


# --- the result


def times(median: float, how: str = "graph") -> GpuTimes:
    return GpuTimes(median, 0.9 * median, 1.2 * median, replays=20, calls=8, how=how)


def setting(place: Place, works: dict[str, dict[str, float]], floor_us: float = 10.0) -> dict[str, Any]:
    return {
        "kind": "setting",
        **place._asdict(),
        "shape": None,
        "references": {FLOOR: times(floor_us)._asdict(), LAUNCH: times(2.0)._asdict()},
        "works": {work: {who: times(one)._asdict() for who, one in found.items()} for work, found in works.items()},
    }


def counters(bytes_read: float, **point: Any) -> dict[str, Any]:
    return {
        "kind": "counters",
        "point": {"work": "p0.9", **PLACE._asdict(), **point},
        "kernel": "row_kernel",
        "counters": {"bytes read": bytes_read, "registers": 64.0},
        "stalls": {"long_scoreboard": 3.5, "barrier": 0.5},
    }


def sample_results(*found: dict[str, Any]) -> GpuResults:
    """Made-up data, marked as such."""
    facts = {"GPU": "NVIDIA Sample", "torch": "0.0", "commit": "abc", "driver_version": "1.2"}
    return GpuResults(
        date="2026-01-02T03:04:05+00:00",
        command="python -m fastsample.benchmarks.gpu",
        budget=540.0,
        kind="sample",
        parts={
            "environment": Part("ok", 3.0, 45.0, records=[{"kind": "environment", "facts": facts}]),
            "benchmark": Part("ok", 200.0, 330.0, records=list(found)),
        },
    )


def full_sample() -> GpuResults:
    works = {
        "t0.8-k50-p0.9": {OURS: 14.0, TRITON: 21.0, "torch": 1000.0, "hugging-face": 2100.0, "flashinfer-logits": 60.0},
        "p0.9": {OURS: 25.0, TRITON: 70.0, "torch": 3000.0, "vllm-triton": 240.0},
        "greedy": {OURS: 12.0},
    }
    found = sample_results(
        setting(PLACE, works),
        setting(PLACE._replace(batch=1), {"greedy": {OURS: 7.0, TRITON: 9.5}}, floor_us=1.0),
        setting(PLACE._replace(dtype="bfloat16"), {"t0.8-k50-p0.9": {OURS: 8.0}}, floor_us=5.0),
        setting(PLACE._replace(vocab=1000, rows="normal-1"), {"plain": {OURS: 3.0}}),
        counters(1.01 * 128256 * 64 * 4),
        {"kind": "peer", "key": "torch", "label": "torch", "version": "0.0", "note": "by hand", "missing": None},
        {"kind": "peer", "key": "vllm-triton", "label": "vLLM", "version": None, "note": "n", "missing": "a | pipe"},
        {"kind": "rows", "vocab": 128256, "made": "from a file"},
        {"kind": "note", "text": "a remark"},
    )
    found.parts["tests"] = Part(
        "failed",
        60.0,
        170.0,
        "1 of 2 tests failed",
        [
            {"kind": "test", "name": "a", "outcome": "passed", "seconds": 1, "message": ""},
            {"kind": "test", "name": "tests/gpu/b", "outcome": "failed", "seconds": 1, "message": "5 tokens differ\nx"},
            *[{"kind": "test", "name": n, "outcome": "skipped", "seconds": 0, "message": "one GPU"} for n in "cd"],
            {"kind": "sanitizer", "tool": "memcheck", "verdict": "clean", "seconds": 9.0, "output": ""},
        ],
    )
    return found


def test_a_file_is_read_back_whole(tmp_path: Path) -> None:
    found = full_sample()
    path = tmp_path / "sample.json"
    results.save(found, path)
    assert results.load(path) == found
    assert json.loads(path.read_text())["kind"] == "sample"
    times_kept = sum(len(point.times) for point in found.points) + 2 * 4
    assert len([line for line in path.read_text().splitlines() if '"median"' in line]) == times_kept
    assert '"p20"' in next(line for line in path.read_text().splitlines() if '"median"' in line), "on one line"
    assert list(tmp_path.iterdir()) == [path], "nothing half-written stays"
    (tmp_path / "other.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="not a file of the GPU command"):
        results.load(tmp_path / "other.json")
    path.write_text(path.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match="format 99"):
        results.load(path)


@pytest.mark.parametrize("kind", ["sample", "rehearsal"])
def test_what_was_not_measured_is_no_result(kind: str) -> None:
    path = results.COMMITTED / "gpu-never.json"
    with pytest.raises(ValueError, match=f"a {kind} is no result"):
        results.save(replace(full_sample(), kind=kind), path)
    assert not path.exists()


def test_no_committed_result_is_made_up() -> None:
    for path in results.COMMITTED.glob("gpu-*.json"):
        assert results.load(path).kind == "measured", path


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"a": []}',
        '{"a": {"b": [1, 2], "c": "{"}, "d": [{"e": 1}, {"e": "]"}]}',
        '[[1, [2, 3]], {"x": {}}]',
    ],
)
def test_joined_lines_are_the_same_json(text: str) -> None:
    content = json.loads(text)
    assert json.loads(results._joined(json.dumps(content, indent=1))) == content


def test_a_point_that_was_measured_twice() -> None:
    found = sample_results(
        setting(PLACE, {"plain": {OURS: 10.0, "torch": 50.0}}, floor_us=5.0),
        setting(PLACE, {"plain": {OURS: 99.0, "torch-compile": 40.0}}, floor_us=99.0),
    )
    (point,) = found.points
    assert {who: one.median for who, one in point.times.items()} == {OURS: 10.0, "torch": 50.0, "torch-compile": 40.0}
    assert point.ratio_to_floor() == 2.0
    assert point.speedup("torch-compile") == 4.0
    assert point.speedup("nobody") is None


# --- the goals


def verdict_of(found: GpuResults, goal: str) -> goals.Verdict:
    (one,) = [one for one in goals.verdicts(found) if one.goal.startswith(goal)]
    return one


@pytest.mark.parametrize(
    ("goal", "place", "work", "floor_us", "largest"),
    [
        ("k 50 + p .9", PLACE, "t0.8-k50-p0.9", 10.0, 15.0),
        ("k 50 + p .9", PLACE._replace(batch=512, vocab=262144), "greedy", 10.0, 15.0),
        ("k 50 + p .9", PLACE._replace(rows="normal-3"), "mixed", 10.0, 15.0),
        ("plain, min_p", PLACE, "plain", 10.0, 15.0),
        ("plain, min_p", PLACE, "m0.05", 10.0, 15.0),
        ("p .9 alone, real", PLACE, "p0.9", 10.0, 20.0),
        ("p .9 alone, N(0,1)", PLACE._replace(rows="normal-1"), "p0.9", 10.0, 40.0),
        ("any work at B = 1", PLACE._replace(batch=1), "k1000", 1.0, 8.0),
        ("plain, min_p", PLACE, "plain", 1.0, 3.0),  # the floor is never below an empty launch, 2 us here
    ],
)
def test_goals_against_the_floor(goal: str, place: Place, work: str, floor_us: float, largest: float) -> None:
    for ours, met in ((largest, True), (1.01 * largest, False)):
        assert verdict_of(sample_results(setting(place, {work: {OURS: ours}}, floor_us)), goal).met == met


@pytest.mark.parametrize(
    ("goal", "batch", "peer", "least"),
    [
        ("times as fast as FlashInfer", 64, "flashinfer-logits", 5.0),
        ("times as fast as FlashInfer", 512, "flashinfer-cake", 3.0),
        ("times as fast as vLLM", 64, "vllm-triton", 8.0),
        ("times as fast as torch", 128, "hugging-face", 50.0),
    ],
)
def test_goals_against_peers(goal: str, batch: int, peer: str, least: float) -> None:
    for theirs, met in ((10.0 * least, True), (9.9 * least, False)):
        found = sample_results(setting(PLACE._replace(batch=batch), {"k50": {OURS: 10.0, peer: theirs}}))
        assert verdict_of(found, goal).met == met


def test_the_fastest_way_of_a_peer_counts() -> None:
    work = {OURS: 10.0, "flashinfer-logits": 90.0, "flashinfer-probs": 30.0, "torch": 900.0, "hugging-face": 400.0}
    found = sample_results(setting(PLACE, {"k50": work}))
    assert verdict_of(found, "times as fast as FlashInfer").value == 3.0
    assert verdict_of(found, "times as fast as torch").value == 40.0


def test_goals_of_16_bits_and_of_bytes() -> None:
    narrow = PLACE._replace(dtype="bfloat16")
    for ours, met in ((5.7, True), (5.8, False)):
        found = sample_results(
            setting(PLACE, {"k50": {OURS: 10.0}}), setting(narrow, {"k50": {OURS: ours}}, floor_us=1.0)
        )
        assert verdict_of(found, "bf16").met == met
    for share, met in ((1.05, True), (1.06, False)):
        size = 128256 * 64
        found = sample_results(counters(share * size * 4), counters(share * size * 2, dtype="bfloat16"))
        assert [one.met for one in goals.verdicts(found)] == [met, met]
    assert goals.verdicts(sample_results()) == []


# --- the report


def test_the_table() -> None:
    table = report.markdown(full_sample())
    assert table.startswith("# fastsample on NVIDIA Sample\n\n**MADE-UP SAMPLE DATA")
    for expected in (
        "| benchmark | ok | 200 of 330 s |  |",
        "They are goals of the CUDA kernels. What the Triton kernels reach at the same points stands beside.",
        "| goal | met | worst | Triton's worst |",
        "| any work at B = 1 | 1 of 1 | 7.00 us (at most 8), greedy, V 128256, B 1, float32, real | 9.50 us (at",
        "| p .9 alone, real logits: of the floor | 0 of 1 | 2.50 x (at most 2)",
        "1.01 x (at most 1.05), p0.9, V 128256, B 64, float32, real | - |",
        "- p .9 alone, real logits: of the floor: 2.50 x (at most 2), p0.9, V 128256, B 64, float32, real",
        "## V = 128256, float32: time",
        "| work | rows | who | B = 1 | B = 64 |",
        "| T 0.8, k 50, p 0.9 | real logits | fastsample (CUDA) | - | 14.0 (1.40) |",
        "| T 0.8, k 50, p 0.9 | real logits | fastsample (Triton) | - | 21.0 (2.10) |",
        "| floor: one read |  |  | 1.0 | 10.0 |",
        "| empty launch |  |  | 2.0 | 2.0 |",
        "## Peers: microseconds, and in brackets how many times as long as fastsample (CUDA)",
        "| work | fastsample (CUDA) | fastsample (Triton) | torch | ",
        "## V = 1000, float32",
        "Real logits, V = 128256: from a file.",
        "| p 0.9, real logits, V 128256, B 64, float32 | 25.0 | 70.0 | 3000.0 (120) | - | - | 240.0 (9.60) |",
        "- torch 0.0: by hand",
        "- vLLM : not measured: a | pipe",
        "| long_scoreboard 3.50, barrier 0.50 |",
        "Tests: 1 failed, 1 passed, 2 skipped.",
        "- 2 skipped: one GPU",
        "- failed: tests/gpu/b: 5 tokens differ",
        "- compute-sanitizer memcheck: clean, 9 s",
        "- a remark",
    ):
        assert expected in table, expected
    for lines in table.split("\n\n"):
        widths = {line.replace("\\|", "").count("|") for line in lines.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, lines


def test_the_summary() -> None:
    lines = report.brief(full_sample()).splitlines()
    assert lines[0].startswith("MADE-UP SAMPLE DATA")
    assert "tests: failed, 60 s. 1 of 2 tests failed" in lines
    assert any(line.startswith("any work at B = 1: 1 of 1 met") for line in lines)
    assert any(
        line.startswith("any work at B = 1, the Triton kernels (no goal of theirs): worst 9.50 us") for line in lines
    )
    assert not any("bytes read" in line and "Triton" in line for line in lines)
    crashed = sample_results()
    crashed.parts["benchmark"].message = "Traceback (most recent call last):\n  File\nValueError: the reason"
    assert "ValueError: the reason" in report.brief(crashed)


def triton_alone() -> GpuResults:
    """Made-up data of a run without the CUDA object."""
    return sample_results(
        setting(PLACE, {"k50": {TRITON: 20.0, "torch": 900.0}, "p0.9": {TRITON: 70.0}}),
        {"kind": "note", "text": "fastsample (CUDA) is not measured: not built"},
    )


def test_the_goals_are_the_cuda_kernels() -> None:
    found = triton_alone()
    assert goals.verdicts(found) == []
    of_triton = goals.verdicts(found, TRITON)
    assert {one.goal: one.value for one in of_triton} == {
        "times as fast as torch and Hugging Face": 45.0,
        "p .9 alone, real logits: of the floor": 7.0,
    }
    narrow = sample_results(
        setting(PLACE, {"k50": {OURS: 10.0, TRITON: 30.0}}),
        setting(PLACE._replace(dtype="bfloat16"), {"k50": {OURS: 5.0, TRITON: 18.0}}),
    )
    assert [one.value for one in goals.verdicts(narrow)] == [0.5]
    assert [one.value for one in goals.verdicts(narrow, TRITON)] == [0.6]


def test_triton_alone_is_shown(tmp_path: Path) -> None:
    table = report.markdown(triton_alone())
    for expected in (
        "| p .9 alone, real logits: of the floor | not measured | - | 7.00 x (at most 2)",
        "| k 50 | real logits | fastsample (Triton) | 20.0 (2.00) |",
        "how many times as long as fastsample (Triton)",
        "| k 50, real logits, V 128256, B 64, float32 | 20.0 | 900.0 (45.0) |",
        "- fastsample (CUDA) is not measured: not built",
    ):
        assert expected in table, expected
    assert "Missed" not in table
    assert [path.name for path in plot.save(triton_alone(), tmp_path / "triton")] == [
        "triton-time.png",
        "triton-peers.png",
    ]


def drawn_labels(monkeypatch: pytest.MonkeyPatch, found: GpuResults, base: Path) -> list[str]:
    """The legends of the pictures."""
    labels: list[str] = []
    legend = plot.Figure.legend

    def noted(self: Any, handles: Any, texts: list[str], **keywords: Any) -> Any:
        labels.extend(texts)
        return legend(self, handles, texts, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(plot.Figure, "legend", noted)
        plot.save(found, base)
    return labels


def test_the_pictures_show_both_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = drawn_labels(monkeypatch, full_sample(), tmp_path / "both")
    assert {"real logits", "real logits, Triton", "floor: one read of the logits", "fastsample (Triton)"} <= set(labels)
    assert "fastsample (CUDA)" not in labels, "it is what the ratios are to"
    assert "fastsample (Triton)" not in drawn_labels(monkeypatch, triton_alone(), tmp_path / "one")


def test_the_pictures(tmp_path: Path) -> None:
    written = plot.save(full_sample(), tmp_path / "sample")
    assert [path.name for path in written] == ["sample-time.png", "sample-peers.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert path.stat().st_size > 10_000
    assert plot.save(sample_results(), tmp_path / "empty") == []


def test_a_file_is_shown_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sample.json"
    results.save(full_sample(), path)
    assert command.main(["--show", str(path)]) == 0
    assert "any work at B = 1: 1 of 1 met" in capsys.readouterr().out
    assert command.main(["--show", str(path), "--markdown", "--out", str(tmp_path / "again")]) == 0
    assert "## V = 128256, float32" in capsys.readouterr().out
    assert (tmp_path / "again-time.png").exists()
    assert command.main(["--show", str(path), "--out", str(results.COMMITTED / "gpu-x")]) == 1
    assert command.main(["--show", str(tmp_path / "absent.json")]) == 1


# --- the parts


def test_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "records")
    environment.run(recorder, replace(REHEARSAL, commit="abc"))
    facts = {name: value for record in records.read(recorder.path) for name, value in record["facts"].items()}
    assert facts["commit"] == "abc"
    assert facts["torch"] == torch.__version__
    assert facts["CPUs"] >= 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PartFailedError, match="sees no CUDA GPU"):
        environment.run(recorder, replace(REHEARSAL, rehearsal=False))
    assert environment.parse_smi("580.1, 345 MHz, 3201 MHz\n580.1, 1 MHz, 2 MHz\n") == {
        "driver_version": "580.1",
        "clocks.sm": "345 MHz",
        "clocks.mem": "3201 MHz",
    }
    assert environment.tool_version("no such tool", "--version") is None


def answers(monkeypatch: pytest.MonkeyPatch, module: ModuleType, *ended: Ended) -> list[tuple[Any, ...]]:
    """Lets a part's commands end so, one after the other. Returns what it ran."""
    waiting, ran = list(ended), []

    def run_command(*arguments: Any) -> Ended:
        ran.append(arguments)
        return waiting.pop(0)

    monkeypatch.setattr(module, "run_command", run_command)
    return ran


def test_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PartOptions(seconds=60)
    recorder = Recorder(tmp_path / "records")
    good, usable = Ended(0, 61.0, "compiled"), Ended(0, 1.0, "True native kernels")
    ran = answers(monkeypatch, building, good, usable, Ended(0, 1.0, "all agree"))
    building.run(recorder, options)
    assert list(ran[0][0][1:]) == ["setup.py", "build_ext", "--inplace"]
    assert ran[0][2] == {"FASTSAMPLE_BUILD": "cuda", "FASTSAMPLE_CUDA_ARCHS": "native"}
    assert [record["kind"] for record in records.read(recorder.path)] == ["build", "environment", "doctor"]
    answers(monkeypatch, building, Ended(1, 61.0, "error: nvcc"))
    with pytest.raises(PartFailedError, match="error: nvcc"):
        building.run(recorder, options)
    answers(monkeypatch, building, good, Ended(0, 1.0, "False no kernel image"))
    with pytest.raises(PartFailedError, match="not usable after the build: False no kernel image"):
        building.run(recorder, options)


def test_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "DIST", tmp_path)
    recorder = Recorder(tmp_path / "records")
    wheel.run(recorder, REHEARSAL)
    assert records.read(recorder.path)[-1]["text"].startswith("no wheel was tried")
    package = tmp_path / "fastsample"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "doctor.py").write_text(
        "class Status:\n    usable = True\n"
        "class Report:\n    healthy, backends = HEALTHY, {'cpu': Status()}\n"
        "examine, render = Report, lambda report: __file__\n"
    )
    source = (package / "doctor.py").read_text()
    for healthy in (True, False):
        (package / "doctor.py").write_text(source.replace("HEALTHY", str(healthy)))
        made = shutil.make_archive(str(tmp_path / "fastsample-1"), "zip", tmp_path, "fastsample")
        os.replace(made, tmp_path / "fastsample-1.whl")
        with nullcontext() if healthy else pytest.raises(PartFailedError, match=r"fastsample-1\.whl"):
            wheel.run(recorder, REHEARSAL)
        assert not records.read(recorder.path)[-1]["output"].startswith(str(ROOT))


def test_rehearsal_of_the_gpu_tests(tmp_path: Path) -> None:
    """The bodies of the GPU tests run here, and a backend that errs is noticed by each."""
    assert_rehearsal(tmp_path, ["tests/gpu/test_draws.py"])


@pytest.mark.slow
def test_rehearsal_of_all_gpu_tests(tmp_path: Path) -> None:
    assert_rehearsal(tmp_path, ["tests/gpu"])


def assert_rehearsal(tmp_path: Path, paths: list[str]) -> None:
    outcomes = {}
    for mode in ("rehearse", "spoilt"):
        file = tmp_path / mode
        variables = {testing.MODE_VARIABLE: mode, testing.RECORDS_VARIABLE: str(file), "PYTHONPATH": str(ROOT)}
        ended = subprocesses.run(
            [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", "--tb=no"], 600, variables, ROOT
        )
        assert "none of these tests ran on a GPU" in ended.output
        outcomes[mode] = {record["name"]: record["outcome"] for record in records.read(file)}
    assert set(outcomes["rehearse"].values()) <= {"passed", "skipped"}
    passed = {name for name, outcome in outcomes["rehearse"].items() if outcome == "passed"}
    assert len(passed) > 15
    # These look at what the result must not be, and not at what it is.
    unspoilt = {name for name in passed if outcomes["spoilt"][name] == "passed"}
    assert {name.partition("::")[2].partition("[")[0] for name in unspoilt} <= {
        "test_errors_raise_names_the_row",
        "test_multinomial_of_more_than_2_to_the_22_categories",
        "test_no_rows_at_all",
    }


def test_the_gpu_tests_say_why_nothing_ran() -> None:
    if torch.cuda.is_available():
        pytest.skip("here they would run")
    # A file that is named is collected although its folder is not.
    paths = ("tests/gpu/test_layouts.py", "tests/gpu")
    ended = subprocesses.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths], 120, None, ROOT)
    assert ended.code == pytest.ExitCode.NO_TESTS_COLLECTED, ended.output
    assert "NOTHING RAN: these tests need a CUDA GPU" in ended.output


BROKEN_GPU = """
import torch

def broken():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = broken
"""


def test_while_compiling_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has run then, and a comparison that failed would end the test before its last launch."""
    from gpu import target as gpu_target
    from strategies import Call, Filters, Randomness

    spoilt = gpu_target.Target(torch.device("cpu"), "auto", spoilt=True)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    filters = Filters(1.0, None, 5, None, 1.0, None, 0.0, None, 0)
    call = Call(logits, None, filters, Randomness(1, None, 2, None, 0, None, True), 2)
    checks = (
        lambda: spoilt.check_sample(logits, seed=1),
        lambda: spoilt.check_transforms(logits, 0.8, 5),
        lambda: spoilt.check_call(call, replacement=True),
    )
    monkeypatch.setattr(gpu_target, "COMPILING", True)
    for check in checks:
        check()
    monkeypatch.setattr(gpu_target, "COMPILING", False)
    for check in checks:
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            check()


def test_after_a_broken_context_the_rest_runs_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_gpu.py").write_text(BROKEN_GPU)
    path = tmp_path / "records"
    variables = {
        testing.MODE_VARIABLE: "spoilt",
        testing.RECORDS_VARIABLE: str(path),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path))),
    }
    one_test = ["tests/gpu/test_draws.py", "-k", "out", "-p", "broken_gpu", "-p", "no:cacheprovider"]
    ended = subprocesses.run([sys.executable, "-m", "pytest", *one_test], 120, variables, ROOT)
    assert ended.code == testing.BROKEN_CONTEXT, ended.output
    (failed,) = records.read(path)
    assert failed["outcome"] == "failed"
    assert "tokens differ" in failed["message"]

    recorder = Recorder(path)

    def second_process(command: Sequence[str], *rest: Any) -> Ended:
        assert command[-2:] == ["--deselect", failed["name"]]
        recorder.add("test", name="another", outcome="passed", seconds=1.0, message="")
        return Ended(0, 1.0, "")

    waiting = [lambda *_: Ended(testing.BROKEN_CONTEXT, 1.0, ""), second_process]
    monkeypatch.setattr(testing, "run_command", lambda *arguments: waiting.pop(0)(*arguments))
    with pytest.raises(PartFailedError, match=r"1 of 2 tests failed: tests/gpu/test_draws\.py::"):
        testing.run(recorder, PartOptions(seconds=60))
    assert not waiting


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Ended(None, 9.0, ""), "stopped at the limit after {'passed': 1}"),
        (Ended(4, 1.0, "ERROR: a plugin"), "pytest ended with 4 after {'passed': 1}: ERROR: a plugin"),
    ],
)
def test_tests_that_did_not_all_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Ended, message: str
) -> None:
    recorder = Recorder(tmp_path / "records")
    recorder.add("test", name="one", outcome="passed", seconds=1.0, message="")
    ran = answers(monkeypatch, testing, ended)
    with pytest.raises(PartFailedError) as raised:
        testing.run(recorder, PartOptions(seconds=60))
    assert str(raised.value).startswith(message)
    assert ran[0][2][testing.BACKENDS_VARIABLE] == "cuda", "the Triton kernels have a part of their own"


def script_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


SANITIZER = """
case "$*" in
  *--tool=memcheck*sanitized_calls.py*) echo "========= ERROR SUMMARY: MEMCHECK"; exit STATUS;;
  *--tool=racecheck*) echo "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)";;
  *) echo "========= ERROR SUMMARY: 0 errors";;
esac
"""


def test_the_sanitizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "records")
    options = PartOptions(seconds=60)
    for memcheck, status, expected in (("0 errors", 0, "clean"), ("2 errors", 99, "2 errors")):
        body = SANITIZER.replace("MEMCHECK", memcheck).replace("STATUS", str(status))
        script_on_path(tmp_path / "bin", monkeypatch, "compute-sanitizer", body)
        with nullcontext() if expected == "clean" else pytest.raises(PartFailedError, match="memcheck: 2 errors"):
            sanitizing.run(recorder, options)
        found = {record["tool"]: record["verdict"] for record in records.read(recorder.path)}
        assert found == {**dict.fromkeys(sanitizing.TOOLS, "clean"), "memcheck": expected}
    script_on_path(tmp_path / "bin", monkeypatch, "compute-sanitizer", "exec sleep 600")
    with pytest.raises(PartFailedError, match="initcheck: stopped at the limit"):
        sanitizing.run(recorder, PartOptions(seconds=4))


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (Ended(0, 1.0, "========= ERROR SUMMARY: 0 errors"), "clean"),
        (Ended(1, 1.0, "wrong tokens\n========= ERROR SUMMARY: 0 errors"), "no errors, but exit status 1"),
        (Ended(99, 1.0, "========= ERROR SUMMARY: 1 error"), "1 errors"),
        (Ended(99, 1.0, "========= RACECHECK SUMMARY: 3 hazards displayed (1 errors, 2 warnings)"), "3 errors"),
        (Ended(255, 1.0, "Device not supported"), "no summary, exit status 255"),
        (Ended(None, 1.0, "========= ERROR SUMMARY: 0 errors"), "stopped at the limit"),
    ],
)
def test_what_a_sanitizer_says(ended: Ended, expected: str) -> None:
    assert sanitizing.verdict(ended) == expected


def test_the_calls_under_the_sanitizers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_LONG_VOCABULARY", 70_001)
    assert list(calls.mismatches("cpu", "auto")) == []
    pytest.importorskip("triton")
    # The CPU's kernels in place of Triton's, which tests/gpu/test_divisions.py and tests/test_triton.py run.
    assert list(calls.triton_mismatches("cpu", "auto")) == []
    sample = fastsample.sample

    def spoilt(*arguments: Any, **keywords: Any) -> Tensor:
        return sample(*arguments, **keywords) + ("backend" in keywords)

    monkeypatch.setattr(fastsample, "sample", spoilt)
    found = list(calls.mismatches("cpu", "auto"))
    assert len(found) > 100
    assert "sample greedy, [3, 1], torch.float32: [1, 0, 1], expected [0, -1, 0]" in found
    found = list(calls.triton_mismatches("cpu", "auto"))
    works, vocabularies, dtypes = 6, 3, 2
    assert len(found) == (works * vocabularies + works) * dtypes, "the longest rows twice: by several programs, and one"
    assert sum("one program a row" in line for line in found) == works * dtypes


# --- ncu


NCU_WIDE = """==PROF== Connected to process 1234 (/usr/bin/python3)
==PROF== Profiling "row_kernel": 0%....50%....100% - 9 passes
a line of the program
"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device","CC",\
"dram__bytes_read.sum","gpu__time_duration.sum","launch__registers_per_thread","unknown__metric",\
"smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
"","","","","","","","","","","","byte","nsecond","register/thread","","inst","inst"
"0","1234","python3","127.0.0.1","void row_kernel<float, 1>(Work)","1","7","(512, 1, 1)","(256, 1, 1)","0","9.0",\
"32,833,536","12,345","64","n/a","1.5","4.25"
"1","1234","python3","127.0.0.1","void row_kernel<float, 1>(Work)","1","7","(512, 1, 1)","(8, 1, 1)","0","9.0",\
"513,024","5,000","64","n/a","2.5","0.25"
==PROF== Disconnected from process 1234
"""
NCU_LONG = """"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","row_kernel","Command line profiler metrics","dram__bytes_read.sum","byte","4096"
"0","row_kernel","Command line profiler metrics","gpu__time_duration.sum","ns","211.94"
"7","row_kernel","Command line profiler metrics","dram__bytes_read.sum","byte","8192"
"""
NCU_REFUSED = """==PROF== Connected to process 1
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters
"""


def test_what_ncu_says() -> None:
    """Snippets in the two forms that ncu's CSV has, written by hand: no kernel of ours was under it."""
    first, second = counting.parse(NCU_WIDE)
    assert first["kernel"] == "void row_kernel<float, 1>(Work)"
    assert first["counters"] == {"bytes read": 32833536.0, "nanoseconds": 12345.0, "registers": 64.0}
    assert list(first["stalls"].items()) == [("long_scoreboard", 4.25), ("barrier", 1.5)]
    assert list(second["stalls"]) == ["barrier", "long_scoreboard"]
    assert [launch["counters"] for launch in counting.parse(NCU_LONG)] == [
        {"bytes read": 4096.0, "nanoseconds": 211.94},
        {"bytes read": 8192.0},
    ]
    assert counting.parse(NCU_REFUSED) == counting.parse("") == []


def test_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "records")
    options = PartOptions(seconds=60)
    script_on_path(tmp_path / "bin", monkeypatch, "ncu", "")
    monkeypatch.setattr(counting, "why_not", lambda *_: "not built")
    counting.run(recorder, options)
    assert "counters are of the CUDA kernels, and not built" in records.read(recorder.path)[0]["text"]
    recorder.path.unlink()
    monkeypatch.setattr(counting, "why_not", lambda *_: None)
    monkeypatch.setattr(counting, "POINTS", counting.POINTS[:2])
    ran = answers(monkeypatch, counting, Ended(1, 1.0, "==ERROR== unknown metric"), Ended(0, 20.0, NCU_WIDE))
    counting.run(recorder, options)
    assert "--section" in ran[0][0]
    assert "--section" not in ran[1][0]
    found = records.read(recorder.path)
    assert [record["point"]["work"] for record in found] == ["t0.8-k50-p0.9", "p0.9"]
    # ncu's bytes over those of the logits: 64 rows of 128256 float32.
    verdict = goals.verdicts(sample_results(found[0]))[0]
    assert verdict.value == 32833536 / (64 * 128256 * 4)

    answers(monkeypatch, counting, Ended(1, 1.0, NCU_REFUSED), Ended(1, 1.0, NCU_REFUSED))
    with pytest.raises(PartFailedError, match="ERR_NVGPUCTRPERM"):
        counting.run(recorder, options)
    monkeypatch.setattr(counting, "POINTS", counting.POINTS[:1])
    answers(monkeypatch, counting, Ended(0, 20.0, NCU_WIDE))
    with pytest.raises(PartFailedError, match="2 launches of row_kernel for 1 calls"):
        counting.run(recorder, options)
    assert records.read(recorder.path)[-1]["point"] == {}


# --- the benchmark


def test_the_grid_is_whole_and_the_goals_come_first() -> None:
    todo = grid.settings()
    places = [one.place for one in todo if not one.compiled]
    assert len(places) == len(set(places)) == 4 * 7 * 2 * 3
    assert {place.vocab for place in places} == {32000, 128256, 151936, 262144}
    assert {place.batch for place in places} == {1, 4, 16, 64, 128, 256, 512}
    assert {place.dtype for place in places} == {"float32", "bfloat16"}
    assert {place.rows for place in places} == {"real", "normal-1", "normal-3"}
    assert all(one.works == grid.WORKS for one in todo if not one.compiled)
    for work in grid.WORKS:
        Work.parse(work)
    first = todo[:9]
    assert {one.place.batch for one in first if one.peers} == {1, 64, 512}
    assert all(one.place.vocab == 128256 and one.place.dtype == "float32" for one in first)

    def about_a_goal(place: Place) -> bool:
        point = setting(place, {work: {OURS: 1.0} for work in grid.WORKS})
        wide = setting(place._replace(dtype="float32"), {work: {OURS: 1.0} for work in grid.WORKS})
        return bool(goals.verdicts(sample_results(point, wide)))

    last_goal = max(
        number for number, one in enumerate(todo) if about_a_goal(one.place) and one.place.dtype == "float32"
    )
    assert last_goal < 40


def test_a_part_of_the_grid() -> None:
    everything = grid.settings()
    some = grid.settings(Axes(batches=(64, 1), dtypes=("float32",), works=("p0.9", "plain")))
    places = {one.place for one in some}
    assert len(places) == 4 * 2 * 3
    assert [one.place for one in some] == [one.place for one in everything if one.place in places]
    assert {one.works for one in some if not one.compiled} == {("p0.9", "plain")}
    assert [one.works for one in some if one.compiled] == [("plain",)]
    assert {one.place.batch for one in some if one.peers} == {64, 1}
    beyond = grid.settings(Axes((1000, 128256), (5,), (), ("real",), ("k7",)))
    assert [tuple(one.place) for one in beyond] == [
        (1000, 5, "float32", "real"),
        (1000, 5, "bfloat16", "real"),
        (128256, 5, "float32", "real"),
        (128256, 5, "bfloat16", "real"),
        (1000, 5, "float32", "real"),
    ]
    assert [one.peers for one in beyond] == [True, False, True, False, False]
    assert [one.compiled for one in beyond] == [False] * 4 + [True]
    assert {one.works for one in beyond} == {("k7",)}


def test_every_second_row_of_mixed_work_differs() -> None:
    parameters = Work.parse("mixed").parameters(16)
    assert parameters["temperature"].dtype is torch.float32
    assert parameters["top_k"].dtype is torch.int64
    settings = list(
        zip(*(parameters[name].tolist() for name in ("temperature", "top_k", "top_p", "min_p")), strict=True)
    )
    assert settings[:8] == settings[8:]
    assert len(set(settings)) == 8
    assert Work.parse("mixed").key == "mixed"


def test_real_rows_are_those_of_the_cpu_benchmark() -> None:
    real = rows.RealLogits([rows.REAL_LOGITS])
    for vocab in (1000, 49152, 128256):
        source = torch.from_numpy(real.source(vocab)[1])
        assert torch.equal(inputs.real_rows(source, 70, vocab), real.make(70, vocab))


def test_inputs_go_round_past_the_cache() -> None:
    made = inputs.Inputs(torch.device("cpu"), cache_bytes=100_000)
    batches = made.batches("normal-3", 500, 4, "float32")
    assert sum(batch.nbytes for batch in batches) >= 3 * 100_000
    assert len({batch.data_ptr() for batch in batches}) == len(batches)
    assert batches[0].std() == pytest.approx(3, rel=0.1)
    assert not torch.equal(batches[0], batches[1])
    narrow = made.batches("normal-3", 500, 4, "bfloat16")
    assert torch.equal(narrow[0], batches[0].bfloat16())
    assert sum(batch.nbytes for batch in narrow) >= 3 * 100_000
    assert len(made.batches("real", 500, 1000, "float32")) == 2
    assert torch.equal(made.batches("ascending", 50, 2, "float32")[0], rows.make("ascending", 2, 50, made.real))


class StandInTurn:
    calls, how = 4, "graph"

    def __init__(self, found: list[float]) -> None:
        self.found, self.replays = found, 0

    def replay(self, times: int) -> list[float]:
        self.replays += times
        return self.found[:times]


def test_medians_and_their_spread() -> None:
    ticks = iter(range(1000))
    turn = StandInTurn([1.0, 2.0, 3.0, 4.0, 10.0])
    # A replay takes a second by this clock, so 25 seconds are 5 rounds of 5.
    found = timing.measure({"one": turn}, 25.0, clock=lambda: float(next(ticks)))
    assert found == {"one": GpuTimes(3.0, 1.8, 5.2, replays=25, calls=4, how="graph")}
    assert turn.replays == 2 + 25
    assert timing.measure({}, 1.0) == {}


class CountingSession:
    """Notes what is drawn from; cannot be captured if told so."""

    def __init__(self, world: "StandInCuda", capturable: bool = True) -> None:
        self.world, self.capturable = world, capturable
        self.drawn: list[int] = []

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        if self.world.capturing and not self.capturable:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.drawn.append(int(self.logits[0, 0]))
        return self.logits


class StandInCuda:
    """What the timer needs of torch.cuda."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capturing = False
        self.log: list[str] = []
        world = self

        class Graph:
            def capture_begin(self) -> None:
                world.capturing = True

            def capture_end(self) -> None:
                world.capturing = False

            def replay(self) -> None:
                world.log.append("replay")

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                world.log.append("event")

            def elapsed_time(self, end: "Event") -> float:
                return 0.24  # milliseconds

        stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: world.log.append("wait"))
        for name, value in (
            ("CUDAGraph", Graph),
            ("Event", Event),
            ("Stream", lambda: stream),
            ("stream", lambda stream: nullcontext()),
            ("current_stream", lambda: stream),
            ("synchronize", lambda: None),
        ):
            monkeypatch.setattr(torch.cuda, name, value)


def numbered(count: int) -> list[Tensor]:
    return [torch.full((1, 2), float(number)) for number in range(count)]


def test_a_graph_holds_a_call_for_each_input(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StandInCuda(monkeypatch)
    timer = timing.CudaTimer(64, device="cpu")
    session = CountingSession(world)
    turn = timer.prepare(session, numbered(12), most_inputs=64)
    assert session.drawn == [0, 1, *range(12)]  # two to warm up
    assert (turn.calls, turn.how) == (12, "graph")
    world.log.clear()
    assert turn.replay(2) == [pytest.approx(20.0)] * 2  # 0.24 ms for 12 calls
    assert world.log == ["event", "replay", "event"] * 2 + ["wait"]
    assert not world.capturing


def test_few_inputs_go_round_and_many_are_cut_with_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StandInCuda(monkeypatch)
    timer = timing.CudaTimer(64, device="cpu")
    session = CountingSession(world)
    assert timer.prepare(session, numbered(3), most_inputs=64).calls == 6
    assert session.drawn[2:] == [0, 1, 2, 0, 1, 2]
    summed = []
    monkeypatch.setattr(torch, "sum", lambda tensor: summed.append(tensor.numel()))
    turn = timer.prepare(CountingSession(world), numbered(30), most_inputs=10)
    turn.replay(3)
    assert turn.calls == 10
    assert summed == [16, 16, 16]  # before each replay, outside of its events


def test_what_no_graph_can_hold_is_launched_call_by_call(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StandInCuda(monkeypatch)
    session = CountingSession(world, capturable=False)
    turn = timing.CudaTimer(64, device="cpu").prepare(session, numbered(9), most_inputs=64)
    assert turn.how == "eager"
    assert not world.capturing
    session.drawn.clear()
    assert turn.replay(1) == [pytest.approx(240 / 9)]
    assert session.drawn == list(range(9))


@pytest.fixture
def small_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(1000, 3, "float32", "real")
    todo = [grid.Setting(place, ("p0.9", "mixed"), peers=True), grid.Setting(place._replace(batch=1), ("greedy",))]
    monkeypatch.setattr(grid, "rehearsal", lambda: todo)


def test_a_rehearsal_of_the_benchmark(tmp_path: Path, small_grid: None) -> None:
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, unusable_peers=("hugging-face",)))
    found = sample_results(*records.read(recorder.path))
    assert len(found.points) == 3
    for point in found.points:
        assert set(point.times) - {"torch"} == {OURS}
        assert point.ratio_to_floor() is None or point.ratio_to_floor() > 0
        for one in (*point.times.values(), *point.references.values()):
            assert 0 < one.p20 <= one.median <= one.p80
            assert one.how == "host"
    assert [set(point.times) for point in found.points] == [{OURS, "torch"}, {OURS}, {OURS}]
    assert "(vocabulary 49152)" in next(found.records("rows"))["made"]


def test_peers_take_turns_with_ours_and_the_floor(
    tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[set[tuple[str, str]]] = []
    measure = timing.measure

    def noted(turns: Any, seconds: float) -> Any:
        together.append({(timed.who, timed.work) for timed in turns})
        return measure(turns, seconds)

    monkeypatch.setattr(measuring, "measure", noted)
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, unusable_peers=tuple(set(measuring.PEERS) - {"torch"})))
    references = {(SOFTMAX, ""), (FLOOR, "")}
    assert together == [
        references | {(OURS, "p0.9"), ("torch", "p0.9")},
        references | {(OURS, "mixed")},  # which torch does not serve
        references | {(OURS, "greedy")},
    ]
    points = sample_results(*records.read(recorder.path)).points
    assert points[0].references != points[1].references, "each kind of work has those that were measured with it"


def test_calls_are_launched_one_by_one_as_well(tmp_path: Path, small_grid: None) -> None:
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, eager=True, unusable_peers=("hugging-face",)))
    found = sample_results(*records.read(recorder.path))
    eager = [set(point.eager) for point in found.points]
    assert eager == [{OURS, "torch"}, {OURS}, set()], "where the peers run"
    assert [set(point.times) for point in found.points] == [{OURS, "torch"}, {OURS}, {OURS}]
    table = report.markdown(found)
    assert "## Launched one by one" in table
    shown = table.partition("## Launched one by one")[2].partition("##")[0]
    one = found.points[0].eager[OURS].median
    assert f"{one:.1f} ({ratio(one / found.points[0].times[OURS].median)})" in shown
    assert "Launched one by one" not in report.markdown(full_sample())


def test_a_wrong_token_is_not_timed(tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = fastsample.sample

    def spoilt(logits: Tensor, *, top_p: Any = 1.0, backend: str | None = None, **keywords: Any) -> Tensor:
        tokens = sample(logits, top_p=top_p, **keywords)
        right = backend is None or isinstance(top_p, Tensor) or top_p == 1
        return tokens if right else tokens.where(torch.arange(len(tokens)) != 1, 7)

    monkeypatch.setattr(fastsample, "sample", spoilt)
    recorder = Recorder(tmp_path / "records")
    with pytest.raises(PartFailedError, match=r"1 failures, the first: .*rows \[1\] differ from the CPU's"):
        measuring.run(recorder, replace(REHEARSAL, unusable_peers=tuple(measuring.PEERS)))
    found = sample_results(*records.read(recorder.path))
    assert "the first drew 7, not" in next(found.records("wrong"))["text"]
    assert {point.work: set(point.times) for point in found.points} == {
        "p0.9": set(),
        "mixed": {OURS},
        "greedy": {OURS},
    }


@pytest.fixture
def triton_stands_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reference in place of the Triton kernels. Returns the backends that were drawn with, in order."""
    pytest.importorskip("triton")
    monkeypatch.setattr(measuring, "ours", lambda options: {OURS: "auto", TRITON: "reference"})
    drawn: list[str] = []
    draw = contestants.FastsampleSession.draw

    def noted(self: contestants.FastsampleSession) -> Tensor:
        drawn.append(self.backend)
        return draw(self)

    monkeypatch.setattr(contestants.FastsampleSession, "draw", noted)
    return drawn


def test_triton_takes_its_turns(tmp_path: Path, small_grid: None, triton_stands_in: list[str]) -> None:
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, unusable_peers=tuple(measuring.PEERS)))
    found = sample_results(*records.read(recorder.path))
    assert [set(point.times) for point in found.points] == [{OURS, TRITON}] * 3
    assert triton_stands_in[:4] == ["auto", "reference"] * 2, "both are checked before either is timed"
    assert {"auto", "reference"} == set(triton_stands_in)
    first = next(found.records("setting"))
    assert set(first["divisions"]) == {"p0.9", "mixed"}
    assert all(len(division) == len(first["divisions"]["p0.9"]) for division in first["divisions"].values())


def test_a_wrong_token_of_triton_costs_the_others_nothing(
    tmp_path: Path, small_grid: None, triton_stands_in: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = fastsample.sample

    def spoilt(logits: Tensor, *, backend: str = "auto", **keywords: Any) -> Tensor:
        return sample(logits, **keywords) + (backend == "reference")

    monkeypatch.setattr(fastsample, "sample", spoilt)
    recorder = Recorder(tmp_path / "records")
    with pytest.raises(
        PartFailedError, match=r"3 failures, the first: .*fastsample \(Triton\) \(p 0.9\): rows \[0, 1, 2\]"
    ):
        measuring.run(recorder, replace(REHEARSAL, unusable_peers=tuple(measuring.PEERS)))
    found = sample_results(*records.read(recorder.path))
    assert [set(point.times) for point in found.points] == [{OURS}] * 3


def test_what_cannot_run_is_said(tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: dict[str, str | None] = {"cuda": None, "triton": "triton is not installed"}
    for module in (contestants, measuring):
        monkeypatch.setattr(module, "why_not", lambda backend, rehearsal: reasons[backend])
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, unusable_peers=tuple(measuring.PEERS)))
    found = sample_results(*records.read(recorder.path))
    assert next(found.records("note"))["text"] == "fastsample (Triton) is not measured: triton is not installed"
    assert [set(point.times) for point in found.points] == [{OURS}] * 3
    reasons["cuda"] = "not built"
    with pytest.raises(PartFailedError, match=r"none of fastsample's kernels can be measured here: .*not built"):
        measuring.run(recorder, REHEARSAL)
    # What was not asked for is not missing.
    recorder.path.unlink()
    reasons["cuda"] = None
    measuring.run(recorder, replace(REHEARSAL, backends=("cuda",), unusable_peers=tuple(measuring.PEERS)))
    assert not [record for record in records.read(recorder.path) if record["kind"] == "note"]


@pytest.mark.parametrize(
    ("cuda", "triton", "interpreted", "expected"),
    [
        (True, True, False, {OURS: "cuda", TRITON: "triton"}),
        (False, True, False, {TRITON: "triton"}),
        (True, False, False, {OURS: "cuda"}),
        (True, True, True, {OURS: "cuda"}),
    ],
)
def test_our_contestants(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, triton: bool, interpreted: bool, expected: dict[str, str]
) -> None:
    usable = {"cuda": cuda, "triton": triton}
    status = {name: SimpleNamespace(usable=usable[name], detail=f"no {name}") for name in usable}
    monkeypatch.setattr(fastsample, "backends", lambda: status)
    monkeypatch.setattr(contestants.ops, "triton_is_interpreted", lambda: interpreted)
    assert contestants.ours(PartOptions(1.0)) == expected
    assert contestants.ours(PartOptions(1.0, backends=("triton",))).keys() == expected.keys() & {TRITON}
    assert contestants.ours(REHEARSAL) == {OURS: "auto"}, "and never the interpreter"
    if not triton:
        assert contestants.why_not("triton", False) == "no triton"
    if interpreted:
        assert "for checking results, not for timing" in (contestants.why_not("triton", False) or "")


def test_what_goes_wrong_costs_its_setting_only(
    tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = inputs.Inputs.batches

    def out_of_memory(self: inputs.Inputs, kind: str, vocab: int, batch: int, *rest: Any, **keywords: Any) -> Any:
        if batch == 3:
            raise torch.OutOfMemoryError("no memory left")
        return batches(self, kind, vocab, batch, *rest, **keywords)

    monkeypatch.setattr(inputs.Inputs, "batches", out_of_memory)
    recorder = Recorder(tmp_path / "records")
    with pytest.raises(PartFailedError, match="no memory left"):
        measuring.run(recorder, REHEARSAL)
    assert [point.work for point in sample_results(*records.read(recorder.path)).points] == ["greedy"]


def test_a_benchmark_without_time_says_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, replace(REHEARSAL, seconds=1.0))
    texts = [record["text"] for record in sample_results(*records.read(recorder.path)).records("note")]
    assert "the time was up after 0 of 2 settings of the grid" in texts


def test_a_peer_that_draws_nonsense_is_a_note(
    tmp_path: Path, small_grid: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nonsense:
        key, label, package, note = "nonsense", "Nonsense", "torch", ""

        def start(self, job: Job) -> Any:
            return SimpleNamespace(load=lambda logits: None, draw=lambda: torch.full((job.batch,), -1))

    monkeypatch.setattr(measuring, "PEERS", {"nonsense": Nonsense()})
    recorder = Recorder(tmp_path / "records")
    measuring.run(recorder, REHEARSAL)
    found = sample_results(*records.read(recorder.path))
    assert all("nonsense" not in point.times for point in found.points)
    texts = " ".join(record["text"] for record in found.records("note"))
    assert "Nonsense, p 0.9, B 3: Nonsense (p 0.9) drew [-1, -1, -1]" in texts


# --- what Triton compiles ahead


@pytest.mark.parametrize("processes", [1, 3, 16])
def test_each_kernel_is_somebodys_share(processes: int) -> None:
    launched = [("row_kernel", "a"), ("weigh_kernel", "a"), ("row_kernel", "a"), ("row_kernel", "b")]
    launched += [("row_kernel", str(number)) for number in range(30)]
    shares = [ahead.Share(number, processes) for number in range(processes)]
    takers = [[share.takes(*kernel) for share in shares] for kernel in launched]
    assert all(sum(who) == 1 for who in takers)
    assert takers[0] == takers[2], "whoever has it keeps it"
    assert sum(share.ours for share in shares) == 33
    rows = [sum(mine for (name, _), mine in share.kernels.items() if name == "row_kernel") for share in shares]
    assert max(rows) - min(rows) <= 1


KERNELS = """
import triton
import triton.language as tl


@triton.jit
def add_kernel(data, count, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(data + place, tl.load(data + place, mask=place < count) + 1, mask=place < count)
"""
WITHOUT_A_GPU = """
import json, sys
import torch
import fastsample
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from fastsample.benchmarks.gpu import ahead
from some_kernels import add_kernel

class Driver:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
run = type(add_kernel).run
share = ahead.Share(int(sys.argv[1]), 2)
with ahead.compiling(share):
    for _ in range(2):
        for size in (16, 32, 64):
            add_kernel[(1,)](torch.empty(64), 5, SIZE=size, num_warps=1)
assert type(add_kernel).run is run
print(json.dumps([share.ours, len(share.kernels)]))
"""


def test_a_share_is_compiled_and_nothing_launched(tmp_path: Path) -> None:
    """By Triton's compiler for sm_90; a launch would fail, since there is no GPU."""
    pytest.importorskip("triton")
    (tmp_path / "some_kernels.py").write_text(KERNELS)
    variables = {"PYTHONPATH": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_INTERPRET": "0"}
    told = []
    for number in range(2):
        command_line = [sys.executable, "-c", WITHOUT_A_GPU, str(number)]
        ended = subprocesses.run(command_line, 200, variables, ROOT)
        assert ended.code == 0, ended.output
        told.append(json.loads(ended.output.strip().splitlines()[-1]))
        assert len(list((tmp_path / "cache").rglob("add_kernel.cubin"))) == sum(ours for ours, _ in told)
    assert told == [[2, 3], [1, 3]]


def test_what_is_compiled_ahead_is_what_the_grid_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    class Noted:
        def __init__(self, job: Job, backend: str, device: torch.device) -> None:
            self.told = (job.vocab, job.batch, str(job.dtype), job.work.key, backend)

        def load(self, logits: Tensor) -> None:
            assert tuple(logits.shape[::-1]) == self.told[:2]

        def draw(self) -> None:
            launched.append(self.told)

    monkeypatch.setattr(compiled_ahead, "FastsampleSession", Noted)
    monkeypatch.setattr(calls, "triton_mismatches", lambda device: iter([launched.append("the sanitizers'")]))
    compiled_ahead.launch_all(REHEARSAL)
    expected = {
        (one.place.vocab, one.place.batch, f"torch.{one.place.dtype}", work, "triton")
        for one in grid.rehearsal()
        for work in one.works
    }
    assert len(launched) == len(expected) + 1
    assert set(launched) == {*expected, "the sanitizers'"}


def compiled(options: PartOptions, path: Path) -> list[dict[str, Any]]:
    recorder = Recorder(path)
    compiling.run(recorder, options)
    return records.read(path)


def test_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = PartOptions(seconds=60)
    path = tmp_path / "records"
    assert "a rehearsal has no GPU" in compiled(REHEARSAL, path)[-1]["text"]
    monkeypatch.setattr(compiling, "why_not", lambda *_: "triton is not installed")
    assert compiled(options, path)[-1]["text"] == "no Triton kernels were compiled: triton is not installed"
    assert "not asked for" in compiled(replace(options, backends=("cuda",)), path)[-1]["text"]

    monkeypatch.setattr(compiling, "why_not", lambda *_: None)
    monkeypatch.setattr(compiling, "processes", lambda: 3)
    shares = []
    ends = [Ended(0, 9.0, ""), Ended(0, 12.0, ""), Ended(0, 8.0, "")]

    def together(commands: Sequence[Any], seconds: float) -> list[Ended]:
        for command_line, _ in commands:
            assert command_line[command_line.index("--run-part") + 1] == "compiled_ahead"
            shares.append(PartOptions.from_json(json.loads(command_line[-1])).share)
            Recorder(path).add("compiled", kernels=16, of=48, by_function={}, seconds=1.0)
        return ends

    monkeypatch.setattr(compiling, "run_together", together)
    assert compiled(options, path)[-1]["text"] == "3 processes made 48 Triton kernels ready in 12 s"
    assert shares == [(0, 3), (1, 3), (2, 3)]
    ends[1] = Ended(None, 57.0, "")
    assert compiled(options, path)[-1]["text"].startswith("1 of 3 processes had not compiled their share")
    ends[2] = Ended(1, 5.0, "CompilationError: at 3:4")
    with pytest.raises(PartFailedError, match="ended with 1: CompilationError"):
        compiled(options, path)


def test_commands_run_together_and_none_is_left(tmp_path: Path) -> None:
    started = time.monotonic()
    wait = [sys.executable, "-c", "import time; time.sleep(600)"]
    meet = f"""
import os, time
from pathlib import Path
Path({str(tmp_path)!r}, os.environ["NAME"]).touch()
while not (Path({str(tmp_path)!r}) / os.environ["OTHER"]).exists():
    time.sleep(0.05)
"""
    pair = [
        ([sys.executable, "-c", meet], {"NAME": "a", "OTHER": "b"}),
        ([sys.executable, "-c", meet], {"NAME": "b", "OTHER": "a"}),
    ]
    assert [one.code for one in compiling.run_together(pair, 60)] == [0, 0]
    assert [one.code for one in compiling.run_together([*pair, (wait, {})], 3)] == [0, 0, None]
    with pytest.raises(FileNotFoundError):
        compiling.run_together([(wait, {}), (["no such program"], {})], 60)
    assert time.monotonic() - started < 30


def test_tests_of_triton_compile_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path / "records")
    options = PartOptions(seconds=100)
    for told, reason in ((REHEARSAL, "a rehearsal"), (replace(options, backends=("cuda",)), "not asked for")):
        testing_triton.run(recorder, told)
        assert reason in records.read(recorder.path)[-1]["text"]
    monkeypatch.setattr(testing_triton, "why_not", lambda *_: "no triton")
    testing_triton.run(recorder, options)
    assert records.read(recorder.path)[-1]["text"] == "no test ran on Triton: no triton"

    monkeypatch.setattr(testing_triton, "why_not", lambda *_: None)
    monkeypatch.setattr(testing_triton, "processes", lambda: 2)
    ran: list[Any] = []

    def together(commands: Sequence[Any], seconds: float) -> list[Ended]:
        assert seconds == 60
        ran.extend(environment for _, environment in commands)
        return [Ended(1, 40.0, ""), Ended(None, 60.0, "")]

    def tests(recorder: Recorder, options: PartOptions, backend: str, end: float) -> None:
        ran.append(backend)
        raise PartFailedError("1 of 9 tests failed")

    monkeypatch.setattr(testing_triton, "run_together", together)
    monkeypatch.setattr(testing_triton, "run_tests", tests)
    with pytest.raises(PartFailedError, match="1 of 9"):
        testing_triton.run(recorder, options)
    assert [one[testing_triton.SHARE_VARIABLE] for one in ran[:2]] == ["0/2", "1/2"]
    assert {one[testing.MODE_VARIABLE] for one in ran[:2]} == {"compile"}
    assert {one[testing.BACKENDS_VARIABLE] for one in ran[:2]} == {"triton"}
    assert ran[2] == "triton"
    assert records.read(recorder.path)[-1]["text"].endswith("compiled for 60 s; 1 of 2 were stopped")


# --- the floor


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("nvcc") is None:
        missing("nvcc is not on PATH")
    return floor.build("sm_90", tmp_path_factory.mktemp("floor"))


def test_the_floor_compiles(library: Path) -> None:
    loaded = ctypes.CDLL(str(library))
    assert loaded.floor_read
    assert loaded.floor_launch
    floor.Floor(library)


def test_the_floor_reads_16_bytes_at_a_time(library: Path, tmp_path: Path) -> None:
    """In nvcc's PTX: as many loads in a pass as are meant to be in flight, and no store inside the loop."""
    ptx = tmp_path / "floor.ptx"
    subprocess.run(["nvcc", "-O3", "-std=c++17", "-arch=sm_90", "-ptx", str(floor.SOURCE), "-o", str(ptx)], check=True)
    text = ptx.read_text()
    assert text.count("ld.global.nc.L1::no_allocate.v4.u32") == 8 + 1
    assert text.count("st.global") == 1


def test_a_floor_that_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script_on_path(tmp_path / "bin", monkeypatch, "nvcc", "echo 'unsupported gpu architecture' >&2; exit 1")
    with pytest.raises(floor.FloorError, match="unsupported gpu architecture"):
        floor.build("sm_12345", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(floor.FloorError, match="nvcc is not on PATH"):
        floor.build("sm_90", tmp_path)
    (tmp_path / "no library").write_text("")
    with pytest.raises(floor.FloorError, match="cannot be loaded"):
        floor.Floor(tmp_path / "no library")


# --- peers


def job(key: str, vocab: int = 8, dtype: torch.dtype = torch.float32) -> Job:
    return Job(Work.parse(key), 2, vocab, 1, dtype)


@pytest.fixture
def flashinfer_stand_in(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """Modules with FlashInfer's names and signatures, which note how they are called."""
    called: list[tuple[str, dict[str, Any]]] = []

    def function(name: str, takes_seed: bool = True) -> Callable[..., Tensor]:
        def noted(rows: Tensor, **keywords: Any) -> Tensor:
            called.append((name, keywords))
            return rows.softmax(-1) if name == "softmax" else rows.argmax(-1).int()

        def with_seed(rows: Tensor, seed: Any = None, offset: Any = None, **keywords: Any) -> Tensor:
            assert seed.dtype is offset.dtype is torch.int64
            return noted(rows, **keywords)

        return with_seed if takes_seed else noted

    def cake(probs: Tensor, top_k: int, top_p: float, *, philox_seed: int, philox_offset: int) -> Tensor:
        called.append(("cake", {"top_k": top_k, "top_p": top_p}))
        return probs.argmax(-1).int()

    sampling = ModuleType("flashinfer.sampling")
    for name in ("sampling_from_logits", "top_k_top_p_sampling_from_logits", "sampling_from_probs",
                 "top_k_sampling_from_probs", "top_p_sampling_from_probs", "min_p_sampling_from_probs",
                 "top_k_top_p_sampling_from_probs"):  # fmt: skip
        setattr(sampling, name, function(name))
    sampling.softmax = function("softmax", takes_seed=False)
    cake_sampling = ModuleType("flashinfer.cake_sampling")
    cake_sampling.top_k_top_p_sampling_from_probs = cake
    for module in (ModuleType("flashinfer"), sampling, cake_sampling):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        module.__path__ = []
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return called


@pytest.mark.parametrize(
    ("peer", "work", "expected"),
    [
        ("logits", "plain", [("sampling_from_logits", {})]),
        ("logits", "t0.8-k50-p0.9", [("top_k_top_p_sampling_from_logits", {"top_k": 50, "top_p": 0.9})]),
        ("logits", "k50", [("top_k_top_p_sampling_from_logits", {"top_k": 50, "top_p": 1.0})]),
        ("logits", "p0.9", None),
        ("logits", "m0.05", None),
        ("probs", "plain", [("softmax", {"temperature": 1.0}), ("sampling_from_probs", {})]),
        ("probs", "t0.8-p0.9", [("softmax", {"temperature": 0.8}), ("top_p_sampling_from_probs", {"top_p": 0.9})]),
        ("probs", "k50", [("softmax", {"temperature": 1.0}), ("top_k_sampling_from_probs", {"top_k": 50})]),
        ("probs", "m0.05", [("softmax", {"temperature": 1.0}), ("min_p_sampling_from_probs", {"min_p": 0.05})]),
        (
            "probs",
            "k50-p0.9",
            [("softmax", {"temperature": 1.0}), ("top_k_top_p_sampling_from_probs", {"top_k": 50, "top_p": 0.9})],
        ),
        ("probs", "k50-m0.05", None),
        ("cake", "k1000", [("softmax", {"temperature": 1.0}), ("cake", {"top_k": 1000, "top_p": 1.0})]),
        ("cake", "k1025", None),
        ("cake", "p0.9", None),
        ("probs", "greedy", None),
        ("cake", "mixed", None),
    ],
)
def test_flashinfer_is_called_as_it_wants(
    flashinfer_stand_in: list[tuple[str, dict[str, Any]]], peer: str, work: str, expected: Any
) -> None:
    one = {
        "logits": flashinfer.FlashInferFromLogits(),
        "probs": flashinfer.FlashInferFromProbs(),
        "cake": flashinfer.CakeSampling(),
    }[peer]
    assert one.missing() is None
    with pytest.raises(NotServedError):
        one.start(job("k50", dtype=torch.bfloat16))
    if expected is None:
        with pytest.raises(NotServedError):
            one.start(job(work))
        return
    session = one.start(job(work))
    logits = torch.tensor([[0.0, 3.0], [2.0, 1.0]])
    session.load(logits)
    assert session.draw().tolist() == [1, 0]
    assert flashinfer_stand_in == expected


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        (flashinfer.FlashInferFromLogits(), "top_k_top_p_sampling_from_logits"),
        (flashinfer.FlashInferFromProbs(), "top_k_top_p_sampling_from_probs"),
    ],
)
def test_flashinfer_takes_filters_by_row(
    flashinfer_stand_in: list[tuple[str, dict[str, Any]]], peer: Any, expected: str
) -> None:
    session = peer.start(job("k3-p0.9-half"))
    session.load(torch.randn(2, 8))
    session.draw()
    name, given = flashinfer_stand_in[-1]
    assert name == expected
    assert given["top_k"].tolist() == [3, 8]
    assert given["top_p"].tolist() == pytest.approx([0.9, 1.0])
    with pytest.raises(NotServedError):
        flashinfer.CakeSampling().start(job("k3-p0.9-half"))


def test_vllm_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = vllm_triton.VllmNative()
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "cannot be imported" in (peer.missing() or "")
    module = ModuleType("vllm.v1.sample.ops.topk_topp_sampler")
    told: list[list[list[float]]] = []

    def apply(logits: Tensor, k: Tensor, p: Tensor) -> Tensor:
        told.append([k.tolist(), p.tolist()])
        return logits.masked_fill_(logits < logits.topk(2).values[:, -1:], -torch.inf)

    module.apply_top_k_top_p_pytorch = apply
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert peer.missing() is None
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    session = peer.start(job("k2-p0.5-half"))
    session.load(logits)
    tokens = session.draw()
    assert (tokens[:, None] == logits.topk(2).indices).any(dim=1).all()
    assert told == [[[2, 8], [0.5, 1.0]]]


def test_peers_that_are_not_there_say_so() -> None:
    for peer in (flashinfer.FlashInferFromLogits(), flashinfer.CakeSampling()):
        if importlib.util.find_spec("flashinfer") is None:
            assert "flashinfer" in (peer.missing() or "")


VLLM_FILE = """
import torch
from vllm.platforms import current_platform
from vllm.triton_utils import tl, triton
from vllm.utils.gpu_sync_debug import gpu_sync_allowed
from vllm.utils.math_utils import next_power_of_2
from vllm.utils.platform_utils import num_compute_units

assert triton.here and tl.here and current_platform.is_cuda_alike()
assert [next_power_of_2(number) for number in (1, 2, 3, 64, 65)] == [1, 2, 4, 64, 128]
with gpu_sync_allowed():
    pass

def apply_top_k_top_p_triton(logits, k, p, mask_value=float("-inf")):
    assert logits.dtype == torch.float32
    assert k is None or (k.dtype == torch.int32 and k.shape == (len(logits),))
    assert p is None or (p.dtype == torch.float32 and p.shape == (len(logits),))
    least = logits.topk(1 if k is None else int(k[0])).values[:, -1:]
    return logits.masked_fill_(logits < least, mask_value)
"""


@pytest.fixture
def triton_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "triton.language"):
        module = ModuleType(name)
        module.here = True
        monkeypatch.setitem(sys.modules, name, module)


def test_vllms_kernel_from_a_copy_of_its_file(
    tmp_path: Path, triton_stand_in: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "topk_topp_triton.py"
    file.write_text(VLLM_FILE)
    monkeypatch.setenv(vllm_triton.FILE_VARIABLE, str(file))
    peer = vllm_triton.VllmTriton()
    assert peer.missing() is None
    assert not [name for name in sys.modules if name.partition(".")[0] == "vllm"], "the stand-ins are gone"
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    for work in ("t0.5-k2-p0.9", "k1", "p0.9"):
        session = peer.start(job(work))
        before = logits.clone()
        for _ in range(5):
            session.load(logits)
            tokens = session.draw()
            allowed = logits.topk(2 if work.startswith("t") else 1).indices
            assert (tokens[:, None] == allowed).any(dim=1).all()
        assert torch.equal(logits, before), "it masks in place, which must not reach the inputs"
    for work in ("plain", "m0.05", "greedy", "mixed"):
        with pytest.raises(NotServedError):
            peer.start(job(work))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("from vllm.model_executor.warmup.jit_warmup import WarmupChoices", "vllm.model_executor"),
        ("x = 1", "has no apply_top_k_top_p_triton"),
    ],
)
def test_a_copy_that_is_no_use(
    tmp_path: Path, triton_stand_in: None, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    file = tmp_path / "copy.py"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv(vllm_triton.FILE_VARIABLE, str(file))
    assert message in (vllm_triton.VllmTriton().missing() or "")
    assert "vllm" not in sys.modules


def test_torch_compile_draws_from_the_kept_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # The default compiler takes a quarter of a minute here; what is to be seen is that there is one graph to compile.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    torch._dynamo.reset()
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    session = TorchCompiled().start(job("k3"))
    session.load(logits)
    tokens = session.draw()
    assert (tokens[:, None] == logits.topk(3).indices).any(dim=1).all()


class ReadyPeer:
    key, label, package, note = "ready", "Ready", "torch", "a note"

    def missing(self) -> str | None:
        return None

    def start(self, job: Job) -> Any:
        if job.work.min_p:
            raise NotServedError("no min_p")
        return SimpleNamespace(load=lambda logits: None, draw=lambda: torch.zeros(job.batch))


class FailingPeer(ReadyPeer):
    key, label = "failing", "Failing"

    def start(self, job: Job) -> Any:
        raise RuntimeError("nvcc failed")


class MissingPeer(ReadyPeer):
    key, label, package = "missing", "Missing", "no-such-package"

    def missing(self) -> str:
        return "not installed"


def test_peers_are_made_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readying, "PEERS", {peer.key: peer for peer in (ReadyPeer(), FailingPeer(), MissingPeer())})
    recorder = Recorder(tmp_path / "records")
    readying.run(recorder, REHEARSAL)
    found = records.read(recorder.path)
    # Each is recorded before its first call as well, so that one that never returns is not measured.
    assert [record["key"] for record in found] == ["ready", "ready", "failing", "failing", "missing"]
    latest = {record["key"]: record for record in found}
    assert latest["ready"]["missing"] is None
    assert latest["ready"]["version"] == torch.__version__
    assert "nvcc failed" in latest["failing"]["missing"]
    assert latest["missing"]["missing"] == "not installed"
    assert found[0]["missing"] == "its first call did not end in time"


@pytest.fixture(autouse=True)
def _no_result_is_left() -> Iterator[None]:
    before = sorted(results.COMMITTED.iterdir())
    yield
    assert sorted(results.COMMITTED.iterdir()) == before, "a test wrote among the measured results"

"""The benchmark: a tiny run of the whole command, and the parts that judge."""

import copy
import ctypes
import importlib.util
import json
import re
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

import fastsample
from fastsample import cli
from fastsample.benchmarks import (
    bench,
    check,
    drawing,
    features_run,
    goals,
    grid,
    machine,
    markdown,
    memory,
    plot,
    report,
    results,
    rows,
    timing,
)
from fastsample.benchmarks import run as runner
from fastsample.benchmarks.gpu import bench as gpu_bench
from fastsample.benchmarks.gpu import grid as gpu_grid
from fastsample.benchmarks.gpu import results as gpu_results
from fastsample.benchmarks.gpu.options import Axes
from fastsample.benchmarks.gpu.timing import GpuTimes
from fastsample.benchmarks.grid import Setting
from fastsample.benchmarks.peers import PEERS, vllm
from fastsample.benchmarks.peers.base import Job, NotServedError, Work
from fastsample.benchmarks.results import Measurement, PeerStatus, Results
from fastsample.benchmarks.timing import Contestant, Times

MIB = 2**20
SETTING = Setting(threads=1, vocab=128256, batch=1, dtype="float32", rows="real", with_peers=True)


class MissingPeer:
    key, label, package, note = "missing", "Missing", "no-such-package", ""

    def missing(self) -> str:
        return "no compiler"


class WrongPeer:
    """Draws the least likely token of every row."""

    key, label, package, note = "wrong", "Wrong", "torch", ""

    def missing(self) -> None:
        return None

    def start(self, job: Job) -> "WrongPeer":
        if job.dtype is not torch.float32:
            raise NotServedError("float32 only")
        return self

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return self.logits.argmin(dim=1)


class TickingTime:
    """A clock for what a measurement may take, that goes on a hundredth of a second when it is looked at: however busy
    the machine is, each contestant has its turns. What a call takes is real."""

    clock = 0.0

    def perf_counter(self) -> float:
        self.clock += 0.01
        return self.clock

    perf_counter_ns = staticmethod(time.perf_counter_ns)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of `fastsample bench`: its JSON, beside which the picture lies."""
    path = tmp_path_factory.mktemp("bench") / "new folder" / "bench.json"
    options = (
        "--vocab 1000 --batch 2 3 --threads 1 --dtype float32 bfloat16 --rows normal-3 real sawtooth-16 "
        "--work k50-p0.9 greedy --peers torch missing wrong --budget 90 --rotate 1 --no-memory --out"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")  # whose self-check takes longer than the budget
        patch.setattr(timing, "time", TickingTime())
        patch.setitem(PEERS, "missing", MissingPeer())
        patch.setitem(PEERS, "wrong", WrongPeer())
        assert cli.main(["bench", *options.split(), str(path)]) == 0
    return path


def test_the_file_holds_everything(run: Path) -> None:
    content = json.loads(run.read_text())
    assert content["format"] == results.FORMAT
    for name in ("CPU", "instruction set", "caches", "torch", "python", "commit", "memory"):
        assert content["machine"][name]
    assert content["date"][:2] == "20"
    assert content["command"].startswith("fastsample bench --vocab 1000")
    assert content["load_average"] >= 0
    assert bool(content["warnings"]) == (content["used_by_others"] >= 0.1)
    assert content["elapsed_seconds"] > 0
    assert "(vocabulary 49152) cut to 1000 tokens" in content["rows_made"]["real logits, V 1000"]
    assert len(content["measurements"]) == 2 * 2 * 3 * 2  # batches, dtypes, rows, works
    for entry in content["measurements"]:
        assert entry["vocab"] == 1000
        assert entry["tokens_checked"] == 2
        assert entry["goal_ratio_to_softmax"] is None
        for who in (entry["fastsample"], entry["softmax"], entry["one_read"], entry["peers"]["torch"]):
            assert 0 < who["p10"] <= who["median"] <= who["p90"]
            assert who["calls"] >= 1
        assert entry["ratio_to_softmax"] == pytest.approx(
            entry["fastsample"]["median"] / entry["softmax"]["median"], abs=1e-3
        )
        assert entry["best_peer"] == "torch"


def test_peers_are_skipped_with_a_reason(run: Path) -> None:
    content = json.loads(run.read_text())
    assert content["peers"]["missing"]["missing"] == "no compiler"
    assert content["peers"]["torch"]["missing"] is None
    assert content["peers"]["torch"]["version"] == torch.__version__
    assert any(reason.startswith("Wrong, B 2: Wrong (greedy) drew token") for reason in content["skipped"])
    assert "Wrong: float32 only (all work)" in content["skipped"]
    assert len(content["skipped"]) == len(set(content["skipped"]))
    assert not any({"missing", "wrong"} & set(entry["peers"]) for entry in content["measurements"])


def test_a_file_is_read_back_whole(run: Path, tmp_path: Path) -> None:
    first = results.load(run)
    results.save(first, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == run.read_text()
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="not a file of fastsample bench"):
        results.load(tmp_path / "other.json")


def test_the_picture_is_a_png(run: Path) -> None:
    assert run.with_suffix(".png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_tables_say_what_and_where(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--show", str(run)]) == 0
    shown = capsys.readouterr().out
    for expected in ("instruction set", "V 1000, bfloat16, 1 thread", "sawtooth 16", "k 50, p 0.9", "no compiler"):
        assert expected in shown
    assert cli.main(["bench", "--show", str(run), "--markdown"]) == 1
    assert "V = 128256" in capsys.readouterr().err
    assert cli.main(["bench", "--show", str(run.with_name("absent.json"))]) == 1


def test_a_spent_budget_is_said(tmp_path: Path) -> None:
    plan = replace(grid.PRESETS["quick"], seconds=0.0, peers=())
    empty = sample_results([])
    bench.Runner(plan, empty, rows.RealLogits([]), MIB, started=-1e9).run(lambda *_: None)
    (reason,) = empty.skipped
    assert reason.startswith(
        "the time budget was spent after 0 of 8 settings; the first that was not measured: V 128256,"
    )
    assert grid.settings(plan)[-1].label in reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work", "k50-z3"], "greedy, or parts joined by '-'"),
        (["--rows", "triangles"], "accepted: real, normal-S"),
        (["--batch", "0"], "0 is not at least 1"),
        (["--peers", "nobody"], "invalid choice: 'nobody'"),
    ],
)
def test_bad_options_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


def test_wrong_tokens_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(check, "expected_tokens", lambda logits, work: torch.full((2,), -7))
    options = (
        "--vocab 100 --batch 2 --threads 1 --dtype float32 --rows normal-1 --peers none --budget 90 --no-memory --out"
    )
    assert bench.main([*options.split(), str(tmp_path / "bench.json")]) == 1
    assert "the reference [-7, -7]" in capsys.readouterr().err
    assert not (tmp_path / "bench.json").exists()


# --- on a GPU


@pytest.mark.parametrize("interpreted", ["0", "1"])
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_without_a_gpu_nothing_is_measured(
    backend: str, interpreted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "--backend", backend, "--out", str(tmp_path / "bench.json")]) == 2
    told = capsys.readouterr()
    assert f"--backend {backend}: it is timed on a GPU, and torch {torch.__version__} sees none" in told.err
    assert ("interpreter" in told.err) == (backend == "triton")
    assert told.out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_a_gpu_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for reason in ("triton is not installed", "TRITON_INTERPRET is set"):
        monkeypatch.setattr(gpu_bench, "why_not", lambda backend, rehearsal, reason=reason: reason)
        assert bench.main(["--backend", "triton"]) == 1
        assert f"--backend triton: {reason}" in capsys.readouterr().err


def gpu_run() -> gpu_results.GpuResults:
    """Made-up data, marked as such, in the form of the GPU command."""
    times = GpuTimes(12.0, 11.0, 13.0, replays=20, calls=8, how="graph")._asdict()
    place = gpu_results.Place(1000, 7, "float32", "real")
    record = {
        "kind": "setting", **place._asdict(), "references": {"floor": times},
        "works": {"k50": {gpu_results.TRITON: {**times, "median": 24.0}}},
    }  # fmt: skip
    part = gpu_results.Part("ok", records=[record])
    return gpu_results.GpuResults("2026-01-02", "fastsample bench", 60.0, kind="sample", parts={"benchmark": part})


def test_on_a_gpu_the_gpu_command_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the command, which needs the GPU; what it is told, and what is shown of what it writes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_bench, "why_not", lambda backend, rehearsal: None)
    told: list[str] = []

    def command(arguments: Sequence[str]) -> int:
        told.extend(arguments)
        gpu_results.save(gpu_run(), tmp_path / "gpu.json")
        return 1

    monkeypatch.setattr(gpu_bench.command, "main", command)
    options = "--vocab 1000 --batch 7 9 7 --dtype float32 --work k50 t0.8 --budget 60 --peers torch --backend triton"
    assert bench.main([*options.split(), "--out", str(tmp_path / "gpu.json")]) == 1
    expected = (
        f"--parts environment compile peers benchmark --backends triton --out {tmp_path}/gpu --budget 60 "
        "--vocabs 1000 --batches 7 9 --dtypes float32 --works k50 t0.8 --peers torch"
    )
    assert told == expected.split()
    assert "| k 50 | real logits | fastsample (Triton) | 24.0 (2.00) |" in capsys.readouterr().out

    told.clear()
    bench.main(["--backend", "cuda", "--peers", "none", "--out", str(tmp_path / "gpu.json")])
    assert told[told.index("--backends") + 1] == "cuda"
    assert told[-1] == "--peers"


def test_presets_are_measured_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_bench, "why_not", lambda backend, rehearsal: None)
    told: list[str] = []

    def command(arguments: Sequence[str]) -> int:
        told[:] = arguments
        return gpu_bench.NO_GPU

    def given(option: str) -> list[str]:
        rest = told[told.index(option) + 1 :]
        return rest[: next((place for place, text in enumerate(rest) if text.startswith("--")), len(rest))]

    monkeypatch.setattr(gpu_bench.command, "main", command)
    bench.main(["--backend", "cuda", "--preset", "flashinfer", "--batch", "64"])
    assert given("--vocabs") == ["128512"]
    assert given("--batches") == ["64"], "what the command line says goes before what the preset says"
    assert given("--rows") == ["normal-1", "normal-5", "gumbel-0.1", "gumbel-1"]
    assert given("--works") == ["plain", "k10", "k100", "k1000", "k5000", "p0.1", "p0.5", "p0.9"]
    assert "--eager" not in told
    bench.main(["--backend", "triton", "--preset", "tensorrt-llm"])
    assert given("--vocabs") == ["32000", "131072"]
    assert given("--works")[-1] == "t0.8-k50-p0.9-half"
    assert "--eager" in told
    bench.main(["--backend", "cuda", "--preset", "real"])
    assert given("--vocabs") == ["49152"]
    assert given("--rows") == ["real"]
    bench.main(["--backend", "cuda", "--quick"])
    assert given("--batches") == ["1", "32"]
    todo = gpu_grid.settings(Axes((128512,), (1, 64), ("float32",), ("gumbel-1",), ("k10", "p0.1", "p0.5")))
    assert [(one.place.batch, one.peers, one.compiled) for one in todo] == [
        (1, True, False), (64, True, False), (1, False, True),
    ]  # fmt: skip
    assert todo[-1].works == ("k10", "p0.1"), "torch.compile takes long, and comes last"


def test_a_file_of_the_gpu_command_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    gpu_results.save(gpu_run(), path)
    assert bench.main(["--show", str(path), "--markdown", "--plot", str(tmp_path / "again.png")]) == 0
    shown = capsys.readouterr().out
    assert "MADE-UP SAMPLE DATA" in shown
    assert "| k 50 | real logits | fastsample (Triton) | 24.0 (2.00) |" in shown
    assert (tmp_path / "again-time.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--backend triton --threads 2", "--threads: of the benchmark on the CPU, and not of --backend triton"),
        ("--backend cuda --no-memory --rotate 1", "--rotate, --memory: of the benchmark on the CPU"),
        ("--backend triton --peers torch llama-cpp", "--peers llama-cpp: of the benchmark on the CPU"),
        ("--peers flashinfer-logits", "--peers: flashinfer-logits run on a GPU, with --backend cuda or triton"),
    ],
)
def test_options_of_the_other_benchmark_are_refused(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments.split()) == 1
    assert message in capsys.readouterr().err


def test_a_backend_that_is_not_there_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses = {**fastsample.backends(), "cpu": fastsample.backends()["cpu"]._replace(usable=False, detail="not built")}
    monkeypatch.setattr(bench, "backends", lambda: statuses)
    assert bench.main(["--backend", "cpu"]) == 1
    assert "--backend cpu: not built" in capsys.readouterr().err


# --- what is measured


_KEYS = ["plain", "greedy", "k50", "p0.9", "k50-p0.9", "t0.8-k50-p0.9-m0.05-half", "t2-p0.1234567-m0.00001", "half"]


@pytest.mark.parametrize("key", _KEYS)
def test_work_has_one_key(key: str) -> None:
    work = Work.parse(key)
    assert work.key == key
    assert Work.parse(work.key) == work


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("p1.5", "top_p is 1.5; accepted: a number from 0 to 1"),
        ("m2", "min_p is 2; accepted: a number from 0 to 1"),
        (f"t{'9' * 400}", "temperature is inf; accepted: a finite number"),
        ("k50-k60", "top_k twice"),
        ("half-k5-half", "half_neutral twice"),
        ("t0-k50", "give greedy"),
        ("greedy-k50", "accepted: plain"),
        ("", "accepted: plain"),
    ],
)
def test_work_that_is_none_is_refused(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Work.parse(key)


def test_half_of_the_rows_may_be_neutral() -> None:
    parameters = Work.parse("t0.8-k50-half").parameters(3)
    assert parameters["top_k"].tolist() == [50, 0, 50]
    assert parameters["temperature"].tolist() == pytest.approx([0.8] * 3)
    assert fastsample.sample(torch.randn(3, 100), **parameters).shape == (3,)


def test_filters_as_servers_give_them() -> None:
    half = Work.parse("k50-p0.9-m0.1-half").filters(3, 100, torch.device("cpu"))
    assert half.top_k.tolist() == [50, 100, 50]
    assert half.top_k.dtype is torch.int32
    assert half.top_p.tolist() == pytest.approx([0.9, 1, 0.9])
    assert half.min_p.tolist() == pytest.approx([0.1, 0, 0.1])
    assert Work.parse("k50").filters(2, 30, torch.device("cpu")).top_k.tolist() == [30, 30]
    assert Work.parse("p0.9").filters(1, 30, torch.device("cpu")).top_k.tolist() == [30]


def test_the_presets_have_the_inputs_of_their_models() -> None:
    theirs = grid.PRESETS["flashinfer"]
    assert (theirs.vocabs, theirs.batches) == ((128512,), (1, 16, 32, 64, 128, 256, 512))
    assert theirs.rows == ("normal-1", "normal-5", "gumbel-0.1", "gumbel-1")
    alone = {*((k, 1.0) for k in (10, 100, 1000, 5000)), *((0, p) for p in (0.1, 0.5, 0.9))}
    assert {(work.top_k, work.top_p) for work in theirs.works} == {(0, 1.0)} | alone
    theirs = grid.PRESETS["tensorrt-llm"]
    assert (theirs.vocabs, theirs.batches, theirs.rows) == ((32000, 131072), (1, 4, 8, 16, 32, 64), ("normal-2",))
    assert {work.temperature for work in theirs.works} == {0.8}
    assert [work.label.removeprefix("T 0.8") for work in theirs.works] == [
        "", ", k 50", ", p 0.9", ", k 50, p 0.9", ", min-p 0.05", ", k 50, p 0.9, min-p 0.05",
        ", k 50, p 0.9, half neutral",
    ]  # fmt: skip
    assert [name for name, plan in grid.PRESETS.items() if plan.eager] == ["tensorrt-llm"]
    for name in ("flashinfer", "tensorrt-llm", "real"):
        plan = replace(grid.PRESETS[name], vocabs=grid.PRESETS[name].vocabs or (7,), peers=("torch",))
        todo = grid.settings(plan)
        assert all(setting.with_peers for setting in todo)
        first = [one.batch for one in todo if one[:2] == todo[0][:2] and one[3:] == todo[0][3:]]
        assert first == sorted(first), "what a peer takes is known before the batch grows"
        of_first_batch = todo[: len([one for one in todo if one[1:3] == todo[0][1:3]])]
        assert {one.rows for one in of_first_batch} == set(plan.rows), "a spent budget thins all kinds"


def test_real_logits_are_measured_in_their_own_vocabulary(tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, logits=np.zeros((2, 300), np.float32))
    options = bench._parser().parse_args(["--preset", "real"])
    for files, vocabs in (([rows.REAL_LOGITS], (49152,)), ([rows.REAL_LOGITS, other], (300, 49152))):
        plan = bench._plan(options, rows.RealLogits(files))
        assert plan.vocabs == vocabs
        assert {setting.rows for setting in grid.settings(plan)} == {"real"}
    with pytest.raises(rows.NoRowsError, match=r"--preset real: .*--real-logits FILE"):
        bench._plan(options, rows.RealLogits([]))


def test_gumbel_rows_are_flashinfers() -> None:
    logits = rows.make("gumbel-0.1", 20, 5000, rows.RealLogits([]))
    assert (logits * 0.1).exp().mean() == pytest.approx(1, abs=0.02), "log(e) / 0.1, e exponential"
    assert logits.mean() == pytest.approx(-5.77, abs=0.2), "the long tail is below"


def test_the_full_grid_is_the_one_of_the_goals() -> None:
    plan = replace(grid.PRESETS["full"], peers=("torch",))
    todo = grid.settings(plan)
    assert len(todo) == len(set(todo)) == 2 * 3 * 4 * 2 * 3 + 2 * 2 * len(rows.HURT)
    assert {(one.vocab, one.batch, one.dtype) for one in todo if one.with_peers} == {
        (128256, 1, "float32"),
        (128256, 32, "float32"),
    }
    with_goal = [any(goals.largest_ratio(one, work) for work in plan.works) for one in todo]
    assert with_goal == sorted(with_goal, reverse=True)  # what has a goal comes first


@pytest.mark.parametrize("kind", ["normal-3", "gumbel-0.1", "real", *rows.HURT])
def test_rows_are_made(kind: str) -> None:
    real = rows.RealLogits([rows.REAL_LOGITS])
    logits = rows.make(kind, 3, 60000, real)
    assert logits.shape == (3, 60000)
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert bool(logits.isfinite().all())
    assert torch.equal(logits, rows.make(kind, 3, 60000, real))


def test_real_rows_are_what_they_are_called() -> None:
    real = rows.RealLogits([rows.REAL_LOGITS])
    first, second = real.make(2, 49152)
    assert not torch.equal(first.sort().values, second.sort().values)
    assert real.describe(49152).startswith("the 16 rows of real_logits.npz; ")
    assert "set end to end and cut to 60000 tokens, and so no longer a model's rows" in real.describe(60000)
    with pytest.raises(rows.NoRowsError, match="--real-logits"):
        rows.RealLogits([]).make(1, 10)


# --- how it is measured


class FakeSession:
    """Takes its time from a list and remembers which batches it was given."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds = list(seconds)
        self.seen: list[int] = []

    def load(self, logits: Tensor) -> None:
        self.seen.append(int(logits))

    def draw(self) -> int:
        timing.time.clock += self.seconds[min(len(self.seen), len(self.seconds)) - 1]  # type: ignore[attr-defined]
        return self.seen[-1]


class FakeTime:
    clock = 0.0

    def perf_counter(self) -> float:
        return self.clock

    def perf_counter_ns(self) -> int:
        return round(self.clock * 1e9)


def test_turns_rotation_and_slow_contestants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time", FakeTime())
    batches = list(torch.arange(3).split(1))
    quick, slow, refused = FakeSession([0.5, 0.01]), FakeSession([2.0]), FakeSession([0.01])
    reasons: list[str] = []

    def refuse(drawn: int, logits: Tensor) -> None:
        raise check.WrongTokensError("wrong")

    contestants: dict[str, Contestant] = {
        "quick": Contestant(quick, batches),
        "slow": Contestant(slow, batches, brief=True),
        "refused": Contestant(refused, batches, check=refuse, brief=True, left_out=reasons.append),
    }
    times = timing.measure(contestants, 3.0)
    assert reasons == ["wrong"]
    assert times["slow"] == Times(2e6, 2e6, 2e6, 1)  # longer than its share of a second: the first call counts
    assert "refused" not in times
    assert len(refused.seen) == 1
    assert quick.seen[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert times["quick"] == Times(1e4, 1e4, 1e4, len(quick.seen) - 1)  # the slow first call has warmed up
    assert 0.45 <= 0.01 * (len(quick.seen) - 1) <= 0.6  # 3 s, less 2.51 s of first calls


def test_a_peer_that_fails_or_comes_too_late_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time", FakeTime())
    batches = list(torch.arange(2).split(1))
    reasons: list[str] = []

    class Failing(FakeSession):
        def draw(self) -> int:
            raise RuntimeError("out of tokens")

    late = FakeSession([0.1])
    contestants: dict[str, Contestant] = {
        "failing": Contestant(Failing([]), batches, brief=True, left_out=reasons.append),
        "slow": Contestant(FakeSession([5.0]), batches, brief=True, left_out=reasons.append),
        "late": Contestant(late, batches, brief=True, left_out=reasons.append),
        "ours": Contestant(FakeSession([0.1]), batches),
    }
    assert timing.measure(contestants, 3.0).keys() == {"slow", "ours"}, "whoever cannot be left out is measured"
    assert reasons == ["out of tokens", timing.NO_TIME]
    assert late.seen == []
    with pytest.raises(RuntimeError, match="out of tokens"):
        timing.measure({"ours": Contestant(Failing([]), batches)}, 1.0)


@pytest.mark.parametrize("cold", [False, True])
def test_the_caches_are_cooled_for_everybody_or_nobody(cold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every draw, a first one that is checked and the softmax among them, and outside of the clock."""
    clock = FakeTime()
    monkeypatch.setattr(timing, "time", clock)
    done: list[str] = []

    def cool() -> None:
        done.append("cool")
        clock.clock += 1000

    class Noted(FakeSession):
        def draw(self) -> int:
            done.append("draw")
            return super().draw()

    monkeypatch.setattr(timing, "cool", cool)
    batches = list(torch.arange(2).split(1))
    contestants = {name: Contestant(Noted([1.0]), batches) for name in ("softmax", "ours", "peer")}
    found = timing.measure(contestants, 1.0, cold=cold)
    assert done == (["cool", "draw"] if cold else ["draw"]) * done.count("draw")
    assert {one.median for one in found.values()} == {1e6}


def test_cold_caches_are_said(tmp_path: Path) -> None:
    found = sample_results([measurement(SETTING, "greedy", 20.0, torch=40.0)])
    for cold in (False, True):
        found.cold = cold
        for text in (*report.notes(found), markdown.table(found)):
            assert ("16 MiB of other memory" in text) == (cold and ("Medians" in text or "Cold" in text))
    results.save(found, tmp_path / "cold.json")
    assert results.load(tmp_path / "cold.json").cold
    content = json.loads((tmp_path / "cold.json").read_text())
    del content["cold"]
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert not results.load(tmp_path / "old.json").cold


def test_a_single_call_is_no_median() -> None:
    slow = measurement(SETTING, "greedy", 20.0, torch=40.0)
    (one,) = (replace(slow, peers={"torch": Times(40.0, 40.0, 40.0, 1)}),)
    text = StringIO()
    report.show(sample_results([one]), Console(file=text, width=200))
    assert "40 us  2.00 (one call)" in text.getvalue()
    assert report.ONE_CALL in text.getvalue()
    table = markdown.table(sample_results([one]))
    assert "| torch (one call) | 2.00 |" in table
    assert table.endswith(report.ONE_CALL)
    for several in ([slow], []):
        assert "(one call)" not in "".join(report.notes(sample_results(several)))
    assert "(one call)" not in markdown.table(sample_results([slow]))


def test_rotation_is_past_the_cache() -> None:
    assert timing.rotation(4 * 128256, 64 * MIB) * 4 * 128256 >= 64 * MIB
    assert timing.rotation(100 * MIB, 64 * MIB) == 2
    assert timing.rotation(100, 0) == 1


# --- what is judged


def times(median: float) -> Times:
    return Times(median, median * 0.9, median * 1.2, 100)


def measurement(setting: Setting, work: str, fastsample_us: float, **peers: float) -> Measurement:
    return Measurement(
        setting=setting,
        work=Work.parse(work),
        fastsample=times(fastsample_us),
        softmax=times(100.0),
        one_read=times(20.0),
        peers={key.replace("_", "-"): times(median) for key, median in peers.items()},
        tokens_checked=2,
    )


def sample_results(measurements: list[Measurement]) -> Results:
    return Results(
        date="2026-01-02T03:04:05+00:00",
        command="fastsample bench",
        machine={"CPU": "A [b] CPU", "instruction set": "avx2", "caches": "L2 1M", "torch": "2.13", "commit": "abc"},
        backend="auto",
        budget_seconds=60,
        load_average=0.1,
        used_by_others=0.02,
        rotated_mib=64,
        rows_made={"real logits, V 128256": "rows of somewhere"},
        peers={key: PeerStatus(peer.label, "1.0", peer.note, None) for key, peer in PEERS.items()},
        measurements=measurements,
        memory=[memory.MemoryUse(32, 262144, "float32", 1, "p0.9", 3 * MIB, 256)],
    )


@pytest.mark.parametrize(
    ("changes", "work", "goal"),
    [
        ({}, "greedy", 0.25),
        ({"batch": 32, "threads": 2}, "k50", 0.25),
        ({"rows": "normal-1"}, "k50-p0.9", 0.25),
        ({}, "plain", 0.7),
        ({}, "p0.9", 0.75),
        ({"rows": "normal-3"}, "p0.9", 1.0),
        ({"dtype": "bfloat16"}, "k50", 0.2),
        ({"dtype": "bfloat16"}, "p0.9", 1.05),
        ({"dtype": "bfloat16"}, "greedy", None),
        ({"rows": "ascending"}, "p0.9", 2.0),
        ({"rows": "sawtooth-4096"}, "greedy", 2.0),
        ({"rows": "sawtooth-5"}, "greedy", None),
        ({"vocab": 49152}, "greedy", None),
        ({"batch": 8}, "greedy", None),
        ({"threads": 4}, "greedy", None),
        ({}, "k40", None),
    ],
)
def test_goals(changes: dict[str, Any], work: str, goal: float | None) -> None:
    setting = SETTING._replace(**changes)
    assert goals.largest_ratio(setting, Work.parse(work)) == goal
    if goal is not None:
        assert measurement(setting, work, 100 * goal).met
        assert not measurement(setting, work, 100.1 * goal).met


def test_goals_against_peers() -> None:
    one = measurement(SETTING, "k50", 10.0, llama_cpp=49.0, hugging_face=1501.0, torch=10.0)
    assert one.peer_goals == {"llama-cpp": 5.0, "hugging-face": 150.0}
    assert one.best_peer == "torch"
    found = list(report.verdict(sample_results([one])))
    assert "goals against peers: 1 of 2 met" in found
    assert any("4.90 times as fast as llama.cpp, goal 5" in line for line in found)
    assert "goal of memory: 0 of 1 met" in found
    assert measurement(SETTING, "p0.9", 10.0, llama_cpp=49.0).peer_goals == {}


def test_the_report_names_what_fails() -> None:
    hurt = [
        measurement(SETTING._replace(rows=kind), "p0.9", ratio)
        for kind, ratio in (("ascending", 120.0), ("equal", 250.0))
    ]
    found = sample_results([measurement(SETTING, "greedy", 24.0, torch=100.0), *hurt])
    assert report.worst_of_hurt(found.measurements) == [hurt[1]]
    text = StringIO()
    report.show(found, Console(file=text, width=160))
    for expected in (
        "A [b] CPU",
        "made to hurt, worst: all equal",
        "goals against softmax: 2 of 3 met",
        "not met: p 0.9, V 128256, B 1, float32, all equal, 1 thread: 2.50 of x, goal 2 (the floor is 0.20)",
        "0.24",
        "4.17",  # times as fast as torch
        "3.00 MiB",
    ):
        assert expected in text.getvalue()


def test_the_markdown_table() -> None:
    found = sample_results(
        [
            measurement(SETTING, "p0.9", 60.0, torch=6000.0),
            measurement(SETTING._replace(rows="normal-3"), "p0.9", 90.0),
            measurement(SETTING, "greedy", 20.0, torch=40.0, llama_cpp=30.0),
            measurement(SETTING._replace(batch=32), "greedy", 2000.0),
            measurement(SETTING._replace(threads=2), "greedy", 1.0),
        ]
    )
    lines = markdown.table(found).splitlines()
    assert lines[2] == "| p 0.9 | real logits | 60 us | 0.60 | torch | 100 | - | - | - | - |"
    assert lines[3] == "| p 0.9 | N(0,3) | 90 us | 0.90 | - | - | - | - | - | - |"
    assert lines[4] == "| greedy | real logits | 20 us | 0.20 | llama.cpp | 1.50 | 2 ms | 20.0 | - | - |"
    assert {line.count("|") for line in lines[:5]} == {11}
    assert "A [b] CPU (avx2), torch 2.13, commit abc, 2026-01-02" in lines[6]


def test_the_picture_of_a_run_without_peers(tmp_path: Path) -> None:
    found = sample_results([measurement(SETTING, "greedy", 20.0)])
    plot.save(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="nothing was measured"):
        plot.save(sample_results([]), tmp_path / "nothing.png")


@pytest.mark.parametrize("value", [0.5, 8.25, 123.4, 5432.1, 2.5e6])
def test_times_have_three_digits(value: float) -> None:
    number, unit = report.microseconds(value).split()
    assert float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit] == pytest.approx(value, rel=5e-3)


# --- correctness before speed


def test_peers_may_choose_among_ties_but_not_outside_the_kept_set() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    work = Work(top_k=2)
    for token in (0, 1, 2, 3):
        check.check_peer("peer", [token], logits, work)
    for tokens in ([4], [5], [-1], [0, 0]):
        with pytest.raises(check.WrongTokensError, match="peer"):
            check.check_peer("peer", tokens, logits, work)
    with pytest.raises(check.WrongTokensError):
        check.check_peer("peer", [1], logits, Work(temperature=0.0))


_WORKS = ["k50-p0.9", "p0.9", "k50", "plain", "greedy", "t0.8-k20", "m0.05", "t0.8-k50-p0.9-m0.05", "k50-p0.9-half"]
_NOT_SERVED = {
    "hugging-face": ["k50-p0.9-half"],
    "llama-cpp": ["k50-p0.9-half"],
    "onnxruntime-genai": ["k50-p0.9-half", "m0.05", "t0.8-k50-p0.9-m0.05"],
    "ctranslate2": ["k50-p0.9-half", "m0.05", "t0.8-k50-p0.9-m0.05"],
}


@pytest.mark.parametrize("key", PEERS)
@pytest.mark.parametrize("work", _WORKS)
def test_installed_peers_draw_from_the_kept_set(key: str, work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = PEERS[key]
    if reason := peer.missing():
        pytest.skip(reason)
    # The default compiler takes seconds for each; that there is one graph to compile shows with this one too.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1)) * 3
    job = Job(Work.parse(work), batch=3, vocab=2000, threads=2, dtype=torch.float32)
    if work in _NOT_SERVED.get(key, []):
        with pytest.raises(NotServedError):
            peer.start(job)
        return
    session = peer.start(job)
    drawn = set()
    for _ in range(5):
        session.load(logits)
        tokens = session.draw()
        check.check_peer(peer.label, tokens, logits, job.work)
        drawn.add(tuple(int(token) for token in tokens))
    assert (len(drawn) == 1) == job.work.greedy
    with pytest.raises(NotServedError):
        peer.start(job._replace(work=Work.parse("mixed")))


def test_a_batch_that_onnx_runtime_refuses_is_not_begun() -> None:
    with pytest.raises(NotServedError, match="its batches end at 32 rows"):
        PEERS["onnxruntime-genai"].start(Job(Work.parse("k50"), 33, 50, 1, torch.float32))


def test_a_neutral_row_of_torch_by_hand_takes_no_filter() -> None:
    logits = torch.zeros(2, 50)
    session = PEERS["torch"].start(Job(Work.parse("k2-p0.9-m0.5-half"), 2, 50, 1, torch.float32))
    session.load(logits)
    drawn = torch.stack([torch.as_tensor(session.draw()) for _ in range(60)])
    assert len(drawn[:, 0].unique()) <= 2
    assert len(drawn[:, 1].unique()) > 20


def test_min_p_of_torch_by_hand() -> None:
    logits = torch.tensor([[0.3, 0.5, 0.1, 0.1]]).log()
    session = PEERS["torch"].start(Job(Work.parse("m0.5"), 1, 4, 1, torch.float32))
    session.load(logits)
    assert {int(torch.as_tensor(session.draw())) for _ in range(60)} == {0, 1}


def test_vllm_is_told_what_its_model_runner_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Sampler:
        def __call__(self, logits: Tensor, metadata: Any) -> Any:
            told.append(metadata)
            logits.fill_(0)  # as vLLM does
            return SimpleNamespace(sampled_token_ids=torch.zeros(len(logits), 1, dtype=torch.int32))

    class MinP:
        def __init__(self, *given: Any) -> None:
            self.given = given

        def update_state(self, update: Any) -> None:
            self.update = update

    contents: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.v1.sample.sampler": {"Sampler": Sampler},
        "vllm.v1.sample.metadata": {"SamplingMetadata": SimpleNamespace},
        "vllm.v1.sample.logits_processor": {
            "LogitsProcessors": list,
            "MinPLogitsProcessor": MinP,
            "BatchUpdate": SimpleNamespace,
        },
    }
    for name, members in contents.items():
        module = ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    peer = vllm.Vllm()
    assert peer.missing() is None
    logits = torch.ones(3, 9)
    for work in ("greedy", "t0.8-k5-p0.9-m0.1-half"):
        session = peer.start(Job(Work.parse(work), 3, 9, 1, torch.float32))
        session.load(logits)
        assert torch.as_tensor(session.draw()).flatten().tolist() == [0, 0, 0]
    assert bool((logits == 1).all()), "the logits of the others are not overwritten"
    greedy, half = told
    assert (greedy.all_greedy, greedy.temperature, greedy.top_k, greedy.top_p) == (True, None, None, None)
    assert greedy.logitsprocs == []
    assert half.all_random
    assert half.temperature.tolist() == pytest.approx([0.8] * 3)
    assert half.top_k.tolist() == [5, 9, 5]
    assert half.top_p.tolist() == pytest.approx([0.9, 1, 0.9])
    (min_p,) = half.logitsprocs
    assert [added[1].min_p for added in min_p.update.added] == pytest.approx([0.1, 0, 0.1])


def test_a_peer_that_is_compiled_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    def compiler(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        assert options["fullgraph"]
        begun.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiler)
    job = Job(Work.parse("k3"), 2, 77, 1, torch.float32)
    for _ in range(2):
        session = PEERS["torch-compile"].start(job)
        session.load(torch.randn(2, 77))
        session.draw()
    assert len(begun) == 1


# --- the runner


class NotedPeer:
    """Draws the most likely token, and notes each start."""

    key, label, package, note = "noted", "Noted", "torch", ""

    def __init__(self) -> None:
        self.started: list[tuple[int, str]] = []

    def missing(self) -> None:
        return None

    def start(self, job: Job) -> "NotedPeer":
        self.started.append((job.batch, job.work.key))
        return self

    def load(self, logits: Tensor) -> None:
        self.logits = logits

    def draw(self) -> Tensor:
        return self.logits.argmax(dim=1)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedPeer:
    peer = NotedPeer()
    monkeypatch.setitem(PEERS, "noted", peer)
    monkeypatch.setattr(timing, "time", TickingTime())
    return peer


def small_plan(**changes: Any) -> grid.Plan:
    plan = grid.Plan((1,), (100,), (1, 4), ("float32",), ("normal-1",), (), (Work.parse("k5"), Work()), 60.0)
    return replace(plan, peers=("noted",), peers_everywhere=True, **changes)


def run_plan(plan: grid.Plan, on_setting: Callable[[str, int, int], None] = lambda *_: None) -> Results:
    found = sample_results([])
    found.peers["noted"] = PeerStatus("Noted", "1", "", None)
    bench.Runner(plan, found, rows.RealLogits([]), 2**16, time.perf_counter()).run(on_setting)
    return found


def test_a_peer_known_to_be_too_slow_is_not_begun(noted: NotedPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = runner.measure

    def slow(contestants: Any, seconds: float, cold: bool) -> Any:
        times = measured(contestants, 0.05)
        return {key: Times(2e7, 2e7, 2e7, 1) if key[0] == "noted" else one for key, one in times.items()}

    monkeypatch.setattr(runner, "measure", slow)
    found = run_plan(small_plan())
    assert noted.started == [(1, "k5"), (1, "plain")], "20 s for a row are 80 at B 4, of a budget of 60"
    assert found.skipped == [f"Noted, B 4: {timing.NO_TIME} (all work)"]
    assert [set(one.peers) for one in found.measurements] == [{"noted"}] * 2 + [set()] * 2


def test_making_a_peer_ready_may_take_a_part_of_the_budget(noted: NotedPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(job: Job) -> NotedPeer:
        time.sleep(0.1)
        return NotedPeer.start(noted, job)

    monkeypatch.setattr(noted, "start", start)
    monkeypatch.setattr(runner, "_READYING", 0.001)
    found = run_plan(small_plan())
    assert noted.started == [(1, "k5")]
    assert "Noted, B 4: making it ready has taken 0% of the time budget (all work)" in found.skipped
    assert "Noted, B 1: making it ready has taken 0% of the time budget (plain)" in found.skipped


def test_a_peer_that_cannot_be_made_ready_costs_the_others_nothing(
    noted: NotedPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(job: Job) -> NotedPeer:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(noted, "start", start)
    found = run_plan(small_plan())
    assert found.skipped == ["Noted cannot be made ready: RuntimeError: no compiler (all work)"]
    assert len(found.measurements) == 4


def test_peers_take_turns_in_groups_that_fit_into_memory(noted: NotedPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[set[str]] = []
    measured = runner.measure

    def watched(contestants: Any, seconds: float, cold: bool) -> Any:
        groups.append({f"{who} {'' if work is None else work.key}".strip() for who, work in contestants})
        return measured(contestants, seconds)

    monkeypatch.setattr(runner, "measure", watched)
    # The inputs fit, and what the peers keep for one kind of work, but not for two.
    monkeypatch.setattr(machine, "fits", lambda needed: needed != 2 * 16 * 4 * 100)
    found = run_plan(small_plan())
    of_one = {"x", "floor", "fastsample k5", "noted k5"}
    of_the_other = {"x", "floor", "fastsample plain", "noted plain"}
    assert groups == [of_one | of_the_other, of_one, of_the_other]
    assert [(one.setting.batch, one.work.key) for one in found.measurements] == [
        (1, "k5"), (1, "plain"), (4, "k5"), (4, "plain"),
    ]  # fmt: skip


def test_what_was_measured_before_ctrl_c_is_written(
    tmp_path: Path, noted: NotedPeer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    measured = runner.measure

    def interrupted(contestants: Any, seconds: float, cold: bool) -> Any:
        if len(noted.started) > 1:
            raise KeyboardInterrupt
        return measured(contestants, 0.05)

    monkeypatch.setattr(runner, "measure", interrupted)
    monkeypatch.setattr(noted, "missing", lambda: None)
    options = "--vocab 100 --batch 2 3 --threads 1 --dtype float32 --rows normal-1 --work k5 --peers noted --no-memory"
    assert bench.main([*options.split(), "--budget", "90", "--out", str(tmp_path / "bench.json")]) == 0
    found = results.load(tmp_path / "bench.json")
    assert [one.setting.batch for one in found.measurements] == [2]
    assert any("interrupted" in warning for warning in found.warnings)


def test_features_measured_before_ctrl_c_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def measure(setting: Any, *_: Any) -> Any:
        if measured:
            raise KeyboardInterrupt
        measured.append(setting)
        return setting

    monkeypatch.setattr(features_run, "_measure", measure)
    settings = [features_run.Setting(1, batch, 100, "normal-1", "k5") for batch in (1, 2, 3)]
    found = features_run.run(settings, "auto", 1.0, 1, False, rows.RealLogits([]), "", lambda *_: None)
    assert found.measured == settings[:1]
    assert "the run was interrupted after 1 of 3 settings" in found.skipped


# --- damaged files


def damaged(content: dict[str, Any], place: Sequence[str | int], value: Any) -> dict[str, Any]:
    """A copy with something else, or nothing, at one place."""
    content = copy.deepcopy(content)
    inner: Any = content
    for name in place[:-1]:
        inner = inner[name]
    if value is None:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["measurements"], None, "has no 'measurements'"),
        (["measurements", 1, "softmax"], None, "measurement 1 has no 'softmax'"),
        (["measurements", 0, "fastsample", "median"], None, "measurement 0 .*'median'"),
        (["measurements", 0, "fastsample", "p10"], "fast", "measurement 0 the time p10 is 'fast', and no number"),
        (["measurements", 0, "work"], "k5-z", "measurement 0 work: got 'k5-z'"),
        (["measurements", 0], 7, "measurement 0 "),
        (["peers", "torch", "label"], None, "'label'"),
        (["machine"], None, "'machine'"),
        (["format"], 99, "not a file of fastsample bench of format 1"),
    ],
)
def test_a_damaged_file_is_named_with_what_it_lacks(
    place: list[str | int],
    value: Any,
    message: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(damaged(json.loads(run.read_text()), place, value)))
    assert bench.main(["--show", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"--show: {path}: ")
    assert re.search(message, told)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1', '{"measured": [{}]}', '{"parts": {}}', "\x00"])
def test_what_is_no_file_of_a_run_is_named(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert bench.main(["--show", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"--show: {path}: ")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["parts", "benchmark", "status"], None, "'status'"),
        (["parts", "benchmark", "records", 0, "works"], None, "has no 'works'"),
        (["parts", "benchmark", "records", 0, "references", "floor", "p20"], None, "'p20'"),
        (["date"], None, "'date'"),
    ],
)
def test_a_damaged_file_of_a_gpu_is_named_too(
    place: list[str | int], value: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    gpu_results.save(gpu_run(), path)
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), place, value)))
    assert bench.main(["--show", str(path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"--show: {path}: ")
    assert message in told


# --- pictures


def test_the_picture_of_a_run_with_many_peers_and_works(tmp_path: Path) -> None:
    peers = {key.replace("-", "_"): 40.0 + number for number, key in enumerate(PEERS)}
    works = [f"k{number}" for number in range(1, 21)]
    found = sample_results(
        [
            measurement(SETTING._replace(batch=batch), work, 20.0 * batch, **peers)
            for batch in (1, 2, 4, 8)
            for work in works
        ]
    )
    plot.save(found, tmp_path / "picture.png")
    width, height = struct.unpack(">II", (tmp_path / "picture.png").read_bytes()[16:24])
    assert 1000 < width < 2000
    assert 1000 < height < 2000
    looks = [tuple(drawing.style(number).values()) for number in range(len(PEERS))]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize(
    ("count", "most", "expected"), [(3, 8, [0, 1, 2]), (20, 3, [0, 10, 19]), (20, 8, [0, 3, 5, 8, 11, 14, 16, 19])]
)
def test_some_of_many_are_taken_evenly(count: int, most: int, expected: list[int]) -> None:
    assert plot._some(list(range(count)), most) == expected


def test_what_ratios_are_drawn_for() -> None:
    axes = Figure().subplots()
    drawing.ratios(axes, ["k 50", "plain"], {"A": [(0, 3.0), (1, 40.0)], "B": [(1, 0.5)]}, "fastsample")
    assert [text.get_text() for text in axes.get_yticklabels()] == ["k 50", "plain"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[3.0, 40.0], [0.5], [1, 1]]
    assert [round(float(place)) for line in axes.lines[:2] for place in line.get_ydata()] == [0, 1, 1]
    assert axes.get_xlabel() == "times as long as fastsample"


def test_without_matplotlib_the_numbers_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "fastsample.benchmarks.plot")
    monkeypatch.delattr(fastsample.benchmarks, "plot")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    assert bench.main(["--show", str(run), "--plot", str(tmp_path / "p.png")]) == 0
    assert "p.png is not drawn: matplotlib is not installed" in capsys.readouterr().err


# --- memory


def test_the_ruler_of_memory_sees_a_tensor() -> None:
    logits = torch.randn(8, 262144)
    peak, largest = memory.extra_memory(lambda: torch.softmax(logits, dim=-1))
    assert largest == logits.nbytes
    assert peak is None or peak == pytest.approx(logits.nbytes, rel=0.2)


@pytest.mark.skipif(not fastsample.backends()["cpu"].usable, reason="the limit is about the native kernels")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="measured with glibc only")
@pytest.mark.parametrize(("batch", "vocab"), [(8, 262144), (1, 2**22)])
@pytest.mark.parametrize("work", ["k50-p0.9", "p0.9", "plain"])
def test_peak_extra_memory(batch: int, vocab: int, work: str) -> None:
    threads = torch.get_num_threads()
    parameters = Work.parse(work).parameters(batch)
    logits = torch.randn(batch, vocab)
    fastsample.sample(logits, **parameters)
    peak, largest = memory.extra_memory(lambda: fastsample.sample(logits, **parameters))
    use = memory.MemoryUse(batch, vocab, "float32", threads, work, peak, largest)
    assert use.met, use
    assert largest < 1024

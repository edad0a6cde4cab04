"""The benchmark: a tiny run of the whole command, and the parts that judge."""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

import fastsample
from fastsample import cli
from fastsample.benchmarks import bench, check, goals, grid, markdown, memory, plot, report, results, rows, timing
from fastsample.benchmarks.gpu import bench as gpu_bench
from fastsample.benchmarks.gpu import results as gpu_results
from fastsample.benchmarks.gpu.timing import GpuTimes
from fastsample.benchmarks.grid import Setting
from fastsample.benchmarks.peers import PEERS
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of `fastsample bench`: its JSON, beside which the picture lies."""
    path = tmp_path_factory.mktemp("bench") / "new folder" / "bench.json"
    options = (
        "--vocab 1000 --batch 2 3 --threads 1 --dtype float32 bfloat16 --rows normal-3 real sawtooth-16 "
        "--work k50-p0.9 greedy --peers torch missing wrong --budget 3 --rotate 1 --no-memory --out"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")  # whose self-check takes longer than the budget
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
    assert 0 < content["elapsed_seconds"] < 60
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
    assert any("Wrong, greedy: Wrong (greedy) drew token" in reason for reason in content["skipped"])
    assert any("Wrong, greedy: float32 only" in reason for reason in content["skipped"])
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
    assert len(empty.skipped) == len(grid.settings(plan))
    assert all(reason.endswith("the time budget was spent") for reason in empty.skipped)


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
        "--vocab 100 --batch 2 --threads 1 --dtype float32 --rows normal-1 --peers none --budget 2 --no-memory --out"
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
        ("--backend cuda --quick --rotate 1", "--quick, --rotate: of the benchmark on the CPU"),
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


@pytest.mark.parametrize("key", ["plain", "greedy", "k50", "p0.9", "k50-p0.9", "t0.8-k50-p0.9-m0.05-half"])
def test_work_has_one_key(key: str) -> None:
    assert Work.parse(key).key == key


def test_half_of_the_rows_may_be_neutral() -> None:
    parameters = Work.parse("t0.8-k50-half").parameters(3)
    assert parameters["top_k"].tolist() == [50, 0, 50]
    assert parameters["temperature"].tolist() == pytest.approx([0.8, 1.0, 0.8])
    assert fastsample.sample(torch.randn(3, 100), **parameters).shape == (3,)


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
    contestants: dict[str, Contestant] = {
        "quick": Contestant(quick, batches),
        "slow": Contestant(slow, batches, brief=True),
        "refused": Contestant(refused, batches, accepts=lambda drawn, logits: False),
    }
    times = timing.measure(contestants, 3.0)
    assert times["slow"] == Times(2e6, 2e6, 2e6, 1)  # longer than its share of a second: the first call counts
    assert "refused" not in times
    assert len(refused.seen) == 1
    assert quick.seen[:7] == [0, 1, 2, 0, 1, 2, 0]
    assert times["quick"] == Times(1e4, 1e4, 1e4, len(quick.seen) - 1)  # the slow first call has warmed up
    assert 0.45 <= 0.01 * (len(quick.seen) - 1) <= 0.6  # 3 s, less 2.51 s of first calls


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


@pytest.mark.parametrize("key", PEERS)
@pytest.mark.parametrize("work", ["k50-p0.9", "p0.9", "k50", "plain", "greedy", "t0.8-k20"])
def test_installed_peers_draw_from_the_kept_set(key: str, work: str) -> None:
    peer = PEERS[key]
    if reason := peer.missing():
        pytest.skip(reason)
    logits = torch.randn(3, 2000, generator=torch.Generator().manual_seed(1)) * 3
    job = Job(Work.parse(work), batch=3, vocab=2000, threads=2, dtype=torch.float32, cold=True)
    session = peer.start(job)
    drawn = set()
    for _ in range(5):
        session.load(logits)
        tokens = session.draw()
        check.check_peer(peer.label, tokens, logits, job.work)
        drawn.add(tuple(int(token) for token in tokens))
    assert (len(drawn) == 1) == job.work.greedy
    with pytest.raises(NotServedError):
        peer.start(job._replace(work=Work.parse("k50-half")))


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

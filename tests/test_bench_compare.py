"""`fastsample bench compare`: files made by hand, whose verdicts are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastsample import cli
from fastsample.benchmarks import compare, features_run, results
from fastsample.benchmarks.features_run import FeatureResults
from fastsample.benchmarks.gpu import results as gpu_results
from fastsample.benchmarks.gpu.results import GpuResults, Part
from fastsample.benchmarks.gpu.timing import GpuTimes
from fastsample.benchmarks.grid import Setting
from fastsample.benchmarks.peers.base import Work
from fastsample.benchmarks.results import Measurement, PeerStatus, Results
from fastsample.benchmarks.timing import Times

SETTING = Setting(threads=1, vocab=1000, batch=2, dtype="float32", rows="real", with_peers=True)
LABEL = "V 1000, B 2, float32, real logits, 1 thread"
MACHINE = {"CPU": "a CPU", "torch": "2.13.0", "commit": "abc"}


def around(median: float, calls: int = 100) -> Times:
    """Calls from 0.9 to 1.2 of the median."""
    return Times(median, median * 0.9, median * 1.2, calls)


def measurement(setting: Setting, work: str, ours: Times, **peers: Times) -> Measurement:
    return Measurement(setting, Work.parse(work), ours, around(100.0), around(20.0), peers, 2)


def made(*measurements: Measurement) -> Results:
    return Results(
        date="2026-01-02T03:04:05+00:00",
        command="fastsample bench",
        machine=dict(MACHINE),
        backend="auto",
        budget_seconds=60,
        load_average=0.1,
        used_by_others=0.02,
        rotated_mib=64,
        peers={"other": PeerStatus("Other [sampler]", "1.0", "", None)},
        measurements=list(measurements),
    )


def one(median: float, calls: int = 100) -> Results:
    return made(measurement(SETTING, "k50", around(median, calls)))


def written(folder: Path, before: Results, after: Results) -> list[str]:
    paths = [folder / "before.json", folder / "after.json"]
    for path, content in zip(paths, (before, after), strict=True):
        results.save(content, path)
    return [str(path) for path in paths]


def compared(before: Results, after: Results, folder: Path) -> list[compare.Change]:
    first, second = (compare.load(Path(path)) for path in written(folder, before, after))
    return compare.changes(first, second)


def of_ours(found: list[compare.Change]) -> compare.Change:
    (ours,) = [change for change in found if change.row.ours]
    return ours


def features(alone: Times, everything: Times, hugging_face: Times) -> FeatureResults:
    setting = features_run.Setting(threads=1, batch=2, vocab=1000, rows="real", work="plain")
    measured = features_run.Measured(
        setting, alone, around(20.0), {"everything": everything, "no-longer-known": alone}, {"bias": hugging_face}
    )
    return FeatureResults("2026-01-02", "fastsample bench --features", dict(MACHINE), "auto", 64, [measured], [])


def gpu(median: float) -> GpuResults:
    times = GpuTimes(median, median * 0.9, median * 1.1, replays=20, calls=8, how="graph")._asdict()
    setting = {
        "kind": "setting", "vocab": 1000, "batch": 7, "dtype": "float32", "rows": "real",
        "references": {"floor": {**times, "median": 10.0, "p20": 9.0, "p80": 11.0}},
        "works": {"k50": {gpu_results.TRITON: times, "flashinfer": times}},
    }  # fmt: skip
    environment = {"kind": "environment", "facts": {"GPU": "a GPU", "CPUs": 8}}
    part = Part("ok", records=[environment, setting])
    return GpuResults("2026-01-02", "fastsample bench", 60.0, kind="sample", parts={"benchmark": part})


# --- the verdict


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Times(100, 90, 120, 50), Times(100, 90, 120, 50), "within noise"),
        (Times(100, 90, 120, 50), Times(130, 121, 140, 50), "slower"),
        (Times(100, 90, 120, 50), Times(130, 120, 140, 50), "within noise"),
        (Times(100, 90, 120, 50), Times(80, 70, 89, 50), "faster"),
        (Times(100, 90, 120, 50), Times(80, 70, 90, 50), "within noise"),
        (Times(100, 100, 100, 50), Times(100.1, 100.1, 100.1, 50), "slower"),
        (Times(100, 90, 120, 5), Times(200, 190, 210, 5), "slower"),
        (Times(100, 90, 120, 50), Times(200, 190, 210, 4), "not judged"),
        (Times(100, 100, 100, 1), Times(200, 190, 210, 50), "not judged"),
    ],
)
def test_a_row_is_judged_by_both_spreads(before: Times, after: Times, verdict: str, tmp_path: Path) -> None:
    found = compared(made(measurement(SETTING, "k50", before)), made(measurement(SETTING, "k50", after)), tmp_path)
    assert of_ours(found).verdict == verdict


def test_the_ratio_and_its_band(tmp_path: Path) -> None:
    change = of_ours(compared(one(100.0), one(150.0), tmp_path))
    assert change.ratio == 1.5
    assert change.noise == pytest.approx((0.9 / 1.2, 1.2 / 0.9))


def test_the_floor_and_the_softmax_are_one_row_for_all_work(tmp_path: Path) -> None:
    run = made(measurement(SETTING, "k50", around(10.0)), measurement(SETTING, "plain", around(20.0)))
    rows = [change.row for change in compared(run, run, tmp_path)]
    assert [(row.work, row.contestant, row.ours) for row in rows] == [
        ("", "one read", False),
        ("", "softmax", False),
        ("k 50", "fastsample", True),
        ("plain", "fastsample", True),
    ]
    assert {row.setting for row in rows} == {LABEL}


def test_peers_do_not_make_a_setting_another(tmp_path: Path) -> None:
    alone = made(measurement(SETTING._replace(with_peers=False), "k50", around(10.0)))
    assert of_ours(compared(one(10.0), alone, tmp_path)).ratio == 1


# --- what is shown, and the exit status


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small, large = SETTING, SETTING._replace(batch=32)
    before = made(
        measurement(small, "k50", around(100.0), other=around(300.0)),
        measurement(small, "greedy", around(10.0)),
        measurement(small, "plain", around(40.0, calls=1)),
        measurement(large, "k50", around(100.0)),
    )
    after = made(
        measurement(small, "k50", around(50.0), other=around(900.0)),
        measurement(small, "greedy", around(20.0)),
        measurement(small, "plain", around(40.0)),
        measurement(small, "p0.9", around(70.0)),
    )
    after.machine |= {"commit": "def", "torch": "2.14.0"}
    after.peers = {"other": PeerStatus("Other [sampler]", "2.0", "", None)}
    after.warnings.append("the machine was busy")
    assert cli.main(["bench", "compare", *written(tmp_path, before, after)]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [
        ["date", before.date, before.date],
        ["command", "fastsample bench", "fastsample bench"],
        ["torch", "2.13.0", "2.14.0"],
        ["commit", "abc", "def"],
        ["Other [sampler]", "1.0", "2.0"],
        ["", "one read", "20 us", "20 us", "1.00", "0.75 - 1.33", "within noise"],
        ["", "softmax", "100 us", "100 us", "1.00", "0.75 - 1.33", "within noise"],
        ["k 50", "fastsample", "100 us", "50 us", "0.50", "0.75 - 1.33", "faster"],
        ["k 50", "Other [sampler]", "300 us", "900 us", "3.00", "0.75 - 1.33", "slower"],
        ["greedy", "fastsample", "10 us", "20 us", "2.00", "0.75 - 1.33", "slower"],
        ["plain", "fastsample", "40 us", "40 us", "1.00", "1 call", "not judged"],
    ]
    for expected in (
        "A difference may be due to these, and not to fastsample's code: torch, Other [sampler]",
        "WARNING of B: the machine was busy",
        "only in A: V 1000, B 32, float32, real logits, 1 thread",
        f"only in B: {LABEL}: p 0.9, fastsample",
        "fastsample: 1 faster, 1 slower, 0 within noise, 1 not judged; median B / A 1.00",
        "everyone else: 0 faster, 1 slower, 2 within noise, 0 not judged; median B / A 1.00",
        f"  faster: {LABEL}: k 50, fastsample: 0.50, noise 0.75 - 1.33",
        f"  slower: {LABEL}: greedy, fastsample: 2.00, noise 0.75 - 1.33",
    ):
        assert lines.count(expected) == 1, expected
    assert sum("only in" in line for line in lines) == 2
    assert sum("noise (p10 - p90)" in line for line in lines) == 1


def test_another_commit_alone_is_no_reason_to_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = one(10.0)
    after.machine["commit"] = "def"
    assert cli.main(["bench", "compare", *written(tmp_path, one(10.0), after)]) == 0
    shown = capsys.readouterr().out
    assert "│ commit  │ abc" in shown
    assert "may be due to" not in shown


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"backend": "cpu"}, "--backend"), ({"rotated_mib": 0}, "--rotate"), ({"cold": True}, "--cold"), ({}, None)],
)
def test_options_that_times_depend_on_are_named(
    changes: dict[str, object], name: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "compare", *written(tmp_path, one(10.0), replace(one(10.0), **changes))]) == 0
    assert (f"not to fastsample's code: {name}" in capsys.readouterr().out) == (name is not None)


@pytest.mark.parametrize(
    ("after", "status"),
    [
        (one(200.0), 1),
        (one(100.0), 0),
        (one(50.0), 0),
        (one(200.0, calls=2), 0),
        (made(measurement(SETTING, "k50", around(100.0), other=around(900.0))), 0),
    ],
    ids=["slower", "as fast", "faster", "too few calls", "a peer slower"],
)
def test_it_fails_only_where_it_is_asked_to(after: Results, status: int, tmp_path: Path) -> None:
    before = made(measurement(SETTING, "k50", around(100.0), other=around(300.0)))
    paths = written(tmp_path, before, after)
    assert cli.main(["bench", "compare", *paths]) == 0
    assert cli.main(["bench", "compare", *paths, "--fail-if-slower"]) == status


# --- the other kinds


def test_features_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    features_run.save(features(around(10.0), around(50.0), around(70.0)), paths[0])
    features_run.save(features(around(10.0), around(100.0), around(7.0)), paths[1])
    found = compare.changes(*map(compare.load, paths))
    assert [(change.row.work, change.row.contestant, change.ratio, change.verdict) for change in found] == [
        ("", "one read", 1.0, "within noise"),
        ("sample alone", "fastsample", 1.0, "within noise"),
        ("everything together", "fastsample", 2.0, "slower"),
        ("no-longer-known", "fastsample", 1.0, "within noise"),
        ("300 biases", "Hugging Face", 0.1, "faster"),
    ]
    assert cli.main(["bench", "compare", "--fail-if-slower", *map(str, paths)]) == 1
    assert "plain, V 1000, B 2, real logits, 1 thread" in capsys.readouterr().out


def test_files_of_a_gpu_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, median in zip(paths, (100.0, 130.0), strict=True):
        gpu_results.save(gpu(median), path)
    found = compare.changes(*map(compare.load, paths))
    assert [(change.row.contestant, change.row.ours, change.ratio, change.verdict) for change in found] == [
        ("floor", False, 1.0, "within noise"),
        ("fastsample (Triton)", True, 1.3, "slower"),
        ("flashinfer", False, 1.3, "slower"),
    ]
    assert cli.main(["bench", "compare", *map(str, paths)]) == 0
    shown = capsys.readouterr().out
    for expected in ("V 1000, B 7, float32, real logits", "noise (p20 - p80)", "WARNING of A: not measured on a GPU"):
        assert expected in shown


# --- files that cannot be compared


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a file that fastsample bench --out wrote"),
        ("\udcff", "not a file that fastsample bench --out wrote"),
        ("[]", "not a file that fastsample bench --out wrote"),
        ('{"format": 1}', "not a file that fastsample bench --out wrote"),
        ('{"format": 99, "measurements": []}', "of format 1"),
        ('{"format": 1, "measurements": [{}]}', "not as fastsample bench writes it"),
        ('{"measured": [{}]}', "not a file of fastsample bench --features"),
        ('{"parts": {}}', "not a file of the GPU command"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _ = written(tmp_path, one(10.0), one(10.0))
    other = tmp_path / "other.json"
    other.write_bytes(content.encode(errors="surrogateescape"))
    for arguments in ([first, str(other)], [str(other), first]):
        assert cli.main(["bench", "compare", *arguments]) == 2
        told = capsys.readouterr()
        assert message in told.err
        assert str(other) in told.err
        assert told.out == ""


@pytest.mark.parametrize(
    "times",
    [
        {"median": 0.0, "p10": 0.0},
        {"p10": 11.0},
        {"p90": 9.0},
        {"median": float("nan")},
        {"median": "10"},
        {"calls": 0},
        {"calls": None},
    ],
)
def test_times_that_cannot_be_are_refused(
    times: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = written(tmp_path, one(10.0), one(10.0))
    content = json.loads(Path(second).read_text())
    content["measurements"][0]["fastsample"] |= times
    Path(second).write_text(json.dumps(content))
    assert cli.main(["bench", "compare", first, second]) == 2
    assert f"{second}: not as fastsample bench writes it" in capsys.readouterr().err


def test_kinds_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = written(tmp_path, one(10.0), one(10.0))
    features_run.save(features(around(10.0), around(50.0), around(70.0)), Path(second))
    assert cli.main(["bench", "compare", first, second]) == 2
    told = capsys.readouterr()
    assert "sampling on the CPU, the second the features of requests (--features)" in told.err
    assert told.out == ""


def test_files_with_nothing_in_common_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made(measurement(SETTING._replace(batch=3), "k50", around(10.0)))
    for after in (other, made()):
        assert cli.main(["bench", "compare", *written(tmp_path, one(10.0), after), "--fail-if-slower"]) == 2
        assert "no contestant in the same setting" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _ = written(tmp_path, one(10.0), one(10.0))
    assert cli.main(["bench", "compare", first, str(tmp_path / "absent.json")]) == 2
    assert "absent.json" in capsys.readouterr().err


def test_two_files_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "compare", "one.json"])
    assert ended.value.code == 2
    assert "B.json" in capsys.readouterr().err

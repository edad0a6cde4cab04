"""`fastsample doctor`: what it says, that its self-check can fail, and the command line around it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsample import cli, doctor, native_objects, ops, sample


@pytest.fixture(scope="module")
def report() -> doctor.Report:
    """One examination of this installation, which must leave no trace in the process."""
    state = torch.get_rng_state()
    cap = ops.instruction_set() if ops.cpu_status == "ok" else None
    report = doctor.examine()
    assert torch.equal(torch.get_rng_state(), state)
    if cap is not None:
        assert ops.instruction_set() == cap
    return report


def test_a_healthy_installation(report: doctor.Report) -> None:
    assert report.healthy
    assert report.versions["torch"] == torch.__version__
    checked = {(check.backend, check.place) for check in report.self_checks}
    assert ("reference", None) in checked
    if report.backends["cpu"].usable:
        assert ("cpu", "scalar") in checked
        assert ("cpu", report.backends["cpu"].instruction_set) in checked
        assert report.versions["its compiler"] != "unknown"
    for check in report.self_checks:
        assert check.draws >= (1000 if check.place != "its interpreter" else 64)
        assert check.disagreements == 0
        assert check.first is None


def _off_by_one(sample: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A `sample` whose backends other than the reference get one token of some calls wrong."""

    def wrong(logits: Tensor, **named: Any) -> Tensor:
        tokens = sample(logits, **{**named, "backend": "reference"})
        if named["backend"] != "reference" and isinstance(named.get("temperature"), float) and named["temperature"] > 0:
            tokens[3, 1] += 1
        return tokens

    return wrong


def test_a_disagreement_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "sample", _off_by_one(doctor.sample))
    check = doctor.self_check(doctor.expected_draws(), "auto")
    assert check.disagreements == 1
    assert check.first is not None
    assert "row 3, draw 1" in check.first
    report = doctor.Report({}, {}, {}, {}, [check], {})
    assert not report.healthy
    assert "1 of" in doctor.render(report)
    assert "DISAGREE" in doctor.render(report)
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert cli.main(["doctor"]) == 1
    assert "DISAGREE" in capsys.readouterr().out


def test_the_command_with_and_without_rich(
    report: doctor.Report, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert cli.main(["doctor"]) == 0
    pretty = capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert cli.main(["doctor"]) == 0
    plain = capsys.readouterr().out
    for text in (pretty, plain):
        for word in (
            "torch",
            "python",
            "reference",
            "cpu",
            "triton",
            "cuda",
            "draws agree",
            "flashinfer",
            "sglang",
        ):
            assert word in text
    assert "backend reference: usable" in plain


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert "doctor" in told
    assert "bench" in told


@pytest.mark.parametrize("arguments", [[], ["surgeon"], ["doctor", "--fast"]])
def test_wrong_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "usage: fastsample" in capsys.readouterr().err


def test_bench_is_handed_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given: list[list[str]] = []
    bench = ModuleType("fastsample.benchmarks.bench")
    bench.main = given.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastsample.benchmarks", ModuleType("fastsample.benchmarks"))
    monkeypatch.setitem(sys.modules, "fastsample.benchmarks.bench", bench)
    assert cli.main(["bench", "--threads", "2", "--help"]) == 0
    assert given == [["--threads", "2", "--help"]]
    monkeypatch.setitem(sys.modules, "fastsample.benchmarks.bench", None)
    assert cli.main(["bench"]) == 1
    assert "fastsample[bench]" in capsys.readouterr().err


def test_the_instruction_set_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", None), ("scalar", "scalar"), ("avx512", "avx512")):
        monkeypatch.setenv("FASTSAMPLE_CPU_INSTRUCTION_SET", value)
        assert ops.instruction_set_from_environment() == expected
    monkeypatch.setenv("FASTSAMPLE_CPU_INSTRUCTION_SET", "sse")
    with pytest.raises(ValueError, match="FASTSAMPLE_CPU_INSTRUCTION_SET=sse: accepted: scalar, avx2, avx512"):
        ops.instruction_set_from_environment()


@pytest.mark.skipif(ops.cpu_status != "ok", reason=f"native CPU kernels: {ops.cpu_status}")
def test_the_instruction_set_variable_caps() -> None:
    # In a process of its own: the variable is read when the object is loaded.
    result = subprocess.run(
        [sys.executable, "-c", "from fastsample import ops; print(ops.instruction_set())"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "FASTSAMPLE_CPU_INSTRUCTION_SET": "scalar"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "scalar"


def test_instruction_sets_that_are_none() -> None:
    with pytest.raises(ValueError, match="'sse'; accepted: scalar, avx2, avx512"):
        ops.cap_instruction_set("sse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "cpu_status", "not built: for a test")
        with pytest.raises(RuntimeError, match="not built: for a test"):
            ops.instruction_set()
        with pytest.raises(RuntimeError, match='"cpu" is not usable: not built: for a test'):
            sample(torch.zeros(1, 3), backend="cpu")


def test_a_broken_object_does_not_stop_the_import(tmp_path: Path) -> None:
    broken = tmp_path / "_cpu.abi3.so"
    broken.write_bytes(b"no shared object")
    assert native_objects.load(broken).startswith("failed: ")
    assert native_objects.load(tmp_path / "nothing.so") == "not built: nothing.so is not in the package"

"""`fastsample bench --features`: a tiny run, what it shows, and that wrong tokens stop it."""

from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import fastsample
from fastsample import cli
from fastsample.benchmarks import features, features_run
from fastsample.benchmarks.check import WrongTokensError
from fastsample.benchmarks.features import FEATURES, Feature, Inputs
from fastsample.benchmarks.gpu import report
from fastsample.benchmarks.gpu.results import GpuResults, Part
from fastsample.benchmarks.peers.base import Work

ARGUMENTS = ["--features", "--vocab", "3000", "--batch", "2", "--rows", "normal-3", "--work", "k50", "--threads", "1"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bench") / "features.json"
    assert cli.main(["bench", *ARGUMENTS, "--budget", "2", "--rotate", "0", "--out", str(file)]) == 0
    return file


def test_every_feature_is_timed_beside_sample_alone(written: Path) -> None:
    results = features_run.load(written)
    (measured,) = results.measured
    assert measured.features.keys() == {feature.key for feature in FEATURES}
    assert measured.hugging_face.keys() == {feature.key for feature in FEATURES if feature.processors}
    assert measured.alone.median > 0
    assert "--features" in results.command


def test_the_table_has_a_row_for_each(written: Path) -> None:
    out = StringIO()
    features_run.show(features_run.load(written), Console(file=out, width=200))
    for feature in FEATURES:
        assert feature.label in out.getvalue()
    assert "of 1 settings" in out.getvalue()


def test_another_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text('{"measured": [{}]}')
    with pytest.raises(ValueError, match="not a file of fastsample bench --features"):
        features_run.load(file)


def test_it_shows_what_it_wrote(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--features", "--show", str(written)]) == 0
    assert "sample alone" in capsys.readouterr().out


def test_on_a_gpu_it_is_the_gpu_command_that_measures(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--features", "--backend", "cuda"]) == 1
    assert "timed on the CPU" in capsys.readouterr().err


def test_wrong_tokens_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs.make(2, 1000)
    logits = torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))
    features_run.check(FEATURES[0], inputs, Work(), "auto", logits)
    monkeypatch.setattr(features.FeatureSession, "draw", lambda self: torch.tensor([len(self.arguments["backend"]), 0]))
    with pytest.raises(WrongTokensError, match="repetition"):
        features_run.check(FEATURES[0], inputs, Work(), "auto", logits)


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.key)
def test_a_feature_changes_what_is_asked(feature: Feature) -> None:
    """What is timed is the feature: its arguments change a token, or ask for something beside it."""
    inputs = Inputs.make(3, 500)
    arguments = feature.arguments(inputs)
    assert feature.full or arguments
    if not feature.full:
        logits = torch.ones(3, 500)
        assert not torch.equal(fastsample.process_logits(logits, **arguments), logits)
    if feature.processors is not None:
        scores = torch.randn(3, 500, generator=torch.Generator().manual_seed(1))
        session = features.ProcessorSession(feature, inputs)
        session.load(scores.clone())
        assert session.draw().shape == scores.shape


def test_the_gpu_report_has_the_features() -> None:
    times = {key: {"median": median} for key, median in (("alone", 10.0), ("logprob", 10.5), ("bias", 12.0))}
    record = {"kind": "features", "vocab": 9, "batch": 2, "dtype": "float32", "rows": "real"}
    record |= {"who": "fastsample", "work": "plain", "times": times}
    results = GpuResults("2000-01-01", "made up", 1.0, kind="sample", parts={"features": Part("ok", records=[record])})
    text = report.markdown(results)
    assert "| 300 biases | 12.0 | 1.20 |" in text
    assert "| log-probability | 10.5 | 1.05 |" in text

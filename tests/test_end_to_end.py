"""`fastsample bench end-to-end`: what its clock counts, its check, its turns, its file and its tables."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessor

from fastsample import cli, doctor
from fastsample.benchmarks import (
    compare,
    end_to_end,
    end_to_end_report,
    end_to_end_results,
    end_to_end_run,
    generation,
)
from fastsample.benchmarks.check import WrongTokensError
from fastsample.benchmarks.end_to_end_results import GREEDY, Decoding, EndToEnd, Measured, Setting
from fastsample.benchmarks.end_to_end_run import Contestant, Plan, by_turns, check, options
from fastsample.benchmarks.generation import Generation, Run, StepTimes
from fastsample.benchmarks.model import SMOLLM2
from fastsample.benchmarks.peers.base import Work
from fastsample.integrations import deferred
from fastsample.integrations.transformers import is_enabled

VOCABULARY = 300
WORK = Work.parse("t0.8-k20-p0.9")
both_ways = pytest.mark.parametrize("with_fastsample", [False, True], ids=["before", "after"])


class Words:
    """A tokenizer as far as `Generation` uses one: a prompt is a token for each of its letters, padded on the left."""

    eos_token_id = None

    def __call__(self, prompts: list[str], padding: bool, return_tensors: str) -> BatchEncoding:
        rows = [[ord(letter) for letter in prompt] for prompt in prompts]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": (ids > 0).long()})


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=None,
        pad_token_id=0,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 20
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1)
    return model


@pytest.fixture
def writer(model: LlamaForCausalLM) -> Generation:
    return Generation(model, Words(), ("abc", "defgh"), chat=False)  # type: ignore[arg-type]


class Clock:
    """Time that passes only where a test lets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def after(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which takes that long."""

        def slow(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    of_time = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr(generation, "time", of_time)
    monkeypatch.setattr(end_to_end_run, "time", of_time)
    return clock


class Passing(LogitsProcessor):
    """Changes nothing, and calls what it is given."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.call()
        return scores


# --- what is counted


@both_ways
def test_sampling_is_all_from_the_logits_to_the_tokens_and_the_rest_is_the_rest(
    with_fastsample: bool, writer: Generation, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor of the user's takes 3, the softmax 4, the draw 8, whoever draws; the model 100."""
    monkeypatch.setattr(writer.model, "forward", clock.after(100, writer.model.forward))
    softmax, draw = (deferred.DeferredScores, "_softmax"), (deferred.DeferredProbabilities, "_answer")
    for owner, name, seconds in (
        (*(softmax if with_fastsample else (torch.nn.functional, "softmax")), 4),
        (*(draw if with_fastsample else (torch, "multinomial")), 8),
    ):
        monkeypatch.setattr(owner, name, clock.after(seconds, getattr(owner, name)))
    asked = {**options(WORK), "logits_processor": [Passing(clock.after(3, lambda: None))]}
    times = writer.run(asked, 2, 4, with_fastsample).times
    assert times.sampling == [15.0] * 3  # not the prompt's step
    assert times.steps == [115.0] * 3
    assert times.rest == [100.0] * 3
    assert times.tokens_per_second() == 2 / 115
    assert times.milliseconds() == 15000
    assert times.share() == 15 / 115


def test_greedy_search_ends_with_argmax(writer: Generation, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "argmax", clock.after(5, torch.argmax))
    times = writer.run({"do_sample": False}, 1, 3, False).times
    assert times.sampling == times.steps == [5.0] * 2


def test_an_argmax_inside_of_the_chain_is_not_the_end(writer: Generation, clock: Clock) -> None:
    inside = [Passing(clock.after(3, lambda: torch.argmax(torch.ones(2)))), Passing(clock.after(4, lambda: None))]
    times = writer.run({**options(WORK), "logits_processor": inside}, 1, 4, False).times
    assert times.sampling == [7.0] * 3


def test_a_chain_with_a_call_of_its_own_is_timed(
    writer: Generation, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = writer.model._get_logits_processor

    def built(*args: Any, **kwargs: Any) -> Any:
        chain = build(*args, **kwargs)
        own = type("OwnCall", (type(chain),), {"__call__": lambda self, *args: clock.after(7, chain)(*args)})
        return own(chain)

    monkeypatch.setattr(writer.model, "_get_logits_processor", built)
    assert writer.run(options(WORK), 1, 3, False).times.sampling == [7.0] * 2


def test_tokens_that_are_still_to_be_computed_are_refused(writer: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left to whoever looks at the tokens first would be nobody's time."""

    class Later(Tensor):
        pass

    draw = torch.multinomial
    monkeypatch.setattr(torch, "multinomial", lambda *args, **kwargs: draw(*args, **kwargs).as_subclass(Later))
    with pytest.raises(RuntimeError, match="Later, which may not be computed yet"):
        writer.run(options(WORK), 1, 2, False)


@both_ways
def test_the_clock_changes_neither_the_tokens_nor_the_model(with_fastsample: bool, writer: Generation) -> None:
    draw, select = torch.multinomial, torch.argmax
    timed = writer.run(options(WORK), 3, 5, with_fastsample, seed=4)
    plain = writer.trace(options(WORK), 3, 5, with_fastsample, seed=4)
    assert torch.equal(timed.tokens, plain.tokens)
    assert timed.tokens.shape == (3, 5)
    assert len(plain.logits) == 5
    assert torch.multinomial is draw
    assert torch.argmax is select
    assert "_get_logits_processor" not in vars(writer.model)
    assert not is_enabled(writer.model)


# --- the check


def test_the_check_counts_what_it_compared(writer: Generation) -> None:
    assert check(writer, 1, WORK) == 2
    assert check(writer, 3, WORK) == 4


def test_tokens_outside_of_the_kept_set_are_noticed(writer: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        deferred.DeferredProbabilities, "_answer", lambda self, *_: self.logits.argmin(dim=1, keepdim=True)
    )
    with pytest.raises(WrongTokensError, match="outside the kept set"):
        check(writer, 2, WORK)


def test_kept_tokens_that_are_not_the_laws_are_noticed(writer: Generation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        deferred.DeferredProbabilities, "_answer", lambda self, *_: self.logits.argmax(dim=1, keepdim=True)
    )
    with pytest.raises(WrongTokensError, match="the reference"):
        check(writer, 2, WORK)


# --- the turns


class Recorder:
    """Stands in for a `Generation`: every turn of two steps takes the time of its contestant."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.turns: list[tuple[bool, bool, int]] = []

    def run(self, asked: dict[str, Any], batch: int, steps: int, with_fastsample: bool, seed: int) -> Run:
        self.turns.append((asked["do_sample"], with_fastsample, seed))
        self.clock.now += 10
        return Run(StepTimes(batch, [2.0] * (steps - 1), [1.0] * (steps - 1)), torch.zeros(batch, steps))


@pytest.mark.parametrize(("end", "rounds"), [(-5, 1), (20, 1), (59, 1), (60, 2), (91, 3)])
def test_rounds_go_back_and_forth_while_another_one_fits(end: float, rounds: int, clock: Clock) -> None:
    recorder = Recorder(clock)
    contestants = [Contestant(GREEDY, False), Contestant(WORK, False), Contestant(WORK, True)]
    told: list[int] = []
    times = by_turns(recorder, 2, contestants, 3, end, lambda: told.append(1))  # type: ignore[arg-type]
    forth = [(False, False), (True, False), (True, True)]
    expected = [(*who, turn) for turn in range(rounds) for who in (forth[::-1] if turn % 2 else forth)]
    assert recorder.turns == expected
    assert {contestant: len(one.steps) for contestant, one in times.items()} == dict.fromkeys(contestants, 2 * rounds)
    assert len(told) == 3 * rounds


def test_batches_share_the_time_and_what_is_late_is_skipped(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 seconds 20 go to loading; 16 rows weigh twice as much as none, so 1, 16 and 32 share 1.0625 : 2 : 3."""
    ends: list[float] = []
    spent = {1: 14.0, 16: 66.0, 32: 0.0}

    def measure(
        _: Generation, setting: Setting, plan: Plan, end: float, on_turn: Callable[[str], None]
    ) -> list[Measured]:
        ends.append(round(end - clock.now, 6))
        clock.now += spent[setting.batch]
        return []

    def load(*_: Any) -> tuple[Any, int]:
        clock.now += 20
        return None, VOCABULARY

    monkeypatch.setattr(end_to_end_run, "_measure", measure)
    monkeypatch.setattr(end_to_end_run, "_load", load)
    results = made([])
    end_to_end_run.run(Plan([SMOLLM2], (1, 16, 32), (WORK,), 3, 1, 100), results, 0.0, lambda label: None)
    assert ends == [round(80 * 1.0625 / 6.0625, 6), round(66 * 2 / 5, 6)]
    assert results.skipped == ["SmolLM2-135M-Instruct (V 300), B 32, 1 thread: the time budget was spent"]


def test_a_model_is_not_loaded_when_the_time_is_spent(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end_run, "_load", lambda model: pytest.fail(f"{model.name} was loaded"))
    results = made([])
    clock.now = 100
    end_to_end_run.run(Plan([SMOLLM2], (1,), (WORK,), 3, 1, 100), results, 0.0, lambda label: None)
    assert results.skipped == ["SmolLM2-135M-Instruct: the time budget was spent before it was loaded"]


def test_the_options_of_generate() -> None:
    assert options(GREEDY) == {"do_sample": False}
    expected = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": None}
    assert options(WORK) == expected
    assert options(Work.parse("m0.05")) == expected | {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05}


# --- the file and the tables


def decoding(step: float, sampling: float) -> Decoding:
    """Seven steps around these medians, in milliseconds; the rest is the same in each."""
    around = (-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3)
    taken = [sampling * (1 + one) / 1000 for one in around]
    return Decoding.of([(step - sampling) / 1000 + one for one in taken], taken)


def made(measured: list[Measured]) -> EndToEnd:
    machine = {"CPU": "a CPU", "instruction set": "avx2", "torch": "2.13.0", "transformers": "5.23.0", "commit": "abc"}
    return EndToEnd("2026-01-02", "fastsample bench end-to-end", machine, 16, 240, 0.1, 0.02, 200.0, measured)


def pair(before: Decoding, after: Decoding, batch: int = 8) -> list[Measured]:
    setting = Setting("A-Model", 49152, batch, 2)
    return [
        Measured(setting, GREEDY, decoding(101, 1), None, 0),
        Measured(setting, WORK, before, after, 4),
    ]


def test_shares_and_rates() -> None:
    one = decoding(200, 50)
    assert one.step.median == 200000
    assert one.sampling.median == 50000
    assert one.rest == end_to_end_results.Times(150000, 150000, 150000, 7)
    assert one.share == 0.25
    assert one.tokens_per_second(8) == 40
    greedy, sampled = pair(one, decoding(151, 1.5))
    assert (greedy.met, sampled.met) == (None, True)
    assert pair(one, decoding(100, 1))[1].met is False  # less than 1 %, not 1 %


def test_a_file_is_read_back_whole(tmp_path: Path) -> None:
    results = made(pair(decoding(200, 50), decoding(151, 1.5)))
    results.skipped.append("something")
    results.warnings.append("busy")
    end_to_end_results.save(results, tmp_path / "a.json")
    assert end_to_end_results.load(tmp_path / "a.json") == results
    entry = json.loads((tmp_path / "a.json").read_text())["decoding"][1]
    assert (entry["before"]["share"], entry["before"]["tokens_per_second"], entry["goal_met"]) == (0.25, 40.0, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "not a file of fastsample bench end-to-end of format 1"),
        ({"decoding": [{"model": "A-Model"}]}, "vocab"),
        ({"unheard": 1}, "unheard"),
    ],
)
def test_another_file_is_refused(change: dict[str, Any], message: str, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "a.json"
    end_to_end_results.save(made([]), file)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert cli.main(["bench", "end-to-end", "--show", str(file)]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert str(file) in error


@pytest.mark.parametrize("given", [["--show"], ["end-to-end", "--show"]])
def test_both_commands_show_a_file(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.json"
    end_to_end_results.save(made(pair(decoding(200, 50), decoding(151, 1.5))), file)
    assert cli.main(["bench", *given, str(file)]) == 0
    assert "A-Model, V 49152, 2 threads" in capsys.readouterr().out
    assert cli.main(["bench", *given, str(file), "--markdown"]) == 0
    assert "| A-Model, V 49152, 2 threads | 8 | greedy |" in capsys.readouterr().out


def test_the_table_in_markdown() -> None:
    lines = end_to_end_report.markdown(made(pair(decoding(200, 50), decoding(151, 1.5)))).splitlines()
    assert lines[2] == "| A-Model, V 49152, 2 threads | 8 | greedy | 79.2 | - | 1 ms | - | 0.99% | - |"
    assert lines[3] == (
        "| A-Model, V 49152, 2 threads | 8 | T 0.8, k 20, p 0.9 | 40 | 53 | 50 ms | 1.5 ms | 25.0% | 0.99% |"
    )
    assert lines[-1] == (
        "a CPU (avx2), torch 2.13.0, transformers 5.23.0, commit abc, 2026-01-02, `fastsample bench end-to-end`."
    )


@pytest.mark.parametrize(
    ("longer", "moved", "resolved"), [(0.999, "0.00%", True), (1.0, "0.00%", True), (1.005, "0.49%", True),
    (1.02, "1.94%", False), (1.09, "8.18%", False)],
)  # fmt: skip
def test_what_can_have_moved_to_the_rest_is_said(longer: float, moved: str, resolved: bool) -> None:
    """Sampling that is deferred past the clock would show as a longer rest."""
    results = made(pair(decoding(200, 50), decoding(150 * longer + 1.5, 1.5)))
    notes = "\n".join(end_to_end_report.notes(results))
    assert f"At most {moved} of a step can have moved from sampling to the rest" in notes
    assert f"1 of 1 below it, {int(resolved)} of them resolved" in notes
    told = f"T 0.8, k 20, p 0.9: the rest is longer by {moved} of a step"
    assert (told in notes) == ("  not resolved: A-Model (V 49152), B 8, 2 threads" in notes) == (not resolved)


def test_a_goal_below_the_spread_of_the_rest_is_not_resolved() -> None:
    rest = [0.140 + 0.005 * step for step in range(5)]
    after = Decoding.of([one + 0.001 for one in rest], [0.001] * 5)
    greedy, measured = pair(decoding(200, 50), after)
    assert (measured.met, measured.moved, measured.resolved) == (True, 0.0, False)
    assert measured.rest_spread == pytest.approx(0.016 / 0.151)
    assert greedy.resolved is greedy.moved is greedy.rest_spread is None
    assert "its spread is 10.6%" in "\n".join(end_to_end_report.notes(made([greedy, measured])))


def test_one_round_is_said() -> None:
    results = made(pair(decoding(200, 50), decoding(151, 1.5)))
    assert "one round" not in "\n".join(end_to_end_report.notes(results))
    results.tokens = 8  # of which the first is the prompt's
    assert "one round, for which alone there was time: A-Model (V 49152), B 8, 2 threads" in list(
        end_to_end_report.notes(results)
    )


def test_a_goal_that_is_missed_is_named() -> None:
    results = made(pair(decoding(200, 50), decoding(151, 1.5), 1) + pair(decoding(200, 50), decoding(153, 3), 8))
    notes = list(end_to_end_report.notes(results))
    assert any(note.startswith("goal, less than 1% of a step: 1 of 2 below it, 1 of them resolved") for note in notes)
    assert notes[-1] == (
        "  not met: A-Model (V 49152), B 8, 2 threads, T 0.8, k 20, p 0.9: 1.96% (greedy search's torch.argmax: 0.99%)"
    )


def test_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file, sampling in zip(files, (1.5, 4.5), strict=True):
        end_to_end_results.save(made(pair(decoding(200, 50), decoding(150 + sampling, sampling))), file)
    first, second = (compare.load(file) for file in files)
    found = {(one.row.work, one.row.ours): one for one in compare.changes(first, second)}
    ours = found["T 0.8, k 20, p 0.9, sampling", True]
    assert (ours.verdict, ours.ratio) == ("slower", pytest.approx(3))
    assert found["T 0.8, k 20, p 0.9, step", True].ratio == pytest.approx(154.5 / 151.5)
    assert found["T 0.8, k 20, p 0.9, sampling", False].verdict == "within noise"
    assert found["greedy, step", False].verdict == "within noise"
    assert ("greedy, step", True) not in found
    assert cli.main(["bench", "compare", *map(str, files), "--fail-if-slower"]) == 1
    assert "Two runs of end-to-end" in capsys.readouterr().out


# --- the command


@pytest.fixture(scope="module")
def examined() -> doctor.Report:
    return doctor.examine()


@pytest.fixture
def tiny(writer: Generation, examined: doctor.Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In place of SmolLM2. Each look at the time of the turns takes a second, so that a busy machine skips nothing."""
    monkeypatch.setattr(doctor, "examine", lambda: examined)
    seconds = itertools.count()
    for module in (end_to_end, end_to_end_run):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(seconds))))
    monkeypatch.setattr(end_to_end, "converted_folder", lambda *_: tmp_path)
    monkeypatch.setattr(end_to_end_run, "_load", lambda _: (writer, VOCABULARY))


@pytest.mark.usefixtures("tiny")
def test_a_tiny_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "a.json"
    arguments = ["--batch", "1", "2", "--work", "k5", "t0.8-p0.9", "--tokens", "3", "--budget", "40", "--threads", "1"]
    assert cli.main(["bench", "end-to-end", *arguments, "--out", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "SmolLM2-135M-Instruct, V 300, 1 thread" in shown
    assert "12 tokens of generate were equal to the reference's" in shown
    results = end_to_end_results.load(file)
    assert [(one.setting.batch, one.work.key) for one in results.decoding] == [
        (batch, work) for batch in (1, 2) for work in ("greedy", "k5", "t0.8-p0.9")
    ]
    for one in results.decoding:
        for way in filter(None, (one.before, one.after)):
            assert 0 < way.sampling.median < way.step.median
            assert way.step.calls == way.sampling.calls == way.rest.calls >= 2
    assert results.command.endswith("--out " + str(file))
    assert cli.main(["bench", "end-to-end", "--show", str(file), "--markdown"]) == 0
    assert "| SmolLM2-135M-Instruct, V 300, 1 thread | 2 | k 5 |" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_wrong_tokens_have_no_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*_: Any) -> int:
        raise WrongTokensError("another token")

    monkeypatch.setattr(end_to_end_run, "check", wrong)
    file = tmp_path / "a.json"
    assert cli.main(["bench", "end-to-end", "--batch", "1", "--budget", "40", "--out", str(file)]) == 1
    assert "another token" in capsys.readouterr().err
    assert not file.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--work", "greedy"], "greedy is measured anyway"),
        (["--work", "k50-half"], "one set of filters for all rows"),
        (["--work", "x5"], "accepted: plain"),
        (["--tokens", "1"], "1 is not at least 2"),
        (["--batch", "0"], "0 is not at least 1"),
        (["--model", "another"], "gemma3"),
    ],
)
def test_bad_options_are_explained(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "end-to-end", *arguments])
    assert message in capsys.readouterr().err


def test_without_transformers_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    find = end_to_end.importlib.util.find_spec
    monkeypatch.setattr(
        end_to_end.importlib.util, "find_spec", lambda name: None if name == "transformers" else find(name)
    )
    assert cli.main(["bench", "end-to-end", "--out", str(tmp_path / "a.json")]) == 1
    assert "pip install 'fastsample[bench,demo]'" in capsys.readouterr().err

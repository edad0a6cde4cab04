"""What of the SGLang plugin can be seen without SGLang: where SGLang finds it, and which versions it accepts."""

import logging
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsample.integrations import plugin as shared
from fastsample.integrations import sglang as integration
from fastsample.integrations.status import integration_statuses

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11 and newer")

ROOT = Path(__file__).parents[2]
VARIABLE = integration.plugin.variable
ACCEPTED = "accepted: 0.5.22 or newer, below 0.5.24"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    monkeypatch.setattr(shared, "_warned", set())
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("SGLANG_PLUGINS", raising=False)
    with caplog.at_level(logging.INFO, logger=integration.plugin.logger.name):
        yield


def test_the_entry_point_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    module, _, name = declared[integration.plugin.group]["fastsample"].partition(":")
    assert module == integration.__name__
    assert getattr(integration, name) is integration.register


@pytest.mark.parametrize("version", ["0.5.22", "0.5.23", "0.5.23.post1", "0.5.23.dev4+g1234567", "v0.5.23rc1"])
def test_accepted_versions(version: str) -> None:
    assert integration.plugin.unsupported(version) is None


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0.5.21", f"is too old; {ACCEPTED}. Upgrade SGLang"),
        ("0.5.9.post2", f"is too old; {ACCEPTED}. Upgrade SGLang"),
        ("0.4.30", f"is too old; {ACCEPTED}. Upgrade SGLang"),
        ("0.5.24", f"is newer than this fastsample; {ACCEPTED}. Upgrade fastsample"),
        ("0.6.0", f"is newer than this fastsample; {ACCEPTED}. Upgrade fastsample"),
    ],
)
def test_other_versions(version: str, advice: str) -> None:
    assert integration.plugin.unsupported(version) == f"SGLang {version} {advice}"


@pytest.mark.parametrize("version", ["dev", "0.5", ""])
def test_a_version_that_cannot_be_read(version: str) -> None:
    assert integration.plugin.unsupported(version) == f"cannot read the version {version!r} of SGLang; {ACCEPTED}"


def _with_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """An SGLang of which nothing but the version is there: whatever the plugin touched beside it would be missing."""
    for name in [name for name in sys.modules if name.startswith(("sglang.", integration.__name__ + "."))]:
        monkeypatch.delitem(sys.modules, name)
    for part in ("sampler", "seeds"):
        monkeypatch.delattr(integration, part, raising=False)
    stand_in = types.ModuleType("sglang")
    stand_in.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sglang", stand_in)


def _lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_another_version_is_left_alone_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _with_version(monkeypatch, "0.5.21")
    integration.register()
    integration.register()
    reason = integration.plugin.unsupported("0.5.21")
    assert _lines(caplog) == [("WARNING", f"fastsample leaves SGLang's sampling alone: {reason}")]


def test_an_sglang_of_other_parts_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _with_version(monkeypatch, "0.5.23")
    integration.register()
    ((level, line),) = _lines(caplog)
    assert level == "WARNING"
    assert line.startswith("fastsample leaves SGLang's sampling alone: SGLang 0.5.23 has other parts (")


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_the_variable_turns_it_off_silently(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _with_version(monkeypatch, "0.5.21")  # which would be warned of
    monkeypatch.setenv(VARIABLE, value)
    integration.register()
    assert _lines(caplog) == []


@pytest.mark.parametrize("value", ["1", "", "on"])
def test_any_other_value_leaves_it_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert integration.plugin.switched_on()


def test_the_status_says_what_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str] = {}
    monkeypatch.setattr(integration, "installed_version", lambda: found.get("sglang"))
    assert integration.status() == "SGLang is not installed"
    assert integration_statuses()["sglang"].summary == "not installed"
    found["sglang"] = "0.5.23"
    plugins: dict[str, list[types.SimpleNamespace]] = {}
    monkeypatch.setattr(shared, "entry_points", lambda group: plugins.get(group, []))
    assert integration.status() == "fastsample is not installed as a package here, so that SGLang finds no plugin"
    plugins["sglang.srt.plugins"] = [types.SimpleNamespace(name="fastsample")]
    usable = {name: types.SimpleNamespace(usable=False) for name in ("cpu", "cuda", "triton")}
    monkeypatch.setattr(shared, "backends", lambda: usable)
    assert integration.status() == "no compiled kernels run here"
    usable["triton"].usable = True
    assert integration.status() is None
    summary = "0.5.23 installed; {} in SGLang's processes; the one step: installing fastsample beside SGLang"
    assert integration_statuses()["sglang"].summary == summary.format("on")
    monkeypatch.setenv("SGLANG_PLUGINS", "another")
    assert integration.status() == "SGLANG_PLUGINS=another does not name fastsample"
    for nothing in (" ", ",", " , "):
        monkeypatch.setenv("SGLANG_PLUGINS", nothing)
        assert integration.status() == f"SGLANG_PLUGINS={nothing} does not name fastsample"
    for allowed in ("another, fastsample", ""):
        monkeypatch.setenv("SGLANG_PLUGINS", allowed)
        assert integration.status() is None
    monkeypatch.setenv(VARIABLE, "0")
    assert integration.status() == "turned off by FASTSAMPLE_SGLANG=0"
    assert integration_statuses()["sglang"].summary == summary.format("off")
    monkeypatch.delenv(VARIABLE)
    found["sglang"] = "0.5.40"
    assert integration.status() == integration.plugin.unsupported("0.5.40")

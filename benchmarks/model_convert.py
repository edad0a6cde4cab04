"""A GGUF file as float32 safetensors, which load in a second or two where the GGUF takes 13 s or more to unpack."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into a new folder, for `from_pretrained` of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _steps(f"Converting {gguf.name} to float32, once", total=3) as done, quiet_transformers():
        dequantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        done()
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
        done()
        # transformers refuses to save a model that came from a GGUF, so its weights go into one that did not.
        config = dequantised.config
        del config.quantization_config
        with torch.device("meta"):  # no time for initial values that are replaced at once
            model = type(dequantised)(config)
        model.load_state_dict(dequantised.state_dict(), assign=True)
        model.generation_config = dequantised.generation_config
        model.save_pretrained(folder)
        done()


@contextmanager
def quiet_transformers() -> Iterator[None]:
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


@contextmanager
def _steps(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar with a clock, for steps of several seconds; yields what to call after each."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total)
        yield lambda: progress.advance(task)

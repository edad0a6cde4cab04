"""Reading the JSON files that the benchmarks write: whatever is wrong with one is said with its name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or not an object; the message names the file.
    """
    with named_in_errors(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__}, and not a file of fastsample bench")
    return content


@contextmanager
def named_in_errors(path: Path, part: str = "") -> Iterator[None]:
    """Turns what goes wrong with a file's content into a ValueError that names the file, the part and what is wrong."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path}: {part}has no {error}") from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        text = str(error)
        raise error if text.startswith(f"{path}: ") else ValueError(f"{path}: {part}{text}") from error

"""What a part finds, written line by line while it runs: a part that is killed keeps what it has found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Recorder:
    """Appends records to a file, one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, kind: str, **content: Any) -> None:
        """Append one record of a kind: "environment", "test", "setting", ..."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, **content}) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a file; none where there is no file. A last line that was cut off by a kill is left out."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records

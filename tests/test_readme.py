"""Every Python example of the README runs, in the order it stands there."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_run() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, Any] = {}
    for block in blocks:
        if "(model)" not in block:  # test_transformers_modes.py runs that line from docs/transformers.md
            exec(compile(block, str(README), "exec"), names)

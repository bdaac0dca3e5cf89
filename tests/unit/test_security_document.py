"""What docs/security.md says is shown by tests is shown by tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_every_test_that_is_named_is_there() -> None:
    text = (REPOSITORY / "docs/security.md").read_text()
    texts = {path: path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py")}
    named = re.findall(r"`([\w/]*?)(test_\w+)(\.py)?(?:::(test_\w+))?`", text)
    assert len(named) > 30
    for folder, name, suffix, function in named:
        wanted = f"{folder}{name}.py" if suffix else ".py"
        fitting = [text for path, text in texts.items() if str(path.relative_to(REPOSITORY)).endswith(wanted)]
        assert fitting, name
        looked_for = function if suffix else name
        assert not looked_for or any(f"def {looked_for}(" in text for text in fitting), looked_for

"""What travels in the vault: as documented, and nothing else is understood."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from raksha.journal import Base, BitmapState, FileId, LayerState, OwnBitmap, OwnLayer
from raksha.virt.libvirt.trace import (
    BaseNote,
    BitmapTrace,
    OverlayTrace,
    base_note,
    note_base,
    of_bitmap,
    of_layer,
    read,
)

TEXT = (Path(__file__).parents[3] / "docs/vault-format.md").read_text(encoding="utf-8")


def layer(path: Path, modified: int | None = 7) -> OwnLayer:
    base = Base(FileId("/d/a.raw", 1, 4), "file", "raw", modified)
    return OwnLayer("v", "vda", FileId(str(path), 1, 5), base, "r1", "j", LayerState.CHAINED, frozenset({"r1"}))


@pytest.mark.parametrize(("kind", "record"), [("overlay", OverlayTrace), ("bitmap", BitmapTrace)])
def test_the_fields_are_those_of_the_document(kind: str, record: type[Any]) -> None:
    chapter = TEXT.partition("### Trackers\n")[2].partition("\n## ")[0]
    lines = [line.split("|") for line in chapter.splitlines() if f"| `{kind}` |" in line]
    assert [name for line in lines for name in re.findall(r"`(\w+)`", line[1])] == list(record.__struct_fields__)


def test_there_and_back() -> None:
    told = of_layer(layer(Path("/d/o.qcow2")))
    assert read(told, OverlayTrace) == OverlayTrace("/d/o.qcow2", 5, "r1", "j", "/d/a.raw", "file", "raw", 4)
    assert told["kind"] == "overlay" and read(told, BitmapTrace) is None and read(None, OverlayTrace) is None
    bitmap = OwnBitmap("v", "vda", "raksha-r1", "r1", "j", "[]", BitmapState.PLANNED, frozenset({"r1"}))
    assert read(of_bitmap(bitmap), BitmapTrace) == BitmapTrace("raksha-r1", "[]")


@pytest.mark.parametrize("wrong", [{"inode": "5"}, {"inode": None}, {"path": 1}, {"more": 1}, {"kind": "x"}])
def test_nothing_else_is_understood(wrong: dict[str, Any]) -> None:
    told = dict(of_layer(layer(Path("/d/o.qcow2"))))
    assert read({**told, **wrong}, OverlayTrace) is None


def test_no_field_may_be_missing() -> None:
    told = dict(of_layer(layer(Path("/d/o.qcow2"))))
    for name in told:
        assert read({key: value for key, value in told.items() if key != name}, OverlayTrace) is None, name


def test_the_note(tmp_path: Path) -> None:
    path = tmp_path / "o.qcow2"
    note_base(layer(path))  # it is gone
    path.touch()
    assert base_note(str(path)) is None
    note_base(layer(path, modified=None))
    assert base_note(str(path)) is None, "nothing is known"
    note_base(layer(path))
    assert base_note(str(path)) == BaseNote(4, 7)

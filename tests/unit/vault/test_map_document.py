"""docs/vault-format.md is the format: its tables are compared with the code, its shell lines are run."""

import re
import struct
import subprocess
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from raksha.vault import map_root, metadata
from raksha.vault.directory import DirectoryStore
from raksha.vault.segment import object_name
from raksha.vault.store import Part

TEXT = (Path(__file__).parents[3] / "docs/vault-format.md").read_text(encoding="utf-8")


def chapter(title: str) -> str:
    """The text below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", TEXT, re.M | re.S)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines]


def sizes(table: list[list[str]]) -> list[int]:
    """Of the rows `offset | bytes | ...`, which must follow each other."""
    fields = [(int(row[0]), int(row[1])) for row in table if row[0].isdigit() and row[1].isdigit()]
    for (offset, length), (following, _) in pairwise(fields):
        assert offset + length == following
    return [length for _, length in fields]


def packed_sizes(layout: struct.Struct) -> list[int]:
    items = re.findall(r"\d*[a-zA-Z]", layout.format.removeprefix("<"))
    return [struct.calcsize("<" + item) for item in items]


def test_the_byte_tables_are_those_of_the_code() -> None:
    header, section, thing = re.split(r"After it, without padding|An object, that is", chapter("Root"))
    section = section.partition("A section:")[2]
    assert sizes(rows(header)) == packed_sizes(map_root._HEADER)
    assert sizes(rows(section)) == packed_sizes(map_root._SECTION)
    assert sizes(rows(thing)) == packed_sizes(map_root._OBJECT)
    assert sizes(rows(chapter("Trailer"))) == packed_sizes(map_root.TRAILER)
    assert "`RAKSHAMP`" in header and map_root.MAGIC == b"RAKSHAMP"


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("`vault.json`", metadata.VaultDocument),
        ("`keys/<id>`", metadata.KeyDocument),
        ("`epochs/<n>`", metadata.EpochDocument),
        ("`run.json`", metadata.RunDocument),
        ("`VMMetadata`", metadata.VMMetadata),
        ("`BackupMetadata`", metadata.BackupMetadata),
    ],
)
def test_the_fields_of_a_document_are_those_of_the_code(title: str, kind: type[msgspec.Struct]) -> None:
    documented = [name for row in rows(chapter(title)) for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(documented) == sorted(kind.__struct_fields__)


@pytest.mark.parametrize("kind", [metadata.VmSummary, metadata.ResourceSummary])
def test_the_summaries_of_a_run_are_those_of_the_code(kind: type[msgspec.Struct]) -> None:
    said = set(re.findall(r"`(\w+)`", chapter("`run.json`")))
    assert set(kind.__struct_fields__) <= said


def test_the_shell_lines_put_images_together(tmp_path: Path) -> None:
    store = DirectoryStore("file:///x", tmp_path / "vault")
    store.prepare()
    pieces = []
    for number in range(6):
        piece = Part(object_name(bytes([number]) * 32, "run.1"), 1000 + number)
        store.put(piece.name, bytes([0, number, 255, 10]) * 250 + bytes(number))
        pieces.append(piece)
    inner = Part(object_name(b"m" * 32, "run.1"), sum(each.size for each in pieces[1:4]), manifest=True)
    store.put_manifest(inner.name, pieces[1:4])
    images = [f"backupjobs/job/{run}/vm/vda/Backup" for run in ("one", "two")]
    store.put_manifest(images[0], [pieces[0], inner, *pieces[4:]])
    store.put_manifest(images[1], pieces[:1])

    script = re.search(r"```sh\n(VAULT=.*?)```", TEXT, re.S)
    assert script
    lines = script[1].splitlines()
    first = f"VAULT={tmp_path}/vault TO={tmp_path}/to JOB=job"
    subprocess.run(["/bin/sh", "-euc", "\n".join([first, *lines[1:]])], check=True, timeout=60)
    for image in images:
        assembled = (tmp_path / "to" / image.removeprefix("backupjobs/")).read_bytes()
        assert assembled == store.get(image)

"""`raksha serve`, killed in each of the three parts that its process is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bed import Bed
from tests.functional.serve_kit import Served, assert_survives

pytestmark = pytest.mark.bed


@pytest.fixture
def served(bed: Bed, tmp_path: Path) -> Iterator[Served]:
    made = Served(bed, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    "point",
    ["libvirt.snapshotCreateXML.done", "journal.keep_result.done", "vault.put.run.json", "vault.put.run.json.done",
     "libvirt.blockCommit.done"],
)  # fmt: skip
def test_killed_during_a_backup(bed: Bed, served: Served, tmp_path: Path, point: str) -> None:
    assert_survives(bed, served, tmp_path, point)

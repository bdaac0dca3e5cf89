"""An empty database in a file: the fast one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from raksha.db import migrate
from raksha.db.session import Database
from tests.bed.databases import opened


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        migrate.upgrade(database)
        yield database

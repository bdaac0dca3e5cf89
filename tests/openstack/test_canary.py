"""The canary sees what it looks for."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.openstack.canary import Canary
from tests.openstack.cloud.layout import PASSWORD

#: of a job, and of a restore
TRUST, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
TOKEN = "gAAAAABn0123456789"


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    with closing(sqlite3.connect(tmp_path / "raksha.db")) as database:
        database.executescript(
            f"CREATE TABLE backupjobs (trust_id TEXT); INSERT INTO backupjobs VALUES ('{TRUST}');"
            f"CREATE TABLE restores (trust_id TEXT, error TEXT); INSERT INTO restores VALUES ('{OTHER}', NULL);"
            "CREATE TABLE backupjobruns (error TEXT);"
        )
    (tmp_path / "raksha.conf").write_text(f"password = {PASSWORD}\n")
    (tmp_path / "api.log").write_text("GET /v1/\n")
    made = Canary(tmp_path, "rabbit://localhost/", lambda: ())
    made.processes.add("raksha-api\0--config\0")
    made.messages += [("['scheduler']", "{}"), ("['reply_1']", TOKEN)]
    made.tokens.add("own-token")
    made.check()
    return made


def row(canary: Canary, path: Path, secret: str) -> None:
    with closing(sqlite3.connect(path / "raksha.db")) as database:
        database.execute("INSERT INTO backupjobruns VALUES (?)", (secret,))
        database.commit()


def restore(canary: Canary, path: Path, secret: str) -> None:
    with closing(sqlite3.connect(path / "raksha.db")) as database:
        database.execute("UPDATE restores SET error = ?", (secret,))
        database.commit()


PLACES: dict[str, Callable[[Canary, Path, str], object]] = {
    "log": lambda _, path, secret: (path / "api.log").write_text(f"x {secret}"),
    "state": lambda _, path, secret: (path / "journal").write_bytes(secret.encode()),
    "row": row,
    "restore": restore,
    "argv": lambda canary, _, secret: canary.processes.add(f"qemu-img {secret}"),
    "answer": lambda canary, _, secret: canary.answers.append(f'{{"detail": "{secret}"}}'),
    "request": lambda canary, _, secret: canary.messages.append(("['scheduler']", secret)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", [PASSWORD, TOKEN, TRUST, OTHER, "own-token"])
def test_a_secret_is_found_where_it_is(canary: Canary, tmp_path: Path, place: str, secret: str) -> None:
    PLACES[place](canary, tmp_path, secret)
    with pytest.raises(AssertionError):
        canary.check()


@pytest.mark.parametrize("secret", [PASSWORD, TRUST, OTHER, "own-token"])
def test_an_answer_on_the_bus_holds_no_more_than_a_lent_token(canary: Canary, secret: str) -> None:
    canary.messages.append(("['reply_1']", secret))
    with pytest.raises(AssertionError):
        canary.check()

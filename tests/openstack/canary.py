"""Looks for secrets wherever a Raksha leaves or says something, for as long as it runs.

    logs, files of agents, database           tokens, passwords; ids of trusts but in the columns that are theirs
    command lines and environments            of its processes and of all that they start, looked at twice a second
    answers of the API                        all that tests got, errors too
    messages on the bus                       all; a token goes to whoever has just claimed, and in no other message

Configuration files hold an operator's passwords, as they are meant to.
"""

from __future__ import annotations

import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import kombu
from keystoneauth1.session import Session

from tests.openstack.cloud.layout import PASSWORD
from tests.openstack.cloud.rest import Api, Refused

#: how a token of Keystone begins
TOKEN = "gAAAA"
#: tables that know trusts, and their columns for them
TRUSTED = ("backupjobs", "restores")
_TRUSTS = ("trust_id", "former_trusts")
_INSERTS = tuple(f'INSERT INTO "{table}" ' for table in TRUSTED)
#: of a file that is looked into; disks are larger
_MOST = 32 << 20
#: of all messages that are kept
_MOST_HEARD = 256 << 20


class Told(Api):
    """As `Api`; what is said is remembered."""

    def __init__(self, login: Session, base: str, canary: Canary) -> None:
        super().__init__(login, base)
        self._canary = canary

    def ask(self, verb: str, path: str, body: Any = None, **more: Any) -> Any:
        self._canary.tokens.add(str(self._login.get_token()))
        try:
            answer = super().ask(verb, path, body, **more)
        except Refused as error:
            self._canary.answers.append(str(error))
            raise
        self._canary.answers.append(getattr(answer, "text", None) or str(answer))
        return answer


class Canary:
    """A context manager: it listens meanwhile. `pids`: the processes to look at, as they are just then."""

    def __init__(self, folder: Path, bus: str, pids: Callable[[], Iterable[int]]) -> None:
        self._folder = folder
        self._bus = bus.replace("rabbit://", "amqp://", 1)
        self._pids = pids
        self._over = threading.Event()
        self._listening = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._watch)]
        #: of the users whose requests were seen
        self.tokens: set[str] = set()
        self.answers: list[str] = []
        #: command lines and environments
        self.processes: set[str] = set()
        #: where to, and what
        self.messages: list[tuple[str, str]] = []

    def __enter__(self) -> Canary:
        for thread in self._threads:
            thread.start()
        assert self._listening.wait(60), "nobody listens on the bus"
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    # -- what is seen ---------------------------------------------------------------------------------

    def _listen(self) -> None:
        """All that is published in the virtual host: it is traced."""
        size = 0

        def on_message(message: Any) -> None:
            nonlocal size
            body = bytes(message.body).decode(errors="replace")
            size += len(body)
            if size < _MOST_HEARD:
                self.messages.append((str(message.headers["routing_keys"]), body))
            message.ack()

        with kombu.Connection(self._bus) as connection:
            trace = kombu.Exchange("amq.rabbitmq.trace", "topic", no_declare=True)
            queue = kombu.Queue("", trace, routing_key="publish.#", exclusive=True)
            with kombu.Consumer(connection, [queue], on_message=on_message):
                self._listening.set()
                while not self._over.is_set():
                    with suppress(TimeoutError):
                        connection.drain_events(timeout=0.5)

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for pid in [each for first in self._pids() for each in family(first)]:
                for name in ("cmdline", "environ"):
                    with suppress(OSError):
                        self.processes.add(Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))

    # -- what must not be there -----------------------------------------------------------------------

    def check(self) -> None:
        trusts = self._trusts()
        secrets = {TOKEN, PASSWORD, *self.tokens, *trusts}
        assert self.processes and self.messages, "nothing was looked at"
        for file, content in self._files():
            # of trusts the database is asked below
            named = secrets - trusts if file.name.startswith("raksha.db") else secrets
            assert not found(named, content), f"{file}: {found(named, content)}"
        for noun, seen in (("answer", self.answers), ("process", self.processes)):
            for each in seen:
                assert not found(secrets, each), f"{noun}: {each[:2000]}"
        for where, message in self.messages:
            lent = {TOKEN} if "reply_" in where else set()
            assert not found(secrets - lent, message), f"{where}: {message[:2000]}"
        for line in self._rows():
            assert not found(trusts, line), line[:2000]

    def _files(self) -> Iterator[tuple[Path, str]]:
        """Logs and states with what they hold; not what is mounted there, nor what goes meanwhile."""
        here = self._folder.stat().st_dev
        for file in self._folder.rglob("*"):
            with suppress(OSError):
                about = file.lstat()
                ours = stat.S_ISREG(about.st_mode) and about.st_dev == here and file.suffix != ".conf"
                if ours and about.st_size < _MOST:
                    yield file, file.read_bytes().decode(errors="replace")

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self._folder}/raksha.db?mode=ro", uri=True, timeout=60)

    def _rows(self) -> Iterator[str]:
        """All, but for the columns that trusts are in."""
        with closing(self._database()) as database:
            yield from (line for line in database.iterdump() if not line.startswith(_INSERTS))
            database.row_factory = sqlite3.Row
            for table in TRUSTED:
                for row in database.execute(f"SELECT * FROM {table}"):
                    yield str({name: row[name] for name in row.keys() if name not in _TRUSTS})  # noqa: SIM118

    def _trusts(self) -> set[str]:
        """Of the jobs and restores that are there now."""
        asked = " UNION ".join(f"SELECT trust_id FROM {table}" for table in TRUSTED)
        with closing(self._database()) as database:
            return {trust for (trust,) in database.execute(asked) if trust}


def found(secrets: Iterable[str], text: str) -> list[str]:
    """Those that are in it, in short: they are not to be in the report of a test either."""
    return sorted(f"{secret[:8]}…" for secret in secrets if secret in text)


def family(pid: int) -> list[int]:
    """A process and all that it has started, and these have."""
    found = [pid]
    for parent in found:
        with suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found

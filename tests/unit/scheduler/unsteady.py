"""A vault whose listings lag, and processes that die or are overtaken at any change they make, in vault or database."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from raksha.db.session import Database
from raksha.types import Buffer
from raksha.vault.memory import MemoryStore
from raksha.vault.store import Part


class Killed(BaseException):
    """In place of SIGKILL: nothing that only catches errors goes on after it."""


class Fate:
    """Counts changes; at one of them it kills, or lets others do something in between."""

    def __init__(self) -> None:
        self._left: int | None = None
        self._act: Callable[[], None] | None = None
        self._dead = False
        #: how many changes there were
        self.steps = 0

    @contextmanager
    def at(self, left: int | None, act: Callable[[], None] | None) -> Iterator[None]:
        """After so many changes: `act`, or the end of everything that was begun within. None: nothing happens."""
        self._left, self._act, self._dead = left, act, False
        try:
            yield
        except Killed:
            pass
        finally:
            self._left, self._act, self._dead = None, None, False

    def step(self) -> None:
        self.alive()
        self.steps += 1
        if self._left is None:
            return
        self._left -= 1
        if self._left < 0:
            self._left, act = None, self._act
            if act is not None:
                act()
                return
            self._dead = True
            raise Killed

    def alive(self) -> None:
        """Who was killed changes nothing any more, not even to clear up."""
        if self._dead:
            raise Killed


class UnsteadyStore(MemoryStore):
    """Listings omit what was put of late, and show what was deleted, now and then, until they are `settled`."""

    def __init__(self, fate: Fate, seed: int) -> None:
        super().__init__("memory://unsteady")
        self._fate = fate
        self._chance = random.Random(seed)
        self._late: set[str] = set()

    def settled(self) -> None:
        self._late.clear()

    def put(self, name: str, data: Buffer, *, create_only: bool = False) -> None:
        self._fate.step()
        new = name not in self._objects
        super().put(name, data, create_only=create_only)
        if new:
            self._late.add(name)

    def put_file(self, name: str, source: BinaryIO, size: int) -> None:
        self._fate.step()
        super().put_file(name, source, size)
        self._late.add(name)

    def put_manifest(self, name: str, parts: Sequence[Part]) -> None:
        self._fate.step()
        super().put_manifest(name, parts)
        self._late.add(name)

    def delete(self, name: str) -> None:
        self._fate.step()
        super().delete(name)
        self._late.add(name)

    def names(self, container: str, prefix: str = "") -> Iterator[str]:
        found = set(super().names(container, prefix))
        for name in sorted(self._late):
            if name.startswith(f"{container}/{prefix}") and self._chance.random() < 0.5:
                found ^= {name}
        yield from sorted(found, key=str.encode)

    # -- behind everybody's back ------------------------------------------------------------------------

    def all_names(self) -> set[str]:
        return set(self._objects)

    def damage(self, name: str, *, lose: bool) -> None:
        """It is lost, or one of its bytes is another."""
        whole = self._objects[name]
        assert isinstance(whole, bytes)
        if lose:
            del self._objects[name]
        else:
            self._objects[name] = whole[:9] + bytes([whole[9] ^ 0x55]) + whole[10:]

    def has(self, name: str) -> bytes | None:
        found = self._objects.get(name)
        return found if isinstance(found, bytes) else None


def mortal(database: Database, fate: Fate) -> Database:
    """The same one; who uses it may die just before and just after each transaction."""
    run: Callable[[Callable[..., Any]], Any] = database.run

    def step_by_step(work: Callable[..., Any]) -> Any:
        fate.step()
        result = run(work)
        fate.step()
        return result

    database.run = step_by_step  # type: ignore[method-assign]
    return database

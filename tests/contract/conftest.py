"""The stores under contract, each opened in a place of its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raksha.vault.credentials import from_environment
from raksha.vault.directory import DirectoryStore
from raksha.vault.memory import MemoryStore
from raksha.vault.retry import RetryStore
from raksha.vault.store import Store
from raksha.vault.swift import SwiftStore
from tests.bed.swift import SwiftBed

KINDS = ["memory", "directory", "swift", "directory+retry", "swift+retry"]


@dataclass
class DirectoryPlace:
    """A directory that stores are opened on, and a hand on its files."""

    root: Path

    def open(self, **options: Any) -> Store:
        return DirectoryStore(f"file://{self.root}", self.root, **options)

    def file(self, name: str) -> Path:
        return self.root / name


@dataclass
class MemoryPlace:
    """Each opening is another place: memory is shared with nobody."""

    def open(self, **options: Any) -> Store:
        return MemoryStore(**options)


@dataclass
class SwiftPlace:
    """A container prefix of the shared Swift, and a hand on the files of its object server."""

    bed: SwiftBed
    prefix: str

    def open(self, **options: Any) -> Store:
        url = f"swift://{self.prefix}"
        given = {"credentials": from_environment(url, self.bed.env), "timeout": 20.0, **options}
        return SwiftStore(url, prefix=self.prefix, **given)

    def file(self, name: str) -> Path:
        container, _, key = name.partition("/")
        (found,) = self.bed.files(f"{self.prefix}_{container}", key)
        return found


@dataclass
class RetryPlace:
    """Another place, seen through `RetryStore`."""

    inner: Any

    def open(self, **options: Any) -> Store:
        return RetryStore(self.inner.open(**options), deadline=30)

    def file(self, name: str) -> Path:
        return self.inner.file(name)


def new_place(kind: str, request: pytest.FixtureRequest) -> Any:
    kind, _, retry = kind.partition("+")
    if kind == "memory":
        place: Any = MemoryPlace()
    elif kind == "directory":
        place = DirectoryPlace(request.getfixturevalue("tmp_path") / "vault")
    else:
        place = SwiftPlace(request.getfixturevalue("swift"), f"t{uuid.uuid4().hex[:12]}")
    return RetryPlace(place) if retry else place


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Any:
    return new_place(request.param, request)


@pytest.fixture(params=["directory", "swift", "swift+retry"])
def tangible(request: pytest.FixtureRequest) -> Any:
    """A place whose files can be damaged behind the back of the store."""
    return new_place(request.param, request)


@pytest.fixture
def swift_place(request: pytest.FixtureRequest) -> Any:
    return new_place("swift", request)


@pytest.fixture
def store(place: Any) -> Iterator[Store]:
    with opened(place) as found:
        yield found


class opened:
    """A prepared store for the length of a `with`."""

    def __init__(self, place: Any, **options: Any) -> None:
        self._store: Store = place.open(**options)

    def __enter__(self) -> Store:
        self._store.prepare()
        return self._store

    def __exit__(self, *_: object) -> None:
        self._store.close()

"""Fixtures on real parts: a private libvirtd per test process, and a bed on it (or on qemu:///system) per test."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Iterator

import libvirt
import pytest

from tests.bed import Bed, SessionHost, SystemHost
from tests.bed.databases import database, schemas  # noqa: F401 fixtures
from tests.bed.image import REPOSITORY
from tests.bed.mariadb import mariadb  # noqa: F401 a fixture
from tests.bed.postgresql import postgresql  # noqa: F401 a fixture
from tests.bed.swift import swift  # noqa: F401 a fixture

# libvirt tells every error to standard error as well, unless somebody takes it
libvirt.registerErrorHandler(lambda _context, _error: None, None)
os.environ["LIBVIRT_AUTOSTART"] = "0"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """RAKSHA_PART=2/3 takes the second third of the tests. Which that is depends on their names alone."""
    if not (part := os.environ.get("RAKSHA_PART")):
        return
    number, of = map(int, part.split("/"))
    mine = [item for item in items if zlib.crc32(item.nodeid.encode()) % of == number % of]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


@pytest.fixture(scope="session")
def session_host() -> Iterator[SessionHost]:
    """A private, unprivileged libvirtd; a test that kills it starts it again."""
    host = SessionHost()
    try:
        host.start()
        yield host
    finally:
        host.close()


@pytest.fixture
def bed(session_host: SessionHost) -> Iterator[Bed]:
    """Disks and guests on the private libvirtd."""
    with Bed(session_host) as made:
        yield made


@pytest.fixture(scope="session")
def system_host() -> Iterator[SystemHost]:
    """`qemu:///system`, started if it was not there; it stays (scripts/libvirtd stop)."""
    subprocess.run([REPOSITORY / "scripts/libvirtd", "start"], check=True)
    host = SystemHost()
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def system_bed(system_host: SystemHost) -> Iterator[Bed]:
    """Disks and guests on `qemu:///system`: block devices, and files that libvirt hands over."""
    with Bed(system_host) as made:
        yield made

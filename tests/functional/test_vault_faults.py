"""A vault that lies, breaks off, refuses or is full, at every kind of request of a backup: a real Swift behind a proxy
that spoils it.

However the backup ends, it ends with its result or an error that has a name; readers see whole points only; and the
next backup, with the vault well again, is right and leaves nothing over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pytest

from raksha.vault import crash_store
from tests.bed import Bed
from tests.bed.faulty import Fault, FaultyProxy, in_front_of
from tests.bed.swift import SwiftBed
from tests.functional.crash_kit import World, wanted_sample, world_on
from tests.functional.local_kit import DAMAGED, VAULT, Answer

pytestmark = [pytest.mark.bed, pytest.mark.timeout(3600)]

#: each is retried, or reported, once
ONCE = ["401", "403", "404", "412", "413", "422", "429", "500", "503", "507",
        "dropped", "unheard", "short", "wrong_etag", "cut", "flipped", "slow"]  # fmt: skip
#: how many pairs of request and fault the ordinary test run takes
SAMPLE = 4


@pytest.fixture
def proxy(swift: SwiftBed) -> Iterator[FaultyProxy]:
    port = urlsplit(swift.address).port
    assert port is not None
    with in_front_of(port) as made:
        yield made


@pytest.fixture
def world(bed: Bed, swift: SwiftBed, proxy: FaultyProxy, tmp_path: Path) -> Iterator[World]:
    configuration = tmp_path / "raksha.conf"
    configuration.write_text("[host]\nvault_patience = 3\n")
    with world_on(bed, tmp_path) as made:
        made.local.vault = f"swift://t{uuid4().hex[:8]}"
        made.local.environment = {**swift.env, "ST_AUTH": f"http://127.0.0.1:{proxy.port}/auth/v1.0"}
        made.options = (*made.options, "--config", str(configuration))
        made.backup()
        yield made


def kind(method: str, path: str) -> str:
    """Of a request: `PUT segment`, `GET listing`, `PUT Backup` ..."""
    parts = urlsplit(path)
    if parts.path.startswith("/auth/"):
        return "GET login"
    _, _, account_and_rest = unquote(parts.path).partition("/v1/")
    container, _, key = account_and_rest.partition("/")[2].partition("/")
    name = re.sub(r"^.*_(?=backupjobs)", "", container)
    if not key:
        return f"{method} listing" if method == "GET" else f"{method} container"
    return f"{method} {crash_store.kind(f'{name}/{key}')}"


def of_kind(wanted: str) -> Callable[[str, str], bool]:
    return lambda method, path: kind(method, path) == wanted


def kinds_of_a_backup(world: World, proxy: FaultyProxy) -> list[str]:
    proxy.seen.clear()
    world.writes()
    world.backup()
    return list(dict.fromkeys(kind(*request) for request in proxy.seen))


def assert_named(answer: Answer) -> None:
    """A result; or an error of the vault that says so."""
    if answer.code:
        assert answer.code in (VAULT, DAMAGED, 3, 4), answer
        assert answer.error not in ("error", "host_failed"), answer
        assert "Traceback" not in answer.err, answer


def after(world: World, proxy: FaultyProxy, *, restore: bool = True) -> None:
    """The vault is well again."""
    proxy.fault = None
    world.write()
    world.adopt_new_points()
    touched = {target: set(clusters) for target, clusters in world.touched.items()}
    answer = world.backup()
    assert answer.warnings == []
    world.assert_increment(answer, touched)
    world.assert_nothing_left()
    if restore:
        assert world.restored(answer.run) == world.truth[answer.run]


def pairs(kinds: list[str], count: int) -> list[tuple[str, str]]:
    every = [(each, what) for each in kinds for what in ONCE]
    if not count:
        return every
    # every kind and every fault comes up
    return [(kinds[n % len(kinds)], ONCE[(n + n // len(kinds)) % len(ONCE)]) for n in range(count)]


def test_every_request_may_fail_once(world: World, proxy: FaultyProxy) -> None:
    kinds = kinds_of_a_backup(world, proxy)
    assert {"PUT segment", "PUT BackupMap", "PUT Backup", "PUT BackupMetadata", "GET BackupMetadata", "PUT VMMetadata",
            "PUT epoch", "PUT run.json", "GET vault.json", "GET listing", "GET login"} <= set(kinds)  # fmt: skip
    survived = 0
    for number, (request, what) in enumerate(chosen := pairs(kinds, wanted_sample(SAMPLE))):
        world.writes()
        fault = proxy.fault = Fault(what, of_kind(request))
        try:
            answer = world.busy({}, "backup", world.guest.uuid, *world.options)
            assert fault.happened == 1
            assert_named(answer)
            survived += answer.code == 0
            if what in ("500", "503", "429", "dropped", "slow") or (what == "401" and request != "GET login"):
                assert answer.code == 0, f"worth another attempt: {answer}"
            after(world, proxy, restore=number % 4 == 3)
        except BaseException as error:
            error.add_note(f"{what} at {request}, which is {number + 1} of {len(chosen)}")
            raise
        if number % 10 == 9:
            world.prune(keep=2)
    world.assert_vault_whole()
    print(f"{len(kinds)} kinds of requests, {len(chosen)} faults, {survived} of them without consequence")


#: what goes on failing, and how that is told
LASTING = [
    ("PUT segment", "507", "vault_full"),
    ("PUT Backup", "413", "vault_full"),
    ("PUT BackupMetadata", "403", "vault_access_denied"),
    ("PUT run.json", "401", "vault_access_denied"),
    ("PUT segment", "503", "vault_unavailable"),
    ("PUT BackupMap", "dropped", "vault_unavailable"),
    ("PUT epoch", "wrong_etag", "vault_unavailable"),
    ("PUT VMMetadata", "short", "vault_unavailable"),
]


@pytest.mark.slow
def test_a_vault_that_goes_on_failing(world: World, proxy: FaultyProxy) -> None:
    """It is told within the time that was given, and in its own words."""
    for request, what, code in LASTING:
        world.writes()
        before = world.local.runs()
        proxy.fault = Fault(what, of_kind(request), times=10**9)
        began = time.monotonic()
        answer = world.busy({}, "backup", world.guest.uuid, *world.options)
        assert (answer.code, answer.error) == (VAULT, code), (request, what, answer)
        assert time.monotonic() - began < 60
        proxy.fault = None
        assert world.local.runs() == before
        after(world, proxy, restore=False)
    world.assert_vault_whole()


@pytest.mark.slow
def test_a_vault_that_is_dead(world: World, proxy: FaultyProxy, swift: SwiftBed) -> None:
    before = world.local.runs()
    world.writes()
    swift.kill("proxy")
    try:
        answer = world.busy({}, "backup", world.guest.uuid, *world.options)
    finally:
        swift.restart("proxy")
    assert (answer.code, answer.error) == (VAULT, "vault_unavailable"), answer
    assert world.local.runs() == before
    after(world, proxy)

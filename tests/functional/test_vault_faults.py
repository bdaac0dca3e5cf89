"""A vault that lies, breaks off, refuses or is full, at every kind of request of a backup, a restore, a verification
and a prune: a real Swift behind a proxy that spoils it.

However the command ends, it ends with its result or an error that has a name; readers see whole points only, and get
the right bytes or none; and the next command, with the vault well again, is right and leaves nothing over.
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
#: all of them, which take hours, go in parts, each in a world of its own, beside each other
PARTS = 8 if wanted_sample(SAMPLE) == 0 else 1
in_parts = pytest.mark.parametrize("part", range(PARTS))


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
        made.configured = ("--config", str(configuration))
        made.options = (*made.options, *made.configured)
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


def kinds(proxy: FaultyProxy, command: Callable[[], object]) -> list[str]:
    """Of the requests that a command makes, each once."""
    proxy.seen.clear()
    command()
    return list(dict.fromkeys(kind(*request) for request in proxy.seen))


def assert_named(answer: Answer) -> None:
    """A result; or an error of the vault that says so, or what a verification found."""
    if answer.code == DAMAGED and "findings" in answer.json:
        assert answer.json["findings"]
    elif answer.code:
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


def pairs(found: list[str], part: int, *always: tuple[str, str]) -> list[tuple[str, str]]:
    """Of every kind of request and every fault; or a sample, spread over both, and those that are wanted `always`."""
    count = wanted_sample(SAMPLE)
    if not count:
        return [(each, what) for each in found for what in ONCE][part::PARTS]
    spread = [(found[n * len(found) // count % len(found)], ONCE[n * len(ONCE) // count % len(ONCE)])
              for n in range(count)]  # fmt: skip
    return list(dict.fromkeys([*always, *spread]))


@in_parts
def test_every_request_may_fail_once(world: World, proxy: FaultyProxy, part: int) -> None:
    world.writes()
    found = kinds(proxy, world.backup)
    assert {"PUT segment", "PUT BackupMap", "PUT Backup", "PUT BackupMetadata", "GET BackupMetadata", "PUT VMMetadata",
            "PUT epoch", "PUT run.json", "GET vault.json", "GET listing", "GET login"} <= set(found)  # fmt: skip
    survived = 0
    for number, (request, what) in enumerate(chosen := pairs(found, part)):
        world.writes()
        fault = proxy.fault = Fault(what, of_kind(request))
        try:
            answer = world.busy({}, "backup", world.guest.uuid, *world.options)
            assert fault.happened == 1
            assert_named(answer)
            survived += answer.code == 0
            assert_tried_again(answer, request, what)
            after(world, proxy, restore=number % 4 == 3)
        except BaseException as error:
            error.add_note(f"{what} at {request}, which is {number + 1} of {len(chosen)}")
            raise
        if number % 10 == 9:
            world.prune(keep=2)
    world.assert_vault_whole()
    print(f"{len(found)} kinds of requests, {len(chosen)} faults, {survived} of them without consequence")


@in_parts
def test_every_request_of_a_reader_may_fail_once(world: World, proxy: FaultyProxy, tmp_path: Path, part: int) -> None:
    """Restores and verifications: the right bytes, or none at all; what was found is not found a second time."""
    world.writes()
    run = world.backup().run
    into = tmp_path / "restored"
    into.mkdir()
    restore = ("restore", run, "--vm", world.guest.uuid, "--into", str(into), "--format", "raw", *world.configured)

    def restored() -> dict[str, bytes]:
        content = {path.stem.rpartition("-")[2]: path.read_bytes() for path in into.iterdir()}
        for path in into.iterdir():
            path.unlink()
        return content

    for command in (restore, ("verify", "--data", *world.configured)):
        found = kinds(proxy, lambda words=command: world.local.good(*words))
        assert {"GET segment", "GET BackupMap", "GET BackupMetadata", "GET run.json", "GET login"} <= set(found)
        restored()
        for request, what in pairs(found, part, ("GET segment", "flipped")):
            fault = proxy.fault = Fault(what, of_kind(request))
            try:
                answer = world.local(*command)
                assert fault.happened == 1
                assert_named(answer)
                assert_tried_again(answer, request, what)
                if command is restore:
                    assert restored() == (world.truth[run] if answer.code == 0 else {})
                proxy.fault = None
                world.local.good(*command)
                if command is restore:
                    assert restored() == world.truth[run]
            except BaseException as error:
                error.add_note(f"{what} at {request} of {command[0]}")
                raise


@pytest.mark.slow
@in_parts
def test_every_request_of_a_prune_may_fail_once(world: World, proxy: FaultyProxy, part: int) -> None:
    """What is listed afterwards is whole, and the next one takes the rest away."""
    prune = ("prune", "--keep-last", "1", *world.configured)

    def arrange() -> str:
        while len(world.truth) < 2:
            world.writes()
            world.backup()
        return max(world.truth, key=list(world.truth).index)

    def forget_what_went(newest: str) -> None:
        listed = world.local.runs()
        assert newest in listed and set(listed) <= set(world.truth)
        world.truth = {run: truth for run, truth in world.truth.items() if run in listed}
        world.assert_vault_whole()

    newest = arrange()
    found = kinds(proxy, lambda: world.local.good(*prune))
    assert {"DELETE segment", "DELETE run.json", "DELETE BackupMetadata", "DELETE BackupMap", "DELETE Backup",
            "DELETE VMMetadata", "PUT run.json", "PUT BackupMap", "GET listing"} <= set(found)  # fmt: skip
    forget_what_went(newest)
    always = [("DELETE segment", "unheard"), ("DELETE run.json", "404")]
    for number, (request, what) in enumerate(pairs(found, part, *always)):
        newest = arrange()
        fault = proxy.fault = Fault(what, of_kind(request))
        try:
            answer = world.local(*prune)
            assert fault.happened == 1
            assert_named(answer)
            assert_tried_again(answer, request, what)
            proxy.fault = None
            forget_what_went(newest)
            if number % 4 == 3:
                world.local.good(*prune)
                forget_what_went(newest)
                assert set(world.truth) == {newest}
                assert world.restored(newest) == world.truth[newest]
        except BaseException as error:
            error.add_note(f"{what} at {request}")
            raise
    after(world, proxy)


def assert_tried_again(answer: Answer, request: str, what: str) -> None:
    if what == "404" and request.startswith("DELETE "):
        assert answer.code == 0, f"it was still there: {answer}"
    if what in ("500", "503", "429", "dropped", "slow") or (what == "401" and request != "GET login"):
        assert answer.code == 0, f"worth another attempt: {answer}"


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

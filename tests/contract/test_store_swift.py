"""A vault in a real Swift whose servers stop, whose network breaks and whose tokens end."""

from __future__ import annotations

import io
import itertools
import os
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from raksha.errors import (
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    RakshaError,
    VaultAccessDenied,
    VaultFull,
    VaultUnavailable,
)
from raksha.vault.address import open_store
from raksha.vault.credentials import LentCredentials, TokenCredentials, V1Credentials, V3Credentials, from_environment
from raksha.vault.retry import RetryStore
from raksha.vault.store import BACKUPS, SEGMENTS, Part, Store
from raksha.vault.swift import SwiftStore
from tests.bed.relay import Relay, relayed
from tests.bed.swift import SwiftBed, free_ports, running
from tests.contract.conftest import SwiftPlace, opened
from tests.contract.identity import keystone, serving

NAME = "backupjobs/job/run.json"
MIB4 = os.urandom(4 << 20)
CLIENT = Path(sys.executable).with_name("swift")


@pytest.fixture
def store(swift_place: SwiftPlace) -> Iterator[Store]:
    with opened(swift_place) as found:
        yield found


@pytest.fixture
def relay(swift: SwiftBed) -> Iterator[Relay]:
    with relayed(int(swift.address.rpartition(":")[2])) as found:
        yield found


def through(relay: Relay, place: SwiftPlace) -> Store:
    """Swift gives out the address that it was asked at, so all requests take the relay."""
    auth_url = f"http://127.0.0.1:{relay.port}/auth/v1.0"
    return place.open(credentials=V1Credentials(auth_url=auth_url, user=place.bed.user, key=place.bed.key))


def patient(store: Store) -> RetryStore:
    return RetryStore(store, deadline=30, first_wait=0.05, longest_wait=0.5)


def token_of(bed: SwiftBed) -> str:
    headers = {"X-Auth-User": bed.user, "X-Auth-Key": bed.key}
    with urllib.request.urlopen(urllib.request.Request(bed.auth_url, headers=headers)) as answer:
        found: str = answer.headers["X-Auth-Token"]
    return found


# -- other people's tools ---------------------------------------------------------------------------


def test_without_prefix_the_containers_have_the_names_of_the_format(
    swift: SwiftBed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in swift.env.items():
        monkeypatch.setenv(name, value)
    store = open_store("swift://")
    store.prepare()
    store.put("backupjobs_segments/ab/x", MIB4)
    store.put("backupjobs_segments/ab/y", b"tail")
    parts = [Part("backupjobs_segments/ab/x", 4 << 20), Part("backupjobs_segments/ab/y", 4)]
    store.put_manifest("backupjobs/j/Backup", parts)
    listed = subprocess.run([CLIENT, "list"], check=True, capture_output=True, text=True).stdout.split()
    assert {BACKUPS, SEGMENTS} <= set(listed)
    subprocess.run([CLIENT, "download", BACKUPS, "-D", tmp_path, "-p", "j/"], check=True, capture_output=True)
    assert (tmp_path / "j" / "Backup").read_bytes() == MIB4 + b"tail"


def test_a_vault_with_a_prefix_sees_nothing_of_others(swift: SwiftBed, swift_place: SwiftPlace, store: Store) -> None:
    store.put(NAME, b"x")
    environ = {**os.environ, **swift.env}
    listed = subprocess.run([CLIENT, "list"], check=True, capture_output=True, text=True, env=environ)
    assert f"{swift_place.prefix}_{BACKUPS}" in listed.stdout.split()
    with opened(replace(swift_place, prefix=f"{swift_place.prefix}x")) as other:
        with pytest.raises(ObjectMissing):
            other.get(NAME)
        assert list(other.names(BACKUPS)) == []


def test_a_manifest_that_leads_out_of_the_vault_is_corrupt(
    swift: SwiftBed, swift_place: SwiftPlace, store: Store
) -> None:
    with opened(replace(swift_place, prefix=f"other{swift_place.prefix}")) as other:
        other.put("backupjobs/x", b"abc")
        other.put_manifest("backupjobs/Backup", [Part("backupjobs/x", 3)])
        # the same manifest, moved into our container by somebody with a right to do so
        request = urllib.request.Request(
            f"{swift.storage_url}/other{swift_place.prefix}_{BACKUPS}/Backup?multipart-manifest=get", method="COPY"
        )
        request.add_header("X-Auth-Token", token_of(swift))
        request.add_header("Destination", f"{swift_place.prefix}_{BACKUPS}/Backup")
        urllib.request.urlopen(request).close()
    with pytest.raises(ObjectCorrupt, match="outside the vault"):
        store.parts("backupjobs/Backup")


# -- who may ----------------------------------------------------------------------------------------


def refused(store: Store, secret: str, status: str) -> None:
    calls = [
        lambda: store.get(NAME),
        lambda: store.head(NAME),
        lambda: store.put(NAME, MIB4),
        lambda: store.delete(NAME),
        lambda: list(store.names(BACKUPS)),
        store.prepare,
    ]
    for call in calls:
        with pytest.raises(VaultAccessDenied, match=status) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value)) + str(caught.value.fields) + caught.value.advice()
        assert secret not in told


def test_a_wrong_key_is_refused_and_not_repeated(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    credentials = V1Credentials(auth_url=swift.auth_url, user=swift.user, key="wr0ngkey")
    refused(swift_place.open(credentials=credentials), "wr0ngkey", "401")


def test_another_account_is_refused(swift: SwiftBed, swift_place: SwiftPlace, store: Store) -> None:
    credentials = V1Credentials(
        auth_url=swift.auth_url, user=swift.stranger, key=swift.stranger_key, storage_url=swift.storage_url
    )
    refused(swift_place.open(credentials=credentials), swift.stranger_key, "403")


def test_a_given_token_serves_until_it_ends(swift: SwiftBed, swift_place: SwiftPlace, store: Store) -> None:
    token = token_of(swift)
    given = swift_place.open(credentials=TokenCredentials(storage_url=swift.storage_url, token=token))
    given.put(NAME, b"x")
    assert store.get(NAME) == b"x"
    swift.revoke_tokens()
    refused(given, token, "401")


def test_a_lent_token_is_replaced_by_whoever_lends_it(swift: SwiftBed, swift_place: SwiftPlace, store: Store) -> None:
    lent = LentCredentials(TokenCredentials(storage_url=swift.storage_url, token=token_of(swift)))
    borrower = swift_place.open(credentials=lent)
    borrower.put(NAME, b"x")
    swift.revoke_tokens()
    refused(borrower, "AUTH_tk", "401")
    lent.renew(TokenCredentials(storage_url=swift.storage_url, token=token_of(swift)))
    borrower.put(NAME, b"y")
    assert store.get(NAME) == b"y"


@pytest.mark.parametrize("body", [b'[{"name": "a"', b'[{"nbme": "a"}]', b'["a"]', b"{\xff}"])
def test_a_listing_that_was_changed_on_the_way(swift_place: SwiftPlace, body: bytes) -> None:
    with serving(lambda *_: (200, {"Content-Type": "application/json"}, body)) as (url, _):
        store = swift_place.open(credentials=TokenCredentials(storage_url=f"{url}/v1/AUTH_a", token="user"))
        with pytest.raises(VaultUnavailable, match="listing") as told:
            list(store.names(SEGMENTS))
        assert told.value.retryable


@pytest.mark.parametrize("there", [True, False])
def test_a_listing_that_is_not_there_of_a_container_that_is(swift_place: SwiftPlace, there: bool) -> None:
    """Believed, it would make a vault of many restore points an empty one, in which nothing is wrong."""

    def answer(method: str, *_: object) -> tuple[int, dict[str, str], bytes]:
        return (204 if there and method == "HEAD" else 404), {}, b""

    with serving(answer) as (url, _):
        store = swift_place.open(credentials=TokenCredentials(storage_url=f"{url}/v1/AUTH_a", token="user"))
        if not there:
            assert list(store.names(SEGMENTS)) == []
            return
        with pytest.raises(VaultUnavailable, match="listing"):
            list(store.names(SEGMENTS))


def test_the_service_s_token_goes_with_every_request(swift_place: SwiftPlace) -> None:
    with serving(lambda *_: (404, {}, b"")) as (url, seen):
        given = TokenCredentials(storage_url=f"{url}/v1/SERVICE_a", token="user", service_token="service")
        store = swift_place.open(credentials=given)
        for ask in (lambda: store.get(NAME), lambda: store.head(NAME)):
            with pytest.raises(ObjectMissing):
                ask()
        with pytest.raises(RakshaError):
            store.put(NAME, b"x")
        assert len(seen.requests) >= 3
        for _, _, headers, _ in seen.requests:
            shown = {name.lower(): value for name, value in headers.items()}
            assert (shown["x-auth-token"], shown["x-service-token"]) == ("user", "service")


def test_tokens_that_end_in_mid_stream_are_renewed(swift: SwiftBed, store: Store) -> None:
    """Four threads at work, all tokens voided twice: nobody but the server notices."""
    stop = threading.Event()

    def work(worker: int) -> int:
        for number in itertools.count():
            name = f"backupjobs_segments/0{worker}/{number}"
            if number % 2:
                patient(store).put(name, MIB4)
            else:
                patient(store).put_file(name, io.BytesIO(MIB4), len(MIB4))
            assert patient(store).get(name, 1 << 20, 1 << 20) == MIB4[1 << 20 : 2 << 20]
            if stop.is_set():
                return number + 1
        raise AssertionError

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, worker) for worker in range(4)]
        for _ in range(2):
            time.sleep(0.5)
            swift.revoke_tokens()
        time.sleep(0.3)
        stop.set()
        written = sum(each.result() for each in workers)
    assert len(list(store.names(SEGMENTS))) == written


def test_a_revoked_token_alone_needs_no_second_attempt(swift: SwiftBed, store: Store) -> None:
    """A 401 is answered by a new login within the call, also where a body must be sent again."""
    for call in (
        lambda: store.put(NAME, MIB4),
        lambda: store.put(f"{NAME}1", MIB4, create_only=True),
        lambda: store.put_file(NAME, io.BytesIO(MIB4), len(MIB4)),
        lambda: store.get(NAME),
        lambda: store.put_manifest("backupjobs/Backup", [Part(NAME, len(MIB4))]),
        lambda: list(store.names(BACKUPS)),
        lambda: store.delete(NAME),
    ):
        swift.revoke_tokens()
        call()


def test_tokens_that_live_a_second(tmp_path: Path) -> None:
    with running(tmp_path, token_life=1) as bed:
        store = SwiftStore("swift://", from_environment("swift://", bed.env), timeout=20)
        store.prepare()
        for number in range(4):
            store.put(f"{NAME}{number}", b"x")
            time.sleep(0.6)
        assert len(list(store.names(BACKUPS))) == 4
        store.close()


# -- Keystone ---------------------------------------------------------------------------------------


def v3(url: str, **given: str) -> V3Credentials:
    return V3Credentials(auth_url=url, **given)  # type: ignore[arg-type]


USER = {"username": "ann", "password": "s3cret", "user_domain_name": "Default"}
PROJECT = {"project_name": "lab", "project_domain_name": "Default"}


def tokens_of(bed: SwiftBed) -> Iterator[str]:
    while True:
        yield token_of(bed)


@pytest.mark.parametrize("path", ["", "/", "/v3", "/v3/"])
def test_keystone_with_a_password(swift: SwiftBed, swift_place: SwiftPlace, path: str) -> None:
    with serving(keystone(swift, "s3cret", tokens_of(swift))) as (url, seen):
        with opened(swift_place, credentials=v3(url + path, region_name="north", **USER, **PROJECT)) as store:
            store.put(NAME, b"x")
            assert store.get(NAME) == b"x"
        (asked,) = seen.bodies
    assert asked["auth"]["identity"]["password"]["user"] == {
        "name": "ann",
        "domain": {"name": "Default"},
        "password": "s3cret",
    }
    assert asked["auth"]["scope"]["project"] == {"name": "lab", "domain": {"name": "Default"}}


def test_keystone_with_an_application_credential(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    given = {"application_credential_id": "a1", "application_credential_secret": "s3cret"}
    with serving(keystone(swift, "s3cret", tokens_of(swift))) as (url, seen):
        credentials = v3(url, region_name="south", endpoint_type="internal", **given)
        with opened(swift_place, credentials=credentials) as store:
            store.put(NAME, b"x")
        (asked,) = seen.bodies
    assert asked["auth"] == {
        "identity": {
            "methods": ["application_credential"],
            "application_credential": {"id": "a1", "secret": "s3cret"},
        }
    }


def test_keystone_tokens_are_renewed(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    with serving(keystone(swift, "s3cret", tokens_of(swift))) as (url, seen):
        with opened(swift_place, credentials=v3(url, region_name="north", **USER, **PROJECT)) as store:
            store.put(NAME, MIB4)
            swift.revoke_tokens()
            store.put(NAME, MIB4)
            assert store.get(NAME) == MIB4
        assert len(seen.requests) == 2


def test_keystone_refuses(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    with serving(keystone(swift, "another", tokens_of(swift))) as (url, _):
        refused(swift_place.open(credentials=v3(url, **USER, **PROJECT)), "s3cret", "401")


def test_keystone_knows_no_such_region(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    with serving(keystone(swift, "s3cret", tokens_of(swift))) as (url, _):
        refused(swift_place.open(credentials=v3(url, region_name="west", **USER, **PROJECT)), "s3cret", "west")


# -- redirects --------------------------------------------------------------------------------------


def test_neither_key_nor_token_follow_a_redirect(swift: SwiftBed, swift_place: SwiftPlace) -> None:
    with serving(lambda *_: (200, {}, b"")) as (thief, stolen):
        with serving(lambda method, path, *_: (302, {"Location": thief + path}, b"")) as (bad, asked):
            v1 = V1Credentials(auth_url=f"{bad}/auth", user="u", key="s3cret")
            token = TokenCredentials(storage_url=f"{bad}/v1/AUTH_test", token="s3cret")
            for credentials in (v1, token, v3(bad, **USER, **PROJECT)):
                refused(swift_place.open(credentials=credentials), "s3cret", "redirect|Keystone")
            assert asked.requests
        assert stolen.requests == []


def test_a_certificate_must_be_trusted(swift_place: SwiftPlace, tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pem, "-out", tmp_path / "ca.pem"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    pem.write_text(pem.read_text() + (tmp_path / "ca.pem").read_text())
    with serving(lambda *_: (401, {}, b""), pem) as (url, seen):
        for credentials in (V1Credentials(auth_url=f"{url}/auth", user="u", key="k"), v3(url, **USER, **PROJECT)):
            with pytest.raises(VaultAccessDenied, match=r"certificate is not trusted .*OS_CACERT"):
                swift_place.open(credentials=credentials).get(NAME)
            assert seen.requests == []
            trusting = replace(credentials, cacert=str(tmp_path / "ca.pem"))
            with pytest.raises(VaultAccessDenied, match="401"):
                swift_place.open(credentials=trusting).get(NAME)
            seen.requests.clear()


# -- full -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("send", ["put", "put_file"])
def test_over_quota(swift: SwiftBed, swift_place: SwiftPlace, store: Store, send: str) -> None:
    container = f"{swift_place.prefix}_{BACKUPS}"
    request = urllib.request.Request(f"{swift.storage_url}/{container}", method="POST")
    request.add_header("X-Auth-Token", token_of(swift))
    request.add_header("X-Container-Meta-Quota-Bytes", "1000")
    urllib.request.urlopen(request).close()
    store.put(NAME, b"small")
    with pytest.raises(VaultFull, match="413"):
        if send == "put":
            store.put(f"{NAME}2", MIB4)
        else:
            store.put_file(f"{NAME}2", io.BytesIO(MIB4), len(MIB4))
    assert list(store.names(BACKUPS)) == [NAME]


# -- servers and networks that fail -----------------------------------------------------------------


def test_a_port_where_nobody_listens(swift_place: SwiftPlace) -> None:
    (port,) = free_ports(1)
    credentials = V1Credentials(auth_url=f"http://127.0.0.1:{port}/auth", user="u", key="s3cret")
    with pytest.raises(VaultUnavailable, match=rf"Connection refused \(127.0.0.1:{port}\)") as caught:
        swift_place.open(credentials=credentials).get(NAME)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("call", ["get", "put", "head", "names", "login"])
def test_a_proxy_that_stops_answering_is_given_up_in_time(
    swift: SwiftBed, swift_place: SwiftPlace, store: Store, call: str
) -> None:
    store.put(NAME, b"x")
    hasty = swift_place.open(timeout=0.5)
    if call != "login":
        hasty.head(NAME)
    calls = {
        "get": lambda: hasty.get(NAME),
        "put": lambda: hasty.put(NAME, MIB4),
        "head": lambda: hasty.head(NAME),
        "names": lambda: list(hasty.names(BACKUPS)),
        "login": lambda: hasty.get(NAME),
    }
    start = time.monotonic()
    with swift.stopped("proxy"), pytest.raises(VaultUnavailable, match="timed out"):
        calls[call]()
    assert time.monotonic() - start < 3
    assert hasty.head(NAME).size > 0
    hasty.close()


def test_patience_outlasts_a_proxy_that_was_stopped(swift: SwiftBed, swift_place: SwiftPlace, store: Store) -> None:
    store.put(NAME, b"x")
    hasty = patient(swift_place.open(timeout=0.5))
    hasty.head(NAME)
    with ThreadPoolExecutor(2) as pool:
        with swift.stopped("proxy"):
            put = pool.submit(hasty.put, f"{NAME}2", MIB4, create_only=True)
            get = pool.submit(hasty.get, NAME)
            time.sleep(1.5)
            assert not put.done() and not get.done()
        put.result(20)
        assert get.result(20) == b"x"
    assert store.get(f"{NAME}2") == MIB4
    hasty.close()


def test_patience_outlasts_a_restart(swift: SwiftBed, store: Store) -> None:
    store.put(NAME, b"x")
    swift.kill("proxy")
    with ThreadPoolExecutor(1) as pool:
        put = pool.submit(patient(store).put, NAME, MIB4)
        time.sleep(0.5)
        swift.restart("proxy")
        put.result(20)
    assert store.get(NAME) == MIB4


@pytest.mark.parametrize("server", ["object0", "container"])
def test_storage_servers_that_are_gone(swift: SwiftBed, store: Store, server: str) -> None:
    store.put(NAME, b"x")
    swift.kill(server)
    try:
        with pytest.raises(VaultUnavailable, match="503"):
            if server == "container":
                list(store.names(BACKUPS))
            else:
                store.put(NAME, b"y")
    finally:
        swift.restart(server)
    assert list(patient(store).names(BACKUPS)) == [NAME]


@pytest.mark.parametrize("at", [0, 100, 1 << 20])
def test_a_body_that_breaks_off_is_not_taken_for_whole(
    swift_place: SwiftPlace, store: Store, relay: Relay, at: int
) -> None:
    store.put(NAME, MIB4)
    weak = through(relay, swift_place)
    weak.head(NAME)
    for read in (lambda s: s.get(NAME), lambda s: s.get(NAME, 5, 3 << 20)):
        relay.cut_after(at)
        with pytest.raises(VaultUnavailable):
            read(weak)
        relay.cut_after(at)
        assert read(patient(weak)) in (MIB4, MIB4[5 : 5 + (3 << 20)])
    assert relay.cuts == 4
    weak.close()


def test_a_cut_while_a_manifest_is_read_is_no_damage(swift_place: SwiftPlace, store: Store, relay: Relay) -> None:
    store.put(NAME, MIB4)
    store.put_manifest("backupjobs/Backup", [Part(NAME, len(MIB4))] * 2)
    weak = through(relay, swift_place)
    weak.head(NAME)
    relay.cut_after(6 << 20)
    with pytest.raises(VaultUnavailable):
        weak.get("backupjobs/Backup")
    assert weak.get("backupjobs/Backup") == MIB4 * 2
    weak.close()


def test_a_create_whose_answer_was_lost_is_recognised(swift_place: SwiftPlace, store: Store, relay: Relay) -> None:
    weak = through(relay, swift_place)
    weak.prepare()
    relay.cut_after(0)
    patient(weak).put(NAME, b"mine", create_only=True)
    assert relay.cuts == 1
    assert store.get(NAME) == b"mine"
    relay.cut_after(0)
    with pytest.raises(ObjectExists):
        patient(weak).put(NAME, b"others", create_only=True)
    assert store.get(NAME) == b"mine"
    weak.close()


@pytest.mark.parametrize("at", [0, 50, 150])
def test_a_manifest_whose_answer_was_lost_is_made_again(
    swift_place: SwiftPlace, store: Store, relay: Relay, at: int
) -> None:
    store.put(NAME, b"abc")
    weak = through(relay, swift_place)
    weak.head(NAME)
    relay.cut_after(at)
    patient(weak).put_manifest("backupjobs/Backup", [Part(NAME, 3)] * 3)
    assert relay.cuts == 1
    assert store.get("backupjobs/Backup") == b"abcabcabc"
    weak.close()


# -- three replicas ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftBed]:
    with running(tmp_path_factory.mktemp("three"), replicas=3) as bed:
        yield bed


def test_the_newest_of_three_replicas_is_read(three: SwiftBed) -> None:
    with opened(SwiftPlace(three, "newest")) as store:
        store.put(NAME, b"old")
        three.kill("object0")
        store.put(NAME, b"new")
        store.put("backupjobs_segments/ab/x", b"abc")
        store.put_manifest("backupjobs/Backup", [Part("backupjobs_segments/ab/x", 3)])
        three.restart("object0")
        # one replica is stale, and knows nothing of the manifest; which one is asked first is chance
        for _ in range(12):
            assert store.get(NAME) == b"new"
            assert store.head("backupjobs/Backup").manifest
            assert store.get("backupjobs/Backup", 1, 1) == b"b"


def test_one_of_three_replicas_is_enough_to_read_and_not_to_write(three: SwiftBed) -> None:
    with opened(SwiftPlace(three, "quorum")) as store:
        store.put(NAME, b"here")
        three.kill("object0")
        three.kill("object1")
        try:
            assert store.get(NAME, 1, 2) == b"er"
            with pytest.raises(VaultUnavailable, match="503"):
                store.put(f"{NAME}2", b"x")
            # two servers cannot say whether they have it
            with pytest.raises(VaultUnavailable, match="503"):
                store.get(f"{NAME}3")
        finally:
            three.restart("object0")
            three.restart("object1")
        assert store.get(NAME) == b"here"
        with pytest.raises(ObjectMissing):
            store.get(f"{NAME}3")


def test_a_create_that_reached_one_replica_is_completed(three: SwiftBed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt leaves one copy without a quorum; the second meets it, and must not be content with it."""
    with opened(SwiftPlace(three, "create")) as store:
        real = store.put

        def breaks_off(name: str, data: bytes, *, create_only: bool = False) -> None:
            monkeypatch.setattr(store, "put", real)
            real(name, data, create_only=create_only)
            for path in three.files("create_backupjobs", "job/run.json")[1:]:
                path.unlink()
            raise VaultUnavailable(url=store.url, detail="no quorum")

        monkeypatch.setattr(store, "put", breaks_off)
        patient(store).put(NAME, b"mine", create_only=True)
        assert len(three.files("create_backupjobs", "job/run.json")) == 3


def test_flipped_bytes_are_only_found_in_whole_objects(swift_place: SwiftPlace, store: Store) -> None:
    """And once found, Swift puts that copy away."""
    store.put(NAME, MIB4)
    with swift_place.file(NAME).open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"flipped")
    with pytest.raises(ObjectCorrupt, match=NAME):
        store.get(NAME)
    with pytest.raises((ObjectMissing, ObjectCorrupt)):
        store.get(NAME)

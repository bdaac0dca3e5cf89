"""A tenant owns the account that his vault is in, and knows the format. A restore gives the bytes that were captured,
or refuses and writes nothing; whatever is put there, nothing that others need goes.

Each document is edited field by field, exchanged for every other one of its kind (of another run, VM or disk), put back
in an older version, cut, nested, and blown up.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from raksha.agent.host import Host
from raksha.agent.restore_task import RestoreTask
from raksha.agent.work import Work
from raksha.config import Settings
from raksha.config_agent import AgentSettings
from raksha.db import migrate, restores, runs
from raksha.errors import Damaged, MetadataInvalid, ObjectCorrupt, RakshaError, VaultForeign, VaultNewer
from raksha.rpc import Verb
from raksha.scheduler import restore_start
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, RunState, TaskKind
from raksha.tasks import Claimed, RestoreOrder
from raksha.types import CLUSTER_SIZE
from raksha.vault.metadata import VMMetadata, decode
from tests.bed.databases import PROJECT, opened
from tests.unit.scheduler.service import Service

DISKS = (("web", "vda"), ("web", "vdb"), ("db", "vda"))
#: what is put in the place of any value
EVIL = (
    None, True, -1, 0, 1, 1.5, 2**62, 2**63, 10**400, "", "x", "../../../../etc/shadow", "/etc/shadow", "a\0b", "a\nb",
    "json:{}", "0" * 64, "f" * 64, [], {}, [[]] * 3, {"digest": "0" * 64, "size": 2**62},
)  # fmt: skip
NESTED = b'{"format": 1, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


class _Schedulers:
    """Stands for the bus."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def call(self, verb: Verb[Any, Any], said: Any) -> Any:
        return self._service.ask[verb](said)


class Bed:
    """Three points of one job, each disk with other data in each, and an agent that restores."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.service = service
        self.folder = folder
        self.agent = service.agent()
        for vm, disk in DISKS:
            self.agent.have(vm, disk, clusters=6, seed=len(disk) + ord(disk[-1]))
        self.job = service.job("web", "db", consistency_group=False)
        self.points = [service.backup(self.job, BackupKind.FULL)]
        for number in range(2):
            for vm, disk in DISKS:
                self.agent.write(vm, number, disk, seed=number)
            self.points.append(service.backup(self.job))
        self.vault = folder / "vaults" / PROJECT
        self._claimed: dict[tuple[str, str], Claimed] = {}
        settings = Settings(libvirt_uri="test:///default", state_dir=folder / "state", workers=1, vault_patience=1)
        rest = dict.fromkeys(("journal", "captures", "recovery", "said", "metrics"), None)
        self.host = Host(
            settings=settings, agent=AgentSettings(host="host-a", restore_dirs=(folder / "restored",)),
            schedulers=_Schedulers(service), **rest,
        )  # fmt: skip

    @property
    def newest(self) -> str:
        return self.points[-1]

    def of(self, vm: str = "web", disk: str = "vda", run: str | None = None) -> Path:
        """The folder of a copy."""
        return self.vault / "backupjobs" / self.job / (run or self.newest) / vm / disk

    def claimed(self, run: str, vm: str) -> Claimed:
        """A restore of a VM, as its agent gets it. It never ends: an agent may do it again and again."""
        if (run, vm) not in self._claimed:
            wanted = {"kind": "files", "directory": None, "format": "raw", "start": False, "host": None,
                      "vms": [{"vm": vm, "disks": [], "name": None}]}  # fmt: skip
            database = self.service.database
            database.run(lambda session: restores.create(session, runs.get(session, None, run), target=wanted).id)
            self.agent.beat()
            reap(database, self.service.settings)
            restore_start.start(database, self.service.settings)
            (self._claimed[run, vm],) = self.agent.claim(kinds=(TaskKind.RESTORE,))
        return self._claimed[run, vm]

    def restored(self, run: str, vm: str = "web") -> dict[tuple[str, str], bytes]:
        """Bytes of its disks. Raises what the restore does; nothing is left then."""
        shutil.rmtree(self.folder / "restored", ignore_errors=True)
        task = self.claimed(run, vm)
        assert isinstance(task.order, RestoreOrder)
        try:
            made = RestoreTask(self.host, Work(task, time.monotonic()), task.order)()
        except RakshaError:
            assert not [path for path in (self.folder / "restored").rglob("*") if path.is_file()]
            raise
        return {(vm, each["disk"]): Path(each["path"]).read_bytes() for each in made.disks}

    def holds(self, run: str, vm: str = "web") -> bool:
        """Whether a restore is refused. Fails if it gives other bytes than were captured."""
        wanted = {key: data for key, data in self.agent.captured[run].items() if key[0] == vm}
        try:
            assert self.restored(run, vm) == wanted
        except RakshaError as error:
            assert isinstance(error, Damaged | VaultForeign | VaultNewer), error
            return False
        return True


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("crafted")
    with opened(f"sqlite:///{folder}/raksha.db") as database:
        migrate.upgrade(database)
        yield Bed(folder, Service(database, folder))


@pytest.fixture
def bed(made: Bed) -> Iterator[Bed]:
    """Its vault is as it was afterwards."""
    kept = made.folder / "kept"
    shutil.copytree(made.vault, kept)
    yield made
    shutil.rmtree(made.vault)
    kept.rename(made.vault)


def edits(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value of a document is."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in inside:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from edits(value, (*path, key))


def edited(document: Any, path: tuple[Any, ...], value: Any) -> bytes:
    copy = json.loads(json.dumps(document))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(copy).encode()


def test_what_nobody_touched_restores(bed: Bed) -> None:
    for run in bed.points:
        assert bed.holds(run) and bed.holds(run, "db")


@pytest.mark.parametrize("which", ["run.json", "BackupMetadata", "vault.json", "key"])
def test_a_document_edited_anywhere(bed: Bed, which: str) -> None:
    if which == "key":
        (file,) = (bed.vault / "backupjobs/keys").iterdir()
    else:
        folder = {"run.json": bed.of().parents[1], "BackupMetadata": bed.of(), "vault.json": bed.vault / "backupjobs"}
        file = folder[which] / which
    original = file.read_bytes()
    document = json.loads(original)
    refused = 0
    for number, path in enumerate(edits(document)):
        for value in EVIL[number % 4 :: 4]:
            file.write_bytes(edited(document, path, value))
            refused += not bed.holds(bed.newest)
    assert refused > 10
    file.write_bytes(original)
    assert bed.holds(bed.newest)


def test_a_document_in_the_place_of_another(bed: Bed) -> None:
    """Of another run: an older version put back; of another disk or VM: somebody else's data."""
    for name in ("run.json", "BackupMetadata", "VMMetadata"):
        files = sorted(bed.vault.rglob(name))
        assert len(files) >= 3
        contents = [file.read_bytes() for file in files]
        for file, own in zip(files, contents, strict=True):
            run, vm = file.relative_to(bed.vault / "backupjobs" / bed.job).parts[0], "web"
            for other in contents:
                file.write_bytes(other)
                assert bed.holds(run, vm) == (other == own or name == "VMMetadata" or "/db/" in str(file)), file
            file.write_bytes(own)


def test_an_older_version_of_a_document_put_back(bed: Bed) -> None:
    """The newest copies say again that they have the map, and build on what, another run had."""
    for vm, disk in DISKS:
        for older in bed.points[:2]:
            file, old = bed.of(vm, disk) / "BackupMetadata", bed.of(vm, disk, older)
            document = json.loads((old / "BackupMetadata").read_bytes())
            document["backupjobrun"] = bed.newest
            map_name = f"BackupMap-{document['map']['digest']}"
            shutil.copy(old / map_name, bed.of(vm, disk) / map_name)
            file.write_text(json.dumps(document))
    # all of it is consistent in itself: only the database tells
    assert bed.holds(bed.newest) and bed.holds(bed.newest, "db")


def test_a_disk_taken_out_of_its_point(bed: Bed) -> None:
    file = bed.of().parents[1] / "run.json"
    document = json.loads(file.read_bytes())
    for vm in document["vms"]:
        vm["resources"] = vm["resources"][:1]
    file.write_text(json.dumps(document))
    with pytest.raises(MetadataInvalid, match="it says nothing of web/vdb"):
        bed.restored(bed.newest)


def test_the_definition_of_a_vm_is_the_one_that_was_stored(bed: Bed) -> None:
    """A definition that its owner can write would give him the host."""
    task = bed.claimed(bed.newest, "web")
    file = bed.of().parent / "VMMetadata"
    original = file.read_bytes()

    def machine() -> VMMetadata:
        with bed.host.catalog(Work(task, time.monotonic())) as catalog:
            run = catalog.run(bed.job, bed.newest)
            assert run is not None
            return catalog.machine(run, catalog.vm(run, "web"))

    assert machine() == decode(original, VMMetadata, "as it was")
    older = (bed.of(run=bed.points[0]).parent / "VMMetadata").read_bytes()
    evil = (
        '<domain><devices><disk type=\\"file\\"><source file=\\"/etc/shadow\\"/><readonly/></disk></devices></domain>'
    )
    for content in (
        original.replace(b"<domain/>", evil.encode()),
        original + b" ",
        older.replace(b"running", b"paused"),
        (bed.of("db").parent / "VMMetadata").read_bytes(),
        NESTED,
        b"",
    ):
        file.write_bytes(content)
        with pytest.raises(MetadataInvalid, match="it is not what was stored there"):
            machine()


def frame(size: int) -> bytes:
    """A small one that says it holds so many bytes of zeroes, and does."""
    packer = zstandard.ZstdCompressor(write_checksum=True).compressobj(size=size)
    piece = bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(size >> 20)), packer.flush()])


def test_data_in_the_place_of_other_data(bed: Bed) -> None:
    files = sorted((bed.vault / "backupjobs_segments").rglob("*-*"))[::3]
    bomb = frame(512 << 20)
    for file in files:
        own, other = file.read_bytes(), next(each for each in files if each != file).read_bytes()
        for content in (
            other,
            own[:-1],
            own[: len(own) // 2],
            b"",
            own * 2,
            bytes(len(own)),
            bomb.ljust(len(own), b"\0"),
        ):
            file.write_bytes(content)
            bed.holds(bed.newest)
        file.write_bytes(own)
    assert all(map(bed.holds, bed.points))


def test_a_map_in_the_place_of_another(bed: Bed) -> None:
    files = sorted(bed.vault.rglob("BackupMap-*"))
    contents = [file.read_bytes() for file in files]
    for file, own in zip(files, contents, strict=True):
        if file.parent != bed.of():
            continue
        for other in (*contents, own[:-1], b"", own[1:], bytes(len(own)), NESTED):
            file.write_bytes(other)
            assert bed.holds(bed.newest) == (other == own)


@pytest.mark.parametrize("content", [NESTED, b"", b"\0" * 4096, b'{"raksha_parts": 1, "parts": [' + b"[" * 100_000],
                         ids=["nested", "empty", "zeroes", "parts"])  # fmt: skip
@pytest.mark.parametrize("which", ["run.json", "web/vda/BackupMetadata", "vault.json", "key"])
def test_nonsense_is_an_error_of_ours(bed: Bed, which: str, content: bytes) -> None:
    (key,) = (bed.vault / "backupjobs/keys").iterdir()
    special = {"key": key, "vault.json": bed.vault / "backupjobs/vault.json"}
    special.get(which, bed.of().parents[1] / which).write_bytes(content)
    assert not bed.holds(bed.newest)


@pytest.mark.parametrize("which", ["run.json", "web/vda/BackupMetadata"])
def test_a_document_of_a_hundred_gigabytes_is_not_read(bed: Bed, which: str) -> None:
    with (bed.of().parents[1] / which).open("r+b") as file:
        file.truncate(100 << 30)
    begun = time.monotonic()
    with pytest.raises(ObjectCorrupt, match="more than anything of its kind"):
        bed.restored(bed.newest)
    assert time.monotonic() - begun < 10


def test_a_name_that_is_said_twice(bed: Bed) -> None:
    """All that read it take the same one, so it can say no two things."""
    file = bed.of() / "BackupMetadata"
    text = file.read_text()
    other = bed.points[0]
    file.write_text(text.replace("{", f'{{"backupjobrun": "{other}", "parent": null,', 1))
    assert bed.holds(bed.newest)
    file.write_text(text.rstrip()[:-1] + f', "backupjobrun": "{other}"}}')
    assert not bed.holds(bed.newest)


# -- what schedulers do there -----------------------------------------------------------------------


def spoil(bed: Bed) -> list[Callable[[], object]]:
    """Ways to make the vault say that nothing is needed, or other things are."""
    metadata = bed.of() / "BackupMetadata"
    document = json.loads(metadata.read_bytes())
    empty = {**document, "parent": None, "kind": "full", "map": {"digest": "0" * 64, "size": 100}}
    run = bed.of().parents[1] / "run.json"
    return [
        lambda: metadata.write_text(json.dumps(empty)),
        lambda: metadata.write_bytes((bed.of(run=bed.points[0]) / "BackupMetadata").read_bytes()),
        lambda: metadata.write_bytes(NESTED),
        metadata.unlink,
        run.unlink,
        lambda: run.write_bytes(NESTED),
        lambda: [file.unlink() for file in bed.vault.rglob("BackupMetadata")],
        lambda: [file.unlink() for file in bed.of().glob("BackupMap-*")],
        lambda: [file.write_bytes(b"x" * 999) for file in bed.of().glob("BackupMap-*")],
        lambda: [file.write_bytes(NESTED) for file in (bed.vault / "backupjobs/epochs").iterdir()],
    ]


@pytest.mark.parametrize("way", range(10))
def test_a_collection_removes_nothing_that_is_needed(bed: Bed, way: int) -> None:
    spoil(bed)[way]()
    segments = bed.service.files()
    before = {path: path.read_bytes() for path in bed.vault.rglob("*") if path.is_file()}
    bed.service.collect()
    assert bed.service.files() == segments
    assert {path: path.read_bytes() for path in bed.vault.rglob("*") if path.is_file()} == before


def test_what_is_put_together_from_a_chain_is_what_the_database_knows(tmp_path: Path) -> None:
    """The full copy goes, the increments come to stand alone: over the maps that they had, not those shown now."""
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        migrate.upgrade(database)
        bed = Bed(tmp_path, Service(database, tmp_path))
        first, second, third = bed.points
        file = bed.of(run=second) / "BackupMetadata"
        document = json.loads(file.read_bytes())
        wrong = json.loads((bed.of(run=third) / "BackupMetadata").read_bytes())["map"]
        shutil.copy(bed.of(run=third) / f"BackupMap-{wrong['digest']}", bed.of(run=second))
        file.write_text(json.dumps({**document, "map": wrong}))
        bed.service.delete(first)
        states = {run.id: run.state for run in (bed.service.run_row(id) for id in (second, third))}
        assert set(states.values()) == {RunState.AVAILABLE}
        for run in (second, third):
            assert bed.holds(run) and bed.holds(run, "db")


def test_increments_build_on_what_the_database_knows(bed: Bed) -> None:
    """The order of a backup names the maps of what it builds on."""
    order = bed.agent.orders[-1]
    by_key = {copy.key: copy for copy in order.recorded}
    assert {copy.key for copy in (*order.parents.values(), *order.history)} <= set(by_key)
    for copy in order.parents.values():
        known = by_key[copy.key]
        shown = json.loads(
            (bed.of(copy.key.vm, copy.key.resource, copy.key.backupjobrun) / "BackupMetadata").read_bytes()
        )
        assert (known.map.digest, known.parent) == (shown["map"]["digest"], shown["parent"])
    task = SimpleNamespace(order=order, claimed=bed.claimed(bed.newest, "web"), over=None, lent=None)
    other = order.parents["vda"].key
    file = bed.of(other.vm, other.resource, other.backupjobrun) / "BackupMetadata"
    document = json.loads(file.read_bytes())
    file.write_text(json.dumps({**document, "map": {"digest": "0" * 64, "size": 10 * CLUSTER_SIZE}}))
    with bed.host.catalog(task) as catalog:
        assert catalog.metadata(other).map == by_key[other].map

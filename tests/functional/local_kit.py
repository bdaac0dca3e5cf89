"""`raksha local` as a person calls it: a process of its own, its exit code, its JSON."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.bed import Bed
from tests.bed.machine import Machine
from tests.functional.overlay_kit import KIB, MIB, Guest

#: seconds for any one command
PATIENCE = 240
WITHOUT_VAULT = ("vms", "release", "recover", "install-hook", "remove-hook", "--help")
#: raksha/errors.py gives each family of errors one of these
WRONG_USE, NOT_FOUND, REFUSED, VAULT, DAMAGED, ATTENTION, INTERRUPTED = 2, 3, 4, 5, 6, 7, 130


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def run(self) -> str:
        """Id of the restore point that was made."""
        return str(self.json["run"]["backupjobrun"])

    @property
    def error(self) -> str:
        """Code of the error."""
        return str(self.json["error"]["code"])

    @property
    def warnings(self) -> list[str]:
        return list(self.json["warnings"])

    def disks(self) -> dict[str, dict[str, Any]]:
        """Disks of the restore point by target; of the last VM that has one, if several do."""
        return {disk["resource"]: disk for vm in self.json["run"]["vms"] for disk in vm["resources"]}

    def how(self) -> dict[str, tuple[str, str, str | None]]:
        """Kind, mode and reason of every disk."""
        return {name: (disk["kind"], disk["mode"], disk["reason"]) for name, disk in self.disks().items()}


@dataclass
class Local:
    """One host's command line, with a vault."""

    uri: str
    state: Path
    vault: str
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, verb: str, *arguments: object) -> list[str]:
        vault = [] if verb in WITHOUT_VAULT else ["--vault", self.vault]
        words = [sys.executable, "-m", "raksha.cmd.main", "local", verb, "--connect", self.uri]
        return [*words, "--state-dir", str(self.state), *vault, *map(str, arguments)]

    def start(self, verb: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(verb, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env(),
            **options,
        )

    def __call__(self, verb: str, *arguments: object, json: bool = True) -> Answer:
        return ended(self.start(verb, *arguments, *(["--json"] if json else [])))

    def good(self, verb: str, *arguments: object) -> Answer:
        """Fails the test unless the command succeeds."""
        answer = self(verb, *arguments)
        assert answer.code == 0, answer
        assert answer.err == "", "with --json nothing is said on standard error"
        return answer

    def refused(self, code: str, verb: str, *arguments: object, exit_code: int | None = None) -> Answer:
        """Fails the test unless the command ends with this error."""
        answer = self(verb, *arguments)
        assert answer.code != 0 and answer.error == code, answer
        assert exit_code is None or answer.code == exit_code, answer
        return answer

    def backup(self, guest: Guest | Machine, *arguments: object) -> Answer:
        return self.good("backup", guest.uuid, *arguments)

    def runs(self) -> list[str]:
        return [run["backupjobrun"] for run in self.good("list").json["runs"]]

    def on_fresh_host(self, state: Path) -> Local:
        """Another host, which has nothing but the vault: not even a libvirt."""
        return Local("test:///default", state, self.vault, self.environment)

    @property
    def folder(self) -> Path:
        """Of a directory vault."""
        return Path(self.vault.removeprefix("file://"))

    def segments(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("backupjobs_segments/*/*") if not path.name.startswith("."))

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def ended(process: subprocess.Popen[str]) -> Answer:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Answer(process.returncode, out, err)


def wait_until(true: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.002)


def restored(local: Local, run: str, into: Path, vm: str, *options: object) -> dict[str, Path]:
    """All disks of a VM at a point, as raw files, by target."""
    place = into / uuid4().hex
    place.mkdir(parents=True)
    answer = local.good("restore", run, "--vm", vm, "--into", place, "--format", "raw", *options)
    return {disk["disk"]: Path(disk["target"]) for disk in answer.json["disks"]}


def assert_holds(local: Local, run: str, into: Path, guest: Guest, truth: Mapping[str, bytes]) -> None:
    """The point gives back exactly these disks, bit for bit."""
    paths = restored(local, run, into, guest.uuid)
    assert set(paths) == set(truth)
    for target, path in paths.items():
        content = path.read_bytes()
        first = next((at for at, (a, b) in enumerate(zip(content, truth[target], strict=False)) if a != b), None)
        assert content == truth[target], f"{target} of {run} is not what the guest had: byte {first} is the first"
        path.unlink()


class Story:
    """The restore points of one guest, each with what its disks held."""

    def __init__(self, local: Local, guest: Guest, into: Path) -> None:
        self.local, self.guest, self.into = local, guest, into
        self.truth: dict[str, dict[str, bytes]] = {}

    def backup(self, *arguments: object, local: Local | None = None) -> Answer:
        before = self.guest.frozen_model()
        answer = (local or self.local).good("backup", self.guest.uuid, *arguments)
        self.truth[answer.run] = before
        return answer

    def forget(self, *runs: str) -> None:
        for run in runs:
            del self.truth[run]

    def assert_all_hold(self) -> None:
        """The vault lists exactly these points, finds them whole, and gives each back bit for bit."""
        assert sorted(self.local.runs()) == sorted(self.truth)
        assert self.local.good("verify", "--data").json["findings"] == []
        for run, truth in self.truth.items():
            assert_holds(self.local, run, self.into, self.guest, truth)


def two_disks(bed: Bed, name: str = "vm", *, start: bool = True) -> Guest:
    """vda is qcow2 on a backing image, vdb a raw file; both have something on them."""
    if not (bed.directory / "base.qcow2").exists():
        bed.qcow2("base", 4 * MIB)
    guest = Guest(bed, [bed.qcow2(f"{name}-a", None, backing="base.qcow2"), bed.raw(f"{name}-b", 4 * MIB)], name=name)
    if start:
        guest.start()
        guest.write("vda", 64 * KIB, 300 * KIB, 0x11)
        guest.write("vdb", 1 * MIB, 100 * KIB, 0x22)
    return guest


def write_noise(guest: Guest, target: str, offset: int, length: int) -> None:
    """What no compression makes smaller and no earlier write has."""
    noise = guest.bed.directory / "noise"
    noise.write_bytes(os.urandom(length))
    guest.bed.host.give(noise)
    guest._io(target, f"write -s {noise} {offset} {length}")
    guest.model[target][offset : offset + length] = noise.read_bytes()
    noise.unlink()


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of its content."""
    found = {}
    for path in sorted(folder.rglob("*")) if folder.exists() else []:
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def documents(local: Local) -> dict[str, str]:
    """What readers of a directory vault go by: everything but maps, segments and tables, which are inert alone."""
    found = tree(local.folder / "backupjobs")
    return {name: digest for name, digest in found.items() if "/BackupMap-" not in name}


@contextmanager
def nothing_changes(local: Local, *guests: Guest) -> Iterator[None]:
    """Definitions, images and vault are the same afterwards, to the byte.

    An overlay that was made ready and not used may lie in the trash.
    """

    def seen() -> list[object]:
        states: list[object] = [each for guest in guests for each in guest.state()]
        states = [each.replace("'.raksha-trash', ", "") if isinstance(each, str) else each for each in states]
        return [*states, tree(local.folder), local.folder.exists()]

    before = seen()
    yield
    assert seen() == before
    for guest in guests:
        if guest.machine.running:
            guest.write("vda", 2 * MIB, 4 * KIB, 0x77)


@contextmanager
def small_file_system(place: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes; needs root."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "raksha-test", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)

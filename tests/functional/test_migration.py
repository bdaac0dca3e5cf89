"""Live migration on shared storage: backups go on incrementally over there, and the old host keeps its hands off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.bed import Bed, check_records
from tests.bed.machine import Machine
from tests.bed.namespace import NamespaceHost
from tests.functional.local_kit import Answer, Local, restored
from tests.functional.overlay_kit import MIB

pytestmark = pytest.mark.system

DELTA = ("incremental", "delta", None)


class Apart(Local):
    """The command line of a host that does not see the other one's processes, as on two machines."""

    def command(self, verb: str, *arguments: object) -> list[str]:
        return ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *super().command(verb, *arguments)]


@dataclass
class Pair:
    """Two hosts with shared storage and one vault."""

    bed: Bed
    hosts: tuple[NamespaceHost, NamespaceHost]
    #: each host's command line, with a journal of its own
    locals: tuple[Local, Local]
    #: restore points, each with the last record that was acknowledged before
    points: list[tuple[str, int]] = field(default_factory=list)

    def where(self, machine: Machine) -> int:
        return self.hosts.index(machine.host)  # type: ignore[arg-type]

    def move(self, machine: Machine, **options: object) -> None:
        here = self.where(machine)
        self.hosts[here].migrate(machine, self.hosts[1 - here], **options)  # type: ignore[arg-type]

    def away(self, machine: Machine) -> Local:
        """The command line of the host where the guest is not; it sees no process of the other one."""
        local = self.locals[1 - self.where(machine)]
        return Apart(local.uri, local.state, local.vault)

    def backup(self, machine: Machine, engine: str) -> Answer:
        """From where it is now, of a guest that writes its records."""
        acknowledged = machine.wait_for_records(20)
        local = self.locals[self.where(machine)]
        options = ("--engine", engine, "--quiesce", "never", "--take-over", "--job", engine)
        answer = local.good("backup", machine.name, *options)
        self.points.append((answer.run, acknowledged))
        return answer

    def assert_points_hold(self, machine: Machine, into: Path) -> None:
        assert self.locals[0].good("verify", "--data").json["findings"] == []
        for run, acknowledged in self.points:
            paths = restored(self.locals[0], run, into, machine.uuid)
            check_records([(path, "raw") for path in paths.values()], acknowledged)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[NamespaceHost, NamespaceHost]]:
    made = (NamespaceHost("here.test"), NamespaceHost("there.test"))
    try:
        for host in made:
            host.start()
        yield made
    finally:
        for host in made:
            host.close()


@pytest.fixture
def pair(hosts: tuple[NamespaceHost, NamespaceHost], tmp_path: Path) -> Iterator[Pair]:
    with Bed(hosts[0]) as bed:
        here, there = (
            Local(host.uri, bed.directory / f"state{number}", f"file://{tmp_path}/vault")
            for number, host in enumerate(hosts)
        )
        yield Pair(bed, hosts, (here, there))


def overlays(machine: Machine) -> list[str]:
    return [line for line in machine.xml().splitlines() if ".raksha-" in line]


def test_overlays(pair: Pair, tmp_path: Path) -> None:
    """There and back again, on the same two files, each step an increment."""
    pair.bed.qcow2("base", 8 * MIB)
    vm = pair.bed.machine([pair.bed.raw("a", 8 * MIB), pair.bed.qcow2("b", None, backing="base.qcow2")], pause=0)
    vm.boot()
    pair.backup(vm, "overlay")
    answer = pair.backup(vm, "overlay")
    import time
    for _ in range(2):
        t=time.time()
        pair.move(vm)
        print("moved", time.time()-t)
        t=time.time()
        answer = pair.backup(vm, "overlay")
        print(time.time()-t, answer.how(), answer.warnings)
        answer = pair.backup(vm, "overlay")
        print(answer.how(), answer.warnings)
    pair.assert_points_hold(vm, tmp_path / "out")

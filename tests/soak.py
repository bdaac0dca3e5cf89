"""Random events in the life of a protected VM, one after the other, the oracle after each: `make soak SECONDS=600`.

A real guest writes numbered records on two disks and acknowledges them. Meanwhile it is backed up with either engine
into a Swift that lies now and then, and commands are killed or meet each other, QEMU and libvirtd are killed, the VM is
shut down, restarted, resized, given a snapshot by its owner, released, its points pruned. After each event: the guest
is not frozen and writes on, a backup succeeds, what it stored holds every record that was acknowledged, the vault
verifies, and nothing is left over.

The seed is printed; `--seed` repeats the same events. What falls between two of them (how far a process had come when
it was hit) is the machine's.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from uuid import uuid4

import libvirt

from raksha.virt.libvirt.domain_xml import parse_domain
from tests.bed import Bed, SessionHost, check_records
from tests.bed.faulty import Fault, FaultyProxy, in_front_of
from tests.bed.machine import Machine
from tests.bed.swift import SwiftBed, running
from tests.functional.crash_kit import OVERLAY, assert_nothing_left
from tests.functional.events import Events
from tests.functional.forked import ForkedLocal, alive
from tests.functional.local_kit import DAMAGED, Answer, Local
from tests.functional.overlay_kit import MIB
from tests.functional.test_vault_faults import ONCE

#: points that a command passes, most of the time
STORING = [
    "journal.begin", "journal.done", "journal.run_begin", "journal.run_durable", "libvirt.fsFreeze",
    "libvirt.fsFreeze.done", "libvirt.fsThaw.done", "vault.put.segment", "vault.put_file.BackupMap",
    "vault.put_manifest.Backup", "vault.put.BackupMetadata", "vault.put.VMMetadata", "vault.put.epoch",
    "vault.put.run.json", "vault.put.run.json.done",
]  # fmt: skip
MERGING = ["libvirt.blockCommit", "libvirt.blockCommit.done", "trash.move"]
FORGETTING = ["libvirt.checkpointCreateXML", "libvirt.delete", "libvirt.delete.done", "journal.forget_bitmap"]
POINTS = {
    "overlay": [*STORING, *MERGING, "overlay.mark", "overlay.create", "overlay.fill", "libvirt.snapshotCreateXML",
                "libvirt.snapshotCreateXML.done"],
    "pull": [*STORING, *FORGETTING, "libvirt.backupBegin", "libvirt.backupBegin.done", "libvirt.abortJob",
             "libvirt.abortJob.done", "scratch.make", "scratch.remove"],
    "release": [*MERGING, *FORGETTING, "journal.begin", "journal.done", "libvirt.blockJobAbort",
                "libvirt.blockJobAbort.done"],
}  # fmt: skip
#: bytes of each disk that the guest writes on; vda may become larger
SPAN = 4 * MIB
LARGEST = 48 * MIB
#: what a second command may say while a first one is at work
MEETING = ("vm_busy", "vault_busy")


class Soak:
    """One VM, one vault, one seed."""

    def __init__(self, bed: Bed, host: SessionHost, swift: SwiftBed, proxy: FaultyProxy, folder: Path, seed: int):
        self.bed, self.host, self.proxy, self.folder = bed, host, proxy, folder
        self.dice = random.Random(seed)
        bed.qcow2("base")
        disks = [bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b")]
        self.vm: Machine = bed.machine(disks, pause=2000, span=SPAN)
        self.conf = folder / "raksha.conf"
        self.conf.write_text("[host]\nvault_patience = 3\n")
        environment = {**swift.env, "ST_AUTH": f"http://127.0.0.1:{proxy.port}/auth/v1.0"}
        place = (bed.uri, bed.directory / "state", f"swift://soak{uuid4().hex[:8]}", environment)
        self.local = ForkedLocal(*place)
        #: for a second command at the same time
        self.beside = Local(*place)
        self.others = Events(self.vm, host, bed.directory)
        self.others.size = 33 * MIB
        self.vm.boot()
        self.local.good(*self._backup())
        self.events: list[Callable[[], str]] = [
            self.backup, self.backup, self.killed, self.killed, self.killed, self.disturbed, self.disturbed,
            self.disturbed, self.spoiled, self.spoiled, self.twice, self.restart, self.shut_down, self.shut_off,
            self.release, self.prune, self.recover,
        ]  # fmt: skip

    # -- events: each returns what it was -----------------------------------------------------------

    def backup(self) -> str:
        command = self._backup()
        self.local.good(*command)
        return f"backup {command[-1]}"

    def killed(self) -> str:
        """A command that dies at some point, if it comes there."""
        command = self._command()
        point = f"{self._point(command)}:{self.dice.choice((1, 1, 1, 2))}"
        answer = self.local.during(lambda _pid: None, {"RAKSHA_CRASH_AT": point}, *command, "--json")
        assert answer.code in (0, -9), answer
        return f"{command[0]} {command[-1]} killed at {point}: {answer.code}"

    def disturbed(self) -> str:
        """A command that stands still at some point while others die, then goes on."""
        command = self._command()
        point = self._point(command)
        event = self.dice.choice(self._disturbances())
        answer = self._stopped(point, event, command)
        named(answer)
        return f"{command[0]} {command[-1]}, {event.__name__} at {point}: {answer.code}"

    def _disturbances(self) -> tuple[Callable[[], None], ...]:
        of_others = ("kill_libvirtd", "kill_qemu", "kill_both", "restart_libvirtd", "destroy", "reset",
                     "suspend_and_resume", "foreign_snapshot")  # fmt: skip
        return (*(getattr(self.others, name) for name in of_others), self.grow, self.ask_to_shut_down)

    def _stopped(self, point: str, event: Callable[[], None], command: tuple[str, ...]) -> Answer:
        """The command's answer; `event` happened while it stood at a point, if it came there."""

        def meanwhile(pid: int) -> None:
            while alive(pid):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    try:
                        event()
                    finally:
                        os.kill(pid, signal.SIGCONT)
                    return
                time.sleep(0.005)

        told = {"RAKSHA_CRASH_AT": point, "RAKSHA_CRASH_SIGNAL": "STOP"}
        return self.local.during(meanwhile, told, *command, "--json")

    def spoiled(self) -> str:
        """A command whose vault refuses, breaks off or lies, once or for good."""
        command = self.dice.choice((self._backup, self._backup, self._prune, self._verify))()
        what, method = self.dice.choice(ONCE), self.dice.choice(("GET", "GET", "PUT", "PUT", "DELETE", "HEAD"))
        chance = random.Random(self.dice.random())
        often = self.dice.choice((1, 1, 1, 3, 10**9))
        fault = Fault(what, lambda asked, _path: asked == method and chance.random() < 0.3, often)
        self.proxy.fault = fault
        try:
            answer = self.local(*command)
        finally:
            self.proxy.fault = None
        named(answer)
        return f"{command[0]}, {what} at {fault.happened} {method}: {answer.code}"

    def twice(self) -> str:
        """Two commands at once: the second is refused, or comes before the first has begun."""
        first, second = self._command(), self.dice.choice((self._command, self._prune))()
        point, answers = self._point(first), list[Answer]()
        answer = self._stopped(point, lambda: answers.append(self.beside(*second)), first)
        named(answer)
        for beside in answers:
            assert beside.code == 0 or beside.error in MEETING, beside
        told = [beside.code for beside in answers]
        return f"{first[0]} {first[-1]} at {point}: {answer.code}, {second[0]} beside it: {told}"

    def restart(self) -> str:
        self.vm.power_off()
        return "power off"

    def shut_down(self) -> str:
        self.ask_to_shut_down()
        return "shut down"

    def shut_off(self) -> str:
        """A backup of the VM while it is off."""
        self.vm.power_off()
        command = self._backup()
        self.local.good(*command)
        return f"backup {command[-1]} while shut off"

    def release(self) -> str:
        answer = self.local.good("release", self.vm.uuid)
        left = [path for path in self.bed.directory.iterdir() if OVERLAY in path.name and path.is_file()]
        assert all(str(path) in answer.out for path in left), f"{left} are left after a release, which does not say so"
        return "release"

    def prune(self) -> str:
        command = self._prune()
        self.local.good(*command)
        return " ".join(command[:3])

    def recover(self) -> str:
        self.local.good("recover", self.vm.uuid)
        return "recover"

    # -- what others do -----------------------------------------------------------------------------

    def grow(self) -> None:
        self.others.resize_a_disk()
        self.others.size = min(self.others.size + MIB, LARGEST)

    def ask_to_shut_down(self) -> None:
        with suppress(libvirt.libvirtError):  # an agent that has just been asked for something else
            self.vm.shut_down()

    def _backup(self) -> tuple[str, ...]:
        quiesce, engine = self.dice.choice(("never", "auto")), self.dice.choice(("overlay", "overlay", "pull"))
        how = ("--job", "soak", "--config", str(self.conf), "--quiesce", quiesce, "--engine", engine)
        return ("backup", self.vm.uuid, *how)

    def _point(self, command: tuple[str, ...]) -> str:
        return self.dice.choice(POINTS[command[-1] if command[0] == "backup" else "release"])

    def _prune(self) -> tuple[str, ...]:
        return ("prune", "--keep-last", str(self.dice.randrange(1, 4)), "--config", str(self.conf))

    def _verify(self) -> tuple[str, ...]:
        return ("verify", "--data", "--config", str(self.conf))

    def _command(self) -> tuple[str, ...]:
        return ("release", self.vm.uuid) if self.dice.random() < 0.2 else self._backup()

    # -- the oracle ---------------------------------------------------------------------------------

    def settle(self, acknowledged: int) -> None:
        """The guest goes on from where it was, and is protected to the last record."""
        acknowledged = max(acknowledged, self.vm.last_ack())
        if not self.vm.running:
            since = self.vm.mark()
            self.vm.boot()
            assert self.vm.verdict(since), "the guest finds its own records wrong"
        self.others.repair()
        self._wait_until_it_writes()
        self._assert_thawed()
        acknowledged = max(acknowledged, self.vm.last_ack())
        answer = self.local.good(*self._backup())
        check_records(self._restored(answer.run), acknowledged)
        assert self.local.good("verify", "--data").json["findings"] == []
        self._assert_nothing_left(answer)

    def _assert_nothing_left(self, answer: Answer) -> None:
        """But layers that cannot be told from those that a VM was started below: every run names them."""
        used = {layer.path for disk in parse_domain(self.vm.xml()).disks for layer in disk.layers}
        files = {str(path) for path in self.bed.directory.iterdir() if OVERLAY in path.name and path.is_file()}
        orphans = {path for path in files - used if any(path in warning for warning in answer.warnings)}
        assert_nothing_left(self.vm, self.local, self.bed.directory, orphans)

    def _assert_thawed(self) -> None:
        self.vm.wait_for_agent()
        assert self.vm.agent("guest-fsfreeze-status") == "thawed"

    def _wait_until_it_writes(self) -> None:
        """Also after a reset of which the test was not told the moment."""
        deadline = time.monotonic() + 90
        mark = self.vm.mark()
        while not self.vm.last_ack(mark):
            assert time.monotonic() < deadline, "the guest does not write"
            time.sleep(0.05)

    def _restored(self, run: str) -> list[tuple[Path, str]]:
        into = self.folder / f"out-{uuid4().hex}"
        into.mkdir()
        made = self.local.good("restore", run, "--vm", self.vm.uuid, "--into", into, "--format", "raw").json
        self._last = [Path(disk["target"]) for disk in made["disks"]]
        return [(path, "raw") for path in self._last]

    def step(self) -> str:
        acknowledged = self.vm.last_ack()
        told = self.dice.choice(self.events)()
        self.settle(acknowledged)
        for path in self._last:
            path.unlink()
        self._last[0].parent.rmdir()
        return told


def named(answer: Answer) -> None:
    """A result (what a verification found is one), or an error that has a name and leaves the VM to itself."""
    assert "Traceback" not in answer.err, answer
    if answer.code == DAMAGED and "findings" in answer.json:
        return
    assert answer.code == 0 or answer.error not in ("error", "host_failed"), answer
    assert answer.code != 7, f"it needs attention: {answer}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    os.environ["LIBVIRT_AUTOSTART"] = "0"
    libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it tells them to standard error as well
    print(f"seed {options.seed}", flush=True)
    host = SessionHost()
    with closing(host), ExitStack() as stack:
        host.start()
        bed = stack.enter_context(Bed(host))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        swift = stack.enter_context(running(folder / "swift"))
        proxy = stack.enter_context(in_front_of(int(swift.address.rpartition(":")[2])))
        return run(Soak(bed, host, swift, proxy, folder, options.seed), options.seconds)


def run(soak: Soak, seconds: int) -> int:
    end, number = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < end:
            number += 1
            began = time.monotonic()
            print(f"{number}: {soak.step()} ({time.monotonic() - began:.1f} s)", flush=True)
        soak.release()
    finally:
        soak.local.forker.close()
    print(f"{number} events, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Random events in the life of a protected VM, one after the other, the oracle after each: `make soak SECONDS=600`.

A real guest writes numbered records on two disks and acknowledges them. Meanwhile it is backed up with either engine,
and commands are killed, QEMU and libvirtd are killed, the VM is restarted, released, its points pruned. After each
event: the guest writes on, a backup succeeds, what it stored holds every record that was acknowledged, and the vault
verifies.

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
from pathlib import Path
from uuid import uuid4

import libvirt

from tests.bed import Bed, SessionHost, check_records
from tests.bed.machine import Machine
from tests.functional.forked import ForkedLocal, alive
from tests.functional.local_kit import Answer

#: points that every backup passes, and some more
POINTS = [
    "journal.begin", "journal.done", "journal.run_begin", "journal.run_durable", "overlay.mark", "overlay.create",
    "overlay.fill", "libvirt.snapshotCreateXML", "libvirt.snapshotCreateXML.done", "libvirt.fsFreeze",
    "libvirt.fsFreeze.done", "libvirt.fsThaw.done", "vault.put.segment", "vault.put_file.BackupMap",
    "vault.put_manifest.Backup", "vault.put.BackupMetadata", "vault.put.VMMetadata", "vault.put.epoch",
    "vault.put.run.json", "vault.put.run.json.done", "libvirt.blockCommit", "libvirt.blockCommit.done",
    "libvirt.blockJobAbort", "libvirt.blockJobAbort.done", "trash.move", "libvirt.backupBegin",
    "libvirt.backupBegin.done", "libvirt.abortJob", "libvirt.abortJob.done", "scratch.make", "scratch.remove",
    "libvirt.delete", "libvirt.checkpointCreateXML", "libvirt.defineXML", "qemu-img.commit",
]  # fmt: skip


class Soak:
    """One VM, one vault, one seed."""

    def __init__(self, bed: Bed, host: SessionHost, folder: Path, seed: int) -> None:
        self.bed, self.host, self.folder = bed, host, folder
        self.dice = random.Random(seed)
        bed.qcow2("base")
        self.vm: Machine = bed.machine([bed.qcow2("a", None, backing="base.qcow2"), bed.raw("b")], pause=1000)
        self.local = ForkedLocal(bed.uri, bed.directory / "state", f"file://{folder}/vault")
        self.vm.boot()
        self.events: list[Callable[[], str]] = [
            self.backup, self.backup, self.killed, self.killed, self.killed, self.disturbed, self.disturbed,
            self.restart, self.shut_off, self.release, self.prune, self.recover,
        ]  # fmt: skip

    # -- events: each returns what it was -----------------------------------------------------------

    def backup(self) -> str:
        engine = self._engine()
        self.local.good("backup", self.vm.uuid, *engine)
        return f"backup {engine[-1]}"

    def killed(self) -> str:
        """A command that dies at some point, if it comes there."""
        command = self._command()
        point = f"{self.dice.choice(POINTS)}:{self.dice.choice((1, 1, 1, 2, 3))}"
        answer = self.local.during(lambda _pid: None, {"RAKSHA_CRASH_AT": point}, *command, "--json")
        assert answer.code in (0, -9), answer
        return f"{command[0]} {command[-1]} killed at {point}: {answer.code}"

    def disturbed(self) -> str:
        """A command that stands still at some point while others die, then goes on."""
        command = self._command()
        point = self.dice.choice(POINTS)
        event = self.dice.choice((self.kill_libvirtd, self.kill_qemu, self.kill_both, self.destroy, self.reset))

        def meanwhile(pid: int) -> None:
            while alive(pid):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
                    event()
                    os.kill(pid, signal.SIGCONT)
                    return
                time.sleep(0.005)

        told = {"RAKSHA_CRASH_AT": point, "RAKSHA_CRASH_SIGNAL": "STOP"}
        answer = self.local.during(meanwhile, told, *command, "--json")
        named(answer)
        return f"{command[0]} {command[-1]}, {event.__name__} at {point}: {answer.code}"

    def restart(self) -> str:
        self.vm.power_off()
        return "power off"

    def shut_off(self) -> str:
        """A backup of the VM while it is off."""
        self.vm.power_off()
        engine = self._engine()
        self.local.good("backup", self.vm.uuid, *engine)
        return f"backup {engine[-1]} while shut off"

    def release(self) -> str:
        self.local.good("release", self.vm.uuid)
        assert not list(self.bed.directory.glob("*.raksha-*.qcow2")), "layers are left after a release"
        return "release"

    def prune(self) -> str:
        keep = self.dice.randrange(1, 4)
        self.local.good("prune", "--keep-last", keep)
        return f"prune --keep-last {keep}"

    def recover(self) -> str:
        self.local.good("recover", self.vm.uuid)
        return "recover"

    # -- what others do -----------------------------------------------------------------------------

    def kill_libvirtd(self) -> None:
        self.host.kill()
        self.host.start()

    def kill_qemu(self) -> None:
        pid = int((self.host.directory / f"r/libvirt/qemu/run/{self.vm.name}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.01)

    def kill_both(self) -> None:
        pid = int((self.host.directory / f"r/libvirt/qemu/run/{self.vm.name}.pid").read_text())
        self.host.kill()
        os.kill(pid, signal.SIGKILL)
        self.host.start()

    def destroy(self) -> None:
        self.vm.power_off()

    def reset(self) -> None:
        self.vm.domain.reset()

    def _engine(self) -> tuple[str, ...]:
        return ("--job", "soak", "--quiesce", self.dice.choice(("never", "auto")), "--engine",
                self.dice.choice(("overlay", "overlay", "pull")))  # fmt: skip

    def _command(self) -> tuple[str, ...]:
        if self.dice.random() < 0.2:
            return ("release", self.vm.uuid)
        return ("backup", self.vm.uuid, *self._engine())

    # -- the oracle ---------------------------------------------------------------------------------

    def settle(self, acknowledged: int) -> None:
        """The guest goes on from where it was, and is protected to the last record."""
        acknowledged = max(acknowledged, self.vm.last_ack())
        if not self.vm.running:
            since = self.vm.mark()
            self.vm.boot()
            assert self.vm.verdict(since), "the guest finds its own records wrong"
        self._wait_until_it_writes()
        acknowledged = max(acknowledged, self.vm.last_ack())
        answer = self.local.good("backup", self.vm.uuid, *self._engine())
        check_records(self._restored(answer.run), acknowledged)
        assert self.local.good("verify", "--data").json["findings"] == []
        assert self.vm.domain.listAllCheckpoints() == []
        assert not any(self.vm.domain.blockJobInfo(target) for target in ("vda", "vdb"))

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
    """A result, or an error that has a name and leaves the VM to itself."""
    assert "Traceback" not in answer.err, answer
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
    try:
        host.start()
        with Bed(host) as bed, tempfile.TemporaryDirectory() as folder:
            return run(Soak(bed, host, Path(folder), options.seed), options.seconds)
    finally:
        host.close()


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

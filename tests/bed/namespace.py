"""A `qemu:///system` of its own: libvirtd as root, in a mount namespace with its own directories of libvirt.

What a test does to it (hooks, restarts, kills) is seen by nobody else on this machine. Needs root. Commands that are to
see its files run through `run`. Two of them, each with a name of its own, are two hosts with shared storage: guests
can be migrated between them (`migrate`).
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import libvirt

from tests.bed.daemon import LIBVIRTD, Host
from tests.bed.image import BedError
from tests.bed.machine import Machine

#: run by the shell of the new namespace; $1 is the host's directory, $2 the daemon, $3 the host's name or nothing
_SETUP = """
set -e
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
[ -z "$3" ] || hostname "$3"
exec "$2" --pid-file "$1/libvirtd.pid"
"""
CONFIGURATION = 'stdio_handler = "file"\nsecurity_driver = "none"\n'
#: as on storage that hosts share: nobody hands files over, since the other host's libvirt would do it as well
SHARED = 'user = "root"\ngroup = "root"\ndynamic_ownership = 0\n'
#: of a migration: the guest is defined over there, and no more here. Files in /tmp are what both hosts share
MOVE = libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE | libvirt.VIR_MIGRATE_UNSAFE


class NamespaceHost(Host):
    """`start` before use, `close` after it."""

    def __init__(self, name: str = "") -> None:
        """With a name it is a host that guests can be migrated from and to."""
        directory = Path(tempfile.mkdtemp(prefix="rkn-"))
        super().__init__(f"qemu:///system?socket={directory}/run/libvirt-sock", directory)
        directory.chmod(0o755)
        for name in ("etc", "etc/hooks", "run", "lib", "cache"):
            (directory / name).mkdir()
        (directory / "etc/qemu.conf").write_text(CONFIGURATION + (SHARED if name else ""))
        (directory / "etc/libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\n')
        self.name = name
        self._log = directory / "libvirtd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def hooks(self) -> Path:
        """Its /etc/libvirt/hooks, from outside."""
        return self.directory / "etc/hooks"

    def start(self) -> None:
        """Start the daemon (again) and wait until it answers."""
        words = ["unshare", "--mount", "--uts", "--propagation", "slave", "/bin/bash", "-c", _SETUP, "bash"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*words, self.directory, LIBVIRTD, self.name],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.connect().close()
            except libvirt.libvirtError:
                time.sleep(0.1)
            else:
                return
        raise BedError(f"libvirtd did not start: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """End the daemon in order. Guests go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
            self._process = None

    def within(self, *command: object) -> list[str]:
        """The words that run a command where this host's files are in their usual places."""
        if self._process is None:
            raise BedError("the daemon was not started")
        return ["nsenter", "--mount", f"--target={self._process.pid}", f"--wd={Path.cwd()}", *map(str, command)]

    def run(self, *command: object, **options: object) -> subprocess.CompletedProcess[str]:
        """A command that sees this host's files in their usual places."""
        return subprocess.run(self.within(*command), capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]

    def migrate(self, machine: Machine, to: NamespaceHost, *, flags: int = MOVE, **parameters: object) -> None:
        """Move a running guest there; afterwards `machine` is the one over there."""
        socket = to.directory / "migration"
        uri = f"qemu+unix:///system?socket={to.directory}/run/libvirt-sock"
        where = {libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{socket}", libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: 4096}
        where.update(parameters)
        try:
            machine.domain.migrateToURI3(uri, where, flags | libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER)
        finally:
            socket.unlink(missing_ok=True)
        machine.close()
        machine.host = to

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

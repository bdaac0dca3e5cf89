"""A private, unprivileged libvirtd that a test may kill: `qemu:///session` with directories of its own.

Run by root, the daemon and its guests are of the user `nobody` (libvirtd as root would be the system's one), and root
connects to its socket; files for its guests are handed over with `give`. Guests outlive the daemon, as in real life.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import libvirt

from tests.bed.accelerator import kvm_works
from tests.bed.image import BedError

NOBODY = 65534
LIBVIRTD = "/usr/sbin/libvirtd"
CONFIGURATION = 'stdio_handler = "file"\nsecurity_driver = "none"\n'


class Host:
    """A libvirt that guests can be made on, and where their files go."""

    def __init__(self, uri: str, directory: Path) -> None:
        self.uri = uri
        self.directory = directory

    def connect(self) -> libvirt.virConnect:
        return libvirt.open(self.uri)

    def domain_type(self) -> str:
        """ "kvm" where guests of this host can have it, else "qemu"."""
        connection = self.connect()
        try:
            capabilities = connection.getCapabilities()
        finally:
            connection.close()
        x86 = capabilities.partition("<arch name='x86_64'>")[2].partition("</arch>")[0]
        return "kvm" if "<domain type='kvm'" in x86 and kvm_works() else "qemu"

    def give(self, path: Path) -> Path:
        """Make a file usable for guests of this host."""
        return path

    def close(self) -> None:
        shutil.rmtree(self.directory)


class SystemHost(Host):
    """`qemu:///system`; libvirt itself hands the files over. Raises `BedError` if it does not answer."""

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__("qemu:///system", directory or Path(tempfile.mkdtemp(prefix="rk-")))
        self.directory.chmod(0o755)
        try:
            self.connect().close()
        except libvirt.libvirtError as error:
            self.close()
            raise BedError(f"qemu:///system does not answer: {error}; try scripts/libvirtd start") from error


class SessionHost(Host):
    """The private daemon. `start` before use, `close` after it."""

    def __init__(self) -> None:
        # a short name: the paths of the sockets below it may have 107 characters
        directory = Path(tempfile.mkdtemp(prefix="rk-"))
        self._drop = os.geteuid() == 0
        super().__init__(f"qemu:///session?socket={directory}/r/libvirt/libvirt-sock", directory)
        directory.chmod(0o755)
        self._log = directory / "libvirtd.log"
        for name in ("r", "c", "c/libvirt", "k", "d"):
            (directory / name).mkdir()
        (directory / "c/libvirt/qemu.conf").write_text(CONFIGURATION)
        if self._drop:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running daemon."""
        if self._process is None:
            raise BedError("the daemon was not started")
        return self._process.pid

    def give(self, path: Path) -> Path:
        if self._drop:
            os.chown(path, NOBODY, NOBODY)
        return path

    def start(self) -> None:
        """Start the daemon (again) and wait until it answers."""
        root = str(self.directory)
        environment = {
            "HOME": root, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "LIBVIRT_AUTOSTART": "0",
            "XDG_RUNTIME_DIR": f"{root}/r", "XDG_CONFIG_HOME": f"{root}/c", "XDG_CACHE_HOME": f"{root}/k",
            "XDG_DATA_HOME": f"{root}/d",
        }  # fmt: skip
        identity: dict[str, object] = {}
        if self._drop:
            identity = {"user": NOBODY, "group": NOBODY, "extra_groups": self._groups()}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [LIBVIRTD], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=root, **identity,  # type: ignore[call-overload]
            )  # fmt: skip
        self._wait_until_it_answers()

    def kill(self) -> None:
        """kill -9. Connections break; guests go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the daemon in order. Guests go on."""
        self._end(signal.SIGTERM)

    def close(self) -> None:
        if self._process is not None:
            self.stop()
        super().close()

    @staticmethod
    def _groups() -> list[int]:
        """The group that may use KVM, where that is worth it: probing a broken one takes libvirt long."""
        return [Path("/dev/kvm").stat().st_gid] if kvm_works() else []

    def _end(self, how: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._process = None

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + 30
        socket = self.directory / "r/libvirt/libvirt-sock"
        while self._process.poll() is None and time.monotonic() < deadline:
            if socket.is_socket():
                try:
                    self.connect().close()
                except libvirt.libvirtError:
                    pass  # the socket of a killed predecessor, or not listening yet
                else:
                    return
            time.sleep(0.05)
        raise BedError(f"libvirtd did not start: {self._log.read_text()[-2000:]}")

"""What is measured: commands as a person would type them, each into a place that is new.

Every method of a contender removes what the last round left, then returns what the command alone took.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.measuring import Ran, run

_RAKSHA = Path(sys.executable).with_name("raksha")


def fresh(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


class Raksha:
    """The product's own command line."""

    def __init__(self, directory: Path, uri: str, address: str | None = None, before: tuple[str, ...] = ()) -> None:
        """`before`: a command that starts the command, such as one that lowers its priority."""
        self.vault = directory / "vault"
        self._state = directory / "state"
        self._address = address or f"file://{self.vault}"
        self._before = before
        self._host = ["--connect", uri, "--state-dir", str(self._state)]
        # an installed package has its bytecode compiled; a checkout gets it at the first start
        self.environment = {"PYTHONPYCACHEPREFIX": str(directory / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}

    def __call__(self, verb: str, *arguments: str) -> Ran:
        vault = [] if verb == "release" else ["--vault", self._address]
        command = [*self._before, _RAKSHA, "local", verb, *arguments, *vault, *self._host, "--json"]
        return run(command, **self.environment)

    def full(self, vm: str, *options: str) -> Ran:
        """Into a vault that is new."""
        fresh(self.vault)
        return self("backup", vm, "--full", *options)

    def incremental(self, vm: str, *options: str) -> tuple[Ran, int]:
        """And bytes sent."""
        ran = self("backup", vm, *options)
        disk: dict[str, Any] = vm_of(ran)["resources"][0]
        if disk["kind"] != "incremental" or disk["reason"]:
            raise RuntimeError(f"no plain incremental: {disk}")
        return ran, disk["volume"]["sent"]

    def restore(self, target: Path, point: str = "latest", *, keep: bool = False) -> Ran:
        if not keep:
            fresh(target)
        return self("restore", point, "--disk", "vda", "--to", str(target), *([] if keep else ["--format", "raw"]))


def vm_of(ran: Ran) -> dict[str, Any]:
    """The first VM of a backup's run."""
    found: dict[str, Any] = json.loads(ran.output)["run"]["vms"][0]
    return found


def point_of(ran: Ran) -> str:
    """The id of the restore point that a backup made."""
    return str(json.loads(ran.output)["run"]["id"])


class QemuImg:
    def __init__(self, directory: Path) -> None:
        self.stored = directory / "image.qcow2"

    def full(self, disk: Path) -> Ran:
        options = ["-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        return run(["qemu-img", "convert", *options, disk, fresh(self.stored)])

    def restore(self, target: Path) -> Ran:
        return run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.stored, fresh(target)])


class Borg:
    def __init__(self, directory: Path, compression: str) -> None:
        self.stored = directory / "borg"
        self._compression = compression
        self._environment = {
            "BORG_BASE_DIR": str(directory / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def full(self, disk: Path) -> Ran:
        fresh(self.stored)
        run(["borg", "init", "-e", "none", self.stored], **self._environment)
        return run(["borg", "create", "-C", self._compression, f"{self.stored}::full", disk], **self._environment)

    def restore(self, target: Path) -> Ran:
        shell = f'exec borg extract --sparse --stdout "{self.stored}::full" > "{fresh(target)}"'
        return run(["sh", "-c", shell], **self._environment)


class Restic:
    def __init__(self, directory: Path) -> None:
        self.stored = directory / "restic"
        self._environment = {
            "RESTIC_REPOSITORY": str(self.stored),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        }

    def full(self, disk: Path) -> Ran:
        fresh(self.stored)
        run(["restic", "init", "-q"], **self._environment)
        return run(["restic", "backup", "-q", disk], **self._environment)

    def restore(self, target: Path) -> Ran:
        return run(["restic", "restore", "-q", "latest", "--target", fresh(target)], **self._environment)


class VirtNbdBackup:
    """A copy of a VM that is off and whose disk is qcow2: a raw one it copies whole, zeroes too."""

    def __init__(self, directory: Path, uri: str, *options: str) -> None:
        self.stored = directory / "virtnbdbackup"
        self._uri = uri
        self._command = ["virtnbdbackup", "-U", uri, "-l", "copy", "-n", "-S", str(directory), *options]

    def full(self, vm: str) -> Ran:
        return run([*self._command, "-d", vm, "-o", fresh(self.stored)])

    def restore(self, target: Path) -> Ran:
        fresh(target)
        return run(["virtnbdrestore", "-U", self._uri, "-i", self.stored, "-o", target, "-n"])


def zstd_alone(disk: Path) -> Ran:
    """The ceiling of compressing."""
    return run([sys.executable, "-m", "benchmarks.ceiling", disk])


def nbdcopy(disk: Path) -> Ran:
    """The ceiling of reading."""
    return run(["nbdcopy", "--", "[", "qemu-nbd", "-r", "-f", "raw", disk, "]", "null:"])


def upload(folder: Path, container: str, environment: dict[str, str]) -> Ran:
    """The ceiling of sending to Swift."""
    return run([sys.executable, "-m", "benchmarks.upload", folder, container], **environment)

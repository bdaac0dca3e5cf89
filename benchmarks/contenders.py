"""What is measured: commands as a person would type them, each into a place that is new.

Every method of a contender removes what the last round left, then returns what the command alone took.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RAKSHA = Path(sys.executable).with_name("raksha")


@dataclass(frozen=True, slots=True)
class Ran:
    """One command."""

    #: wall clock
    seconds: float
    #: seconds of processor time, of the command and of what it started and waited for
    cpu: float
    output: str

    def __add__(self, other: Ran) -> Ran:
        return Ran(self.seconds + other.seconds, self.cpu + other.cpu, self.output + other.output)


def run(command: Sequence[str | Path], **environment: str) -> Ran:
    """Raises `CalledProcessError` with what the command said."""
    before, start = _cpu(), time.perf_counter()
    done = subprocess.run(
        command, env=os.environ | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        done.check_returncode()
    return Ran(seconds, _cpu() - before, done.stdout)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files)


def _fresh(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path


class Raksha:
    """The product's own command line."""

    def __init__(self, directory: Path, uri: str) -> None:
        self._directory = directory
        self.vault = directory / "vault"
        self._host = ["--connect", uri, "--state-dir", str(directory / "state")]
        # an installed package has its bytecode compiled; a checkout gets it at the first start
        self._environment = {"PYTHONPYCACHEPREFIX": str(directory / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}

    def __call__(self, verb: str, *arguments: str) -> Ran:
        vault = [] if verb == "release" else ["--vault", f"file://{self.vault}"]
        return run([_RAKSHA, "local", verb, *arguments, *vault, *self._host, "--json"], **self._environment)

    def full(self, vm: str) -> Ran:
        _fresh(self.vault)
        return self("backup", vm, "--full")

    def incremental(self, vm: str) -> tuple[Ran, int]:
        """And bytes sent."""
        ran = self("backup", vm)
        disk: dict[str, Any] = json.loads(ran.output)["run"]["vms"][0]["resources"][0]
        if disk["kind"] != "incremental" or disk["reason"]:
            raise RuntimeError(f"no plain incremental: {disk}")
        return ran, disk["volume"]["sent"]

    def restore(self, target: Path) -> Ran:
        _fresh(target)
        return self("restore", "latest", "--disk", "vda", "--to", str(target), "--format", "raw")


class QemuImg:
    def __init__(self, directory: Path) -> None:
        self.image = directory / "image.qcow2"

    def full(self, disk: Path) -> Ran:
        options = ["-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        return run(["qemu-img", "convert", *options, disk, _fresh(self.image)])

    def restore(self, target: Path) -> Ran:
        return run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.image, _fresh(target)])


def sync(path: Path) -> Ran:
    """Make a file durable."""
    return run(["sync", path])


class Borg:
    def __init__(self, directory: Path) -> None:
        self.repository = directory / "borg"
        self._environment = {
            "BORG_BASE_DIR": str(directory / "borg-base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    def full(self, disk: Path) -> Ran:
        _fresh(self.repository)
        run(["borg", "init", "-e", "none", self.repository], **self._environment)
        return run(["borg", "create", "-C", "zstd,1", f"{self.repository}::full", disk], **self._environment)


class Restic:
    def __init__(self, directory: Path) -> None:
        self.repository = directory / "restic"
        self._environment = {
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        }

    def full(self, disk: Path) -> Ran:
        _fresh(self.repository)
        run(["restic", "init", "-q"], **self._environment)
        return run(["restic", "backup", "-q", disk], **self._environment)

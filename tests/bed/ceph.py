"""A real Ceph on loopback: one monitor, one OSD on a sparse file, all in user space. It dies with the test run.

Enough for RBD: there is no manager, so nothing counts bytes, and no authentication.
"""

from __future__ import annotations

import signal
import subprocess
import time
import uuid
from pathlib import Path

from tests.bed.disks import Disk, run
from tests.bed.image import BedError
from tests.bed.swift import free_ports

#: seconds
_START = 60
POOL = "volumes"

_CONF = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{port}
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
keyring = {folder}/keyring
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
ms_bind_ipv6 = false
mon_data = {folder}/mon
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = {size}
bluestore_block_wal_size = 0
bluestore_block_db_size = 0
osd_memory_target = 939524096
bluestore_fsck_on_mount = false
osd_op_num_shards = 2
"""


class Ceph:
    """One cluster with one pool."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.conf = folder / "ceph.conf"
        (self.port,) = free_ports(1)
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Returns when the pool takes data. 5 to 10 s."""
        folder, fsid = self._folder, str(uuid.uuid4())
        self.conf.write_text(_CONF.format(fsid=fsid, port=self.port, folder=folder, size=4 << 30))
        for name in ("mon", "osd"):
            (folder / name).mkdir()
        keyring = folder / "keyring"
        run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        keyring.chmod(0o644)  # clients look for one, although nobody asks who they are
        address = f"[v2:127.0.0.1:{self.port}]"
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, folder / "monmap")
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", folder / "monmap")
        self._daemon("ceph-mon", "-i", "a")
        self._until("osd", "stat")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")
        self._run("ceph", "osd", "pool", "create", POOL, "8", "8")
        self._run("rbd", "pool", "init", POOL)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()

    def volume(self, name: str, size: int) -> Disk:
        """A new volume, for guests: a disk of kind `rbd`."""
        self._run("rbd", "create", "--size", f"{size}B", f"{POOL}/{name}")
        return Disk(Path(f"{POOL}/{name}"), "raw", kind="rbd", where=f"<config file='{self.conf}'/>")

    def export(self, disk: Disk, to: Path) -> bytes:
        """What a volume holds."""
        self._run("rbd", "export", "--no-progress", str(disk.path), to)
        return to.read_bytes()

    def _until(self, *words: str) -> None:
        deadline = time.monotonic() + _START
        while True:
            try:
                self._run("ceph", "--connect-timeout", "2", *words)
            except BedError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def _run(self, program: str, *words: str | Path) -> None:
        run("timeout", str(_START), program, "-c", self.conf, *words)

    def _daemon(self, program: str, *words: str) -> None:
        command = ["setpriv", "--pdeathsig", "KILL", program, "-f", "-c", str(self.conf), *words]
        log = (self._folder / f"{program}.out").open("wb")
        self._daemons.append(
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        )

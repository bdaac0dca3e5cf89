"""A guest owns every byte of its disk: one that begins like an image of some kind is raw bytes, in and out.

`qemu-img convert` without a format would follow such a header to any file of the host.
"""

from __future__ import annotations

import json
import struct
import subprocess
import time
from pathlib import Path

from raksha.agent.sources import disk_sources
from raksha.agent.work import Work
from raksha.db import migrate
from raksha.restore.stream import flattened
from raksha.states import BackupKind
from raksha.types import CLUSTER_SIZE
from tests.bed.databases import opened
from tests.bed.luks import make_luks
from tests.contract.test_crafted_vault import Bed
from tests.unit.restore.vault import context
from tests.unit.scheduler.service import Service

SECRET = b"a secret of the host" * 200


def headers(secret: Path) -> dict[str, bytes]:
    """What a guest might write to the beginning of its disk."""
    made = {}
    for kind, options in {
        "qcow2 with a backing file": ["-f", "qcow2", "-b", str(secret), "-F", "raw"],
        "qcow2 with another's data": ["-f", "qcow2", "-o", f"data_file={secret}.data,data_file_raw=on", ],
        "vmdk": ["-f", "vmdk", "-o", "subformat=monolithicFlat"],
        "qed": ["-f", "qed", "-b", str(secret), "-F", "raw"],
        "vhdx": ["-f", "vhdx"],
        "luks": ["-f", "luks", "--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"],
    }.items():  # fmt: skip
        path = secret.with_name(f"header-{kind.replace(' ', '-')}")
        make_luks(path, "64K", *options)
        made[kind] = path.read_bytes()[: 4 * CLUSTER_SIZE]
    extent = (
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW 8 FLAT "{secret}" 0\n'
    )
    made["vmdk on a file of the host"] = extent.encode()
    made["json"] = (
        b"json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(secret)}}).encode()
    )
    # an image of 2^62 bytes
    made["qcow2 bomb"] = struct.pack(">4sIQIIQII", b"QFI\xfb", 3, 0, 0, 16, 1 << 62, 0, 0xFFFFFFFF)
    return made


def test_raw_in_and_raw_out(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    folder = tmp_path / "service"
    folder.mkdir()
    with opened(f"sqlite:///{folder}/raksha.db") as database:
        migrate.upgrade(database)
        bed = Bed(folder, Service(database, folder))
        for kind, header in headers(secret).items():
            old = bed.agent.disks["web", "vda"]
            bed.agent.disks["web", "vda"] = wanted = header + old[len(header) :]
            run = bed.service.backup(bed.job, BackupKind.FULL)
            assert bed.restored(run)["web", "vda"] == wanted, kind
            assert as_cloud_gets_it(bed, run, folder) == wanted, kind


def as_cloud_gets_it(bed: Bed, run: str, folder: Path) -> bytes:
    """Of a format that is said, and nothing in it names another file; what is inside."""
    task = bed.claimed(run, "web")
    with bed.host.catalog(Work(task, time.monotonic())) as catalog:
        found = catalog.run(bed.job, run)
        assert found is not None
        source = disk_sources(catalog, found, catalog.vm(found, "web"), ("vda",))[0]
        with flattened(source, context(folder / "spool")) as stream:
            image, back = folder / "image", folder / "back"
            image.write_bytes(b"".join(stream.content))
    assert image.read_bytes()[:4] == b"QFI\xfb" and SECRET not in image.read_bytes()
    about = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "qcow2", image]))
    assert "backing-filename" not in about and "data-file" not in about["format-specific"]["data"]
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, back], check=True)
    return back.read_bytes()

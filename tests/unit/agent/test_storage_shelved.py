"""The image of a shelved server on this host: what is opened of it, by which format, and what is left of it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest

from raksha.agent import storage_shelved
from raksha.agent.storage_shelved import boot_disk, reach
from raksha.errors import CaptureFailed, CloudUnavailable, HostFailed, NoSpaceForScratch
from raksha.openstack.shelved import ShelvedImage
from raksha.server import Flavor, Server
from raksha.virt.libvirt import nbd
from tests.bed.luks import make_luks

SIZE = 4 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def made(path: Path, *arguments: str, size: int = SIZE) -> bytes:
    """An image by qemu-img."""
    make_luks(path, str(size), *arguments)
    data = path.read_bytes()
    path.unlink()
    return data


def reached(folder: Path, stack: ExitStack, data: bytes, form: str = "qcow2", virtual: int | None = SIZE) -> nbd.Server:
    """As if Glance had this."""
    image = ShelvedImage(id="image", format=form, size=len(data), virtual_size=virtual, digest=None)
    host: Any = SimpleNamespace(settings=SimpleNamespace(state_dir=folder, workers=1))
    work: Any = SimpleNamespace(progress=SimpleNamespace(step=lambda _: None), check=lambda: None)

    def fetch(_cloud: Any, _image: ShelvedImage, to: BinaryIO, _check: Callable[[], None]) -> None:
        to.write(data)
        to.flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_shelved, "fetch", fetch)
        return reach(host, work, None, image, vm="web", target="vda", stack=stack)  # type: ignore[arg-type]


def held(folder: Path) -> list[str]:
    """Names in the spool, and files without one that this process has open there."""
    descriptors = Path("/proc/self/fd")
    targets = [str(each.readlink()) for each in descriptors.iterdir() if each.is_symlink()]
    spool = folder / "spool"
    return [each.name for each in spool.iterdir()] + [each for each in targets if each.startswith(str(spool))]


@pytest.mark.parametrize("form", ["qcow2", "raw"])
def test_it_is_read_as_what_glance_says(folder: Path, stack: ExitStack, tmp_path: Path, form: str) -> None:
    plain = bytes(1 << 20) + b"web" * 1000
    raw, qcow2 = tmp_path / "raw", tmp_path / "qcow2"
    raw.write_bytes(plain.ljust(SIZE, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    source = reached(folder, stack, (raw if form == "raw" else qcow2).read_bytes(), form)
    assert source.size == SIZE
    assert nbd.Reader(source).pread(1 << 20, 3000) == b"web" * 1000
    # it has no name, so nothing is left of it by whoever is killed
    assert not list((folder / "spool").iterdir()) and len(held(folder)) == 1
    stack.close()
    assert held(folder) == []


def test_raw_is_raw_whatever_it_holds(folder: Path, stack: ExitStack, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host".ljust(SIZE, b"\0"))
    disk = tmp_path / "disk"
    data = made(disk, "-f", "qcow2", "-b", str(secret), "-F", "raw")
    source = reached(folder, stack, data.ljust(SIZE, b"\0"), "raw")
    assert nbd.Reader(source).pread(0, 4) == b"QFI\xfb"


def backed(disk: Path, secret: Path) -> bytes:
    return made(disk, "-f", "qcow2", "-b", str(secret), "-F", "raw")


def with_data_file(disk: Path, secret: Path) -> bytes:
    return made(disk, "-f", "qcow2", "-o", f"data_file={secret}.data,data_file_raw=on")


def encrypted(disk: Path, _secret: Path) -> bytes:
    words = [
        "--object",
        "secret,id=key,data=abc",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
    ]
    return made(disk, *words)


def damaged(disk: Path, _secret: Path) -> bytes:
    found = bytearray(made(disk, "-f", "qcow2"))
    found[79] |= 2
    return bytes(found)


def none(_disk: Path, _secret: Path) -> bytes:
    return bytes(SIZE)


@pytest.mark.parametrize(
    ("crafted", "says"),
    [
        (backed, "a backing file"),
        (with_data_file, "a data file"),
        (encrypted, "encryption"),
        (damaged, "damaged"),
        (none, "not the qcow2 image"),
    ],
)
def test_what_a_tenant_crafts_is_not_opened(
    folder: Path, stack: ExitStack, tmp_path: Path, crafted: Callable[[Path, Path], bytes], says: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host".ljust(SIZE, b"\0"))
    with pytest.raises(CaptureFailed, match=says):
        reached(folder, stack, crafted(tmp_path / "disk", secret))
    stack.close()
    assert held(folder) == []


def test_another_size_than_glance_knows_is_refused(folder: Path, stack: ExitStack, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    data = made(disk, "-f", "qcow2", size=2 * SIZE)
    with pytest.raises(CaptureFailed, match=str(SIZE)):
        reached(folder, stack, data)
    assert reached(folder, stack, data, virtual=None).size == 2 * SIZE


def test_without_room_nothing_is_fetched(folder: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=(1 << 30) + 3))
    with pytest.raises(NoSpaceForScratch):
        reached(folder, stack, b"four", "raw")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (OSError(28, "No space left on device"), HostFailed),
        (CloudUnavailable(service="image", detail="it broke off"), CloudUnavailable),
    ],
)
def test_a_fetch_that_fails_leaves_nothing(
    folder: Path, stack: ExitStack, fault: Exception, kind: type[Exception]
) -> None:
    image = ShelvedImage(id="image", format="raw", size=4, virtual_size=None, digest=None)
    host: Any = SimpleNamespace(settings=SimpleNamespace(state_dir=folder, workers=1))
    work: Any = SimpleNamespace(progress=SimpleNamespace(step=lambda _: None), check=lambda: None)

    def fetch(*_: Any) -> None:
        raise fault

    with pytest.MonkeyPatch.context() as patch, pytest.raises(kind):
        patch.setattr(storage_shelved, "fetch", fetch)
        reach(host, work, None, image, vm="web", target="vda", stack=stack)  # type: ignore[arg-type]
    stack.close()
    assert held(folder) == []


@pytest.mark.parametrize(("bus", "disk"), [(None, "vda"), ("virtio", "vda"), ("scsi", "sda"), ("ide", "hda")])
def test_the_disk_is_called_as_the_hypervisor_did(bus: str | None, disk: str) -> None:
    properties = {} if bus is None else {"hw_disk_bus": bus}
    flavor = Flavor(name="small", vcpus=1, ram=64, disk=1)
    made = Server(id="web", name="web", status="SHELVED_OFFLOADED", image_properties=properties, flavor=flavor)
    assert boot_disk(made) == disk

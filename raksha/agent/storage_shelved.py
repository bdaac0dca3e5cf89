"""The boot disk of a server that Nova has shelved: its image, fetched into a file that nobody else can open by a name.

::

    find it, see that there is room      `raksha.openstack.shelved`
    fetch all of it                      the server may be unshelved meanwhile: then it breaks off, or has come whole
    look at its header                   the format is Glance's word; qcow2 without backing file, data file, encryption
    read it                              by qemu-nbd, as any disk

The file has no name, so it goes with this process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack

from raksha.agent.host import Host
from raksha.agent.work import Work
from raksha.errors import CaptureFailed, HostFailed, NoSpaceForScratch
from raksha.openstack.lent import LentLogin
from raksha.openstack.shelved import ShelvedImage, fetch
from raksha.server import Server
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.layer_header import NotQcow2, read_header

#: bytes that stay free
_RESERVE = 1 << 30
#: what Nova calls the first disk on these buses; on all others `vda`
_FIRST = {"scsi": "sda", "sata": "sda", "usb": "sda", "ide": "hda", "fdc": "fda"}


def boot_disk(server: Server) -> str:
    """As the hypervisor called the disk that the server booted from."""
    return _FIRST.get(server.image_properties.get("hw_disk_bus", ""), "vda")


def reach(
    host: Host, work: Work, cloud: LentLogin, image: ShelvedImage, *, vm: str, target: str, stack: ExitStack
) -> nbd.Server:
    """What is opened is closed with the stack. Raises `CaptureFailed`, `NoSpaceForScratch`, `HostFailed` and what
    `fetch` raises."""
    folder = host.settings.state_dir / "spool"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    free = shutil.disk_usage(folder).free
    if free < image.size + _RESERVE:
        raise NoSpaceForScratch(path=folder, free=free, vm=vm, wanted=image.size + _RESERVE)
    work.progress.step(f"fetching the image of {target}")
    try:
        file = stack.enter_context(tempfile.TemporaryFile(dir=folder))  # noqa: SIM115 -- the stack closes it
        fetch(cloud, image, file, work.check)
    except OSError as error:
        raise HostFailed(detail=f"{folder}: {error.strerror}") from error
    # as long as this process has it open
    path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    if image.format == "qcow2":
        _require_plain(path, vm, image.id)
    readers = 2 * host.settings.workers + 4
    source = nbd.Server(vm, target, [Layer(path, "file", image.format)], share=False, connections=readers)
    stack.callback(source.close)
    if image.virtual_size is not None and source.size != image.virtual_size:
        detail = f"image {image.id} has {source.size} bytes, and Glance says {image.virtual_size}"
        raise CaptureFailed(vm=vm, detail=detail)
    return source


def _require_plain(path: str, vm: str, image_id: str) -> None:
    """Raises `CaptureFailed`: no other file may be part of it."""
    try:
        header = read_header(path)
    except NotQcow2:
        raise CaptureFailed(vm=vm, detail=f"image {image_id} is not the qcow2 image that Glance calls it") from None
    wrong = {
        "a backing file": header.backing is not None,
        "a data file": header.data_file,
        "encryption": header.encrypted,
        "a mark that it is damaged": header.corrupt,
    }
    if found := [what for what, there in wrong.items() if there]:
        raise CaptureFailed(vm=vm, detail=f"image {image_id} has {found[0]}, and is not opened")

"""The VMs of this host as the schedulers are told of them, looked at by a thread of its own: libvirt may take its time.

Whose a VM is, its definition says: Nova's metadata, or ours, which the owner of the host writes::

    <metadata><raksha:vm xmlns:raksha="urn:raksha:vm:1">
      <raksha:project>4f0d…</raksha:project>
      <raksha:tag>daily</raksha:tag>
      <raksha:hint key="tier">gold</raksha:hint>
    </raksha:vm></metadata>
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing

from lxml import etree

from raksha.config import Settings
from raksha.errors import RakshaError
from raksha.journal import Journal
from raksha.tasks import SeenDisk, SeenVm
from raksha.virt.libvirt.domain_xml import parse_xml
from raksha.virt.libvirt.engines import LibvirtEngines
from raksha.virt.libvirt.listing import DiskEntry, Look, look_at_vms

_log = logging.getLogger(__name__)

_OURS = "{urn:raksha:vm:1}"
#: of Nova, less its version
_NOVA = "http://openstack.org/xmlns/libvirt/nova/"


class Sight:
    """`latest` and `told` are the keeper's; `run` is a thread's."""

    def __init__(self, settings: Settings, journal: Journal, interval: float) -> None:
        self._settings = settings
        self._journal = journal
        self._interval = interval
        self._lock = threading.Lock()
        self._vms: tuple[SeenVm, ...] | None = None
        self._version = 0
        self._stop = threading.Event()
        #: what the schedulers know
        self.told = 0

    def latest(self) -> tuple[tuple[SeenVm, ...] | None, int]:
        """All VMs (None: nobody has looked yet), and a number that changes with them."""
        with self._lock:
            return self._vms, self._version

    def look(self) -> None:
        """Raises `HypervisorUnavailable`, `LibvirtFailed`."""
        with closing(LibvirtEngines(self._settings, self._journal)) as engines:
            looks = look_at_vms(engines.connection, self._journal, engines.choose)
            vms = tuple(_seen(look) for look in looks if look.definition)
        with self._lock:
            if vms != self._vms:
                self._vms, self._version = vms, self._version + 1

    def run(self) -> None:
        """Again and again until `stop`. While libvirt is away, what was seen last stays."""
        while not self._stop.is_set():
            try:
                self.look()
            except RakshaError as error:
                _log.error("looking at VMs: %s", error, extra={"action": "look"})
            except Exception:  # what nobody thought of must not blind the agent for ever
                _log.exception("looking at VMs failed", extra={"action": "look"})
            self._stop.wait(self._interval)

    def stop(self) -> None:
        self._stop.set()


def _seen(look: Look) -> SeenVm:
    vm = look.vm
    project, tags, hints = owner_of(look.definition)
    disks = tuple(_disk(disk, look) for disk in vm.disks)
    reason = vm.reason
    if reason is None and not any(disk.protectable for disk in vm.disks):
        reason = "it has no disk that can be protected"
    return SeenVm(
        vm=vm.uuid,
        name=vm.name,
        power=vm.power,
        project_id=project,
        tags=tags,
        hints=hints,
        disks=disks,
        refusal=None if reason is None else {"code": "vm_refused", "message": reason},
    )


def _disk(disk: DiskEntry, look: Look) -> SeenDisk:
    return SeenDisk(target=disk.target, size=disk.size, reason=disk.reason, base=look.bases.get(disk.target))


def owner_of(definition: str) -> tuple[str | None, tuple[str, ...], dict[str, str]]:
    """Project, tags and hints that a definition names."""
    root = parse_xml(definition)
    ours = root.find(f"./metadata/{_OURS}vm")
    if ours is None:
        return _nova_project(root), (), {}
    project = (ours.findtext(f"{_OURS}project") or "").strip() or None
    tags = tuple(sorted({each.text.strip() for each in ours.iterfind(f"{_OURS}tag") if each.text}))
    hints = {each.get("key", ""): (each.text or "").strip() for each in ours.iterfind(f"{_OURS}hint")}
    return project or _nova_project(root), tags, hints


def _nova_project(root: etree._Element) -> str | None:
    for element in root.iterfind("./metadata/*"):
        if str(element.tag).startswith("{" + _NOVA):
            space = str(element.tag).rpartition("}")[0] + "}"
            project = element.find(f"{space}owner/{space}project")
            return None if project is None else project.get("uuid")
    return None

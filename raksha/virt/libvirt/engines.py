"""Which engine captures which VM.

`auto`: `overlay` for VMs that only libvirt manages, `pull` for those that Nova manages (it rebuilds the definition from
its own records, and would start the disks below an overlay). Either may be asked for by name; `overlay` refuses what
it cannot protect. A job may change its engine from run to run: each disk copy builds on what its tracker counts from.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from raksha.config import Settings
from raksha.journal import Journal
from raksha.virt.capture import CaptureEngine, CaptureRequest, Prepared, VmIdentity
from raksha.virt.libvirt.connection import Connection
from raksha.virt.libvirt.domain_xml import Domain, parse_domain
from raksha.virt.libvirt.overlay import OverlayEngine
from raksha.virt.libvirt.overlay_survey import OverlayDemands
from raksha.virt.libvirt.pull_survey import PullDemands
from raksha.virt.libvirt.survey import Demands

if TYPE_CHECKING:
    from raksha.virt.libvirt.pull import PullEngine


class LibvirtEngines:
    """Fulfils `CaptureEngine` with the engine that the settings ask for, or the right one for each VM."""

    def __init__(self, settings: Settings, journal: Journal) -> None:
        self.name = settings.engine
        self._settings = settings
        self._journal = journal
        self._overlay = OverlayEngine(settings, journal)
        self._pull: PullEngine | None = None

    @property
    def connection(self) -> Connection:
        return self._overlay.connection

    def close(self) -> None:
        with closing(self._overlay):
            if self._pull is not None:
                self._pull.close()

    def identify(self, vm: str) -> VmIdentity:
        return self._overlay.identify(vm)

    def prepare(self, request: CaptureRequest) -> Prepared:
        return self._engine(request.vm).prepare(request)

    def release(self, vm: str) -> list[str]:
        """What either engine left. The overlays first: a bitmap may lie in one of them."""
        return [*self._overlay.release(vm), *self._pulling().release(vm)] or ["nothing to release"]

    def choose(self, definition: Domain) -> tuple[str, Demands]:
        """Name of the engine for a VM, and what it asks of it."""
        pull = definition.nova if self.name == "auto" else self.name == "pull"
        return ("pull", PullDemands()) if pull else ("overlay", OverlayDemands())

    def _engine(self, vm: str) -> CaptureEngine:
        name, _ = self.choose(parse_domain(self.connection.guest(vm).inactive_xml()))
        return self._pulling() if name == "pull" else self._overlay

    def _pulling(self) -> PullEngine:
        """Made when a VM needs it: most hosts have none that does."""
        from raksha.virt.libvirt.pull import PullEngine

        if self._pull is None:
            self._pull = PullEngine(self._settings, self._journal)
        return self._pull

"""No guest shall stop because an overlay of ours has filled its file system.

While a run reads, `SpaceWatch` looks at the free space beside each new overlay: when QEMU says that the file grew
beyond a mark (`BLOCK_THRESHOLD`), and every second anyway. Below the watermark the trash gives way first; then the run
ends: its readers are closed, all overlays are merged into the VM's own files, and a guest that had stopped goes on.

Not promised: that a guest which writes faster than one can look never stops. It waits then, nothing is lost, and it is
resumed here or by the next recovery.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from msgspec.structs import replace

from raksha.config import Settings
from raksha.errors import LibvirtFailed, OverlaySpaceLow, RakshaError
from raksha.journal import Journal, OwnLayer
from raksha.virt.libvirt.chain import same_file
from raksha.virt.libvirt.commit import Committer
from raksha.virt.libvirt.connection import Guest
from raksha.virt.libvirt.domain_xml import Disk, parse_domain
from raksha.virt.libvirt.trash import Trash

#: seconds between two looks while QEMU says nothing
_POLL = 1.0
#: bytes; a mark nearer than this would be passed before it is set
_NEAR = 256 * 1024


class SpaceWatch:
    """The overlays of one run of one VM: `overlays` has their paths by target. `let_go` closes whoever reads below."""

    def __init__(
        self,
        guest: Guest,
        journal: Journal,
        settings: Settings,
        overlays: Mapping[str, str],
        let_go: Callable[[], None],
    ) -> None:
        self._guest = guest
        self._journal = journal
        self._settings = settings
        self._overlays = overlays
        self._let_go = let_go
        # More than what a run begins with would end every run at once.
        self._mark = min(settings.overlay_watermark, settings.overlay_reserve_min // 2)
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"raksha-space-{guest.name}", daemon=True)
        #: the directory that was short of space
        self._short: str | None = None
        self._outcome = "its overlays are being merged back"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends watching; waits for what is being merged. May be called twice."""
        self._ended.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def tripped(self) -> bool:
        return self._short is not None

    def check(self) -> None:
        """Raises `OverlaySpaceLow` when the run has been given up."""
        if self._short is not None:
            raise OverlaySpaceLow(vm=self._guest.name, path=self._short, detail=self._outcome)

    def _watch(self) -> None:
        with ExitStack() as stack:
            with suppress(LibvirtFailed):  # without events there is the clock
                stack.enter_context(self._guest.growth_events(self._wake))
            while not self._ended.is_set():
                self._wake.clear()
                # A daemon that is away cannot be asked; the guest may need us when it is back.
                with suppress(LibvirtFailed, OSError):
                    if (place := self._look()) is not None:
                        self._short = place
                        self._let_go()
                        self._outcome = relieve(self._guest, self._journal, self._settings, self._overlays)
                        return
                self._wake.wait(_POLL)

    def _look(self) -> str | None:
        """The directory that is short of space, or None."""
        for target, path in self._overlays.items():
            place = Path(path).parent
            mark = self._mark + self._merge_needs(target, path)
            if _free(place) < mark:
                trash = Trash(self._guest.uuid, self._guest.neighbours, self._journal, self._settings)
                trash.make_room(place.stat().st_dev, lambda at=place, want=mark: _free(at) >= want)  # type: ignore[misc]
                if _free(place) < mark:
                    return str(place)
            with suppress(LibvirtFailed):  # without marks there is the clock
                self._tell_when_grown(target, path, _free(place) - mark)
        if self._guest.stopped_by_disk():
            full = self._guest.disks_without_space() & self._overlays.keys()
            return next((str(Path(self._overlays[target]).parent) for target in sorted(full)), None)
        return None

    def _merge_needs(self, target: str, path: str) -> int:
        """Bytes that merging may take on the same file system, if the VM's own file has holes there."""
        layer = next((each for each in self._journal.layers(self._guest.uuid) if each.file.path == path), None)
        if layer is None or layer.base.kind != "file":
            return 0
        overlay, base = Path(path).stat(), Path(layer.base.file.path).stat()
        if overlay.st_dev != base.st_dev:
            return 0
        holes = max(0, self._guest.capacity(target) - base.st_blocks * 512)
        return min(overlay.st_blocks * 512, holes)

    def _tell_when_grown(self, target: str, path: str, left: int) -> None:
        """Wake up when half of what is left is used up, or at the end of it."""
        disk = parse_domain(self._guest.live_xml()).disk(target)
        if left > _NEAR and disk is not None and disk.layers and same_file(disk.top.path, path):
            self._guest.tell_when_beyond(f"{target}[{disk.top.index}]", Path(path).stat().st_size + left // 2)


def relieve(guest: Guest, journal: Journal, settings: Settings, overlays: Mapping[str, str]) -> str:
    """Merge overlays of ours (by target) into the VM's own files and let the guest go on. Returns what came of it.

    Nothing goes to the trash: it would lie on the file system that is full.
    """
    committer = Committer(guest, journal, replace(settings, trash_hours=0))
    problems = []
    stopped = False
    for target in overlays:
        try:
            stopped = stopped or guest.stopped_by_disk()
            disk = parse_domain(guest.live_xml()).disk(target) if guest.is_active() else None
            if disk is not None and (own := own_on_top(disk, journal.layers(guest.uuid))):
                committer.pivot(target, own)
        except (RakshaError, OSError) as error:
            problems.append(f"disk {target}: {error}")
    try:
        if not problems and (stopped or guest.stopped_by_disk()):
            guest.resume()
    except LibvirtFailed as error:
        problems.append(str(error))
    if problems:
        return f"merging back failed ({'; '.join(problems)}); free space, then `raksha local recover {guest.name}`"
    return "its overlays were merged back" + (", and the guest, which had stopped, goes on" if stopped else "")


def own_on_top(disk: Disk, known: list[OwnLayer]) -> list[OwnLayer]:
    """Layers of ours that the chain of a running VM begins with, newest first."""
    found: list[OwnLayer] = []
    for layer in disk.layers:
        own = next((each for each in known if same_file(each.file.path, layer.path)), None)
        if own is None:
            break
        found.append(own)
    return found


def _free(place: Path) -> int:
    room = os.statvfs(place)
    return room.f_bavail * room.f_frsize

"""What must be refused, and that a refusal changes nothing: no definition, no file, no layer, no lock."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.errors import (
    CaptureFailed,
    DiskNotFound,
    DiskUnsupported,
    ForeignChain,
    HypervisorUnavailable,
    LayerUnknown,
    NoSpaceForOverlay,
    OverlayExists,
    QuiesceFailed,
    RakshaError,
    VmBusy,
    VmNotFound,
    VmUnsupported,
    VmWithoutDisks,
)
from raksha.journal import Journal
from raksha.states import Quiesce
from raksha.virt.capture import CaptureRequest
from raksha.virt.libvirt import connection, overlay_file
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.overlay import OverlayEngine
from raksha.virt.libvirt.own_source import own_sources
from tests.bed import Bed
from tests.bed.disks import Disk
from tests.bed.luks import make_luks
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on, settings

#: how somebody else makes a snapshot
FOREIGN = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA


@pytest.fixture
def kit(bed: Bed) -> Iterator[Kit]:
    with kit_on(bed) as made:
        yield made


def refused(kit: Kit, guest: Guest, error: type[RakshaError], text: str | None = None, **more: object) -> None:
    """The backup is refused with this error, and everything is as before."""
    before = guest.state()
    with pytest.raises(error, match=text):
        kit.engine.prepare(kit.request(guest.uuid, **more))
    assert guest.state() == before
    kit.journal.vm_lock(guest.uuid, "vm").release()
    assert kit.journal.open_intents(guest.uuid) == []


def with_disk(bed: Bed, disk: Disk) -> Guest:
    return Guest(bed, [bed.raw("a", 4 * MIB), disk])


def test_unknown_names(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    refused(kit, guest, DiskNotFound, "no disk 'vdx'; it has vda", exclude=frozenset(["vdx"]))
    with pytest.raises(VmNotFound):
        kit.engine.prepare(kit.request("no-such-vm"))


def test_hypervisor_away(bed: Bed) -> None:
    away = settings(bed, libvirt_uri=f"qemu:///session?socket={bed.directory}/nobody-listens")
    with pytest.raises(HypervisorUnavailable):
        OverlayEngine(away, Journal(away.state_dir))


@pytest.mark.parametrize("uri", ["qemu+ssh://elsewhere/system", "qemu://elsewhere/system", "test:///default"])
def test_hypervisor_elsewhere(bed: Bed, uri: str) -> None:
    """Overlays would be made on the wrong host."""
    away = settings(bed, libvirt_uri=uri)
    with pytest.raises(HypervisorUnavailable, match="of this host"):
        OverlayEngine(away, Journal(away.state_dir))


def test_without_disks(kit: Kit, bed: Bed) -> None:
    cdrom = Disk(bed.raw("cd", MIB).path, "raw", target="hdc", extra="<readonly/>")
    refused(kit, Guest(bed, [cdrom]), VmWithoutDisks)
    guest = Guest(bed, [bed.raw("a", 4 * MIB)], name="other")
    refused(kit, guest, VmWithoutDisks, exclude=frozenset(["vda"]))


@pytest.mark.parametrize("extra", ["<shareable/>", "<transient/>"])
def test_shareable_and_transient(kit: Kit, bed: Bed, extra: str) -> None:
    disk = Disk(bed.raw("b", MIB).path, "raw", extra=extra)
    refused(kit, with_disk(bed, disk), DiskUnsupported, extra.strip("</>"))


def test_encrypted(kit: Kit, bed: Bed) -> None:
    """By the definition, and by the header alone."""
    secret = bed.directory / "secret"
    secret.write_text("x" * 16)
    path = bed.directory / "luks.qcow2"
    options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    make_luks(path, "1M", "--object", f"secret,id=s,file={secret}", "-f", "qcow2", "-o", options)
    encryption = "<encryption format='luks'><secret type='passphrase' uuid='{}'/></encryption>"
    stated = Disk(path, "qcow2", extra=encryption.format("0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f"))
    refused(kit, with_disk(bed, stated), DiskUnsupported, "encrypted")
    refused(kit, Guest(bed, [Disk(path, "qcow2")], name="other"), DiskUnsupported, "encrypted")


def test_network_disk(kit: Kit, bed: Bed) -> None:
    disk, _ = bed.failing("n", MIB)
    refused(kit, with_disk(bed, disk), DiskUnsupported, "type network")


def test_lun(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    lun = guest.machine.xml(inactive=True).replace("type='file' device='disk'", "type='block' device='lun'")
    lun = lun.replace("file='", "dev='").replace("bus='virtio'", "bus='scsi'").replace("dev='vda'", "dev='sda'")
    guest.machine.domain.undefine()
    without = lun.replace("<address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>", "")
    guest.machine.connection.defineXML(without)
    refused(kit, guest, DiskUnsupported, "LUN")


def test_other_formats(kit: Kit, bed: Bed) -> None:
    path = bed.directory / "b.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", path, "1M"], check=True)
    refused(kit, with_disk(bed, Disk(path, "vmdk")), DiskUnsupported, "format vmdk")


def test_data_file(kit: Kit, bed: Bed) -> None:
    path, data = bed.directory / "b.qcow2", bed.directory / "b.data"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data}", path, "1M"], check=True)
    refused(kit, with_disk(bed, Disk(path, "qcow2")), DiskUnsupported, "another file")


def test_backing_without_format(kit: Kit, bed: Bed) -> None:
    """Nobody may guess what a file is that a header names."""
    bed.raw("base", MIB)
    path = bed.directory / "b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=1.1", path, "1M"], check=True)
    subprocess.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw", path], check=True)
    content = path.read_bytes().replace(bytes.fromhex("e2792aca00000003"), bytes.fromhex("0000000000000000"))
    path.write_bytes(content)
    refused(kit, with_disk(bed, Disk(path, "qcow2")), DiskUnsupported, "without its format")


def test_not_the_format_it_is_called(kit: Kit, bed: Bed) -> None:
    refused(kit, with_disk(bed, Disk(bed.raw("b", MIB).path, "qcow2")), DiskUnsupported, "is not the qcow2 image")


def test_loop_in_a_chain(kit: Kit, bed: Bed) -> None:
    disk = bed.qcow2("b", MIB)
    rebase = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", "b.qcow2", "-F", "qcow2", disk.path]
    subprocess.run(rebase, check=True)
    refused(kit, with_disk(bed, disk), DiskUnsupported, "loop")


def test_transient_domain(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    guest.machine.domain.undefine()
    before = guest.files()
    with pytest.raises(VmUnsupported, match="transient"):
        kit.engine.prepare(kit.request(guest.uuid))
    assert guest.files() == before
    guest.off()


def test_saved_state(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    guest.machine.domain.managedSave()
    refused(kit, guest, VmUnsupported, "saved state")


def test_disk_of_the_running_vm_only(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)], devices="<controller type='scsi' model='virtio-scsi'/>")
    guest.start()
    disk = f"<driver type='raw'/><source file='{bed.raw('b', MIB).path}'/><target dev='sdb' bus='scsi'/>"
    guest.machine.domain.attachDeviceFlags(f"<disk type='file'>{disk}</disk>", libvirt.VIR_DOMAIN_AFFECT_LIVE)
    refused(kit, guest, DiskUnsupported, "running VM only")


def test_symlink_trap(kit: Kit, bed: Bed) -> None:
    """libvirt would move the running VM to the overlay, but not its definition."""
    own = bed.raw("a", 4 * MIB)
    guest = Guest(bed, [own])
    guest.start()
    link = bed.directory / "link.raw"
    link.symlink_to(own.path)
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(True), {"vda": Layer(str(link), "file", "raw")}))
    refused(kit, guest, DiskUnsupported, "make them the same")


def test_symlink_spelt_alike_works(kit: Kit, bed: Bed) -> None:
    link = bed.directory / "link.raw"
    link.symlink_to(bed.raw("a", 4 * MIB).path)
    guest = Guest(bed, [Disk(link, "raw")])
    guest.start()
    run = kit.run(guest)
    guest.write("vda", 0, 8 * KIB, 0x51)
    kit.run(guest, run)
    assert kit.warnings == []
    guest.off()
    guest.start()
    kit.run(guest)
    guest.off()
    kit.engine.release(guest.uuid)
    assert guest.sources()["vda"] == [str(link)]


def test_foreign_snapshot_on_top(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    first = kit.run(guest)
    guest.machine.domain.snapshotCreateXML("<domainsnapshot/>", FOREIGN)
    refused(kit, guest, ForeignChain, "not ours")
    with pytest.raises(ForeignChain):
        kit.engine.release(guest.uuid)
    domain = guest.machine.domain
    flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW
    domain.blockCommit("vda", None, None, 0, flags)
    while "ready='yes'" not in guest.machine.xml():
        pass
    domain.blockJobAbort("vda", libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
    guest.write("vda", 0, 8 * KIB, 0x51)
    assert kit.disk(kit.run(guest, first)).reason is None, "the owner has merged his snapshot: it goes on"


def test_layer_of_another_journal(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    kit.run(guest)
    with kit_on(bed, state_dir=bed.directory / "state2") as other:
        refused(other, guest, LayerUnknown, "does not know")
    kit.run(guest)


def test_internal_snapshot_in_our_overlay(kit: Kit, bed: Bed) -> None:
    """It would be lost with the overlay."""
    guest = Guest(bed, [bed.qcow2("a", 4 * MIB)])
    guest.start()
    kit.run(guest)
    guest.off()
    overlay = guest.sources()["vda"][0]
    subprocess.run(["qemu-img", "snapshot", "-c", "mine", overlay], check=True)
    refused(kit, guest, DiskUnsupported, "internal snapshot")
    with pytest.raises(DiskUnsupported, match="internal snapshot"):
        kit.engine.release(guest.uuid)
    subprocess.run(["qemu-img", "snapshot", "-d", "mine", overlay], check=True)
    kit.engine.release(guest.uuid)


def test_block_job_running(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    guest.write("vda", 0, 2 * MIB, 0x51)
    copy = bed.host.give(bed.raw("copy", 4 * MIB).path)
    xml = f"<disk type='file'><driver type='raw'/><source file='{copy}'/></disk>"
    flags = libvirt.VIR_DOMAIN_BLOCK_COPY_REUSE_EXT | libvirt.VIR_DOMAIN_BLOCK_COPY_TRANSIENT_JOB
    guest.machine.domain.blockCopy("vda", xml, {"bandwidth": 1024}, flags)
    with pytest.raises(VmBusy, match="block job"):
        kit.engine.prepare(kit.request(guest.uuid))
    assert guest.sources()["vda"] == [str(bed.directory / "a.raw")]
    guest.machine.domain.blockJobAbort("vda")
    kit.run(guest)


def test_two_backups_at_once(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    capture = kit.capture(kit.request(guest.uuid))
    with pytest.raises(VmBusy, match="another command"):
        kit.engine.prepare(kit.request(guest.uuid))
    with pytest.raises(VmBusy, match="another command"):
        kit.engine.release(guest.uuid)
    capture.abandon()
    kit.run(guest)


def test_overlay_exists_already(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB), bed.raw("b", 4 * MIB)])
    guest.start()
    request = kit.request(guest.uuid)
    base = Layer(str(bed.directory / "b.raw"), "file", "raw")
    path = overlay_file.overlay_path(base, run=request.backupjobrun, vm=guest.uuid, target="vdb", settings=kit.settings)
    Path(path).touch()  # empty: libvirt would silently take it
    before = guest.state()
    with pytest.raises(OverlayExists):
        kit.engine.prepare(request)
    assert guest.state() == before
    assert kit.journal.layers(guest.uuid) == []


def test_too_little_space(bed: Bed) -> None:
    with kit_on(bed, overlay_reserve_min=1 << 60, overlay_reserve_max=1 << 61) as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB)])
        guest.start()
        refused(kit, guest, NoSpaceForOverlay)


def test_second_overlay_directory_missing(bed: Bed) -> None:
    with kit_on(bed, overlay_dir=bed.directory / "no" / "such") as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB)])
        guest.start()
        refused(kit, guest, CaptureFailed, "no overlay can be made")


def test_snapshot_fails_for_the_second_disk(kit: Kit, bed: Bed) -> None:
    """All or nothing: what QEMU cannot open takes no disk along."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB), bed.raw("b", 4 * MIB)])
    guest.start()
    before = guest.state()
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    overlay = next(path for path in bed.directory.iterdir() if "-vdb.qcow2" in path.name)
    os.chown(overlay, os.geteuid(), os.getegid())
    overlay.chmod(0)
    with pytest.raises(CaptureFailed, match="Permission"):
        prepared.snapshot()
    overlay.chmod(0o600)
    prepared.cancel()
    assert guest.state() == before
    assert kit.journal.layers(guest.uuid) == [] and kit.journal.open_intents() == []
    kit.run(guest)


@pytest.mark.parametrize(
    ("prepare", "text"),
    [(lambda guest: guest.start(paused=True), "paused"), (lambda guest: guest.start(), "no channel")],
)
def test_quiesce_required(kit: Kit, bed: Bed, prepare: Callable[[Guest], None], text: str) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    prepare(guest)
    before = guest.state()
    with pytest.raises(QuiesceFailed, match=text):
        kit.engine.prepare(CaptureRequest(guest.uuid, "r" * 8, "job", quiesce=Quiesce.REQUIRE))
    assert guest.state() == before


def test_changed_between_prepare_and_snapshot(kit: Kit, bed: Bed) -> None:
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    guest.machine.domain.snapshotCreateXML("<domainsnapshot/>", FOREIGN)
    chain = guest.sources()["vda"]
    with pytest.raises(CaptureFailed, match="was changed"):
        prepared.snapshot()
    prepared.cancel()
    assert guest.sources()["vda"] == chain
    assert not [name for name in guest.files() if ".raksha-" in name]


def test_grown_between_prepare_and_snapshot(kit: Kit, bed: Bed) -> None:
    """An overlay of the old size would cut off what the guest writes behind it."""
    guest = Guest(bed, [bed.raw("a", 4 * MIB)])
    guest.start()
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    guest.machine.domain.blockResize("vda", 6 * MIB, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
    with pytest.raises(CaptureFailed, match="was changed"):
        prepared.snapshot()
    prepared.cancel()
    assert len(guest.sources()["vda"]) == 1


def test_definition_stays_behind(kit: Kit, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should libvirt move the running VM but not its definition, the snapshot is taken back at once."""
    own = bed.raw("a", 4 * MIB)
    guest = Guest(bed, [own, bed.raw("b", 4 * MIB)])
    guest.start()
    link = bed.directory / "link.raw"
    link.symlink_to(own.path)
    trap = own_sources(guest.machine.xml(True), {"vda": Layer(str(link), "file", "raw")})
    snapshot = connection.Guest.snapshot

    def interfere(self: connection.Guest, xml: str) -> None:
        guest.machine.connection.defineXML(trap)  # after the last look
        snapshot(self, xml)
        guest.write("vda", 0, 64 * KIB, 0x51)

    monkeypatch.setattr(connection.Guest, "snapshot", interfere)
    prepared = kit.engine.prepare(kit.request(guest.uuid))
    prepared.snapshot()
    with pytest.raises(CaptureFailed, match="taken back"):
        prepared.capture()
    prepared.cancel()
    monkeypatch.undo()
    assert guest.sources() == {"vda": [str(own.path)], "vdb": [str(bed.directory / "b.raw")]}
    assert guest.sources(inactive=True)["vda"] == [str(link)]
    assert not [name for name in guest.files() if ".raksha-" in name]
    guest.off()
    assert own.path.read_bytes() == bytes(guest.model["vda"])

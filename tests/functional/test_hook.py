"""libvirt's hook: no VM starts below an overlay that holds newer data, and nothing else is kept from starting."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from raksha.errors import HookForeign
from raksha.journal import LayerState
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.hook import install_hook, remove_hook
from raksha.virt.libvirt.own_source import own_sources
from raksha.virt.libvirt.recover import reconcile
from tests.bed import Bed
from tests.bed.namespace import NamespaceHost
from tests.functional.overlay_kit import KIB, MIB, Guest, Kit, kit_on

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def host() -> Iterator[NamespaceHost]:
    made = NamespaceHost()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def own_bed(host: NamespaceHost) -> Iterator[Bed]:
    with Bed(host) as made:
        yield made


@pytest.fixture
def kit(own_bed: Bed) -> Iterator[Kit]:
    with kit_on(own_bed) as made:
        yield made


@pytest.fixture
def hook(host: NamespaceHost, kit: Kit) -> Iterator[Path]:
    """Installed, and heeded by the daemon."""
    path = install_hook(kit.engine.connection, kit.settings.state_dir, host.hooks)
    kit.close()
    host.stop()
    host.start()
    kit.__init__(kit.bed)  # type: ignore[misc]
    yield path
    remove_hook(host.hooks)


@pytest.fixture
def guest(own_bed: Bed) -> Guest:
    return Guest(own_bed, [own_bed.raw("a", 4 * MIB), own_bed.qcow2("b", 4 * MIB)])


def own_file(guest: Guest, target: str = "vda") -> Layer:
    name, form = {"vda": ("a.raw", "raw"), "vdb": ("b.qcow2", "qcow2")}[target]
    return Layer(str(guest.bed.directory / name), "file", form)


def define_below(guest: Guest) -> None:
    guest.machine.connection.defineXML(own_sources(guest.machine.xml(True), {"vda": own_file(guest)}))


def ask(hook: Path, guest: Guest, *words: str) -> subprocess.CompletedProcess[str]:
    """What libvirt does."""
    arguments = words or ("prepare", "begin", "-")
    definition = guest.machine.xml(inactive=True)
    return subprocess.run(
        [hook, guest.machine.name, *arguments], input=definition, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_start_below_is_refused(hook: Path, kit: Kit, guest: Guest) -> None:
    guest.start()
    first = kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    overlay = guest.sources()["vda"][0]
    guest.off()
    kept = guest.machine.xml(inactive=True)
    define_below(guest)
    with pytest.raises(libvirt.libvirtError) as raised:
        guest.start()
    text = str(raised.value)
    assert overlay in text and "newer data" in text and "raksha local recover" in text
    reconcile(kit.engine.connection.guest(guest.uuid), kit.journal, kit.settings)
    assert guest.sources(inactive=True)["vda"][0] == overlay
    guest.start()  # on the overlay, nothing keeps it
    assert guest.machine.xml(inactive=True).count(".raksha-") == kept.count(".raksha-")
    run = kit.run(guest, first)
    kit.engine.release(guest.uuid)
    guest.off()
    guest.start()
    kit.run(guest, run)


def test_another_vm_on_the_same_file_is_refused(hook: Path, kit: Kit, guest: Guest, own_bed: Bed) -> None:
    guest.start()
    kit.run(guest)
    guest.write("vdb", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    from tests.bed.disks import Disk

    link = own_bed.directory / "another-name.qcow2"
    link.symlink_to(own_bed.directory / "b.qcow2")
    other = Guest(own_bed, [Disk(link, "qcow2")], name="other")
    with pytest.raises(libvirt.libvirtError, match="newer data"):
        other.start()
    kit.engine.release(guest.uuid)
    other.start()


def test_what_is_not_refused(hook: Path, kit: Kit, guest: Guest) -> None:
    """Overlays without data, merged, orphaned or deleted ones; other operations; a disk that is only read."""
    guest.start()
    assert ask(hook, guest).returncode == 0, "an unprotected VM"
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    overlay = guest.sources()["vda"][0]
    assert ask(hook, guest).returncode == 0, "it starts on the overlay"
    guest.off()
    define_below(guest)
    assert ask(hook, guest).returncode == 1
    for operation in ("start begin -", "started begin -", "stopped end -", "release end -", "migrate begin -"):
        assert ask(hook, guest, *operation.split()).returncode == 0, operation
    for state in (LayerState.MERGING, LayerState.MERGED, LayerState.ORPHAN):
        kit.journal.set_layers([overlay], state)
        assert ask(hook, guest).returncode == 0, state
    for state in (LayerState.PLANNED, LayerState.CHAINED):
        kit.journal.set_layers([overlay], state)
        assert ask(hook, guest).returncode == 1, state
    away = Path(overlay).rename(guest.bed.directory / "away.qcow2")
    assert ask(hook, guest).returncode == 0, "whoever takes the overlay away has decided"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", own_file(guest).path, "-F", "raw", overlay]
    subprocess.run(command, check=True)
    assert ask(hook, guest).returncode == 0, "nothing was written to it"
    away.rename(overlay)
    assert ask(hook, guest).returncode == 1


def test_a_journal_that_cannot_be_read_keeps_nothing_from_starting(hook: Path, kit: Kit, guest: Guest) -> None:
    guest.start()
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    define_below(guest)
    kit.close()
    journal = kit.settings.state_dir / "journal.sqlite"
    held = journal.rename(journal.with_suffix(".away"))
    for content in (None, b"", b"no database" * 1000):
        if content is not None:
            journal.write_bytes(content)
        answer = ask(hook, guest)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", ""), answer
    journal.unlink()
    held.rename(journal)
    assert ask(hook, guest).returncode == 1
    command = [hook, "vm", "prepare", "begin", "-"]
    assert subprocess.run(command, input="<dom", capture_output=True, text=True, check=False).returncode == 0


def test_it_is_quick_and_waits_for_no_writer(hook: Path, kit: Kit, guest: Guest) -> None:
    guest.start()
    kit.run(guest)
    guest.write("vda", 1 * MIB, 64 * KIB, 0x51)
    guest.off()
    define_below(guest)
    writer = sqlite3.connect(kit.settings.state_dir / "journal.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    started = time.monotonic()
    assert ask(hook, guest).returncode == 1, "a journal that is being written is read as it was"
    assert time.monotonic() - started < 3
    writer.execute("ROLLBACK")
    writer.close()


def test_install_and_remove(host: NamespaceHost, kit: Kit, tmp_path: Path) -> None:
    hooks = host.hooks
    words = [sys.executable, "-m", "raksha.cmd.main", "local"]
    options = ["--connect", kit.settings.libvirt_uri, "--state-dir", kit.settings.state_dir, "--json"]
    (hooks / "qemu").write_text("#!/bin/sh\nexit 0\n")
    for _ in range(2):  # a second time renews it
        answer = host.run(*words, "install-hook", *options)
        assert answer.returncode == 0, answer
        assert json.loads(answer.stdout) == {"hook": "/etc/libvirt/hooks/qemu.d/raksha"}
    path = hooks / "qemu.d/raksha"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755 and str(kit.settings.state_dir) in path.read_text()
    assert sorted(each.name for each in hooks.iterdir()) == ["qemu", "qemu.d"], "nothing else is left there"
    answer = host.run(*words, "remove-hook", *options)
    assert json.loads(answer.stdout) == {"removed": ["/etc/libvirt/hooks/qemu.d/raksha"]}
    assert json.loads(host.run(*words, "remove-hook", *options).stdout) == {"removed": []}
    assert (hooks / "qemu").exists(), "somebody else's"
    path.write_text("#!/bin/sh\n# mine\n")
    with pytest.raises(HookForeign):
        install_hook(kit.engine.connection, tmp_path, hooks)
    assert path.read_text() == "#!/bin/sh\n# mine\n" and remove_hook(hooks) == []
    path.unlink()
    (hooks / "qemu").unlink()


def test_it_needs_nothing_of_raksha(hook: Path, tmp_path: Path) -> None:
    """It runs with the system's Python, in an empty environment, as libvirt starts it."""
    answer = subprocess.run(
        [hook, "vm", "prepare", "begin", "-"], input="<domain/>", capture_output=True, text=True, check=False,
        env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path,
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "") and os.access(hook, os.X_OK)
    assert "import raksha" not in hook.read_text()

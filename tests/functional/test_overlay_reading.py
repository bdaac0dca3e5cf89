"""Reading layers: any size, any pattern, in bounded memory; what cannot be read is an error and never zeroes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raksha.errors import CaptureFailed, DiskReadFailed
from raksha.states import ReadMode
from raksha.types import ExtentKind
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.extents import extents
from raksha.virt.libvirt.overlay_file import OverlayPlan, make
from tests.bed import Bed
from tests.bed.memory import peak_mib
from tests.functional.overlay_kit import KIB, MIB, Guest, kit_on

TIB = 1 << 40


def io(path: Path, form: str, *commands: str) -> None:
    arguments = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", "-f", form, *arguments, path], check=True, capture_output=True)


def overlay(path: Path, backing: Path, form: str, size: int) -> Layer:
    make(OverlayPlan("vda", str(path), Layer(str(backing), "file", form), size), "run")
    return Layer(str(path), "file", "qcow2")


def raw(path: Path, size: int) -> Layer:
    with path.open("xb") as file:
        file.truncate(size)
    return Layer(str(path), "file", "raw")


def serve(*chain: Layer) -> nbd.Server:
    return nbd.Server("vm", "vda", chain, share=False, connections=8)


def contents(server: nbd.Server, depth: int | None, onto: bytes) -> bytes:
    result, reader = bytearray(onto), nbd.Reader(server)
    for extent in extents(server, depth):
        data = bytes(extent.length) if extent.kind is ExtentKind.ZERO else reader.pread(extent.start, extent.length)
        result[extent.start : extent.end] = data
    reader.close()
    return bytes(result)


@pytest.mark.parametrize("seed", range(4))
def test_any_pattern(tmp_path: Path, seed: int) -> None:
    """Three layers of random writes, zeroes and discards: every depth gives exactly what changed above it."""
    chance = random.Random(seed)
    size = 4 * MIB + 512 * chance.randrange(200)
    model = bytearray(size)
    layers = [raw(tmp_path / "own", size)]
    states = []
    for number in range(3):
        commands = []
        for _ in range(12):
            start = chance.randrange(size // 512) * 512
            length = min(512 * chance.randrange(1, 400), size - start)
            kind = chance.choice(["write -P", "write -z", "write -z -u", "discard"])
            if kind == "discard" and number == 0:
                continue  # a raw file need not read as zero after it
            pattern = chance.randrange(1, 250)
            commands.append(f"{kind} {pattern} {start} {length}" if kind == "write -P" else f"{kind} {start} {length}")
            inside = slice(start, start + length)
            if kind == "discard":  # only whole clusters are dropped
                inside = slice(-(-start // 65536) * 65536, (start + length) // 65536 * 65536)
                if start + length == size:
                    inside = slice(inside.start, size)
            if inside.start < inside.stop:
                model[inside] = bytes([pattern if kind == "write -P" else 0]) * (inside.stop - inside.start)
        top = Path(layers[0].path)
        io(top, layers[0].format, *commands)
        states.append(bytes(model))
        if number < 2:
            layers.insert(0, overlay(tmp_path / f"o{number}", top, layers[0].format, size))
    server = serve(*layers)
    try:
        assert server.size == size
        assert contents(server, None, bytes(size)) == states[2]
        assert contents(server, 1, states[1]) == states[2]
        assert contents(server, 2, states[0]) == states[2]
    finally:
        server.close()


def test_huge_disk_in_little_memory(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.touch()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", own, str(8 * TIB)], check=True)
    io(own, "qcow2", f"write -P 1 {5 * TIB} 64k", f"write -P 2 {8 * TIB - 65536} 64k")
    top = overlay(tmp_path / "o", own, "qcow2", 8 * TIB)
    io(tmp_path / "o", "qcow2", f"write -P 3 {7 * TIB} 64k", f"write -z {5 * TIB} 1M")
    before = peak_mib()
    server = serve(top, Layer(str(own), "file", "qcow2"))
    try:
        full = [(extent.start, extent.length) for extent in extents(server, None)]
        assert full == [(7 * TIB, 65536), (8 * TIB - 65536, 65536)]
        delta = [(extent.start, extent.length, extent.kind) for extent in extents(server, 1)]
        assert delta == [(5 * TIB, 1 << 20, ExtentKind.ZERO), (7 * TIB, 65536, ExtentKind.DATA)]
    finally:
        server.close()
    assert peak_mib() - before < 50


def test_fragments_in_little_memory(tmp_path: Path) -> None:
    """A hundred thousand extents are listed one after the other, and nothing is lost between two answers."""
    own, size = tmp_path / "own", 3 << 30
    with own.open("xb") as file:
        file.truncate(size)
        for at in range(0, size, 32768):
            file.seek(at)
            file.write(b"x")
    server = serve(Layer(str(own), "file", "raw"))
    try:
        starts = [extent.start for extent in extents(server, None)]
    finally:
        server.close()
    assert starts == list(range(0, size, 32768))


def test_threads_read_at_once(tmp_path: Path) -> None:
    own = raw(tmp_path / "own", 64 * MIB)
    data = random.Random(1).randbytes(64 * MIB)
    Path(own.path).write_bytes(data)
    server = serve(own)

    def read(number: int) -> bytes:
        reader = nbd.Reader(server)
        try:
            return b"".join(reader.pread(at, MIB) for at in range(number * 16 * MIB, (number + 1) * 16 * MIB, MIB))
        finally:
            reader.close()
            reader.close()

    try:
        with ThreadPoolExecutor(4) as pool:
            assert b"".join(pool.map(read, range(4))) == data
        whole = nbd.Reader(server)
        assert whole.pread(1, 40 * MIB) == data[1 : 40 * MIB + 1], "longer than NBD takes at once"
        whole.close()
    finally:
        server.close()
        server.close()


def test_damaged_layer(tmp_path: Path) -> None:
    """An unreadable cluster is named by disk and offset; nothing is put in its place."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.write_bytes(b"text " * (MIB // 5) + bytes(MIB % 5))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, packed], check=True)
    clusters = bytearray(packed.read_bytes())
    clusters[5 * 65536 : 5 * 65536 + 64] = b"\xff" * 64
    packed.write_bytes(clusters)
    server = serve(Layer(str(packed), "file", "qcow2"))
    try:
        reader = nbd.Reader(server)
        with pytest.raises(DiskReadFailed) as caught:
            for at in range(0, MIB, 65536):
                reader.pread(at, 65536)
        assert caught.value.fields["disk"] == "vda" and caught.value.fields["offset"] % 65536 == 0
        with pytest.raises(DiskReadFailed) as together:
            reader.pread_into(bytearray(MIB), [(at, 65536) for at in range(0, MIB, 65536)])
        assert together.value.fields["offset"] == caught.value.fields["offset"]
        reader.close()
    finally:
        server.close()


def test_server_dies(tmp_path: Path) -> None:
    server = serve(raw(tmp_path / "own", MIB))
    reader = nbd.Reader(server)
    server.close()
    with pytest.raises(DiskReadFailed, match="offset 4096"):
        reader.pread(4096, 512)
    with pytest.raises(DiskReadFailed, match="offset 4096"):
        reader.pread_into(bytearray(1024), [(4096, 512), (8192, 512)])
    reader.close()
    with pytest.raises(CaptureFailed):
        list(extents(server, None))


def test_nothing_is_probed(tmp_path: Path) -> None:
    """A raw disk on which a guest wrote an image header is read as it is, below an overlay as well."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"SECRET  " * 8192)
    evil = tmp_path / "evil"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", evil], check=True)
    with evil.open("ab") as file:
        file.truncate(MIB)
    chain = (overlay(tmp_path / "o", evil, "raw", MIB), Layer(str(evil), "file", "raw"))
    for layers in (chain, chain[1:]):
        server = serve(*layers)
        try:
            assert contents(server, None, bytes(MIB)) == evil.read_bytes()
        finally:
            server.close()


def test_odd_sizes(bed: Bed) -> None:
    """A raw file that is no multiple of a sector: QEMU rounds it up, and so does every layer."""
    with kit_on(bed) as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB + 700)])
        guest.model["vda"] += bytes(1024)
        guest.start()
        guest.write("vda", 4 * MIB, 512, 0x51)
        first = kit.run(guest)
        guest.write("vda", 4 * MIB + 512, 512, 0x52)
        guest.write("vda", 64 * KIB, 512, 0x53)
        second = kit.run(guest, first)
        assert kit.disk(second).mode is ReadMode.DELTA and kit.warnings == []
        third = kit.run(guest, second)
        assert kit.disk(third).mode is ReadMode.DELTA and kit.warnings == []


def test_failing_runs_do_not_grow_the_chain_for_ever(bed: Bed) -> None:
    with kit_on(bed) as kit:
        guest = Guest(bed, [bed.raw("a", 4 * MIB)])
        guest.start()
        first = kit.run(guest)
        longest = 0
        for number in range(20):
            guest.write("vda", (number + 8) * 64 * KIB, 4 * KIB, 0x51 + number)
            kit.run(guest, first, durable=False)
            longest = max(longest, len(guest.sources()["vda"]))
        assert 4 < longest < 14
        run = kit.run(guest, first)
        assert kit.disk(run).mode is ReadMode.DELTA and kit.warnings == []
        assert len(guest.sources()["vda"]) == 2


def test_only_what_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    """Whoever serves is alive, whether its process can be seen from here or not."""
    server = serve(raw(tmp_path / "own", MIB))
    killed = """
import os, signal, sys
from raksha.virt.libvirt import nbd
from raksha.virt.libvirt.domain_xml import Layer
server = nbd.Server("vm", "vda", [Layer(sys.argv[1], "file", "raw")], share=False, connections=2)
print(server.socket.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", killed, tmp_path / "own"], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    try:
        assert left.is_dir(), done
        code = "from raksha.virt.libvirt.nbd import sweep; sweep()"
        # in a pid namespace of its own, where nobody of us is to be seen
        elsewhere = ["unshare", "--pid", "--fork", "--mount-proc"] if os.geteuid() == 0 else []
        subprocess.run([*elsewhere, sys.executable, "-c", code], check=True)
        assert not left.exists()
        assert contents(server, None, bytes(MIB)) == bytes(MIB)
    finally:
        server.close()
    assert not server.socket.parent.exists()

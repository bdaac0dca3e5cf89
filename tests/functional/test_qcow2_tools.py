"""The qcow2 writer against QEMU's own tools: whatever the pattern, no error, no leak, no byte of difference."""

import io
import os
import random
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raksha.qcow2 import ABSENT, DATA, ZERO
from raksha.qcow2.compressed import CompressedImage
from raksha.qcow2.header import Backing
from raksha.qcow2.plain import PlainImage
from raksha.qcow2.refcounts import Refcounts
from raksha.qcow2.tables import big_endian
from raksha.types import Geometry
from tests.functional.qemu_img import assert_sound, info

KIB = 1024
MIB = 1024 * KIB
TIB = 1024 * 1024 * MIB


class Disk:
    """A disk as a list of kinds and, for data, of contents; and the truth as raw bytes."""

    def __init__(self, geometry, kinds, seed):
        self.geometry = geometry
        self.kinds = kinds
        source = random.Random(seed)
        self.clusters = {place: self._content(source, place) for place, kind in enumerate(kinds) if kind == DATA}

    def _content(self, source, place):
        size = self.geometry.cluster_size
        short = min(size, self.geometry.size - place * size)
        content = [
            lambda: source.randbytes(short),
            lambda: (b"line %d of a file\n" % source.randrange(9)) * (short // 17 + 1),
            lambda: bytes([source.randrange(1, 256)]) * short,
        ][source.randrange(3)]()
        return content[:short].ljust(size, b"\0")

    def write_truth(self, path, below=b""):
        """The raw disk, over the raw disk `below`; the tail of the last sector is zero."""
        size = self.geometry.cluster_size
        disk = bytearray(below.ljust(-(-self.geometry.size // 512) * 512, b"\0"))
        for place, kind in enumerate(self.kinds):
            if kind != ABSENT:
                end = min((place + 1) * size, len(disk))
                disk[place * size : end] = self.clusters.get(place, bytes(size))[: end - place * size]
        path.write_bytes(disk)
        return bytes(disk)

    def pages(self):
        """Number and kinds of every page that has something."""
        step = self.geometry.page_clusters
        for page in range(self.geometry.pages):
            kinds = self.kinds[page * step : (page + 1) * step]
            if any(kinds):
                yield page, kinds


class Blocks(dict):
    """Refcount blocks outside the window."""

    load = dict.__getitem__
    save = dict.__setitem__


def write_compressed(path, disk, per_segment, backing=None):
    compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
    places = sorted(disk.clusters)
    groups = [places[start : start + per_segment] for start in range(0, len(places), per_segment)]
    frames = [[compressor.compress(disk.clusters[place]) for place in group] for group in groups]
    bodies = [b"".join(each) + b"\0" * (-sum(map(len, each)) % 512) for each in frames]
    where = {place: (segment, index) for segment, group in enumerate(groups) for index, place in enumerate(group)}
    image = CompressedImage(
        disk.geometry,
        [page for page, _ in disk.pages()],
        map(len, bodies),
        lambda segment: [len(frame) for frame in frames[segment]],
    )
    blocks = Blocks()
    refcounts = Refcounts(image.layout, blocks)
    refcounts.add_tables()
    tables = [image.header(backing), image.l1_table()]
    for page, kinds in disk.pages():
        first = page * disk.geometry.page_clusters
        sources = [where.get(first + index, (0, 0)) for index in range(len(kinds))]
        entries = image.l2_entries(kinds, [each[0] for each in sources], [each[1] for each in sources])
        refcounts.add_entries(entries)
        tables.append(big_endian(entries))
    refcounts.flush()
    tables += [image.refcount_table(), *(blocks[number] for number in range(image.layout.refcount_blocks))]
    content = b"".join(tables)
    assert len(content) == image.layout.data_offset
    path.write_bytes(content + b"".join(bodies))
    assert path.stat().st_size == image.layout.file_size


def write_plain(path, disk, backing=None):
    counts = ((page, kinds.count(DATA)) for page, kinds in disk.pages())
    image = PlainImage(disk.geometry, counts, backing)
    with path.open("wb") as target:
        pages = list(disk.pages())
        # in any order, as threads would
        for page, kinds in reversed(pages):
            placed = image.place(page, kinds)
            os.pwrite(target.fileno(), placed.table, placed.table_offset)
            for index, offset in enumerate(placed.offsets):
                if offset:
                    content = disk.clusters[page * disk.geometry.page_clusters + index]
                    assert os.pwrite(target.fileno(), content, offset) == len(content)
        for offset, data in image.fixed():
            os.pwrite(target.fileno(), data, offset)
        os.ftruncate(target.fileno(), image.layout.file_size)


@st.composite
def disks(draw):
    """Geometry, and kinds of a full copy and of two increments. Runs rather than single clusters: as disks are."""
    cluster_size = draw(st.sampled_from([4 * KIB, 4 * KIB, 64 * KIB, 64 * KIB, 2 * MIB]))
    most = {4 * KIB: 1200, 64 * KIB: 150, 2 * MIB: 5}[cluster_size]
    clusters = draw(st.integers(0, most))
    cut = draw(st.integers(0, cluster_size - 1)) if clusters else 0
    geometry = Geometry(clusters * cluster_size - cut, cluster_size)
    return geometry, [draw(_kinds(geometry.clusters)) for _ in range(3)]


@st.composite
def _kinds(draw, clusters):
    kinds = []
    while len(kinds) < clusters:
        run = draw(st.sampled_from([1, 1, 2, 5, 40, 600]))
        kinds += [draw(st.sampled_from([ABSENT, DATA, ZERO]))] * run
    return kinds[:clusters]


TRIED = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@TRIED
@given(drawn=disks(), per_segment=st.sampled_from([1, 3, 64, 4096]), seed=st.integers(0, 99))
@example(drawn=(Geometry(0), [[], [], []]), per_segment=64, seed=0)
@example(drawn=(Geometry(1), [[DATA], [ZERO], [DATA]]), per_segment=64, seed=0)
@example(drawn=(Geometry(513, 4 * KIB), [[DATA], [DATA], [ZERO]]), per_segment=1, seed=0)
def test_compressed_full_and_increments(drawn, per_segment, seed):
    geometry, versions = drawn
    with tempfile.TemporaryDirectory() as directory:
        below = b""
        for number, kinds in enumerate(versions):
            disk = Disk(geometry, kinds, seed + number)
            image = Path(directory) / f"{number}" / "vda" / "Backup"
            image.parent.mkdir(parents=True)
            parent = f"../../{number - 1}/vda/Backup" if number else None
            write_compressed(image, disk, per_segment, Backing(parent) if parent else None)
            truth = Path(directory) / f"{number}.raw"
            below = disk.write_truth(truth, below)
            assert_sound(image, truth)
            found = info(image)
            assert found["virtual-size"] == -(-geometry.size // 512) * 512
            assert found["cluster-size"] == geometry.cluster_size
            assert found["format-specific"]["data"]["compression-type"] == "zstd"
            assert found.get("backing-filename") == parent
            assert found.get("backing-filename-format") == ("qcow2" if parent else None)


@TRIED
@given(drawn=disks(), seed=st.integers(0, 99), backing_format=st.sampled_from(["raw", "qcow2"]))
@example(drawn=(Geometry(0), [[], [], []]), seed=0, backing_format="raw")
@example(drawn=(Geometry(1), [[DATA], [ZERO], [DATA]]), seed=0, backing_format="qcow2")
def test_plain_alone_and_on_a_base(drawn, seed, backing_format):
    geometry, versions = drawn
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        base, thin = Disk(geometry, versions[0], seed), Disk(geometry, versions[1], seed + 1)
        below = base.write_truth(place / "base.raw")
        write_plain(place / "base.qcow2", base)
        assert_sound(place / "base.qcow2", place / "base.raw")
        assert "backing-filename" not in info(place / "base.qcow2")
        backing = Backing(str(place / f"base.{backing_format}"), backing_format)
        write_plain(place / "thin.qcow2", thin, backing)
        thin.write_truth(place / "thin.raw", below)
        assert_sound(place / "thin.qcow2", place / "thin.raw")
        found = info(place / "thin.qcow2")
        assert (found["backing-filename"], found["backing-filename-format"]) == (backing.file, backing.format)


def sparse_raw(path, disk):
    with path.open("wb") as raw:
        raw.truncate(-(-disk.geometry.size // 512) * 512)
        for place, content in disk.clusters.items():
            raw.seek(place * disk.geometry.cluster_size)
            raw.write(content[: max(0, disk.geometry.size - place * disk.geometry.cluster_size)])


class SparseDisk(Disk):
    """Data at a few places of a disk too large for lists of kinds."""

    def __init__(self, geometry, places):
        source = random.Random(1)
        self.geometry = geometry
        self.clusters = {place: self._content(source, place) for place in places}

    def pages(self):
        step = self.geometry.page_clusters
        for page in sorted({place // step for place in self.clusters}):
            here = min(step, self.geometry.clusters - page * step)
            yield page, [DATA if page * step + index in self.clusters else ABSENT for index in range(here)]


@pytest.mark.parametrize("write", [lambda path, disk: write_compressed(path, disk, 64), write_plain])
def test_two_tebibytes_mostly_empty(tmp_path, write):
    geometry = Geometry(2 * TIB - 700)
    last = geometry.clusters - 1
    disk = SparseDisk(geometry, [0, 1, 8191, 8192, 9_000_000, *range(20_000_000, 20_000_200), last])
    sparse_raw(tmp_path / "truth.raw", disk)
    write(tmp_path / "image", disk)
    assert_sound(tmp_path / "image", tmp_path / "truth.raw")
    assert info(tmp_path / "image")["virtual-size"] == 2 * TIB - 512
    # 6 L2 tables, 256 KiB of L1, under 300 clusters: an empty disk costs nothing
    assert (tmp_path / "image").stat().st_size < 14 * MIB


def test_a_wrong_refcount_or_entry_is_found(tmp_path):
    """The checks above can fail: one byte of the tables changed, and QEMU complains."""
    disk = Disk(Geometry(20 * 64 * KIB), [DATA] * 20, 5)
    write_compressed(tmp_path / "good", disk, 64)
    disk.write_truth(tmp_path / "truth")
    assert_sound(tmp_path / "good", tmp_path / "truth")
    content = (tmp_path / "good").read_bytes()
    blocks = 4 * 64 * KIB
    for offset in (blocks + 2 * 5 + 1, 2 * 64 * KIB + 7):
        broken = io.BytesIO(content)
        broken.seek(offset)
        broken.write(bytes([content[offset] + 1]))
        (tmp_path / "broken").write_bytes(broken.getvalue())
        with pytest.raises(AssertionError):
            assert_sound(tmp_path / "broken", tmp_path / "truth")

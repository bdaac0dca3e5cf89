"""The `Backup` of a map, put together by a store or exported, in the hands of QEMU's own tools."""

import os
import random
import subprocess
import sys

import pytest

from raksha.errors import BadName, ObjectMissing, ObjectTruncated
from raksha.types import Geometry
from raksha.vault.image import PART_SIZE, write_image, write_image_objects
from raksha.vault.map import ABSENT, DATA, ZERO, FileSource, MapBuilder, MapReader
from raksha.vault.memory import MemoryStore
from raksha.vault.segment import ClusterHasher, Codec, SegmentRow, segment_digest
from raksha.vault.store import SEGMENTS
from tests.functional.qemu_img import assert_checks, assert_sound, info, qemu_img

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
HASHER = ClusterHasher(bytes(32))


class Copy:
    """A disk copy that is stored: its map, what belongs to its image, and the name of its `Backup`."""

    def __init__(self, bed, builder, claim, backing):
        self.name = f"backupjobs/job/{claim.partition('.')[0]}/vm/vda/Backup"
        self.image = write_image_objects(bed.store, builder.seal(), claim, backing, bed.spool)
        built = builder.finish(self.image.objects, self.image.parts)
        self.file = bed.keep(built.file.read())
        self.reader = MapReader.open(FileSource(self.file, f"BackupMap-{built.digest}"))
        bed.store.put_manifest(self.name, self.image.parts)


class Bed:
    """A vault in memory, a place for images that mirrors its tree, and a seed for contents."""

    def __init__(self, tmp_path, manifest_limit=1000):
        self.store = MemoryStore(manifest_limit=manifest_limit)
        self.store.prepare()
        self.spool = tmp_path / "spool"
        self.spool.mkdir()
        self.tree = tmp_path / "tree"
        self.random = random.Random(7)
        self.files = []

    def keep(self, data):
        path = self.spool.parent / f"map-{len(self.files)}"
        path.write_bytes(data)
        self.files.append(path.open("rb"))
        return self.files[-1]

    def content(self, size, short):
        """A cluster that compresses well, somewhat or not; the tail beyond the disk is zero."""
        unit = self.random.choice([short, short // 3 + 1, 40])
        return (self.random.randbytes(unit) * (short // unit + 1))[:short].ljust(size, b"\0")

    def segment(self, builder, claim, clusters):
        """Store clusters as one segment. Returns its number and the hashes."""
        hashes = [HASHER.hash(each) for each in clusters]
        lengths, body = Codec().compress(clusters)
        row = SegmentRow(segment_digest(hashes), claim, len(body), lengths)
        self.store.put(row.name, body)
        return builder.add_segment(row), hashes

    def copy(self, geometry, kinds, claim, truth, backing=None):
        """Store a copy with these kinds and new contents; `truth` (a bytearray) becomes what the disk then holds."""
        size = geometry.cluster_size
        clusters = {}
        for place, kind in enumerate(kinds):
            end = min((place + 1) * size, len(truth))
            if kind == DATA:
                clusters[place] = self.content(size, min(size, geometry.size - place * size))
            if kind != ABSENT:
                truth[place * size : end] = clusters.get(place, bytes(size))[: end - place * size]
        with MapBuilder(geometry, "key", self.spool) as builder:
            pending = [place for place, kind in enumerate(kinds) if kind == DATA]
            rows = {}
            for start in range(0, len(pending), geometry.clusters_per_segment):
                group = pending[start : start + geometry.clusters_per_segment]
                number, hashes = self.segment(builder, claim, [clusters[place] for place in group])
                rows |= {place: (number, index, hashes[index]) for index, place in enumerate(group)}
            for place, kind in enumerate(kinds):
                if kind != ABSENT:
                    builder.add(place, kind, *rows.get(place, ()))
            return Copy(self, builder, claim, backing)

    def download(self, copy):
        """The `Backup` as a person gets it, at its place in the tree."""
        path = self.tree / copy.name
        path.parent.mkdir(parents=True)
        path.write_bytes(self.store.get(copy.name))
        return path

    def raw(self, truth):
        path = self.spool.parent / "truth.raw"
        path.write_bytes(truth)
        return path

    def raw_zeroes(self, size):
        path = self.raw(b"")
        os.truncate(path, size)
        return path


@pytest.fixture
def make_bed(tmp_path):
    beds = []

    def make(**options):
        beds.append(Bed(tmp_path, **options))
        return beds[-1]

    yield make
    for bed in beds:
        for file in bed.files:
            file.close()


def some_kinds(clusters, seed):
    source = random.Random(seed)
    return [source.choice([DATA, DATA, ZERO, ABSENT]) for _ in range(clusters)]


@pytest.mark.parametrize("limit", [1000, 7])
def test_over_a_thousand_segments_need_nested_manifests(make_bed, limit):
    bed = make_bed(manifest_limit=limit)
    geometry = Geometry(2501 * 4 * KIB - 1000, 4 * KIB, 2)
    truth = bytearray(2501 * 4 * KIB - 512)
    copy = bed.copy(geometry, [DATA] * 2501, "run1.1", truth)
    assert copy.reader.segment_count == 1251
    assert 1 < len(copy.image.parts) <= limit
    assert all(part.manifest for part in copy.image.parts)
    assert_sound(bed.download(copy), bed.raw(truth))
    assert copy.image.size == bed.store.head(copy.name).size


@pytest.mark.parametrize("limit", [1000, 7])
def test_the_map_names_everything_that_the_image_needs(make_bed, limit):
    bed = make_bed(manifest_limit=limit)
    copy = bed.copy(Geometry(300 * 4 * KIB, 4 * KIB, 4), [DATA] * 300, "run1.1", bytearray(300 * 4 * KIB))
    assert sorted(copy.reader.object_names()) == list(bed.store.names(SEGMENTS))
    assert list(copy.reader.parts()) == list(copy.image.parts) == bed.store.parts(copy.name)
    for name in bed.store.names(SEGMENTS):
        if name not in {row.name for row in copy.reader.segments()}:
            bed.store.delete(name)
            with pytest.raises(ObjectMissing):
                bed.store.get(copy.name)
            break


@pytest.mark.parametrize("cluster_size", [4 * KIB, 64 * KIB, MIB])
def test_a_chain_downloaded_as_a_tree_opens_as_it_stands(make_bed, cluster_size):
    bed = make_bed()
    geometry = Geometry(90 * cluster_size - 300, cluster_size, 8)
    truth = bytearray(90 * cluster_size)
    del truth[-(300 // 512 * 512) or len(truth) :]
    backing = None
    for run in ("a", "b", "c"):
        copy = bed.copy(geometry, some_kinds(90, run), f"{run}.1", truth, backing)
        image = bed.download(copy)
        assert_sound(image, bed.raw(truth))
        assert info(image).get("backing-filename") == backing
        backing = f"../../../{run}/vm/vda/Backup"
    # from anywhere: the path counts from the folder of the image
    moved = bed.tree.rename(bed.tree.with_name("moved"))
    assert_sound(moved / copy.name, bed.raw(truth))


def flattened(bed, copies, claim):
    """A full over the segments of a chain, newest wins, without moving data. Returns it and the truth of it."""
    readers = [copy.reader for copy in copies]
    geometry = readers[0].geometry
    with MapBuilder(geometry, "key", bed.spool) as builder:
        entries = {}
        for reader in readers:
            for page in reader.pages():
                entries |= {entry.cluster: (reader, entry) for entry in page}
        for cluster, (reader, entry) in sorted(entries.items()):
            if entry.kind == DATA:
                builder.add(cluster, DATA, builder.add_segment(reader.segment(entry.segment)), entry.index, entry.hash)
        return Copy(bed, builder, claim, None)


def test_a_consolidated_map_with_partly_dead_segments(make_bed):
    bed = make_bed()
    geometry = Geometry(700 * 4 * KIB, 4 * KIB, 16)
    truth = bytearray(700 * 4 * KIB)
    copies = [bed.copy(geometry, some_kinds(700, run), f"{run}.1", truth) for run in "abc"]
    full = flattened(bed, copies, "d.1")
    referenced = sum(page.count(DATA) for page in full.reader.pages())
    assert sum(full.reader.segment_counts()) > 1.5 * referenced
    image = bed.download(full)
    assert_sound(image, bed.raw(truth))
    assert "backing-filename" not in info(image)


@pytest.mark.parametrize("workers", [1, 4])
def test_export_writes_the_bytes_of_the_stored_image(make_bed, tmp_path, workers):
    bed = make_bed()
    geometry = Geometry(500 * 4 * KIB, 4 * KIB, 8)
    copies = [bed.copy(geometry, some_kinds(500, run), f"{run}.1", bytearray(500 * 4 * KIB), "../x") for run in "ab"]
    for copy, backing in ((copies[1], "../x"), (flattened(bed, copies, "c.1"), None)):
        path = tmp_path / "exported"
        with path.open("w+b") as target:
            size = write_image(copy.reader, lambda row: bed.store.get(row.name), target, backing, workers)
        assert size == copy.image.size
        assert path.read_bytes() == bed.store.get(copy.name)


def test_export_ends_at_the_first_segment_that_cannot_be_had(make_bed, tmp_path):
    bed = make_bed()
    copy = bed.copy(Geometry(400 * 4 * KIB, 4 * KIB, 4), [DATA] * 400, "a.1", bytearray(400 * 4 * KIB))
    asked = []

    def missing(row):
        asked.append(row.name)
        raise ObjectMissing(name=row.name)

    with (tmp_path / "exported").open("w+b") as target, pytest.raises(ObjectMissing) as caught:
        write_image(copy.reader, missing, target, None)
    assert caught.value.fields["name"] == copy.reader.segment(0).name
    assert len(asked) < 20

    with (tmp_path / "exported").open("w+b") as target, pytest.raises(ObjectTruncated):
        write_image(copy.reader, lambda row: bed.store.get(row.name)[:-1], target, None)


def test_one_segment_referenced_more_often_than_16_bits_count(make_bed):
    """A disk filled with one pattern: dedupe leaves a single segment, which is touched by every cluster."""
    bed = make_bed()
    clusters = 70_000
    geometry = Geometry(clusters * 4 * KIB, 4 * KIB, 1)
    with MapBuilder(geometry, "key", bed.spool) as builder:
        number, hashes = bed.segment(builder, "a.1", [b"\xff" * 4 * KIB])
        for cluster in range(clusters):
            builder.add_data(cluster, number, 0, hashes[0])
        copy = Copy(bed, builder, "a.1", None)
    image = bed.download(copy)
    assert_checks(image)
    # comparing all of it takes QEMU ten seconds
    tail = bed.tree / "tail"
    qemu_img("dd", "-f", "qcow2", "-O", "raw", "bs=1M", "skip=272", f"if={image}", f"of={tail}")
    assert tail.read_bytes() == b"\xff" * (geometry.size - 272 * MIB)
    assert info(image)["format-specific"]["data"]["refcount-bits"] == 32
    assert image.stat().st_size < MIB


def test_equal_table_parts_are_stored_once(make_bed):
    bed = make_bed()
    geometry = Geometry(130 * 8192 * 64 * KIB)
    with MapBuilder(geometry, "key", bed.spool) as builder:
        builder.add_zeros(0, geometry.clusters)
        copy = Copy(bed, builder, "a.1", None)
    assert [part.size for part in copy.image.parts] == [PART_SIZE, PART_SIZE, 6 * 64 * KIB]
    copy_names = [part.name for part in copy.image.parts]
    assert len(set(copy_names)) == len(copy.image.objects) == 3

    geometry = Geometry(200 * 8192 * 64 * KIB)
    with MapBuilder(geometry, "key", bed.spool) as builder:
        builder.add_zeros(0, geometry.clusters)
        larger = Copy(bed, builder, "b.1", None)
    assert larger.image.parts[1] == larger.image.parts[2]
    assert len(larger.image.objects) == len(larger.image.parts) - 1
    assert_sound(bed.download(larger), bed.raw_zeroes(geometry.size))


@pytest.mark.parametrize("size", [0, 1, 512, 64 * KIB, 700 * MIB])
def test_nothing_stored_makes_an_image_too(make_bed, size):
    bed = make_bed()
    with MapBuilder(Geometry(size), "key", bed.spool) as builder:
        copy = Copy(bed, builder, "a.1", None)
    assert copy.image.size == 4 * 64 * KIB
    assert_sound(bed.download(copy), bed.raw_zeroes(-(-size // 512) * 512))


def test_a_second_go_of_the_same_claim_changes_nothing(make_bed):
    bed = make_bed(manifest_limit=10)
    copy = bed.copy(Geometry(90 * 4 * KIB, 4 * KIB, 4), [DATA] * 90, "a.1", bytearray(90 * 4 * KIB))
    before = {name: bed.store.get(name) for name in bed.store.names(SEGMENTS)}
    again = write_image_objects(bed.store, copy.reader, "a.1", None, bed.spool)
    assert again == copy.image
    assert {name: bed.store.get(name) for name in bed.store.names(SEGMENTS)} == before
    assert list(bed.spool.iterdir()) == []


def test_a_parent_that_qemu_would_not_take_for_a_path(make_bed):
    bed = make_bed()
    with MapBuilder(Geometry(MIB), "key", bed.spool) as builder, pytest.raises(BadName):
        write_image_objects(bed.store, builder.seal(), "a.1", "nbd://host/", bed.spool)
    assert list(bed.store.names(SEGMENTS)) == []


LARGE = """
import sys
from pathlib import Path
from raksha.types import Geometry
from raksha.vault.image import write_tables
from raksha.vault.map import MapBuilder
from raksha.vault.segment import SegmentRow
from tests.bed.memory import peak_mib

spool = Path(sys.argv[1])
lengths = (65000,) * 64
with MapBuilder(Geometry(1 << 40), "key", spool) as builder:
    for number in range(1 << 18):
        builder.add_segment(SegmentRow(number.to_bytes(32, "little"), "a.1", 4160000, lengths))
        builder.add_data(64 * number, number, number % 64, bytes(16))
    source = builder.seal()
    before = peak_mib()
    with (spool / "image").open("w+b") as target:
        image = write_tables(source, None, target)
        target.truncate(image.layout.file_size)
    print(peak_mib() - before)
"""


@pytest.mark.slow
def test_a_tebibyte_takes_little_memory(tmp_path):
    """262144 segments that take all of 1 TiB, one cluster of each in use: the image is sound, the memory bounded."""
    done = subprocess.run([sys.executable, "-c", LARGE, tmp_path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 48
    assert_checks(tmp_path / "image")

"""Maps: what was put in comes out, page by page; nothing else ever does."""

import io
from pathlib import Path

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raksha.errors import Damaged, ObjectCorrupt, ObjectTruncated
from raksha.types import Geometry
from raksha.vault.map import DATA, ZERO, FileSource, MapBuilder, MapPage, MapReader, StoreSource
from raksha.vault.memory import MemoryStore
from raksha.vault.segment import object_name
from raksha.vault.store import Part
from tests.unit.vault.maps import (
    CLUSTER,
    KEY_ID,
    BytesSource,
    build,
    hash_of,
    random_model,
    read_file,
    row,
    view,
)

GEOMETRY = Geometry(5 * 512 * CLUSTER - 1234, CLUSTER)


def built(model_seed: int = 1, geometry: Geometry = GEOMETRY) -> tuple[bytes, str]:
    """A whole map file and its digest."""
    with MapBuilder(geometry, KEY_ID) as builder:
        build(builder, random_model(model_seed, geometry.clusters))
        done = builder.finish()
        return read_file(done.file), done.digest


def everything(reader: MapReader) -> tuple[object, ...]:
    rows = list(reader.segments())
    return view(reader), rows, reader.claims, reader.objects, list(reader.parts()), reader.geometry, reader.key_id


@given(st.integers(0, 1 << 32), st.integers(0, 5 * 512 * CLUSTER))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_map_round_trips(seed: int, size: int) -> None:
    geometry = Geometry(size, CLUSTER)
    model = random_model(seed, geometry.clusters)
    with MapBuilder(geometry, KEY_ID) as builder:
        build(builder, model)
        sealed = builder.seal()
        assert view(sealed) == model
        done = builder.finish()
        reader = MapReader.open(FileSource(done.file, f"BackupMap-{done.digest}"))
        assert view(reader) == model
        assert reader.geometry == geometry and reader.key_id == KEY_ID
        names = {name for kind, name, *_ in model.values() if kind == DATA}
        assert {each.name for each in reader.segments()} == names and reader.segment_count == len(names)
        assert set(reader.page_numbers()) == {cluster // 512 for cluster in model}
        data = read_file(done.file)
        assert len(data) == done.size
    with MapBuilder(geometry, KEY_ID) as builder:
        build(builder, model)
        assert read_file(builder.finish().file) == data


def test_a_disk_without_data_has_a_small_map() -> None:
    for size in (0, 1, 1 << 50):
        with MapBuilder(Geometry(size), KEY_ID) as builder:
            done = builder.finish()
            reader = MapReader.open(FileSource(done.file, "x"), done.digest)
            assert done.size < 200
            assert list(reader.pages()) == [] and list(reader.segments()) == [] and reader.page(0) is None
            assert list(reader.object_names()) == []


def test_every_way_to_fill_a_map_makes_the_same_bytes() -> None:
    hashes = [hash_of(n) for n in range(64)]
    rows = [row(n, 64) for n in range(3)]
    geometry = Geometry(1200 * CLUSTER, CLUSTER)

    def singly(builder: MapBuilder) -> None:
        for n, each in enumerate(hashes):
            builder.add(490 + n, DATA, 1, n, each)
        for n in range(600):
            builder.add(554 + n, ZERO)

    def in_runs(builder: MapBuilder) -> None:
        builder.add_data(490, 1, 0, b"".join(hashes))
        builder.add_zeros(554, 600)

    def in_pages(builder: MapBuilder) -> None:
        first, second, third = (MapPage(n, 512) for n in range(3))
        first.set_data(490, 1, 0, b"".join(hashes[:22]))
        second.set_data(0, 1, 22, b"".join(hashes[22:]))
        second.set_zero(42, 470)
        third.set_zero(0, 130)
        for page in (first, second, third):
            builder.add_page(page)

    files = []
    for fill in (singly, in_runs, in_pages):
        with MapBuilder(geometry, KEY_ID) as builder:
            assert [builder.add_segment(each) for each in rows] == [0, 1, 2]
            fill(builder)
            files.append(read_file(builder.finish().file))
    assert files[0] == files[1] == files[2]


def test_a_segment_is_known_by_its_name() -> None:
    with MapBuilder(GEOMETRY, KEY_ID) as builder:
        numbers = [builder.add_segment(row(n, claim=claim)) for n in range(2000) for claim in ("a.1", "b.2")]
        assert numbers == [*range(4000)]
        assert [builder.add_segment(row(n, claim="b.2")) for n in range(2000)] == [*range(1, 4000, 2)]
        sealed = builder.seal()
        assert sealed.claims == ("a.1", "b.2")
        assert [each.name for each in sealed.segments(7, 9)] == [row(3, claim="b.2").name, row(4, claim="a.1").name]
        assert sealed.segment(3999) == row(1999, claim="b.2")
        assert sealed.segment(0) == row(0, claim="a.1")
        assert sealed.segment(2000) == row(1000, claim="a.1")
        assert list(sealed.stored_sizes()) == [each.stored for each in sealed.segments()]
        assert list(sealed.segment_counts()) == [4] * 4000
        for number in (-1, 4000):
            with pytest.raises(IndexError):
                sealed.segment(number)


@pytest.mark.parametrize("place", ["before", "after"])
def test_what_the_image_needs_is_named(place: str) -> None:
    tables = [Part(object_name(blake3.blake3(b"%d" % n).digest(), "run.1"), 4 << 20) for n in range(3)]
    nested = Part(object_name(blake3.blake3(b"m").digest(), "run.2"), 12 << 20, manifest=True)
    with MapBuilder(GEOMETRY, KEY_ID) as builder:
        rows = [row(n) for n in range(300)]
        for each in rows:
            builder.add_segment(each)
        segments = [Part(each.name, each.stored) for each in rows]
        # a table may stand twice in the image and is one object
        parts = [nested] if place == "before" else [tables[0], tables[1], tables[0], tables[2], *segments]
        objects = [*tables, nested]
        done = builder.finish(objects, parts)
        reader = MapReader.open(FileSource(done.file, "x"), done.digest)
        assert reader.objects == objects
        assert list(reader.parts()) == parts
        assert list(reader.object_names()) == [part.name for part in [*objects, *segments]]
        assert reader.claims == ("run.1", "run.2")


@pytest.mark.parametrize(
    "part",
    [
        Part("backupjobs_segments/zz/zz-run.1", 1),
        Part("backupjobs/" + object_name(bytes(32), "run.1").partition("/")[2], 1),
        Part(object_name(bytes(32), "run.1")[:-6], 1),
        Part(object_name(bytes(32), "run.1").replace("/00/", "/01/"), 1),
        Part(object_name(bytes(32), "run.1") + "/../x", 1),
        Part(object_name(bytes(32), "run.1"), 0),
    ],
)
def test_an_object_must_be_named_like_one(part: Part) -> None:
    with MapBuilder(GEOMETRY, KEY_ID) as builder, pytest.raises(ValueError, match="part of an image"):
        builder.finish([part])


def test_the_parts_must_be_objects_and_then_all_segments() -> None:
    first, second = row(1), row(2)
    wrong = [
        [Part(first.name, first.stored)],
        [Part(second.name, second.stored), Part(first.name, first.stored)],
        [Part(first.name, first.stored), Part(second.name, second.stored + 1)],
        [Part(object_name(bytes(32), "x"), 5), Part(object_name(bytes(32), "y"), 5)],
    ]
    for parts in wrong:
        with MapBuilder(GEOMETRY, KEY_ID) as builder:
            builder.add_segment(first)
            builder.add_segment(second)
            with pytest.raises(ValueError, match="part"):
                builder.finish((), parts)


def test_the_builder_refuses_what_no_map_can_hold() -> None:
    with MapBuilder(GEOMETRY, KEY_ID) as builder:
        builder.add_segment(row(0))
        builder.add(10, ZERO)
        h = hash_of(1)
        for arguments in [(10, ZERO), (9, ZERO), (11, 0), (11, 3), (11, DATA, 1, 0, h), (11, DATA, 0, 4, h)]:
            with pytest.raises(ValueError, match="cluster"):
                builder.add(*arguments)
        for first, count in [(GEOMETRY.clusters, 1), (20, GEOMETRY.clusters), (20, 0), (20, -1)]:
            with pytest.raises(ValueError, match="do not lie"):
                builder.add_zeros(first, count)
        for segment, index, hashes in [(0, 3, h + h), (0, -1, h), (-1, 0, h), (0, 0, h[:-1])]:
            with pytest.raises(ValueError, match="segment"):
                builder.add_data(20, segment, index, hashes)
        builder.seal()
        with pytest.raises(ValueError, match="sealed"):
            builder.add(30, ZERO)
        with pytest.raises(ValueError, match="sealed"):
            builder.add_segment(row(9))
        builder.finish()
        with pytest.raises(ValueError, match="finished"):
            builder.finish()


@pytest.mark.parametrize(
    "arguments", [(DATA, 0, 0, b""), (DATA, 0, 0, bytes(17)), (ZERO, 0, 0, bytes(16)), (ZERO, 0, 1)]
)
def test_a_hash_belongs_to_data_and_only_there(arguments: tuple[int, ...]) -> None:
    with MapBuilder(GEOMETRY, KEY_ID) as builder:
        builder.add_segment(row(0))
        with pytest.raises(ValueError, match="no entry"):
            builder.add(11, *arguments)


def test_pages_that_cannot_be_are_refused() -> None:
    beyond, dangling = MapPage(4, 512), MapPage(4, 512)
    beyond.set(511, ZERO)
    dangling.set(0, DATA, 0, 0, hash_of(0))
    for page, problem in [
        (beyond, "beyond the end"),
        (dangling, "table is empty"),
        (MapPage(5, 512), "do not lie"),
        (MapPage(4, 8192), "entries"),
    ]:
        geometry = Geometry(4 * 512 * CLUSTER + 1, CLUSTER)
        with MapBuilder(geometry, KEY_ID) as builder, pytest.raises(ValueError, match=problem):
            builder.add_page(page)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(-1),
        Geometry(1, 2048),
        Geometry(1, 4 << 20),
        Geometry(1, 65535),
        Geometry(1, 65536, 0),
        Geometry(1, 65536, 1025),
        Geometry(1, 4096, 4097),
        Geometry(1 << 63),
    ],
)
def test_impossible_geometries_are_refused(geometry: Geometry) -> None:
    with pytest.raises(ValueError, match="bytes"):
        MapBuilder(geometry, KEY_ID)


def test_the_spool_is_anonymous(tmp_path: Path) -> None:
    with MapBuilder(GEOMETRY, KEY_ID, tmp_path) as builder:
        build(builder, random_model(1, GEOMETRY.clusters))
        builder.finish()
        assert list(tmp_path.iterdir()) == []


# -- damage -----------------------------------------------------------------------------------------


def small_map() -> tuple[bytes, str]:
    objects = [Part(object_name(bytes(32), "run.2"), 777)]
    with MapBuilder(Geometry(3 * 512 * CLUSTER, CLUSTER), KEY_ID) as builder:
        for n in range(3):
            builder.add_segment(row(n))
        builder.add_data(5, 0, 0, hash_of(1) + hash_of(2))
        builder.add_zeros(600, 20)
        builder.add_data(1535, 2, 3, hash_of(3))
        done = builder.finish(objects, objects)
        return read_file(done.file), done.digest


def test_any_flipped_bit_anywhere_is_found() -> None:
    data, digest = small_map()
    name = f"backupjobs/j/r/v/vda/BackupMap-{digest}"
    assert view(MapReader.open(BytesSource(data, name)))
    for bit in range(len(data) * 8):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged) as caught:
            everything(MapReader.open(BytesSource(bytes(bad), name)))
        assert caught.value.fields["name"] == name


@given(st.integers(1, 1 << 32), st.data())
@settings(deadline=None, max_examples=30)
def test_no_flipped_byte_of_a_large_map_ever_shows(seed: int, data: st.DataObject) -> None:
    whole, digest = built(seed % 5)
    good = everything(MapReader.open(BytesSource(whole), digest))
    for _ in range(5):
        place = data.draw(st.integers(0, len(whole) - 1))
        bad = bytearray(whole)
        bad[place] ^= data.draw(st.integers(1, 255))
        with pytest.raises(Damaged):
            assert everything(MapReader.open(BytesSource(bytes(bad)), digest)) == good


def test_a_flipped_byte_in_one_page_spares_the_others() -> None:
    whole, digest = built()
    bad = bytearray(whole)
    bad[10] ^= 1
    reader = MapReader.open(BytesSource(bytes(bad)), digest)
    good = MapReader.open(BytesSource(whole), digest)
    numbers = list(good.page_numbers())
    with pytest.raises(ObjectCorrupt, match="section at 0"):
        reader.page(numbers[0])
    for number in numbers[1:]:
        assert list(reader.page(number) or []) == list(good.page(number) or [])


def test_every_truncation_is_found() -> None:
    data, digest = small_map()
    store = MemoryStore()
    store.prepare()
    name = f"backupjobs/j/r/v/vda/BackupMap-{digest}"
    for length in range(len(data)):
        for cut in (data[:length], data[len(data) - length :]):
            with pytest.raises(Damaged):
                everything(MapReader.open(BytesSource(cut, name)))
        store.put(name, data[:length])
        with pytest.raises(ObjectTruncated):
            everything(MapReader.open(StoreSource(store, name, len(data))))


def test_another_map_under_this_name_is_found() -> None:
    data, _ = built(1)
    _, other = built(2)
    with pytest.raises(ObjectCorrupt, match="digest that names it"):
        MapReader.open(BytesSource(data), other)


# -- sources ----------------------------------------------------------------------------------------


class CountingStore(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.reads: list[tuple[int, int | None]] = []

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.reads.append((offset, length))
        return super().get(name, offset, length)


def test_a_small_map_comes_with_one_request() -> None:
    data, digest = small_map()
    store = CountingStore()
    store.prepare()
    name = f"backupjobs/j/r/v/vda/BackupMap-{digest}"
    store.put_file(name, io.BytesIO(data), len(data))
    assert everything(MapReader.open(StoreSource(store, name))) == everything(MapReader.open(BytesSource(data), digest))
    assert store.reads == [(0, len(data))]


def test_a_large_map_is_fetched_once_and_only_where_it_is_asked() -> None:
    with MapBuilder(Geometry(400 << 30), KEY_ID) as builder:
        for n in range(6 * 1024):
            noise = blake3.blake3(b"%d" % n).digest(length=64 * 16)
            builder.add_data(n * 64, builder.add_segment(row(n, 64)), 0, noise)
        done = builder.finish()
        store = CountingStore()
        store.prepare()
        name = f"backupjobs/j/r/v/vda/BackupMap-{done.digest}"
        store.put_file(name, done.file, done.size)
        assert done.size > 6 << 20
        reader = MapReader.open(StoreSource(store, name, done.size))
        assert len(store.reads) == 1
        assert reader.page(2) is not None
        assert len(store.reads) <= 4
        local = MapReader.open(FileSource(done.file, name))
        del store.reads[:]
        for ours, theirs in zip(reader.pages(), local.pages(), strict=True):
            assert ours.to_bytes() == theirs.to_bytes()
            segment = ours.segments[100]
            assert reader.segment(segment) == local.segment(segment)
        assert len(store.reads) <= done.size // (1 << 20) + 2

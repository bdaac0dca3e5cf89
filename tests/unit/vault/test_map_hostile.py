"""Maps by somebody who knows the format: every digest is right, the content is not.

The roots here are packed by hand from the byte tables of docs/vault-format.md.
"""

import contextlib
import struct
from array import array
from typing import Any

import blake3
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from raksha.errors import ObjectCorrupt, ObjectTruncated, RakshaError, VaultNewer
from raksha.types import Geometry
from raksha.vault.map import DATA, ZERO, MapPage, MapReader
from raksha.vault.map_root import ObjectRow, Section
from tests.unit.vault.maps import CLUSTER, KEY_ID, BytesSource, Forgery, hash_of, named, row

GEOMETRY = Geometry(3 * 512 * CLUSTER, CLUSTER)
CLAIMS = {"run.1": 0}


def good_page(number: int = 1) -> MapPage:
    page = MapPage(number, 512)
    page.set(3, DATA, 0, 1, hash_of(1))
    page.set(4, ZERO)
    return page


def forged() -> Forgery:
    """Nothing wrong with it yet."""
    forgery = Forgery(GEOMETRY)
    forgery.page(1, good_page().to_bytes())
    forgery.segments([row(0), row(1)], CLAIMS)
    return forgery


def read_all(forgery: Forgery, root: bytes | None = None) -> list[Any]:
    source, digest = forgery.sealed(root)
    reader = MapReader.open(source, digest)
    return [*reader.pages(), *reader.segments(), *reader.objects, *reader.parts()]


def refused(forgery: Forgery, detail: str, root: bytes | None = None) -> None:
    with pytest.raises(ObjectCorrupt, match=detail) as caught:
        read_all(forgery, root)
    assert caught.value.fields["name"] == "BackupMap-x"


def test_the_forger_can_make_a_good_map() -> None:
    page, first, second = read_all(forged())
    assert page.to_bytes() == good_page().to_bytes()
    assert (first, second) == (row(0), row(1))


# -- the root, packed by hand -----------------------------------------------------------------------

HEADER = "<8sHHIQIIIIIIIIII"
NAMES = (
    *("magic", "version", "flags", "cluster_size", "size", "clusters_per_segment", "segment_page_rows", "pages"),
    *("segments", "claims", "objects", "parts", "key_bytes", "claims_bytes", "reserved"),
)


def packed(forgery: Forgery, **changes: Any) -> bytes:
    """The root of `forged()` after the byte tables, with some header fields changed."""
    root = forgery.root
    values = dict(
        zip(NAMES, (b"RAKSHAMP", 1, 0, CLUSTER, GEOMETRY.size, 64, 256, 1, 2, 1, 0, 0, len(KEY_ID), 5, 0), strict=True)
    )
    header = struct.pack(HEADER, *(values | changes).values())
    sections = [struct.pack("<QI16s", *each) for each in (root.summary, root.pages[0], root.segment_pages[0])]
    return header + sections[0] + struct.pack("<I", 1) + sections[1] + sections[2] + KEY_ID.encode() + b"run.1"


def test_the_root_is_what_the_byte_tables_say() -> None:
    forgery = forged()
    assert packed(forgery) == forgery.root.encode()
    assert struct.calcsize(HEADER) == 64


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"magic": b"RAKSHAMQ"}, "does not begin"),
        ({"version": 0}, "header"),
        ({"flags": 2}, "header"),
        ({"reserved": 1}, "header"),
        ({"cluster_size": 0}, "geometry"),
        ({"cluster_size": 2048}, "geometry"),
        ({"cluster_size": 4097}, "geometry"),
        ({"cluster_size": 4 << 20}, "geometry"),
        ({"size": (1 << 64) - 1}, "geometry"),
        ({"size": 1 << 62}, "geometry"),
        ({"clusters_per_segment": 0}, "geometry"),
        ({"clusters_per_segment": 0xFFFFFFFF}, "geometry"),
        ({"segment_page_rows": 0}, "segment table"),
        ({"segment_page_rows": 0xFFFFFFFF}, "segment table"),
        ({"segment_page_rows": (1 << 20) // 64 + 1}, "segment table"),
        ({"segments": 0xFFFFFFFF}, "segment table"),
        ({"segments": 1 << 24}, "shorter than"),
        ({"pages": 0xFFFFFFFF}, "shorter than"),
        ({"pages": 0}, "ASCII|length|shorter|malformed"),
        ({"claims": 2}, "length"),
        ({"claims": 0}, "length"),
        ({"claims": 0xFFFFFFFF}, "too many"),
        ({"objects": 0xFFFF}, "shorter than"),
        ({"objects": 0xFFFFFFFF}, "too many"),
        ({"parts": 0xFFFF}, "shorter than"),
        ({"parts": 0x7FFFFFFF}, "too many"),
        ({"key_bytes": 0xFFFFFFFF}, "shorter than"),
        ({"key_bytes": 4}, "length"),
        ({"claims_bytes": 4}, "length"),
        ({"claims_bytes": 6}, "shorter than"),
        ({"size": 512 * CLUSTER}, "beyond the end"),
    ],
)
def test_a_header_that_lies_is_refused(changes: dict[str, Any], detail: str) -> None:
    forgery = forged()
    refused(forgery, detail, packed(forgery, **changes))


def test_a_newer_version_is_named_as_such() -> None:
    forgery = forged()
    with pytest.raises(VaultNewer, match="format 2"):
        read_all(forgery, packed(forgery, version=2))


def test_every_shorter_or_longer_root_is_refused() -> None:
    forgery = forged()
    root = packed(forgery)
    for length in range(1, len(root)):
        refused(forgery, "shorter than|does not begin", root[:length])
    refused(forgery, "length", root + b"\0")


@pytest.mark.parametrize("claim", ["../../x", "a/b", "", "a\0", "x" * 129, "-x"])
def test_a_claim_that_would_leave_its_folder_is_refused(claim: str) -> None:
    forgery = forged()
    forgery.root.claims = [claim]
    refused(forgery, "claim|length")


def test_texts_that_are_no_ascii_are_refused() -> None:
    forgery = forged()
    refused(forgery, "ASCII", packed(forgery)[:-1] + b"\xff")
    forgery.root.key_id = "../vault.json"
    refused(forgery, "key's id")


@pytest.mark.parametrize("numbers", [(1, 1), (2, 1), (0, 3), (0, 0xFFFFFFFF)])
def test_pages_out_of_order_or_beyond_the_disk_are_refused(numbers: tuple[int, int]) -> None:
    forgery = Forgery(GEOMETRY)
    for number in numbers:
        forgery.page(number, good_page().to_bytes())
    forgery.segments([row(0)], CLAIMS)
    refused(forgery, "not in order|beyond the end")


def test_objects_and_parts_must_be_in_their_tables() -> None:
    for objects, top, detail in [
        ([ObjectRow(bytes(32), 1, 10, False)], [], "object is malformed"),
        ([ObjectRow(bytes(32), 0, 0, False)], [], "object is malformed"),
        ([ObjectRow(bytes(32), 0, 10, False)], [1], "not in the table"),
        ([], [0xFFFFFFFF], "not in the table"),
    ]:
        forgery = forged()
        forgery.root.objects = objects
        forgery.root.top.extend(top)
        refused(forgery, detail)


def test_an_object_of_unknown_kind_is_refused() -> None:
    forgery = forged()
    good = packed(forgery, objects=1)
    place = len(good) - len(KEY_ID) - 5
    kinds = [good[:place] + struct.pack("<32sQII", bytes(32), 10, 0, flags) + good[place:] for flags in (1, 2)]
    assert read_all(forgery, kinds[0])[-1].manifest is True
    refused(forgery, "no known kind", kinds[1])


# -- sections ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "stored"),
    [(0, 0), (1 << 63, 10), ((1 << 64) - 1, 0xFFFFFFFF), (0, 0xFFFFFFFF), (0, 500_000), (10_000, 10)],
)
def test_sections_that_lie_outside_are_refused(offset: int, stored: int) -> None:
    for where in ("page", "segments", "summary"):
        forgery = forged()
        lie = Section(offset, stored, bytes(16))
        if where == "page":
            forgery.root.pages = type(forgery.root.pages)()
            forgery.root.pages.append(lie)
        elif where == "segments":
            forgery.root.segment_pages = type(forgery.root.segment_pages)()
            forgery.root.segment_pages.append(lie)
        else:
            forgery.root.summary = lie
        refused(forgery, "lies outside")


def test_a_section_may_not_reach_into_the_root() -> None:
    forgery = forged()
    forgery.root.summary = forgery.root.summary._replace(stored=forgery.root.summary.stored + 1)
    refused(forgery, "lies outside")


def test_a_bomb_in_a_section_is_not_set_off() -> None:
    """256 MiB of zeroes in 8 KiB: the declared size alone refuses it."""
    forgery = Forgery(GEOMETRY)
    forgery.root.page_numbers.append(0)
    forgery.root.pages.append(forgery.raw_section(zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28))))
    forgery.segments([row(0)], CLAIMS)
    refused(forgery, "declares 268435456 bytes")


def test_a_section_that_is_no_frame_or_more_than_one_is_refused() -> None:
    plain = good_page().to_bytes()
    frame = zstandard.ZstdCompressor().compress(plain)
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    for stored in (b"x" * 40, frame[:-1], frame + b"\0", frame + frame, sizeless, frame[:4]):
        forgery = Forgery(GEOMETRY)
        forgery.root.page_numbers.append(1)
        forgery.root.pages.append(forgery.raw_section(stored))
        forgery.segments([row(0)], CLAIMS)
        refused(forgery, "frame")


# -- content ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "position", "value", "detail"),
    [
        ("kinds", 0, 3, "no known kind"),
        ("segments", 3, 2, "not in the table"),
        ("indexes", 3, 4, "does not have"),
        ("hashes", 4 * 16, 1, "not data"),
    ],
)
def test_a_page_that_cannot_be_is_refused(column: str, position: int, value: int, detail: str) -> None:
    page = good_page()
    getattr(page, column)[position] = value
    forgery = Forgery(GEOMETRY)
    forgery.page(1, page.to_bytes())
    forgery.segments([row(0), row(1)], CLAIMS)
    refused(forgery, f"page 1: .*{detail}")


def test_entries_beyond_the_end_of_the_disk_are_refused() -> None:
    forgery = Forgery(replace(GEOMETRY, size=512 * CLUSTER + 4 * CLUSTER))
    forgery.page(1, good_page().to_bytes())
    forgery.segments([row(0)], CLAIMS)
    refused(forgery, "beyond the end")


def test_a_page_of_another_width_is_refused() -> None:
    forgery = Forgery(GEOMETRY)
    forgery.page(1, good_page().to_bytes()[:-23])
    forgery.segments([row(0)], CLAIMS)
    refused(forgery, "declares")


@pytest.mark.parametrize(
    ("lengths", "stored", "detail"),
    [
        ((), 512, "impossible number"),
        ((1,) * 65, 512, "impossible number"),
        ((0, 5), 512, "empty or longer"),
        ((CLUSTER + 200,), 4608, "empty or longer"),
        ((0xFFFFFFFF,), 512, "empty or longer"),
        ((5, 5), 1024, "it has 1024"),
        ((5, 5), 0, "it has 0"),
        ((500, 500), 512, "it has 512"),
    ],
)
def test_segments_that_cannot_be_are_refused(lengths: tuple[int, ...], stored: int, detail: str) -> None:
    forgery = Forgery(GEOMETRY)
    rows = [row(0), replace(row(1), lengths=lengths)]
    forgery.segments(rows, CLAIMS, [rows[0].stored, stored])
    refused(forgery, detail)


def test_a_segment_of_an_unknown_claim_is_refused() -> None:
    forgery = Forgery(GEOMETRY)
    forgery.segments([row(0), row(1, claim="other")], CLAIMS)
    refused(forgery, "claim that is not in the table")


def test_a_summary_that_does_not_fit_its_table_is_refused() -> None:
    forgery = forged()
    forgery.root.summary = forgery.section(struct.pack("<2H2I", 4, 3, row(0).stored, row(1).stored))
    refused(forgery, "declares")
    forgery.root.summary = forgery.section(struct.pack("<2H", 4, 4))
    refused(forgery, "declares")


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_file_without_room_for_a_trailer_is_refused(size: int) -> None:
    with pytest.raises(ObjectTruncated):
        MapReader.open(BytesSource(bytes(size)), "0" * 64)


def test_a_trailer_that_points_outside_is_refused() -> None:
    root = packed(forged())
    digest = blake3.blake3(root).hexdigest()
    for length in (0, len(root) + 1, 1 << 63, (64 << 20) + 1):
        with pytest.raises(ObjectCorrupt, match="does not end as a map"):
            MapReader.open(BytesSource(root + struct.pack("<Q8s", length, b"RAKSHAMP")), digest)


def test_tables_may_come_in_pages_of_another_size() -> None:
    """The number of rows in a page of the segment table is a field: a later writer may choose another."""
    forgery = Forgery(GEOMETRY, segment_page_rows=1)
    rows = [row(0), row(1)]
    forgery.segments(rows, CLAIMS)
    forgery.root.segment_pages = type(forgery.root.segment_pages)()
    for each in rows:
        forgery.root.segment_pages.append(
            forgery.section(each.digest + struct.pack("<I", 0) + struct.pack("<4I", *each.lengths))
        )
    forgery.page(1, good_page().to_bytes())
    source, digest = forgery.sealed()
    reader = MapReader.open(source, digest)
    assert list(reader.segments()) == rows
    (page,) = reader.pages()
    assert named(reader, page.get(3)) == (DATA, rows[0].name, 1, hash_of(1))


@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_no_root_with_a_right_digest_does_worse_than_an_error_of_ours(changes: list[tuple[int, int]]) -> None:
    forgery = forged()
    root = bytearray(packed(forgery))
    for place, value in changes:
        root[place % len(root)] = value
    with contextlib.suppress(RakshaError):
        read_all(forgery, bytes(root))


@given(st.sampled_from(["page", "table", "summary"]), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255))))
@settings(deadline=None, max_examples=300)
def test_no_section_with_a_right_digest_does_worse_than_an_error_of_ours(
    where: str, changes: list[tuple[int, int]]
) -> None:
    forgery = forged()
    root = forgery.root
    section = {"page": root.pages[0], "table": root.segment_pages[0], "summary": root.summary}[where]
    stored = bytes(forgery.body[section.offset : section.offset + section.stored])
    plain = bytearray(zstandard.ZstdDecompressor().decompress(stored))
    for place, value in changes:
        plain[place % len(plain)] = value
    changed = forgery.section(bytes(plain))
    if where == "summary":
        root.summary = changed
    else:
        table = type(root.pages)()
        table.append(changed)
        setattr(root, "pages" if where == "page" else "segment_pages", table)
    with contextlib.suppress(RakshaError):
        for each in read_all(forgery):
            if isinstance(each, MapPage):
                assert each.problem(GEOMETRY.clusters, array("H", [4, 4])) is None

"""What every store promises, asked of every store: memory, directory, a real Swift, and through `RetryStore`."""

from __future__ import annotations

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from raksha.errors import BadName, ObjectCorrupt, ObjectExists, ObjectMissing, ObjectTruncated, VaultNotFound
from raksha.vault.store import BACKUPS, SEGMENTS, ObjectInfo, Part, Store, assemble
from tests.contract.conftest import opened

NAME = "backupjobs/job/run/run.json"


def segment(number: int) -> str:
    return f"backupjobs_segments/{number % 256:02x}/{number:064x}-claim.1"


def put_parts(store: Store, *contents: bytes) -> list[Part]:
    parts = []
    for number, content in enumerate(contents):
        store.put(segment(number), content)
        parts.append(Part(segment(number), len(content)))
    return parts


# -- objects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(4 << 20)], ids=["empty", "byte", "4 MiB"])
def test_an_object_comes_back_as_it_was_stored(store: Store, content: bytes) -> None:
    store.put(NAME, content)
    assert store.get(NAME) == content
    assert store.head(NAME) == ObjectInfo(len(content))


def test_bytes_like_data_is_taken(store: Store) -> None:
    store.put(NAME, memoryview(bytearray(b"abc")))  # type: ignore[arg-type]
    assert store.get(NAME) == b"abc"


def test_a_plain_put_replaces(store: Store) -> None:
    store.put(NAME, b"a long first version")
    store.put(NAME, b"second")
    assert store.get(NAME) == b"second"


def test_create_only_never_replaces(store: Store) -> None:
    store.put(NAME, b"first", create_only=True)
    with pytest.raises(ObjectExists, match=NAME):
        store.put(NAME, b"second", create_only=True)
    assert store.get(NAME) == b"first"


def test_create_only_refuses_even_the_same_content(store: Store) -> None:
    store.put(NAME, b"same", create_only=True)
    with pytest.raises(ObjectExists):
        store.put(NAME, b"same", create_only=True)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 10), (0, 1), (9, 1), (3, 4), (4, None), (10, None), (0, 0), (10, 0), (0, None)]
)
def test_a_range_is_exactly_the_bytes_asked_for(store: Store, offset: int, length: int | None) -> None:
    store.put(NAME, b"0123456789")
    end = None if length is None else offset + length
    assert store.get(NAME, offset, length) == b"0123456789"[offset:end]


@pytest.mark.parametrize(
    ("offset", "length", "wanted"),
    [(0, 11, 11), (9, 2, 11), (10, 1, 11), (11, None, 11), (11, 0, 11), (50, 50, 100)],
)
def test_a_range_beyond_the_end_is_a_truncated_object(store: Store, offset: int, length: int, wanted: int) -> None:
    store.put(NAME, b"0123456789")
    with pytest.raises(ObjectTruncated) as caught:
        store.get(NAME, offset, length)
    assert caught.value.fields == {"name": NAME, "wanted": wanted, "got": 10}


def test_a_range_of_an_empty_object(store: Store) -> None:
    store.put(NAME, b"")
    assert store.get(NAME, 0, 0) == b""
    with pytest.raises(ObjectTruncated):
        store.get(NAME, 0, 1)


@pytest.mark.parametrize("call", ["get", "range", "nothing", "head", "parts"])
def test_a_missing_object_is_named(store: Store, call: str) -> None:
    calls = {
        "get": lambda: store.get(NAME),
        "range": lambda: store.get(NAME, 5, 5),
        "nothing": lambda: store.get(NAME, 0, 0),
        "head": lambda: store.head(NAME),
        "parts": lambda: store.parts(NAME),
    }
    with pytest.raises(ObjectMissing, match=NAME):
        calls[call]()


def test_delete_removes_and_may_be_repeated(store: Store) -> None:
    store.put(NAME, b"x")
    store.put(NAME + "2", b"stays")
    store.delete(NAME)
    store.delete(NAME)
    with pytest.raises(ObjectMissing):
        store.get(NAME)
    assert store.get(NAME + "2") == b"stays"
    store.put(NAME, b"again")
    assert store.get(NAME) == b"again"


def test_a_negative_range_is_a_mistake_of_the_caller(store: Store) -> None:
    store.put(NAME, b"x")
    with pytest.raises(ValueError, match="no range"):
        store.get(NAME, -1)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "backupjobs",
        "backupjobs/",
        "backupjobs//x",
        "backupjobs/x/",
        "backupjobs/../x",
        "backupjobs/a/../../x",
        "backupjobs/./x",
        "backupjobs/.hidden",
        "backupjobs/a\0b",
        "backupjobs/a\nb",
        "backupjobs/\udcff",
        "backupjobs/" + "a" * 256,
        "backupjobs/" + "/".join(["a" * 200] * 6),
        "/backupjobs/x",
        "elsewhere/x",
    ],
)
def test_a_name_that_no_vault_has_is_refused(store: Store, name: str) -> None:
    with pytest.raises(BadName):
        store.put(name, b"x")
    with pytest.raises(BadName):
        store.get(name)
    with pytest.raises(BadName):
        store.delete(name)


@pytest.mark.parametrize("name", ["backupjobs/a b/ü-%2e%2e", "backupjobs/x?y#z&=+", "backupjobs/" + "n" * 255])
def test_an_unusual_name_is_taken_as_it_is(store: Store, name: str) -> None:
    store.put(name, b"x")
    assert store.get(name) == b"x"
    assert list(store.names(BACKUPS)) == [name]
    store.put_manifest("backupjobs/whole", [Part(name, 1)])
    assert store.parts("backupjobs/whole") == [Part(name, 1)]


# -- where nothing was prepared ---------------------------------------------------------------------


def test_nothing_is_written_where_nothing_was_prepared(place: Any) -> None:
    store = place.open()
    with pytest.raises(VaultNotFound):
        store.put(NAME, b"x")
    with pytest.raises(VaultNotFound):
        store.put_file(NAME, io.BytesIO(b"x"), 1)
    with pytest.raises((ObjectMissing, VaultNotFound)):
        store.get(NAME)
    store.close()


def test_prepare_may_be_repeated_and_keeps_what_is_there(store: Store) -> None:
    store.put(NAME, b"x")
    store.prepare()
    assert store.get(NAME) == b"x"


def test_a_store_may_be_closed_twice_and_used_again(store: Store) -> None:
    store.put(NAME, b"x")
    store.close()
    store.close()
    assert store.get(NAME) == b"x"


# -- files ------------------------------------------------------------------------------------------


def test_a_file_is_stored_from_its_position(store: Store, tmp_path: Any) -> None:
    content = os.urandom((9 << 20) + 5)
    path = tmp_path / "source"
    path.write_bytes(b"before" + content + b"after")
    with path.open("rb") as source:
        source.seek(6)
        store.put_file(segment(1), source, len(content))
    assert store.get(segment(1)) == content


def test_an_empty_file(store: Store) -> None:
    store.put_file(segment(1), io.BytesIO(b"rest"), 0)
    assert store.get(segment(1)) == b""


def test_a_file_that_is_too_short_leaves_nothing(store: Store) -> None:
    with pytest.raises(ObjectTruncated):
        store.put_file(segment(1), io.BytesIO(b"12345"), 6)
    with pytest.raises(ObjectMissing):
        store.head(segment(1))
    assert list(store.names(SEGMENTS)) == []


# -- listings ---------------------------------------------------------------------------------------


def test_names_come_in_order_of_their_bytes(store: Store) -> None:
    keys = ["a-b", "a/b", "a/b-c/d", "a/b.c", "a0", "b", "B", "é", "z/1", "z/10", "z/2", "𝔘", "～"]
    for key in keys:
        store.put(f"{BACKUPS}/{key}", b"")
    wanted = sorted((f"{BACKUPS}/{key}" for key in keys), key=str.encode)
    assert list(store.names(BACKUPS)) == wanted


def test_a_prefix_is_one_of_characters_not_of_folders(store: Store) -> None:
    for key in ["job/run1/x", "job/run1/y/z", "job/run10/x", "job2/x", "jo"]:
        store.put(f"{BACKUPS}/{key}", b"")

    def found(prefix: str) -> list[str]:
        return [name.removeprefix(f"{BACKUPS}/") for name in store.names(BACKUPS, prefix)]

    assert found("job/run1") == ["job/run1/x", "job/run1/y/z", "job/run10/x"]
    assert found("job/run1/") == ["job/run1/x", "job/run1/y/z"]
    assert found("job/run1/y/z") == ["job/run1/y/z"]
    assert found("job/run1/y/zz") == []
    assert found("job") == ["job/run1/x", "job/run1/y/z", "job/run10/x", "job2/x"]
    assert found("../") == []
    assert list(store.names(SEGMENTS)) == []


def test_a_listing_of_many_pages(place: Any) -> None:
    options = {"page_size": 7} if "Swift" in repr(place) else {}
    with opened(place, **options) as store:
        names = [segment(number) for number in range(50)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda name: store.put(name, b"x"), names))
        assert list(store.names(SEGMENTS)) == sorted(names)
        # a page that ends exactly with the listing
        assert list(store.names(SEGMENTS, "0")) == sorted(names)[:16]


def test_a_listing_of_another_container_is_a_mistake_of_the_caller(store: Store) -> None:
    with pytest.raises(ValueError, match="no container"):
        list(store.names("elsewhere"))


# -- manifests --------------------------------------------------------------------------------------


def test_a_manifest_reads_as_its_parts_joined(store: Store) -> None:
    contents = [b"abc", b"d", b"efghi", b"jk"]
    parts = put_parts(store, *contents)
    store.put_manifest("backupjobs/Backup", parts)
    whole = b"".join(contents)
    assert store.get("backupjobs/Backup") == whole
    assert store.head("backupjobs/Backup") == ObjectInfo(len(whole), manifest=True)
    assert store.parts("backupjobs/Backup") == parts
    assert list(store.names(BACKUPS)) == ["backupjobs/Backup"]


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 3), (0, 4), (1, 1), (2, 2), (2, 3), (3, 1), (3, 8), (8, 3), (10, 1), (1, 9), (5, None), (11, None)],
)
def test_a_range_of_a_manifest_crosses_its_parts(store: Store, offset: int, length: int | None) -> None:
    store.put_manifest("backupjobs/Backup", put_parts(store, b"abc", b"d", b"efghi", b"jk"))
    end = None if length is None else offset + length
    assert store.get("backupjobs/Backup", offset, length) == b"abcdefghijk"[offset:end]


def test_a_range_beyond_the_end_of_a_manifest(store: Store) -> None:
    store.put_manifest("backupjobs/Backup", put_parts(store, b"abc", b"d"))
    with pytest.raises(ObjectTruncated) as caught:
        store.get("backupjobs/Backup", 2, 3)
    assert caught.value.fields == {"name": "backupjobs/Backup", "wanted": 5, "got": 4}


def test_manifests_nest(store: Store) -> None:
    first, second, third = put_parts(store, b"abc", b"defg", b"hi")
    store.put_manifest("backupjobs_segments/m1", [first, second])
    store.put_manifest("backupjobs_segments/m2", [Part("backupjobs_segments/m1", 7, True), third])
    top = [Part("backupjobs_segments/m2", 9, True), second, Part("backupjobs_segments/m1", 7, True)]
    store.put_manifest("backupjobs/Backup", top)
    whole = b"abcdefghi" + b"defg" + b"abcdefg"
    assert store.get("backupjobs/Backup") == whole
    assert store.get("backupjobs/Backup", 2, 13) == whole[2:15]
    assert store.head("backupjobs/Backup").size == len(whole)
    assert store.parts("backupjobs/Backup") == top
    assert b"".join(assemble(store, top)) == whole


def test_one_part_may_be_used_often(store: Store) -> None:
    (part,) = put_parts(store, b"ab")
    store.put_manifest("backupjobs/Backup", [part] * 5)
    assert store.get("backupjobs/Backup") == b"ab" * 5


def test_a_manifest_over_a_missing_part_is_refused(store: Store) -> None:
    parts = put_parts(store, b"abc")
    with pytest.raises(ObjectMissing, match=segment(7)):
        store.put_manifest("backupjobs/Backup", [*parts, Part(segment(7), 3), *parts])
    with pytest.raises(ObjectMissing, match="backupjobs/Backup"):
        store.head("backupjobs/Backup")


@pytest.mark.parametrize("size", [2, 4])
def test_a_manifest_over_a_part_of_another_size_is_refused(store: Store, size: int) -> None:
    first, second = put_parts(store, b"abc", b"def")
    with pytest.raises(ObjectTruncated) as caught:
        store.put_manifest("backupjobs/Backup", [first, Part(second.name, size)])
    assert caught.value.fields == {"name": second.name, "wanted": size, "got": 3}
    with pytest.raises(ObjectMissing):
        store.head("backupjobs/Backup")


def test_a_manifest_may_be_replaced(store: Store) -> None:
    first, second = put_parts(store, b"abc", b"def")
    store.put_manifest("backupjobs/Backup", [first])
    store.put_manifest("backupjobs/Backup", [second, first])
    assert store.get("backupjobs/Backup") == b"defabc"


def test_deleting_a_manifest_leaves_its_parts(store: Store) -> None:
    parts = put_parts(store, b"abc", b"def")
    store.put_manifest("backupjobs/Backup", parts)
    store.delete("backupjobs/Backup")
    assert [store.get(part.name) for part in parts] == [b"abc", b"def"]


def test_a_plain_object_has_no_parts(store: Store) -> None:
    store.put(NAME, b"[]")
    with pytest.raises(ObjectCorrupt, match="no manifest"):
        store.parts(NAME)


def test_a_manifest_has_a_limit(place: Any) -> None:
    with opened(place, manifest_limit=3) as store:
        (part,) = put_parts(store, b"ab")
        store.put_manifest("backupjobs/Backup", [part] * 3)
        with pytest.raises(ValueError, match="1 to 3 parts"):
            store.put_manifest("backupjobs/Backup", [part] * 4)
        with pytest.raises(ValueError, match="1 to 3 parts"):
            store.put_manifest("backupjobs/Backup", [])
        assert store.get("backupjobs/Backup") == b"ab" * 3


def test_a_manifest_of_a_thousand_parts(store: Store) -> None:
    (part,) = put_parts(store, b"0123")
    assert store.manifest_limit == 1000
    store.put_manifest("backupjobs/Backup", [part] * 1000)
    assert store.get("backupjobs/Backup", 3998, 2) == b"23"
    assert len(store.parts("backupjobs/Backup")) == 1000


def test_a_part_that_is_gone_is_named_when_the_manifest_is_read(store: Store) -> None:
    parts = put_parts(store, b"abc", b"def", b"ghi")
    store.put_manifest("backupjobs_segments/inner", parts)
    store.put_manifest("backupjobs/Backup", [Part("backupjobs_segments/inner", 9, True)])
    store.delete(parts[1].name)
    with pytest.raises(ObjectMissing, match=parts[1].name):
        store.get("backupjobs/Backup")
    # what does not need it is still there
    assert store.get("backupjobs/Backup", 6, 3) == b"ghi"


@pytest.mark.parametrize("content", [b"de", b"defg"])
def test_a_part_of_another_size_is_named_when_the_manifest_is_read(store: Store, content: bytes) -> None:
    parts = put_parts(store, b"abc", b"def")
    store.put_manifest("backupjobs/Backup", parts)
    store.put(parts[1].name, content)
    with pytest.raises(ObjectTruncated, match=parts[1].name):
        store.get("backupjobs/Backup")


# -- several at once --------------------------------------------------------------------------------


def test_eight_threads_do_not_mix_anything_up(store: Store) -> None:
    def work(worker: int) -> None:
        for number in range(6):
            name = f"backupjobs_segments/{number:02x}/{worker}"
            content = f"{worker}-{number}".encode() * 5000
            store.put(name, content)
            assert store.get(name) == content
            assert store.get(name, 3, 100) == content[3:103]
            assert store.head(name).size == len(content)
        store.delete(f"backupjobs_segments/00/{worker}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(list(store.names(SEGMENTS))) == 40


def test_of_many_that_create_one_name_the_content_is_a_winners(store: Store) -> None:
    barrier = threading.Barrier(8)

    def create(worker: int) -> bytes | None:
        content = f"writer {worker}".encode() * 1000
        barrier.wait()
        try:
            store.put(NAME, content, create_only=True)
        except ObjectExists:
            return None
        return content

    with ThreadPoolExecutor(8) as pool:
        won = [content for content in pool.map(create, range(8)) if content is not None]
    assert store.get(NAME) in won
    if store.url.startswith(("memory", "file")):
        assert len(won) == 1


# -- damage behind the store's back -----------------------------------------------------------------


def test_a_truncated_object_is_never_read_as_whole(tangible: Any) -> None:
    with opened(tangible) as store:
        store.put(segment(1), b"0123456789" * 1000)
        os.truncate(tangible.file(segment(1)), 5000)
        # Swift puts what it finds damaged away, so that there is no object any more
        with pytest.raises((ObjectTruncated, ObjectMissing), match=segment(1)):
            store.get(segment(1), 0, 10000)


def test_a_flipped_byte_is_found_by_swift_alone_and_in_whole_objects_only(tangible: Any) -> None:
    """So those who read ranges, or from a directory, must compare digests: the store cannot."""
    content = b"0123456789" * 1000
    with opened(tangible) as store:
        store.put(segment(1), content)
        with tangible.file(segment(1)).open("r+b") as file:
            file.seek(4321)
            file.write(b"X")
        damaged = content[:4321] + b"X" + content[4322:]
        assert store.get(segment(1), 4000, 1000) == damaged[4000:5000]
        if store.url.startswith("swift"):
            with pytest.raises(ObjectCorrupt, match=segment(1)):
                store.get(segment(1))
        else:
            assert store.get(segment(1)) == damaged

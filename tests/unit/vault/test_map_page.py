"""Pages of a map: columns, canonical form, encoding."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raksha.vault.map import ABSENT, DATA, ZERO, MapEntry, MapPage
from raksha.vault.map_page import ENTRY_BYTES

WIDTH = 512
H1, H2 = b"1" * 16, b"2" * 16
COUNTS = array("H", [3, 64])

entries = st.dictionaries(
    st.integers(0, WIDTH - 1),
    st.one_of(
        st.just((ZERO, 0, 0, b"")),
        st.tuples(st.just(DATA), st.just(1), st.integers(0, 63), st.binary(min_size=16, max_size=16)),
    ),
)


def page_with(content: dict[int, tuple[int, int, int, bytes]], number: int = 3) -> MapPage:
    page = MapPage(number, WIDTH)
    for position, entry in content.items():
        page.set(position, *entry)
    return page


@given(entries)
def test_what_was_set_is_there_and_the_rest_is_absent(content: dict[int, tuple[int, int, int, bytes]]) -> None:
    page = page_with(content)
    expected = [MapEntry(3 * WIDTH + position, *entry) for position, entry in sorted(content.items())]
    assert list(page) == expected
    assert page.problem(4 * WIDTH, COUNTS) is None
    assert [page.get(position) for position in range(WIDTH) if page.get(position).kind != ABSENT] == expected
    assert page.count(DATA) + page.count(ZERO) == len(content)
    covered = [position for start, stop in page.runs() for position in range(start, stop)]
    assert covered == sorted(content)
    zeros = [position for start, stop in page.runs(ZERO) for position in range(start, stop)]
    assert zeros == [position for position, entry in sorted(content.items()) if entry[0] == ZERO]


@given(entries)
def test_encoding_round_trips(content: dict[int, tuple[int, int, int, bytes]]) -> None:
    page = page_with(content)
    data = page.to_bytes()
    assert len(data) == WIDTH * ENTRY_BYTES
    again = MapPage.from_bytes(3, data)
    assert list(again) == list(page)
    assert again.to_bytes() == data


def test_the_encoding_is_what_the_format_says() -> None:
    page = MapPage(0, 4)
    page.set(1, DATA, 0x01020304, 0x0506, H1)
    page.set(2, ZERO)
    expected = "00010200" + "00000000" + "04030201" + "00000000" * 2 + "0000" + "0605" + "00000000"
    assert page.to_bytes() == bytes.fromhex(expected) + bytes(16) + H1 + bytes(32)


def test_bulk_calls_do_what_single_ones_do() -> None:
    bulk, single = MapPage(0, WIDTH), MapPage(0, WIDTH)
    bulk.set_data(10, 1, 5, H1 + H2)
    single.set(10, DATA, 1, 5, H1)
    single.set(11, DATA, 1, 6, H2)
    bulk.set_zero(20, 3)
    for position in (20, 21, 22):
        single.set(position, ZERO)
    assert bulk.to_bytes() == single.to_bytes()
    bulk.clear(11, 22)
    for position in range(11, 22):
        single.set(position, ABSENT)
    assert bulk.to_bytes() == single.to_bytes()
    assert [entry.cluster for entry in bulk] == [10, 22]
    bulk.clear(0)
    assert not any(bulk.to_bytes())


def test_setting_again_leaves_nothing_of_the_old_entry() -> None:
    page = MapPage(0, WIDTH)
    page.set(7, DATA, 1, 5, H1)
    page.set(7, ZERO)
    assert page.get(7) == MapEntry(7, ZERO, 0, 0, b"")
    assert page.problem(WIDTH, COUNTS) is None


@pytest.mark.parametrize(
    "arguments",
    [
        (0, 3),
        (0, -1),
        (WIDTH, ZERO),
        (-1, ZERO),
        (0, ZERO, 1),
        (0, ZERO, 0, 1),
        (0, ZERO, 0, 0, H1),
        (0, ABSENT, 0, 0, H1),
        (0, DATA, 0, 0, b""),
        (0, DATA, 0, 0, H1 + b"x"),
    ],
)
def test_an_entry_that_cannot_be_is_refused(arguments: tuple[int, ...]) -> None:
    page = MapPage(0, WIDTH)
    with pytest.raises(ValueError, match="no entry"):
        page.set(*arguments)
    assert not any(page.to_bytes()) and len(page.to_bytes()) == WIDTH * ENTRY_BYTES


def test_runs_that_leave_the_page_are_refused() -> None:
    page = MapPage(0, WIDTH)
    for position, hashes in ((WIDTH - 1, H1 + H2), (-1, H1), (0, b""), (0, H1 + b"x")):
        with pytest.raises(ValueError, match="do not fit"):
            page.set_data(position, 0, 0, hashes)
    for start, clusters in ((WIDTH - 1, 2), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="not within"):
            page.set_zero(start, clusters)
    assert len(page.to_bytes()) == WIDTH * ENTRY_BYTES


def broken(column: str, position: int, value: int) -> MapPage:
    page = MapPage(1, WIDTH)
    page.set(0, DATA, 0, 2, H1)
    page.set(1, ZERO)
    getattr(page, column)[position] = value
    return page


@pytest.mark.parametrize(
    ("column", "position", "value", "problem"),
    [
        ("kinds", 5, 3, "no known kind"),
        ("kinds", 255, 255, "no known kind"),
        ("kinds", 300, ZERO, "beyond the end"),
        ("segments", 0, 2, "not in the table"),
        ("segments", 0, 0xFFFFFFFF, "not in the table"),
        ("indexes", 0, 3, "does not have"),
        ("indexes", 1, 1, "that is not data"),
        ("segments", 9, 1, "that is not data"),
        ("hashes", 16, 1, "that is not data"),
        ("hashes", 16 * WIDTH - 1, 1, "that is not data"),
    ],
)
def test_a_page_that_cannot_be_is_recognised(column: str, position: int, value: int, problem: str) -> None:
    assert problem in str(broken(column, position, value).problem(WIDTH + 300, COUNTS))


def test_a_page_without_a_segment_table_names_no_segment() -> None:
    assert broken("kinds", 0, DATA).problem(2 * WIDTH, array("H")) == "an entry names a segment, and the table is empty"
    page = MapPage(0, WIDTH)
    page.set(4, ZERO)
    assert page.problem(WIDTH, array("H")) is None
    page.segments[4] = 1
    assert "that is not data" in str(page.problem(WIDTH, array("H")))


def test_half_an_entry_is_no_page() -> None:
    with pytest.raises(ValueError, match="no whole page"):
        MapPage.from_bytes(0, bytes(ENTRY_BYTES + 1))

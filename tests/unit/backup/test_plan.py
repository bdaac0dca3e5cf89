"""Extents to pieces of work: checked against a byte-per-cluster model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from raksha.backup.plan import ClusterRun, ClusterRuns, aligned, gathered, with_gaps_as_zero
from raksha.types import Extent, ExtentKind, Geometry

CLUSTER = 4096


@st.composite
def extents(draw: st.DrawFn) -> tuple[Geometry, list[Extent]]:
    """Extents on a 512-byte grid, not overlapping, in order."""
    found, at = [], 0
    for gap, length, kind in draw(
        st.lists(st.tuples(st.integers(0, 20), st.integers(1, 40), st.sampled_from(ExtentKind)), max_size=20)
    ):
        start = at + gap * 512
        at = start + length * 512
        found.append(Extent(start, length * 512, kind))
    tail = draw(st.integers(0, 20))
    return Geometry(max(at + tail * 512, 512), CLUSTER), found


def sectors(geometry: Geometry, found: list[Extent]) -> bytearray:
    model = bytearray(geometry.size // 512)
    for extent in found:
        for sector in range(extent.start // 512, extent.end // 512):
            model[sector] = extent.kind
    return model


def kinds(runs: list[ClusterRun], clusters: int) -> list[int]:
    model = [0] * clusters
    for run in runs:
        for cluster in range(run.first, run.end):
            assert model[cluster] == 0, "a cluster is named twice"
            model[cluster] = run.kind
    return model


@given(extents())
def test_a_cluster_is_zero_only_if_zero_covers_it_and_absent_only_if_nothing_touches_it(
    case: tuple[Geometry, list[Extent]],
) -> None:
    geometry, found = case
    model = sectors(geometry, found)
    got = kinds(list(ClusterRuns(found, geometry)), geometry.clusters)
    for cluster, kind in enumerate(got):
        inside = model[cluster * 8 : (cluster + 1) * 8]
        if not any(inside):
            assert kind == 0
        elif kind == ExtentKind.ZERO:
            assert all(sector == ExtentKind.ZERO for sector in inside)
        else:
            assert kind == ExtentKind.DATA
        if any(sector == ExtentKind.DATA for sector in inside):
            assert kind == ExtentKind.DATA


@given(extents(), st.integers(1, 9))
def test_aligned_pieces_hold_the_same_clusters_and_data_never_crosses_a_border(
    case: tuple[Geometry, list[Extent]], step: int
) -> None:
    geometry, found = case
    runs = ClusterRuns(found, geometry)
    pieces = list(aligned(runs, step))
    flat = [run for piece in pieces for run in piece]
    assert kinds(flat, geometry.clusters) == kinds(list(runs), geometry.clusters)
    for piece in pieces:
        data = [run for run in piece if run.kind is ExtentKind.DATA]
        assert len({cluster // step for run in data for cluster in (run.first, run.end - 1)}) <= 1
    borders = [run.first // step for piece in pieces for run in piece[:1] if run.kind is ExtentKind.DATA]
    assert borders == sorted(set(borders)), "two pieces share one aligned range"


@given(extents(), st.integers(1, 9), st.integers(1, 5))
def test_gathered_pieces_hold_the_same_clusters_and_are_as_full_as_they_may_be(
    case: tuple[Geometry, list[Extent]], step: int, most: int
) -> None:
    geometry, found = case
    runs = ClusterRuns(found, geometry)
    pieces = list(gathered(runs, step, most))
    assert kinds([run for piece in pieces for run in piece], geometry.clusters) == kinds(list(runs), geometry.clusters)
    for number, piece in enumerate(pieces):
        data = sum(run.count for run in piece if run.kind is ExtentKind.DATA)
        assert data <= step and len(piece) <= most
        assert data == step or len(piece) == most or number == len(pieces) - 1


@given(extents())
def test_gaps_become_zero_and_nothing_else_changes(case: tuple[Geometry, list[Extent]]) -> None:
    geometry, found = case
    runs = list(ClusterRuns(found, geometry))
    before = kinds(runs, geometry.clusters)
    after = kinds(list(with_gaps_as_zero(runs, geometry.clusters)), geometry.clusters)
    assert after == [kind or ExtentKind.ZERO for kind in before]


def test_a_huge_stretch_of_zeroes_is_one_run() -> None:
    geometry = Geometry(2 << 40)
    runs = ClusterRuns([Extent(0, 2 << 40, ExtentKind.ZERO)], geometry)
    assert list(runs) == [ClusterRun(0, geometry.clusters, ExtentKind.ZERO)]
    assert [len(piece) for piece in aligned(runs, 64)] == [1]
    assert runs.data_clusters == 0

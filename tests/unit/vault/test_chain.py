"""Chains: the overlay equals a model made of dicts, and consolidation equals the overlay."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raksha.errors import ChainIncompatible, ObjectCorrupt
from raksha.types import Geometry
from raksha.vault.chain import Chain, consolidate
from raksha.vault.map import ABSENT, DATA, ZERO, FileSource, MapBuilder, MapReader
from tests.unit.vault.maps import (
    CLUSTER,
    KEY_ID,
    BytesSource,
    Model,
    build,
    hash_of,
    named,
    random_model,
    read_file,
    row,
    view,
)

#: more segments than any of the maps has, none with fewer clusters
COUNTS = array("H", [64]) * 64
#: (seed, clusters) of each map, oldest first
Layers = list[tuple[int, int]]
layers_of_disks = st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(0, 3 * 512)), min_size=1, max_size=5)


def open_layers(stack: ExitStack, models: Sequence[tuple[Model, int]], key_id: str = KEY_ID) -> list[MapReader]:
    readers = []
    for model, clusters in models:
        # disks end in the middle of a cluster
        builder = stack.enter_context(MapBuilder(Geometry(max(clusters * CLUSTER - 100, 0), CLUSTER), key_id))
        build(builder, model)
        done = builder.finish()
        readers.append(MapReader.open(FileSource(done.file, f"BackupMap-{done.digest}")))
    return readers


def overlaid(models: Sequence[tuple[Model, int]]) -> Model:
    """What a stack of backing files shows."""
    merged: Model = {}
    for model, clusters in models:
        merged = {cluster: entry for cluster, entry in (merged | model).items() if cluster < clusters}
    return merged


def chain_view(chain: Chain) -> Model:
    merged = {}
    for number in chain.page_numbers():
        page = chain.page(number)
        for entry in page:
            layer = page.layers[entry.cluster - page.first_cluster]
            merged[entry.cluster] = named(chain.readers[layer], entry)
    return merged


def models_of(layers: Layers) -> list[tuple[Model, int]]:
    return [(random_model(seed, clusters), clusters) for seed, clusters in layers]


@given(layers_of_disks)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_a_chain_shows_what_a_stack_of_backing_files_shows(layers: Layers) -> None:
    models = models_of(layers)
    with ExitStack() as stack:
        chain = Chain(open_layers(stack, models))
        assert chain_view(chain) == overlaid(models)
        assert chain.geometry.clusters == layers[-1][1]
        assert list(chain.page_numbers()) == sorted(set(chain.page_numbers()))
        for number in range(4):
            page = chain.page(number)
            assert page.problem(chain.geometry.clusters, COUNTS) is None
            assert all(not layer for layer, kind in zip(page.layers, page.kinds, strict=True) if kind == ABSENT)


@given(layers_of_disks)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_consolidation_shows_what_the_chain_shows(layers: Layers) -> None:
    models = models_of(layers)
    with ExitStack() as stack:
        chain = Chain(open_layers(stack, models))
        builder = stack.enter_context(MapBuilder(Geometry(chain.geometry.size, CLUSTER), KEY_ID))
        consolidate(chain, builder)
        done = builder.finish()
        full = MapReader.open(FileSource(done.file, "full"), done.digest)
        expected = {cluster: entry for cluster, entry in overlaid(models).items() if entry[0] == DATA}
        assert view(full) == expected
        assert {each.name for each in full.segments()} == {name for _, name, *_ in expected.values()}
        known = {each.name: each for reader in chain.readers for each in reader.segments()}
        assert all(known[each.name] == each for each in full.segments())
        again = stack.enter_context(MapBuilder(Geometry(chain.geometry.size, CLUSTER), KEY_ID))
        consolidate(Chain([full]), again)
        assert read_file(again.finish().file) == read_file(done.file)


def test_a_shorter_map_in_between_cuts_off_what_is_older() -> None:
    """As in qcow2: beyond the end of a shorter backing file there are zeroes, not the file below it."""
    data = (DATA, row(0, 1).name, 0, hash_of(0))
    big: Model = dict.fromkeys((0, 400, 600, 1200), data)
    with ExitStack() as stack:
        chain = Chain(open_layers(stack, [(big, 1300), ({}, 500), ({700: (ZERO, "", 0, b"")}, 1300)]))
        assert sorted(chain_view(chain)) == [0, 400, 700]
        assert list(chain.page_numbers()) == [0, 1]
        assert not any(chain.page(2).kinds)


def test_the_newest_size_counts() -> None:
    with ExitStack() as stack:
        zeros: Model = dict.fromkeys(range(1000), (ZERO, "", 0, b""))
        readers = open_layers(stack, [(zeros, 1000), ({}, 520)])
        chain = Chain(readers)
        assert chain.geometry.size == 520 * CLUSTER - 100
        assert sorted(chain_view(chain)) == [*range(520)]
        assert Chain(readers[:1]).geometry.size == 1000 * CLUSTER - 100


def test_pages_nobody_has_are_absent_throughout() -> None:
    with ExitStack() as stack:
        chain = Chain(open_layers(stack, [({}, 2000)]))
        assert list(chain.page_numbers()) == []
        for number in (0, 3, 1 << 20):
            page = chain.page(number)
            assert page.width == 512 and page.number == number and not any(page.to_bytes())


def test_a_full_page_hides_damage_below_it_and_nothing_else_does() -> None:
    """What nobody needs is not read; what is needed and damaged is an error, never an older or an empty entry."""
    zeros: Model = dict.fromkeys(range(1024), (ZERO, "", 0, b""))
    with ExitStack() as stack:
        old, new = open_layers(stack, [(zeros, 1024), (dict.fromkeys(range(512), zeros[0]), 1024)])
        with MapBuilder(Geometry(1024 * CLUSTER - 100, CLUSTER), KEY_ID) as builder:
            build(builder, zeros)
            done = builder.finish()
            data = bytearray(read_file(done.file))
        data[10] ^= 1
        damaged = MapReader.open(BytesSource(bytes(data)), done.digest)
        assert Chain([damaged, new]).page(0).count(ZERO) == 512
        for chain in (Chain([damaged]), Chain([old, damaged])):
            with pytest.raises(ObjectCorrupt, match="does not have its digest"):
                chain.page(0)


def test_clusters_of_several_sizes_are_refused() -> None:
    with (
        MapBuilder(Geometry(1 << 20, 4096), KEY_ID) as small,
        MapBuilder(Geometry(1 << 20, 65536), KEY_ID) as large,
        pytest.raises(ChainIncompatible, match="4096 and 65536 bytes"),
    ):
        Chain([small.seal(), large.seal()])
    with pytest.raises(ChainIncompatible):
        Chain([])


def test_a_consolidated_map_must_fit_its_chain() -> None:
    geometry = Geometry(1 << 20, 4096)
    with MapBuilder(geometry, KEY_ID) as one, MapBuilder(geometry, "key-2") as two:
        chain = Chain([one.seal()])
        for other in (Geometry((1 << 20) + 1, 4096), Geometry(1 << 20, 65536), Geometry(1 << 20, 4096, 63)):
            with MapBuilder(other, KEY_ID) as builder, pytest.raises(ChainIncompatible, match="does not go into"):
                consolidate(chain, builder)
        for readers in ([one.seal(), two.seal()], [two.seal()]):
            with MapBuilder(geometry, KEY_ID) as builder, pytest.raises(ChainIncompatible, match="several keys"):
                consolidate(Chain(readers), builder)

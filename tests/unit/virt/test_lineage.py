"""Which layers are ours and what they prove. The property at the end is what all increments stand on."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raksha.errors import ForeignChain, LayerUnknown
from raksha.journal import Base, FileId, LayerState, OwnLayer
from raksha.states import ReadMode, Reason
from raksha.virt.capture import Parent
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.lineage import Decision, Lineage, decide, tell_apart

OWN_FILE = Layer("/d/a.raw", "file", "raw")


def own(path: str, *counts: str, state: LayerState = LayerState.CHAINED, target: str = "vda") -> OwnLayer:
    base = Base(FileId("/d/a.raw", 1, 1), "file", "raw", None)
    run = counts[0] if counts else "r"
    return OwnLayer("u1", target, FileId(path, 1, 2), base, run, "job", state, frozenset(counts))


def qcow2(path: str) -> Layer:
    return Layer(path, "file", "qcow2")


def apart(chain: list[Layer], known: list[OwnLayer]) -> Lineage:
    return tell_apart("vm", "vda", chain, known, str.__eq__)


def test_told_apart() -> None:
    one, two = own("/d/1", "r1"), own("/d/2", "r2")
    orphan = own("/d/0", state=LayerState.ORPHAN)
    elsewhere = own("/d/9", "r1", target="vdb", state=LayerState.ORPHAN)
    backing = qcow2("/d/base")
    found = apart([qcow2("/d/2"), qcow2("/d/1"), qcow2("/d/own"), backing], [one, orphan, two, elsewhere])
    assert found == Lineage((two, one), (qcow2("/d/own"), backing), (orphan,))
    assert found.base.path == "/d/own"


def test_nothing_of_ours() -> None:
    assert apart([OWN_FILE], []) == Lineage((), (OWN_FILE,), ())


def test_the_disk_was_given_another_name() -> None:
    moved = own("/d/1", "r1", target="vdb")
    assert apart([qcow2("/d/1"), OWN_FILE], [moved]).own == (moved,)


def test_foreign_layer_on_ours() -> None:
    with pytest.raises(ForeignChain, match="/d/snapshot"):
        apart([qcow2("/d/snapshot"), qcow2("/d/1"), OWN_FILE], [own("/d/1", "r1")])


def test_foreign_layer_between_ours() -> None:
    with pytest.raises(ForeignChain):
        apart([qcow2("/d/2"), qcow2("/d/x"), qcow2("/d/1"), OWN_FILE], [own("/d/1", "r1"), own("/d/2", "r2")])


def test_our_name_but_unknown() -> None:
    with pytest.raises(LayerUnknown):
        apart([qcow2("/d/a.raksha-0123abcd-4567ef01-vda.qcow2"), OWN_FILE], [])


def test_our_name_at_the_bottom_is_no_overlay() -> None:
    """A migration with storage copy makes one file of a chain, under the name of its top."""
    copied = qcow2("/d/a.raksha-0123abcd-4567ef01-vda.qcow2")
    assert apart([copied], []).base == copied
    overlay = own("/d/2", "r2")
    assert apart([qcow2("/d/2"), copied], [overlay]) == Lineage((overlay,), (copied,), ())


def decision(
    frozen: list[OwnLayer], parent: Parent | None, replaced: bool = False, distrust: Reason | None = None
) -> Decision:
    return decide(frozen, parent, 100, full_reason=Reason.FIRST_RUN, replaced=replaced, distrust=distrust)


def test_decisions() -> None:
    parent = Parent("r1", 100)
    layers = [own("/d/2", "r2"), own("/d/1", "r1", "r0")]
    assert decision(layers, None) == Decision(ReadMode.FULL, Reason.FIRST_RUN)
    assert decision(layers, Parent("r2", 100)) == Decision(ReadMode.DELTA, None, 1)
    assert decision(layers, parent) == Decision(ReadMode.DELTA, Reason.UNION_OF_LAYERS, 2)
    assert decision(layers, Parent("r0", 100)) == Decision(ReadMode.DELTA, Reason.UNION_OF_LAYERS, 2)
    assert decision(layers, Parent("r9", 100)) == Decision(ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)
    assert decision(layers, Parent("r2", 99)) == Decision(ReadMode.FULL, Reason.DISK_RESIZED)
    assert decision(layers, parent, replaced=True) == Decision(ReadMode.FULL, Reason.DISK_REPLACED)
    assert decision([], parent, distrust=Reason.NO_TRACKER) == Decision(ReadMode.COMPARE, Reason.NO_TRACKER)
    assert decision(layers, parent, distrust=Reason.BASE_WRITTEN) == Decision(ReadMode.COMPARE, Reason.BASE_WRITTEN)


@dataclass
class Model:
    """A disk, its layers (oldest first), and the restore points, each with the whole content of then."""

    content: dict[int, int] = field(default_factory=dict)
    layers: list[tuple[OwnLayer, set[int]]] = field(default_factory=list)
    points: dict[str, dict[int, int]] = field(default_factory=dict)
    clock: int = 0

    def write(self, cluster: int) -> None:
        self.clock += 1
        self.content[cluster] = self.clock
        if self.layers:
            self.layers[-1][1].add(cluster)

    def read(self, parent: str | None) -> None:
        """A delta must hold every cluster that differs from the parent."""
        if parent is None:
            return
        frozen = [layer for layer, _ in reversed(self.layers)]
        distrust = None if frozen else Reason.NO_TRACKER
        found = decision(frozen, Parent(parent, 100), distrust=distrust)
        if found.mode is ReadMode.DELTA:
            held = set().union(*(clusters for _, clusters in self.layers[-found.depth :]))
            then = self.points[parent]
            changed = {key for key in {*then, *self.content} if then.get(key) != self.content.get(key)}
            assert changed <= held

    def online(self, parent: str | None, *, durable: bool) -> None:
        self.read(parent)
        self.clock += 1
        run = f"r{self.clock}"
        frozen = len(self.layers)
        self.layers.append((own(f"/d/{run}", run), set()))
        if durable:
            self.points[run] = dict(self.content)
            del self.layers[:frozen]
        elif frozen >= 4:  # failed for the fifth time: merge into the oldest
            merged = [self.layers.pop(1) for _ in range(frozen - 1)]
            oldest, clusters = self.layers[0]
            counts = oldest.counts_from.union(*(layer.counts_from for layer, _ in merged))
            self.layers[0] = (own(oldest.file.path, *counts), clusters.union(*(held for _, held in merged)))

    def offline(self, parent: str | None) -> None:
        self.read(parent)
        self.clock += 1
        run = f"r{self.clock}"
        self.points[run] = dict(self.content)
        if self.layers:
            top, clusters = self.layers[-1]
            self.layers[-1] = (own(top.file.path, *top.counts_from, run), clusters)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 5)),
        st.tuples(st.sampled_from(["online", "failed", "offline", "delete"]), st.integers(0, 3)),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_a_delta_holds_every_change_since_its_parent(steps: list[tuple[str, int]]) -> None:
    model = Model()
    for step, number in steps:
        if step == "write":
            model.write(number)
            continue
        runs = list(model.points)
        parent = runs[-1 - number % len(runs)] if runs else None
        if step == "delete" and parent:
            del model.points[parent]
        elif step == "offline":
            model.offline(parent)
        else:
            model.online(parent, durable=step == "online")

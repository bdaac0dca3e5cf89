"""Which layers of a disk's chain are ours, and what they can tell about changes since an earlier run.

Pure decisions over what was observed (the chain) and what the journal knows (our layers).

The rule behind all of it: a layer of ours was made by the snapshot of its run, so it and the layers above it hold
every write since that snapshot (and since the runs that were read from the VM while it was shut off on this layer).
An increment on parent P is right only over the layers from one that counts from P up to the top. A superset is right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from msgspec import Struct

from raksha.errors import ForeignChain, LayerUnknown
from raksha.journal import LayerState, OwnLayer
from raksha.states import ReadMode, Reason
from raksha.virt.capture import Parent
from raksha.virt.libvirt.domain_xml import Layer
from raksha.virt.libvirt.overlay_file import is_our_name


class Lineage(Struct, frozen=True):
    """A disk's chain, told apart."""

    #: ours, from the active layer downwards
    own: tuple[OwnLayer, ...]
    #: the VM's own, from its own file downwards
    below: tuple[Layer, ...]
    #: ours, but in no chain: the VM was started below them
    orphans: tuple[OwnLayer, ...]

    @property
    def base(self) -> Layer:
        """The VM's own file."""
        return self.below[0]


class Decision(Struct, frozen=True):
    """How a disk has to be read."""

    mode: ReadMode
    reason: Reason | None
    #: for a delta: number of layers, from the frozen one downwards, that hold the changes
    depth: int = 0


def tell_apart(
    vm: str, target: str, chain: Sequence[Layer], known: Sequence[OwnLayer], same: Callable[[str, str], bool]
) -> Lineage:
    """`known`: all our layers of the VM. Raises `ForeignChain` where a layer that is not ours stands on one that is,
    `LayerUnknown` for one that looks like ours but is not in the journal. The bottom of a chain is no overlay, whatever
    it is called: a migration that copies a disk into one file keeps the name."""
    found = [next((own for own in known if same(own.file.path, layer.path)), None) for layer in chain]
    own = [ours for ours in takewhile(lambda ours: ours is not None, found) if ours is not None]
    below = tuple(chain[len(own) :])
    for layer, ours in zip(below, found[len(own) :], strict=True):
        if ours is not None:
            raise ForeignChain(vm=vm, disk=target, path=chain[0].path)
        if layer is not chain[-1] and is_our_name(layer.path):
            raise LayerUnknown(vm=vm, disk=target, path=layer.path)
    orphans = (ours for ours in known if ours.target == target and ours.state is LayerState.ORPHAN and ours not in own)
    return Lineage(tuple(own), below, tuple(orphans))


def decide(
    frozen: Sequence[OwnLayer],
    parent: Parent | None,
    size: int,
    *,
    full_reason: Reason,
    replaced: bool,
    distrust: Reason | None,
) -> Decision:
    """How to read a disk whose frozen layers of ours are `frozen`, newest first.

    `replaced`: the VM's own file is not the one that our layers were made on. `distrust`: why our layers tell nothing
    about changes, or None.
    """
    if parent is None:
        return Decision(ReadMode.FULL, full_reason)
    if replaced:
        return Decision(ReadMode.FULL, Reason.DISK_REPLACED)
    if parent.size != size:
        return Decision(ReadMode.FULL, Reason.DISK_RESIZED)
    if distrust is not None:
        return Decision(ReadMode.COMPARE, distrust)
    for depth, layer in enumerate(frozen, 1):
        if parent.backupjobrun in layer.counts_from:
            return Decision(ReadMode.DELTA, Reason.UNION_OF_LAYERS if depth > 1 else None, depth)
    return Decision(ReadMode.COMPARE, Reason.TRACKER_OTHER_RUN)

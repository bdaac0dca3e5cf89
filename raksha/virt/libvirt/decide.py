"""What is to be done about a VM as it was seen. Pure: observed state and open intents in, actions or troubles out.

The journal says what is ours and what was begun; what was seen decides. One rule stands above the table in
docs/safety.md: whatever may be the only copy of what a guest wrote is neither deleted nor left out of the next start
without a word.

A plan has two kinds of actions. *Urgent* ones change the VM (thaw, end a job, take an overlay back, put a definition
right); after them somebody must look again. The others only bring journal and files into line, and come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from itertools import pairwise

from msgspec import Struct

from raksha.errors import DefinitionsDisagree, MergeTorn, NeedsAttention, QemuOrphaned, StaleMirror
from raksha.journal import Intent, LayerState
from raksha.virt.libvirt.observe import Seen, SeenDisk, SeenFile, SeenOverlay


class Do(StrEnum):
    """The value is how it is told to people."""

    THAW = "thaw its file systems, which Raksha had frozen"
    AWAIT_JOB = "wait until the merge that is under way ends"
    END_PIVOT = "end the merge that is under way, as was asked for: let the VM go on without the overlay"
    TAKE_BACK = "merge the overlay into what the definition names, and let the VM go on without it"
    RELIEVE = "the file system of the overlay is full: merge it into the VM's own file"
    RESUME = "let the guest go on"
    REDEFINE = "make the definition name the chain that holds the VM's data"
    PUT_BACK = "put the overlay back into the chain: QEMU died before all of it was merged"
    ADOPT = "note that the overlay is part of the chain"
    DOUBT = "note that the overlay is part of the chain, and may lack what was written since"
    FORGET = "forget the overlay, whose file is gone"
    DISCARD = "put the overlay away: nothing needs it"
    ORPHAN = "keep the overlay as an orphan: the VM was started below it"
    SWEEP = "delete a file that was made for an overlay and never used"
    CLOSE = "note that what was begun has ended"


URGENT = frozenset({Do.THAW, Do.AWAIT_JOB, Do.END_PIVOT, Do.TAKE_BACK, Do.RELIEVE, Do.RESUME, Do.REDEFINE, Do.PUT_BACK})


class Action(Struct, frozen=True):
    do: Do
    target: str | None = None
    #: overlays it is about, newest first; for `REDEFINE` the chain to be named
    paths: tuple[str, ...] = ()
    #: for `CLOSE`
    intent: Intent | None = None


class Plan(Struct, frozen=True):
    actions: tuple[Action, ...] = ()
    #: why nothing may be done, see `raksha.errors.NeedsAttention`
    troubles: tuple[NeedsAttention, ...] = ()
    #: what a person should know although nothing is wrong
    notes: tuple[str, ...] = ()

    @property
    def urgent(self) -> tuple[Action, ...]:
        return tuple(action for action in self.actions if action.do in URGENT)


#: operations that run as block jobs
_JOBS = ("commit", "pivot")

#: operations of the engine `overlay`; whoever begins others ends them
_OPERATIONS = frozenset({*_JOBS, "freeze", "snapshot", "offline commit", "redefine", "adopt", "put back"})


def decide(seen: Seen, intents: Sequence[Intent]) -> Plan:
    """`intents`: those of this VM without outcome, oldest first."""
    if trouble := _orphaned(seen):
        return Plan(troubles=(trouble,))
    thaw = [Action(Do.THAW)] if seen.active and any(intent.operation == "freeze" for intent in intents) else []
    if troubles := [_stale_mirror(seen, disk) for disk in seen.disks if disk.mirrored and not disk.job]:
        return Plan(tuple(thaw), tuple(troubles))
    if jobs := _jobs(seen, intents):
        return Plan((*thaw, *jobs))
    if relief := _relief(seen):
        return Plan((*thaw, *relief))
    plans = [_agreement(seen, disk) for disk in seen.disks]
    if any(plan.actions or plan.troubles for plan in plans):
        return Plan(
            (*thaw, *(action for plan in plans for action in plan.actions)),
            tuple(trouble for plan in plans for trouble in plan.troubles),
        )
    if torn := _torn(seen, intents):
        return _mend(seen, torn, thaw)
    # from the top downwards: an overlay whose lower one is gone can no longer be told to be ours
    placed = [_place(seen, overlay, intents) for overlay in reversed(seen.overlays)]
    swept = [_sweep(seen, stray.path, stray.doubts, stray.users) for stray in seen.strays]
    notes = tuple(note for _, note in (*placed, *swept) if note)
    actions = [action for action, _ in (*placed, *swept) if action]
    return Plan((*thaw, *actions, *_closings(intents)), notes=notes)


def _closings(intents: Iterable[Intent]) -> list[Action]:
    return [Action(Do.CLOSE, intent=intent) for intent in intents if intent.operation in _OPERATIONS]


# -- what stops everything ----------------------------------------------------------------------------


def _orphaned(seen: Seen) -> QemuOrphaned | None:
    """A QEMU that libvirt has lost still writes. One that has none of the disks open is about to end."""
    if seen.active:
        return None
    disks = {file.path for disk in seen.disks for file in (*disk.inactive, *(disk.headers or ()))}
    for process in seen.processes:
        held = disks if process.files is None else disks & process.files
        if held:
            return QemuOrphaned(vm=seen.name, pid=process.pid, files=", ".join(sorted(held)))
    return None


def _stale_mirror(seen: Seen, disk: SeenDisk) -> StaleMirror:
    held = sorted({path for process in seen.processes for path in process.files or ()})
    return StaleMirror(vm=seen.name, disk=disk.target, files=", ".join(held) or "unknown")


# -- what changes the VM ------------------------------------------------------------------------------


def _jobs(seen: Seen, intents: Sequence[Intent]) -> list[Action]:
    """Jobs of ours. One of somebody else is none of our business: the VM is busy then."""
    began = {intent.target: intent.operation for intent in intents if intent.operation in _JOBS}
    # A merge of the active layer mirrors until somebody pivots. Breaking it off would leave everything whole, too, but
    # QEMU then keeps the VM's own file open for writing, and nobody could read the frozen chain until it is restarted.
    end = {"commit": Do.AWAIT_JOB, "pivot": Do.END_PIVOT}
    return [Action(end[began[disk.target]], disk.target) for disk in seen.disks if disk.job and disk.target in began]


def _relief(seen: Seen) -> list[Action]:
    """A guest that stands still because an overlay of ours found no space. Other full disks are the owner's."""
    if not seen.stopped_by_disk:
        return []
    ours = [(disk, own) for disk in seen.disks if (own := _own_on_top(seen, disk.live))]
    full = {disk.target for disk in seen.disks if disk.full}
    if not full or not full <= {disk.target for disk, _ in ours}:
        return []
    # All of them: those that have not run into it yet are about to.
    return [*(Action(Do.RELIEVE, disk.target, _paths(own)) for disk, own in ours), Action(Do.RESUME)]


def _agreement(seen: Seen, disk: SeenDisk) -> Plan:
    """What the VM runs on, what it will start on, and what the headers say must be the same, where overlays of ours
    are concerned."""
    if not disk.inactive:
        return Plan()
    if seen.active:
        return _live_agreement(seen, disk) if disk.live else Plan()
    return _cold_agreement(seen, disk)


def _live_agreement(seen: Seen, disk: SeenDisk) -> Plan:
    live, inactive = _keys(disk.live), _keys(disk.inactive)
    if inactive == live[: len(inactive)]:
        return Plan()
    own_live, own_inactive = _own_on_top(seen, disk.live), _own_on_top(seen, disk.inactive)
    if not own_live and not own_inactive:
        return Plan()
    if live[0] == inactive[0]:
        # A merge ended while libvirtd was dead: the definition still names what was merged.
        return Plan((_redefine(disk.target, disk.live),))
    if inactive[0] in live[1 : len(own_live) + 1]:
        # The snapshot is in the VM, but not in the definition, which would boot without it.
        return Plan((Action(Do.TAKE_BACK, disk.target, _paths(own_live[: live.index(inactive[0])])),))
    merge_states = (LayerState.MERGING, LayerState.MERGED)
    merging = bool(own_inactive) and all(overlay.layer.state in merge_states for overlay in own_inactive)
    if merging and live[0] == _key(own_inactive[-1].below):
        return Plan((_redefine(disk.target, disk.live),))  # the pivot is in the VM, but not in the definition
    return _disagree(seen, disk, "the running VM and its definition have different files")


def _cold_agreement(seen: Seen, disk: SeenDisk) -> Plan:
    own = [overlay for overlay in seen.overlays if overlay.layer.target == disk.target and overlay.file]
    if _own_on_top(seen, disk.inactive):
        headers = _keys(disk.headers or ())
        stale = [key for key in _keys(disk.inactive) if key not in headers]
        if headers and stale and set(stale) <= {_key(overlay.file) for overlay in own}:
            return Plan((_redefine(disk.target, disk.inactive[:1]),))
        return Plan()
    above = _above(own, disk.inactive[0].key)
    if not above or not any(overlay.written for overlay in above) or not all(_holds(overlay) for overlay in above):
        return Plan()
    # It was not started below: the definition was replaced, or never followed. Nothing is lost by taking the overlay.
    return Plan((Action(Do.REDEFINE, disk.target, _paths(above[:1])),))


def _above(own: Sequence[SeenOverlay], base: str) -> list[SeenOverlay]:
    """Overlays of ours that stand on `base`, newest first; none where they do not form one line."""
    found: list[SeenOverlay] = []
    while len(found) < len(own):
        standing = [overlay for overlay in own if _key(overlay.below) == base and overlay not in found]
        if len(standing) != 1 or standing[0].file is None:
            break
        found.insert(0, standing[0])
        base = standing[0].file.key
    return found


def _holds(overlay: SeenOverlay) -> bool:
    """Whether it certainly has what the VM wrote last: it is ours, was in use, and nothing was written below it."""
    in_use = overlay.layer.state in (LayerState.PLANNED, LayerState.CHAINED)
    return in_use and not overlay.doubts and overlay.base_untouched is True


def _redefine(target: str, chain: Iterable[SeenFile]) -> Action:
    return Action(Do.REDEFINE, target, tuple(file.path for file in chain))


def _disagree(seen: Seen, disk: SeenDisk, detail: str) -> Plan:
    live = ", on ".join(file.path for file in disk.live) or "nothing"
    inactive = ", on ".join(file.path for file in disk.inactive) or "nothing"
    return Plan(
        troubles=(DefinitionsDisagree(vm=seen.name, disk=disk.target, detail=detail, live=live, inactive=inactive),)
    )


def _torn(seen: Seen, intents: Sequence[Intent]) -> list[tuple[Intent, SeenOverlay]]:
    """Merges with which QEMU died and of which the file below does not have all; with the lowest overlay of each.

    Not pivots: after one the VM writes into that file, so it differs anyway (see `_place`).
    """
    lacking = [overlay for overlay in seen.overlays if overlay.merged is False and not _in_chain(seen, overlay)]
    found = []
    for intent in intents:
        paths = intent.detail.get("layers", []) if intent.operation == "commit" else []
        found += [(intent, overlay) for overlay in lacking if overlay.layer.file.path in paths[-1:]]
    return found


def _mend(seen: Seen, torn: Sequence[tuple[Intent, SeenOverlay]], thaw: Sequence[Action]) -> Plan:
    actions: list[Action] = []
    troubles: list[NeedsAttention] = []
    for intent, lowest in torn:
        top = intent.detail["layers"][0]
        upper = _standing_on(seen, intent.target, _key(lowest.below))
        if seen.active or upper is None:
            base = lowest.below.path if lowest.below else "what lies below"
            troubles.append(MergeTorn(vm=seen.name, disk=intent.target, layer=top, base=base))
        else:
            actions.append(Action(Do.PUT_BACK, intent.target, (upper, top)))
    return Plan((*thaw, *actions), tuple(troubles))


def _standing_on(seen: Seen, target: str | None, key: str) -> str | None:
    """The overlay of ours that stands directly on a file, by the headers of a disk."""
    own = {_key(overlay.file) for overlay in seen.overlays}
    for disk in seen.disks:
        chain = disk.headers or () if disk.target == target else ()
        for upper, lower in pairwise(chain):
            if lower.key == key and upper.key in own:
                return upper.path
    return None


# -- journal and files --------------------------------------------------------------------------------


def _place(seen: Seen, overlay: SeenOverlay, intents: Sequence[Intent]) -> tuple[Action | None, str | None]:
    """What becomes of one overlay; and a note."""
    layer, path = overlay.layer, overlay.layer.file.path
    if overlay.file is None:
        named = any(path == file.path for disk in seen.disks for file in (*disk.live, *disk.inactive))
        return (None, None) if named else (Action(Do.FORGET, layer.target, (path,)), None)
    if _in_chain(seen, overlay):
        if layer.state is LayerState.MERGED:
            note = f"{path} was merged, and somebody put it back into the chain"
            return Action(Do.ORPHAN, layer.target, (path,)), note
        if layer.state is LayerState.MERGING and _left_unseen(seen, overlay, intents):
            note = f"the VM may have run without {path} before it was started again; the next backup compares"
            return Action(Do.DOUBT, layer.target, (path,)), note
        unsure = layer.state in (LayerState.PLANNED, LayerState.MERGING)
        return (Action(Do.ADOPT, layer.target, (path,)) if unsure else None), None
    if any(disk.headers is None and disk.target == layer.target for disk in seen.disks):
        return None, None  # what is used cannot be told; whoever wants to use the disk is refused and told why
    if not overlay.written or _was_merged(seen, overlay, intents):
        return (
            _sweep(seen, path, overlay.doubts, overlay.users, Do.DISCARD, layer.target)
            if layer.state is not LayerState.ORPHAN
            else (None, None)
        )
    attached = any(disk.target == layer.target for disk in seen.disks)
    how = f"was started below {path}" if attached else f"was taken out of the VM without {path} being merged"
    note = f"disk {layer.target} {how}; what the VM wrote into that file since is only there"
    return (None if layer.state is LayerState.ORPHAN else Action(Do.ORPHAN, layer.target, (path,))), note


def _left_unseen(seen: Seen, overlay: SeenOverlay, intents: Sequence[Intent]) -> bool:
    """Whether a QEMU that is no more may have gone on below an overlay: it was asked to, and libvirtd died before it
    noted that. What the guest wrote then is in no overlay."""
    running = {process.identity for process in seen.processes}
    asked = [i for i in intents if i.operation == "pivot" and i.target == overlay.layer.target]
    return any(intent.detail.get("process") not in running for intent in asked)


def _was_merged(seen: Seen, overlay: SeenOverlay, intents: Sequence[Intent]) -> bool:
    """Whether an overlay that is in no chain left it by our own merge."""
    if overlay.layer.state is LayerState.MERGED:
        return True
    if overlay.layer.state is not LayerState.MERGING:
        return False
    began = [i for i in intents if i.operation in (*_JOBS, "offline commit") and i.target == overlay.layer.target]
    if any(intent.operation == "offline commit" for intent in began):
        return True  # we rewrite the definition only when everything is merged
    # A QEMU that goes on ended its merge, or left its active layer by a pivot. One that died may have had part of it in
    # memory, and another one may have been started below.
    running = {process.identity for process in seen.processes}
    return overlay.merged is True or any(intent.detail.get("process") in running for intent in began)


def _sweep(
    seen: Seen,
    path: str,
    doubts: Sequence[str],
    users: Sequence[int],
    do: Do = Do.SWEEP,
    target: str | None = None,
) -> tuple[Action | None, str | None]:
    if any(path == file.path for disk in seen.disks for file in (*disk.live, *disk.inactive, *(disk.headers or ()))):
        return None, None
    if doubts:
        return None, f"{path} was left alone: {doubts[0]}"
    if users:
        return None, f"{path} was left alone: process {users[0]} has it open"
    return Action(do, target, (path,)), None


def _in_chain(seen: Seen, overlay: SeenOverlay) -> bool:
    key = _key(overlay.file)
    chains = ((*disk.live, *disk.inactive, *(disk.headers or ())) for disk in seen.disks)
    return any(key == file.key for chain in chains for file in chain)


def _own_on_top(seen: Seen, chain: Sequence[SeenFile]) -> list[SeenOverlay]:
    """Overlays of ours that a chain begins with, newest first."""
    own = {_key(overlay.file): overlay for overlay in seen.overlays if overlay.file}
    found = []
    for file in chain:
        if file.key not in own:
            break
        found.append(own[file.key])
    return found


def _key(file: SeenFile | None) -> str:
    return file.key if file else ""


def _keys(chain: Iterable[SeenFile]) -> list[str]:
    return [file.key for file in chain]


def _paths(overlays: Iterable[SeenOverlay]) -> tuple[str, ...]:
    return tuple(overlay.layer.file.path for overlay in overlays)

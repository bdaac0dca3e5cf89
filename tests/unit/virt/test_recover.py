"""What is decided about a VM as it was seen: the table of docs/safety.md, line by line, without a hypervisor."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from raksha.errors import DefinitionsDisagree, MergeTorn, QemuOrphaned, StaleMirror
from raksha.journal import Base, FileId, Intent, LayerState, OwnLayer
from raksha.virt.libvirt.decide import Do, Plan, decide
from raksha.virt.libvirt.observe import Seen, SeenDisk, SeenFile, SeenOverlay, SeenStray
from raksha.virt.libvirt.processes import Process

QEMU = Process(77, "77@1000", frozenset({"/vm/new", "/vm/old", "/vm/own"}))


def file(name: str) -> SeenFile:
    return SeenFile(f"/vm/{name}", f"1:{name}", "raw" if name == "own" else "qcow2")


def chain(*names: str) -> tuple[SeenFile, ...]:
    return tuple(map(file, names))


def overlay(
    name: str,
    below: str,
    state: LayerState = LayerState.CHAINED,
    *,
    gone: bool = False,
    written: bool = True,
    doubts: tuple[str, ...] = (),
    untouched: bool | None = True,
    users: tuple[int, ...] = (),
    merged: bool | None = None,
) -> SeenOverlay:
    base = Base(FileId("/vm/own", 1, 1), "file", "raw", 5)
    layer = OwnLayer("uuid", "vda", FileId(f"/vm/{name}", 1, 2), base, "run", "job", state, frozenset({"run"}))
    return SeenOverlay(layer, None if gone else file(name), file(below), doubts, written, untouched, users, merged)


def disk(
    live: tuple[SeenFile, ...],
    inactive: tuple[SeenFile, ...],
    headers: tuple[SeenFile, ...] | None = None,
    *,
    job: bool = False,
    mirrored: bool = False,
    full: bool = False,
) -> SeenDisk:
    return SeenDisk("vda", live, inactive, headers or live or inactive, job, mirrored, full)


def seen(
    one: SeenDisk, *overlays: SeenOverlay, power: str = "running", strays: tuple[SeenStray, ...] = (), **more: object
) -> Seen:
    processes = (QEMU,) if power != "shut off" else ()
    made = Seen("uuid", "vm", power, False, processes, (one,), overlays, strays)
    return replace(made, **more)  # type: ignore[arg-type]


def intent(operation: str, **detail: object) -> Intent:
    return Intent(9, operation, "run", "uuid", "vda", detail, 0.0)


def doing(plan: Plan) -> list[tuple[Do, tuple[str, ...]]]:
    return [(action.do, tuple(path.removeprefix("/vm/") for path in action.paths)) for action in plan.actions]


NEW, OLD = overlay("new", "old"), overlay("old", "own")
TWO = chain("new", "old", "own")
ONE = chain("old", "own")
OWN = chain("own")


def test_all_agree() -> None:
    assert decide(seen(disk(TWO, TWO), NEW, OLD), []) == Plan()
    assert decide(seen(disk((), ONE), OLD, power="shut off"), []) == Plan()
    assert decide(seen(disk(TWO, TWO[:1]), NEW, OLD), []) == Plan(), "a definition may end early"
    assert decide(seen(disk(OWN, OWN)), []) == Plan()


# -- snapshot ------------------------------------------------------------------------------------------


def test_snapshot_that_did_not_happen() -> None:
    planned = overlay("new", "own", LayerState.PLANNED, written=False)
    plan = decide(seen(disk(OWN, OWN), planned), [intent("snapshot", overlays=["/vm/new"])])
    assert doing(plan) == [(Do.DISCARD, ("new",)), (Do.CLOSE, ())]


def test_snapshot_that_happened() -> None:
    planned = overlay("old", "own", LayerState.PLANNED)
    plan = decide(seen(disk(ONE, ONE), planned), [intent("snapshot", overlays=["/vm/old"])])
    assert doing(plan) == [(Do.ADOPT, ("old",)), (Do.CLOSE, ())]


@pytest.mark.parametrize("state", [LayerState.PLANNED, LayerState.CHAINED])
def test_snapshot_in_the_vm_but_not_in_the_definition(state: LayerState) -> None:
    top = overlay("new", "old", state)
    assert doing(decide(seen(disk(TWO, ONE), top, OLD), [])) == [(Do.TAKE_BACK, ("new",))]
    assert doing(decide(seen(disk(TWO, OWN), top, OLD), [])) == [(Do.TAKE_BACK, ("new", "old"))]


def test_snapshot_that_only_a_vm_that_is_off_has() -> None:
    planned = overlay("old", "own", LayerState.PLANNED)
    gone = seen(disk((), OWN), planned, power="shut off")
    assert doing(decide(gone, [intent("snapshot", overlays=["/vm/old"])])) == [(Do.REDEFINE, ("old",))]


def test_stray_files() -> None:
    stray = SeenStray("/vm/stray", "run", (), ())
    begun = [intent("snapshot", overlays=["/vm/stray"])]
    assert doing(decide(seen(disk(OWN, OWN), strays=(stray,)), begun))[0] == (Do.SWEEP, ("stray",))
    for kept in (replace(stray, doubts=("it is strange",)), replace(stray, users=(5,))):
        plan = decide(seen(disk(OWN, OWN), strays=(kept,)), begun)
        assert doing(plan) == [(Do.CLOSE, ())] and "left alone" in plan.notes[0]
    named = disk(chain("stray", "own"), chain("stray", "own"))
    assert doing(decide(seen(named, strays=(stray,)), begun)) == [(Do.CLOSE, ())]


# -- merges --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("operation", "action"), [("commit", Do.AWAIT_JOB), ("pivot", Do.END_PIVOT)])
def test_job_of_ours(operation: str, action: Do) -> None:
    busy = seen(disk(ONE, ONE, job=True, mirrored=operation == "pivot"), OLD)
    assert doing(decide(busy, [intent(operation)])) == [(action, ())]
    assert decide(busy, []) == Plan(), "a job of somebody else is his"


def test_merge_that_ended() -> None:
    old = overlay("old", "own", LayerState.MERGING)
    after = disk(chain("new", "own"), chain("new", "own"))
    plan = decide(seen(after, overlay("new", "own"), old), [intent("commit", process=QEMU.identity)])
    assert doing(plan) == [(Do.DISCARD, ("old",)), (Do.CLOSE, ())]


def test_several_that_were_merged_go_from_the_top_downwards() -> None:
    """Each is recognised by what it stands on, so that must be there still."""
    merged = [overlay(name, below, LayerState.MERGING) for name, below in (("1", "own"), ("2", "1"), ("3", "2"))]
    after = disk(chain("new", "own"), chain("new", "own"))
    plan = decide(seen(after, *merged, overlay("new", "own")), [intent("commit", process=QEMU.identity)])
    assert doing(plan) == [(Do.DISCARD, ("3",)), (Do.DISCARD, ("2",)), (Do.DISCARD, ("1",)), (Do.CLOSE, ())]


@pytest.mark.parametrize("operation", ["commit", "pivot"])
def test_merge_of_a_qemu_that_died(operation: str) -> None:
    """The headers are no proof then: what counts is whether the file below has it all."""
    after, began = disk((), chain("new", "own")), [intent(operation, layers=["/vm/old"], process="1@1")]

    def plan(merged: bool | None, **more: object) -> Plan:
        old = overlay("old", "own", LayerState.MERGING, merged=merged)
        return decide(seen(after, old, overlay("new", "own"), power="shut off", **more), began)

    assert doing(plan(True)) == [(Do.DISCARD, ("old",)), (Do.CLOSE, ())]
    assert doing(plan(None)) == [(Do.ORPHAN, ("old",)), (Do.CLOSE, ())]
    kept = [(Do.ORPHAN, ("old",)), (Do.CLOSE, ())]
    assert doing(plan(False)) == (kept if operation == "pivot" else [(Do.PUT_BACK, ("new", "old"))])


def test_torn_merge_of_several() -> None:
    """They are a chain still; it goes back as a whole, below the overlay that stood on it."""
    merge = [overlay(name, below, LayerState.MERGING, merged=False) for name, below in (("1", "own"), ("2", "1"))]
    began = intent("commit", layers=["/vm/2", "/vm/1"], process="1@1")
    off = seen(disk((), chain("new", "own")), *merge, overlay("new", "own"), power="shut off")
    assert doing(decide(off, [began])) == [(Do.PUT_BACK, ("new", "2"))]


def test_torn_merge_below_a_vm_that_runs() -> None:
    old, new = overlay("old", "own", LayerState.MERGING, merged=False), overlay("new", "own")
    running = seen(disk(chain("new", "own"), chain("new", "own")), old, new)
    (trouble,) = decide(running, [intent("commit", layers=["/vm/old"], process="1@1")]).troubles
    assert isinstance(trouble, MergeTorn) and trouble.fields["base"] == "/vm/own"


def test_merge_that_did_not_begin_or_end() -> None:
    old = overlay("old", "own", LayerState.MERGING)
    plan = decide(seen(disk(TWO, TWO), NEW, old), [intent("commit", process=QEMU.identity)])
    assert doing(plan) == [(Do.ADOPT, ("old",)), (Do.CLOSE, ())]


def test_merge_that_the_definition_did_not_follow() -> None:
    old, new = overlay("old", "own", LayerState.MERGING), overlay("new", "own")
    running = disk(chain("new", "own"), TWO)
    assert doing(decide(seen(running, new, old), [intent("commit")])) == [(Do.REDEFINE, ("new", "own"))]
    off = disk((), TWO, chain("new", "own"))
    assert doing(decide(seen(off, new, old, power="shut off"), [intent("commit")])) == [(Do.REDEFINE, ("new",))]


def test_pivot_that_ended() -> None:
    old = overlay("old", "own", LayerState.MERGING)
    plan = decide(seen(disk(OWN, OWN), old), [intent("pivot", process=QEMU.identity)])
    assert doing(plan) == [(Do.DISCARD, ("old",)), (Do.CLOSE, ())]


def test_pivot_that_the_definition_did_not_follow() -> None:
    old = overlay("old", "own", LayerState.MERGING)
    plan = decide(seen(disk(OWN, ONE), old), [intent("pivot", process=QEMU.identity)])
    assert doing(plan) == [(Do.REDEFINE, ("own",))]


def test_pivot_in_a_qemu_that_is_no_more() -> None:
    """Whether it happened, or the VM was started below, cannot be told: the overlay may be the only copy."""
    old = overlay("old", "own", LayerState.MERGING)
    for one in (seen(disk(OWN, OWN), old), seen(disk((), OWN), old, power="shut off")):
        plan = decide(one, [intent("pivot", process="66@900")])
        assert doing(plan) == [(Do.ORPHAN, ("old",)), (Do.CLOSE, ())] and "/vm/old" in plan.notes[0]


def test_pivot_in_a_qemu_that_is_no_more_of_an_overlay_that_is_in_the_chain_again() -> None:
    """The guest may have written below it meanwhile, so it does not tell all that has changed."""
    old = overlay("old", "own", LayerState.MERGING)
    for one in (seen(disk(ONE, ONE), old), seen(disk((), ONE), old, power="shut off")):
        plan = decide(one, [intent("pivot", process="66@900")])
        assert doing(plan) == [(Do.DOUBT, ("old",)), (Do.CLOSE, ())] and "/vm/old" in plan.notes[0]
    same = decide(seen(disk(ONE, ONE), old), [intent("pivot", process=QEMU.identity)])
    assert doing(same) == [(Do.ADOPT, ("old",)), (Do.CLOSE, ())]


def test_an_unused_overlay_holds_nothing() -> None:
    old = overlay("old", "own", LayerState.CHAINED, written=False)
    assert doing(decide(seen(disk(OWN, OWN), old), [])) == [(Do.DISCARD, ("old",))]


@pytest.mark.parametrize("kept", [{"doubts": ("it is marked otherwise",)}, {"users": (5,)}])
def test_what_is_not_certainly_ours_or_free_stays(kept: dict[str, tuple[str, ...]]) -> None:
    merged = overlay("old", "own", LayerState.MERGED, **kept)  # type: ignore[arg-type]
    plan = decide(seen(disk(OWN, OWN), merged), [])
    assert plan.actions == () and "/vm/old was left alone" in plan.notes[0]


# -- what others did -----------------------------------------------------------------------------------


def test_started_below() -> None:
    plan = decide(seen(disk(OWN, OWN), OLD), [])
    assert doing(plan) == [(Do.ORPHAN, ("old",))] and "started below /vm/old" in plan.notes[0]
    plan = decide(seen(disk(OWN, OWN), overlay("old", "own", LayerState.ORPHAN)), [])
    assert doing(plan) == [] and "started below /vm/old" in plan.notes[0], "it is told every time"


def test_defined_below_while_it_is_off() -> None:
    off = disk((), OWN)
    assert doing(decide(seen(off, NEW, OLD, power="shut off"), [])) == [(Do.REDEFINE, ("new",))]
    for written in (False, None):  # started below meanwhile, or a block device, of which it cannot be told
        touched = overlay("old", "own", untouched=written)
        assert doing(decide(seen(off, touched, power="shut off"), [])) == [(Do.ORPHAN, ("old",))]
    orphan = overlay("old", "own", LayerState.ORPHAN)
    assert doing(decide(seen(off, orphan, power="shut off"), [])) == [], "its owner has decided already"
    strange = overlay("old", "own", doubts=("it is marked otherwise",))
    assert Do.REDEFINE not in [do for do, _ in doing(decide(seen(off, strange, power="shut off"), []))]


def test_merged_overlay_put_back() -> None:
    plan = decide(seen(disk(ONE, ONE), overlay("old", "own", LayerState.MERGED)), [])
    assert doing(plan) == [(Do.ORPHAN, ("old",))], "it counts from no run any more"


def test_files_that_are_gone() -> None:
    lost = overlay("old", "own", gone=True)
    assert doing(decide(seen(disk(OWN, OWN), lost), [])) == [(Do.FORGET, ("old",))]
    named = disk((), ONE, None)
    assert decide(seen(named, lost, power="shut off"), []) == Plan(), "the definition still wants it"


def test_a_chain_that_cannot_be_followed_lets_nothing_be_put_away() -> None:
    broken = replace(disk(OWN, OWN), headers=None)
    assert decide(seen(broken, overlay("old", "own", LayerState.MERGED)), []) == Plan()


def test_definition_with_another_file() -> None:
    plan = decide(seen(disk(ONE, chain("other")), OLD), [])
    assert plan.actions == () and isinstance(plan.troubles[0], DefinitionsDisagree)
    assert "/vm/other" in plan.troubles[0].advice()
    assert decide(seen(disk(chain("theirs"), chain("other"))), []) == Plan(), "no overlay of ours is concerned"


# -- what stops ----------------------------------------------------------------------------------------


def test_orphaned_qemu() -> None:
    off = seen(disk((), ONE), OLD, power="shut off", processes=(QEMU,))
    plan = decide(off, [intent("freeze"), intent("pivot")])
    assert plan.actions == () and isinstance(plan.troubles[0], QemuOrphaned)
    assert plan.troubles[0].fields == {"vm": "vm", "pid": 77, "files": "/vm/old, /vm/own"}
    unseen = replace(off, processes=(replace(QEMU, files=None),))
    assert isinstance(decide(unseen, []).troubles[0], QemuOrphaned), "what cannot be looked at counts as open"
    ending = replace(off, processes=(replace(QEMU, files=frozenset({"/log"})),))
    assert decide(ending, []) == Plan()


def test_stale_mirror() -> None:
    wedged = seen(disk(ONE, ONE, mirrored=True), OLD)
    plan = decide(wedged, [intent("pivot"), intent("freeze")])
    assert isinstance(plan.troubles[0], StaleMirror)
    assert doing(plan) == [(Do.THAW, ())], "a frozen guest is thawed anyway"


def test_frozen_guest() -> None:
    assert doing(decide(seen(disk(ONE, ONE), OLD), [intent("freeze")])) == [(Do.THAW, ()), (Do.CLOSE, ())]
    off = seen(disk((), ONE), OLD, power="shut off")
    assert doing(decide(off, [intent("freeze")])) == [(Do.CLOSE, ())]


# -- space ---------------------------------------------------------------------------------------------


def test_guest_without_space() -> None:
    stopped = {"power": "paused", "stopped_by_disk": True}
    plan = decide(seen(disk(TWO, TWO, full=True), NEW, OLD, **stopped), [])  # type: ignore[arg-type]
    assert doing(plan) == [(Do.RELIEVE, ("new", "old")), (Do.RESUME, ())]
    theirs = seen(disk(OWN, OWN, full=True), **stopped)  # type: ignore[arg-type]
    assert decide(theirs, []) == Plan(), "a disk of the owner is full"
    by_hand = seen(disk(TWO, TWO, full=True), NEW, OLD, power="paused")
    assert decide(by_hand, []) == Plan(), "somebody paused it"


def test_operations_of_others_are_left_to_them() -> None:
    assert decide(seen(disk(ONE, ONE), OLD), [intent("pull"), intent("something new")]) == Plan()

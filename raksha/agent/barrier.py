"""One VM's part in a consistency group: all of them freeze, then all snapshot, then all thaw.

::

    JOINED                    prepared; wait until the group is FREEZING
    freeze; FROZEN            wait until it is SNAPSHOTTING
    snapshot; CAPTURED        under this very freeze, before the deadline of the group; wait until it is DONE
    thaw; THAWED              and whatever happens: FAILED, the group is given up

While the guest is frozen nothing is waited for longer than `freeze_deadline`, bus or no bus; and should this process
hang or die, the watchdog process of the freeze thaws at that time (`raksha.virt.libvirt.thaw_watchdog`).

A VM that cannot be frozen, and need not be, takes part all the same: it says no time at which it was FROZEN.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raksha.agent.clock import DatabaseClock
from raksha.agent.host import Host
from raksha.agent.work import Work
from raksha.errors import EpochStale, GroupFailed, Interrupted, RakshaError, StateConflict
from raksha.rpc import Question, Verb
from raksha.states import BarrierState, MemberState
from raksha.tasks import ENTER, LOOK, NOT_NOW, THAWED, BackupOrder, Enter, Look, Seen, Thawed
from raksha.virt.capture import Capture, Prepared

_log = logging.getLogger(__name__)

#: seconds between two looks at a group: while all can wait, and while guests stand still
_POLL, _POLL_FROZEN = 0.25, 0.05


class Member:
    """One use."""

    def __init__(self, host: Host, work: Work, order: BackupOrder) -> None:
        self._host = host
        self._work = work
        self._vm = order.vm
        self._group = order.group or ""
        self._alone = order.alone
        self._clock = DatabaseClock()
        #: by the monotonic clock, when the guest must go on; None: it is not frozen
        self._until: float | None = None

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Whoever waits for this VM learns at once that it will not come."""
        try:
            yield
        except BaseException as error:
            told = error if isinstance(error, RakshaError) else GroupFailed(vm=self._vm, detail=type(error).__name__)
            epoch = self._work.epoch
            failed = Enter(group=self._group, vm=self._vm, epoch=epoch, to=MemberState.FAILED, error=told.document())
            self._host.said.say(ENTER, failed)
            raise

    def capture(self, prepared: Prepared) -> Capture:
        """Raises `GroupFailed`, `Interrupted` and what captures raise; then `prepared` is cancelled."""
        try:
            self._together(prepared)
            prepared.thaw()
            thawed = self._clock.now()
            capture = prepared.capture()
        except BaseException:
            prepared.thaw()
            prepared.cancel()
            raise
        said = Thawed(group=self._group, vm=self._vm, epoch=self._work.epoch, at=thawed.at)
        self._host.said.say(THAWED, said)
        return capture

    def _together(self, prepared: Prepared) -> None:
        """Until the snapshot is taken, and all others have theirs."""
        self._step("waiting for the others")
        self._await(self._enter(MemberState.JOINED), BarrierState.FREEZING)
        self._work.wait_for_lease()
        self._step("freezing")
        frozen = self._freeze(prepared)
        at = self._clock.now()
        seen = self._enter(MemberState.FROZEN, at=at.at if frozen else None, error=at.error)
        seen = self._await(seen, BarrierState.SNAPSHOTTING)
        self._snapshot(prepared, seen, frozen)

    def _freeze(self, prepared: Prepared) -> bool:
        self._until = time.monotonic() + self._host.settings.freeze_deadline
        prepared.freeze()
        return prepared.holds()

    def _snapshot(self, prepared: Prepared, seen: Seen, frozen: bool) -> None:
        self._step("taking the snapshot")
        if frozen and not prepared.holds():
            raise self._failed("its freeze did not last until the snapshot")
        now = self._clock.now()
        if now.at + now.error * 1_000_000 >= seen.deadline_at:
            raise self._failed("the time of the group was over before its snapshot")
        before = time.monotonic()
        prepared.snapshot()
        after = time.monotonic()
        if frozen and not prepared.holds():
            raise self._failed("its freeze did not last until the snapshot was taken")
        taken = self._clock.at((before + after) / 2)
        error = taken.error + (after - before) / 2
        seen = self._enter(MemberState.CAPTURED, at=taken.at, error=error)
        try:
            self._await(seen, BarrierState.DONE)
        except GroupFailed:
            # this VM has its snapshot under its own freeze; whether that is wanted without the others, its job says
            if not self._alone:
                raise
            _log.warning("the group of VM %s failed after its snapshot", self._vm)

    # -- asking -------------------------------------------------------------------------------------

    def _await(self, seen: Seen, wanted: BarrierState) -> Seen:
        """Look again and again. Raises `GroupFailed`."""
        while seen.state is not wanted:
            if seen.state is BarrierState.FAILED or _rank(seen.state) > _rank(wanted):
                raise self._failed(f"the group is {seen.state}")
            self._pause()
            seen = self._ask(LOOK, Look(group=self._group))
        return seen

    def _enter(self, to: MemberState, at: int | None = None, error: float | None = None) -> Seen:
        epoch = self._work.epoch
        said = Enter(group=self._group, vm=self._vm, epoch=epoch, to=to, at=at, clock_error_seconds=error)
        return self._ask(ENTER, said)

    def _ask(self, verb: Verb[Question, Seen], question: Question) -> Seen:
        """Until there is an answer, or the guest must go on. Raises `GroupFailed`, `Interrupted`."""
        while True:
            before = time.monotonic()
            try:
                seen = self._host.schedulers.call(verb, question, self._patience())
            except NOT_NOW:
                self._pause()
                continue
            except (EpochStale, StateConflict) as error:
                raise self._failed(str(error)) from error
            self._clock.sample(before, time.monotonic(), seen.now)
            return seen

    def _patience(self) -> float:
        patience = self._host.agent.patience
        return patience if self._until is None else max(0.1, min(patience, self._until - time.monotonic()))

    def _pause(self) -> None:
        if self._until is not None and time.monotonic() >= self._until:
            raise self._failed("its guest stood still for as long as it may")
        if self._work.over.wait(_POLL if self._until is None else _POLL_FROZEN):
            raise Interrupted()

    def _failed(self, detail: str) -> GroupFailed:
        return GroupFailed(vm=self._vm, detail=detail)

    def _step(self, text: str) -> None:
        self._work.progress.step(text)


_ORDER = (BarrierState.GATHERING, BarrierState.FREEZING, BarrierState.SNAPSHOTTING, BarrierState.DONE)


def _rank(state: BarrierState) -> int:
    return _ORDER.index(state)

"""The one thread of an agent that keeps the schedulers told, and asks them for work. Rounds, each in this order::

    register                    if no scheduler knows this start of the agent
    ends of claims              what is acknowledged is forgotten; before anything that could claim a task again
    what else is to be heard    members of groups that thawed, tasks handed back
    renew leases                a third of their time after the last answer
    progress                    of what has changed, once a second
    heartbeat                   with the VMs seen, where they have changed
    claim                       when somebody woke us, when there is room again, else every few seconds

`EpochStale` casts doubt on a claim: either somebody else has the task, or this agent has claimed it once more without
hearing of it (the answer was lost). The next claim tells, since it names every claim that is known here: it brings the
task back under a new epoch, and work goes on; or it does not, and what was done is given up.

A question without an answer ends the round: the bus is away. Nothing is lost, the next round asks again. Tasks go on
meanwhile; what they may not do without a lease, they wait for themselves (`Work.wait_for_lease`).
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Collection
from functools import partial

import raksha
from raksha.agent.crew import Crew
from raksha.agent.host import Host
from raksha.agent.outbox import Outbox
from raksha.agent.seen import Sight
from raksha.agent.work import End, Work
from raksha.errors import BusUnavailable, EpochStale, RakshaError, RowNotFound, StateConflict, StillNeeded
from raksha.states import ServiceState, TaskKind
from raksha.tasks import (
    CLAIM,
    FINISH,
    HEARTBEAT,
    REGISTER,
    RENEW,
    REPORT,
    BackupOrder,
    BootOrder,
    Claim,
    Finish,
    Heartbeat,
    Held,
    Register,
    Registered,
    RestoreOrder,
    VerifyOrder,
)

_log = logging.getLogger(__name__)

#: that make room, and are taken however busy the host is
LIGHT = (TaskKind.FINISH, TaskKind.RELEASE)
HEAVY = (TaskKind.BACKUP, TaskKind.RESTORE, TaskKind.VERIFY)
#: the last to get room, and a bound of their own
BOOT = (TaskKind.BOOT,)
#: of light tasks at once
_LIGHT_AT_ONCE = 16
#: seconds between two rounds: while nothing is under way, while something is, and after one without an answer
_IDLE, _BUSY, _AWAY = 5.0, 0.5, 1.0
#: seconds after which VMs are told again although they have not changed
_TELL_AGAIN = 60.0
#: what can be ended because somebody wants it no more
_CANCELLABLE = (BackupOrder, RestoreOrder, VerifyOrder, BootOrder)


class Keeper:
    """`round` is called by one thread; the rest by any."""

    def __init__(self, host: Host, crew: Crew, outbox: Outbox, sight: Sight, capabilities: dict[str, object]) -> None:
        self._host = host
        self._crew = crew
        self._outbox = outbox
        self._sight = sight
        self._capabilities = capabilities
        self._instance = str(uuid.uuid4())
        self._registered: Registered | None = None
        self._state = ServiceState.ENABLED
        self._woken = threading.Event()
        #: a claim is due at once
        self._hinted = True
        self._away = False
        #: another start of this agent has registered: this one ends what it has
        self.replaced = False
        #: tasks of which it is to be seen whether they are still ours
        self._doubted: set[str] = set()
        #: only what ends something is claimed
        self.draining = False
        self._heartbeat_at = self._claim_at = 0.0
        self._told_at = 0.0
        #: state of their progress at the last report, and when that was, by task
        self._reported: dict[str, tuple[int, float]] = {}

    def wake(self, *, claim: bool = True) -> None:
        """Begin a round now."""
        self._hinted = self._hinted or claim
        self._woken.set()

    def wait(self) -> None:
        """Until the next round is due."""
        busy = bool(self._crew.working() or self._host.said.waiting() or self._outbox.waiting())
        pause = _AWAY if self._away else _BUSY if busy else min(_IDLE, self._host.agent.poll_interval)
        self._woken.wait(pause)
        self._woken.clear()

    def round(self) -> None:
        """Never raises."""
        steps = (self._register, self._deliver, self._say, self._renew, self._report, self._heartbeat, self._claim)
        self._host.metrics.captures.set(self._host.captures.count())
        try:
            for step in steps:
                self._guarded(step.__name__.strip("_"), step)
        except BusUnavailable as error:
            self._host.metrics.unanswered.inc()
            if not self._away:
                _log.warning("%s What is under way goes on.", error, extra={"action": "bus"})
            self._away = True
            return
        if self._away:
            _log.info("schedulers answer again", extra={"action": "bus"})
        self._away = False

    def _guarded(self, name: str, step: Callable[[], None]) -> None:
        """Raises `BusUnavailable`. Any other failure ends this step alone; it comes again with the next round."""
        try:
            step()
        except BusUnavailable:
            raise
        except RakshaError as error:
            _log.error("%s: %s", name, error, extra={"action": name})
        except Exception:  # what nobody thought of must not end the agent
            _log.exception("%s failed", name, extra={"action": name})

    # -- the process --------------------------------------------------------------------------------

    def _register(self) -> None:
        if self._registered is not None or self.replaced:
            return
        agent = self._host.agent
        me = Register(
            host=agent.host,
            instance=self._instance,
            version=raksha.__version__,
            zone=agent.zone or None,
            capacity=agent.capacity,
            capabilities=self._capabilities,
        )
        self._registered = self._host.schedulers.call(REGISTER, me)
        self._wanted(self._registered.state)
        self._heartbeat_at = self._told_at = 0.0
        _log.info("registered as %s (%s)", agent.host, self._registered.service_id, extra={"action": "register"})

    def _heartbeat(self) -> None:
        known = self._registered
        now = time.monotonic()
        if known is None or now < self._heartbeat_at:
            return
        vms, version = self._sight.latest()
        changed = version != self._sight.told or now - self._told_at > _TELL_AGAIN
        load = len(self._crew.working()) + self._host.captures.count()
        said = Heartbeat(service_id=known.service_id, instance=self._instance, load=load, vms=vms if changed else None)
        try:
            self._wanted(self._host.schedulers.call(HEARTBEAT, said).state)
        except RowNotFound:
            self._registered = None
            self.wake()
            return
        except StillNeeded as error:
            self._give_place(error)
            return
        if changed and vms is not None:
            self._sight.told, self._told_at = version, now
        self._heartbeat_at = now + known.heartbeat_seconds
        self._host.metrics.heard_at.set_to_current_time()

    def _wanted(self, state: ServiceState) -> None:
        if state is not self._state:
            _log.info("this agent is %s now", state, extra={"action": "state"})
        self._state = state

    def _give_place(self, error: StillNeeded) -> None:
        if not self.replaced:
            _log.error("another agent has the name %s: %s", self._host.agent.host, error, extra={"action": "replaced"})
        self.replaced = True

    # -- ends, leases, progress ---------------------------------------------------------------------

    def _deliver(self) -> None:
        waiting = self._outbox.waiting()
        self._host.metrics.results.set(len(waiting))
        for finish in waiting:
            # one that nobody can take must not hold up the others
            self._guarded("deliver", partial(self._deliver_one, finish))

    def _deliver_one(self, finish: Finish) -> None:
        if finish.task_id in self._doubted:
            return
        try:
            self._host.schedulers.call(FINISH, finish)
        except EpochStale as error:
            self._doubt(finish.task_id, error)
            return
        except (StateConflict, RowNotFound) as error:
            _log.warning("the end of task %s is not wanted: %s", finish.task_id, error, extra={"action": "finish"})
            self._crew.give_up(finish.task_id)
        self._outbox.taken(finish.task_id)
        self._hinted = True

    def _doubt(self, task_id: str, error: EpochStale) -> None:
        _log.info("task %s: %s", task_id, error, extra={"action": "doubt"})
        self._doubted.add(task_id)
        self._hinted = True

    def _say(self) -> None:
        for saying in self._host.said.waiting():
            try:
                self._host.schedulers.call(saying.verb, saying.question)
            except (EpochStale, StateConflict, RowNotFound) as error:
                _log.info("%s: %s", saying.verb.name, error, extra={"action": "say"})
            self._host.said.heard(saying)

    def _renew(self) -> None:
        for work in self._crew.working():
            due = time.monotonic() >= work.renew_at() and work.task_id not in self._doubted
            if due and work.why is not End.STALE:
                self._renew_one(work)

    def _renew_one(self, work: Work) -> None:
        asked_at = time.monotonic()
        try:
            answer = self._host.schedulers.call(RENEW, Held(task_id=work.task_id, epoch=work.epoch))
        except EpochStale as error:
            self._doubt(work.task_id, error)
            return
        except (StateConflict, RowNotFound) as error:
            # an end that is on its way is no reason to give anything up
            if work in self._crew.working() and not self._outbox.has(work.task_id):
                _log.warning("task %s is no longer ours: %s", work.task_id, error, extra={"action": "renew"})
                self._crew.end(work.task_id, End.STALE)
            return
        work.renewed(answer, asked_at)
        if answer.cancel and isinstance(work.order, _CANCELLABLE):
            work.end(End.CANCELLED)

    def _report(self) -> None:
        working = self._crew.working()
        self._reported = {work.task_id: self._reported.get(work.task_id, (0, 0.0)) for work in working}
        now = time.monotonic()
        for work in working:
            changes, at = self._reported[work.task_id]
            current = work.progress.changes
            if current == changes or now - at < self._host.agent.report_interval or work.why is End.STALE:
                continue
            try:
                self._host.schedulers.call(REPORT, work.report())
            except (EpochStale, StateConflict, RowNotFound):
                continue  # the next renewal sees to it
            self._reported[work.task_id] = current, now

    # -- work ---------------------------------------------------------------------------------------

    def _claim(self) -> None:
        now = time.monotonic()
        if self.replaced:
            self._give_up(self._doubted)
            self._doubted.clear()
        if self._registered is None or self.replaced or not (self._hinted or now >= self._claim_at):
            return
        self._hinted, self._claim_at = False, now + self._host.agent.poll_interval
        doubted, ours = set(self._doubted), set[str]()
        # all kinds in one question would let one take the room of the other
        ours |= self._claim_some(LIGHT, _LIGHT_AT_ONCE)
        ours |= self._claim_some(HEAVY, self._room())
        if boots := self._host.agent.test_restores:
            ours |= self._claim_some(BOOT, max(0, min(self._room(), boots - self._crew.boots())))
        if self._registered is not None:
            self._give_up(doubted - ours)
            self._doubted -= doubted

    def _room(self) -> int:
        return 0 if self.draining else max(0, self._host.agent.capacity - self._crew.heavy())

    def _give_up(self, task_ids: Collection[str]) -> None:
        for task_id in sorted(task_ids):
            _log.warning("task %s is no longer ours", task_id, extra={"action": "give up"})
            self._crew.give_up(task_id)

    def _claim_some(self, kinds: tuple[TaskKind, ...], limit: int) -> set[str]:
        """Which tasks it has got."""
        if self._registered is None or self.replaced:
            return set()
        asked_at = time.monotonic()
        me = Claim(
            service_id=self._registered.service_id,
            instance=self._instance,
            kinds=kinds,
            limit=limit,
            holding=self._crew.holding(),
        )
        try:
            claims = self._host.schedulers.call(CLAIM, me)
        except RowNotFound:
            self._registered = None
            self.wake()
            return set()
        except StillNeeded as error:
            self._give_place(error)
            return set()
        for claimed in claims.tasks:
            self._crew.take(claimed, asked_at)
        return {claimed.task_id for claimed in claims.tasks}

"""The tasks that this process has claimed, a thread each, from the claim to its end.

The end goes into the outbox before anything else. A task that is claimed again while its thread lives goes on under the
new epoch; one whose thread was told to give up is begun again after that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from raksha import logs
from raksha.agent import notes
from raksha.agent.carry import carry_out, kind_of
from raksha.agent.host import Host
from raksha.agent.outbox import Outbox
from raksha.agent.work import End, Work
from raksha.errors import BadName
from raksha.states import TaskState
from raksha.tasks import HAND_BACK, BackupOrder, BootOrder, Claimed, FinishOrder, HandBack, Held, RestoreOrder

_log = logging.getLogger(__name__)


class Crew:
    """For any thread."""

    def __init__(self, host: Host, outbox: Outbox, done: Callable[[], None]) -> None:
        """`done` is called after each end."""
        self._host = host
        self._outbox = outbox
        self._done = done
        self._lock = threading.Lock()
        self._works: dict[str, Work] = {}
        self._threads: dict[str, threading.Thread] = {}

    def working(self) -> list[Work]:
        with self._lock:
            return list(self._works.values())

    def holding(self) -> tuple[Held, ...]:
        """Every claim that is worked on, or whose end is waiting to be taken."""
        found = {work.task_id: work.epoch for work in self.working() if work.why is not End.STALE}
        handed_back = [each.question for each in self._host.said.waiting()]
        found |= {each.task_id: each.epoch for each in handed_back if isinstance(each, HandBack)}
        found |= {finish.task_id: finish.epoch for finish in self._outbox.waiting()}
        return tuple(Held(task_id=task_id, epoch=epoch) for task_id, epoch in sorted(found.items()))

    def heavy(self) -> int:
        """Tasks that count against the capacity."""
        return sum(work.heavy for work in self.working())

    def boots(self) -> int:
        """VMs that are booted to see whether they come up."""
        return sum(isinstance(work.order, BootOrder) for work in self.working())

    def take(self, claimed: Claimed, asked_at: float) -> None:
        """Begin a claimed task, or go on with it."""
        with self._lock:
            work = self._works.get(claimed.task_id)
            if work is not None and work.why is not End.STALE:
                work.adopt(claimed, asked_at)
                self._outbox.restamp(claimed.task_id, claimed.epoch)
                _log.info("task %s goes on under epoch %d", claimed.task_id, claimed.epoch)
                return
            if self._outbox.restamp(claimed.task_id, claimed.epoch):
                return
            before = self._threads.get(claimed.task_id)
            work = self._works[claimed.task_id] = Work(claimed, asked_at)
            thread = threading.Thread(
                target=self._carry, args=(work, before), name=f"task-{claimed.task_id}", daemon=True
            )
            self._threads[claimed.task_id] = thread
        thread.start()

    def end(self, task_id: str, why: End) -> None:
        for work in self.working():
            if work.task_id == task_id:
                work.end(why)

    def end_all(self, why: End) -> None:
        for work in self.working():
            work.end(why)

    def give_up(self, task_id: str) -> None:
        """Somebody else has it, or nobody wants it: what it has open is abandoned, its end is forgotten."""
        self.end(task_id, End.STALE)
        self._outbox.taken(task_id)
        open_capture = self._host.captures.take_of_task(task_id)
        if open_capture is not None:
            # it may merge what many failed runs have left, and nobody should have to wait for that
            threading.Thread(target=open_capture.abandon, name=f"abandon-{task_id}", daemon=True).start()

    # -- one thread ---------------------------------------------------------------------------------

    def _carry(self, work: Work, before: threading.Thread | None) -> None:
        order = work.order
        run = order.backupjobrun if isinstance(order, BackupOrder | FinishOrder | RestoreOrder | BootOrder) else None
        kind = kind_of(work)
        with logs.about(work.task_id, run, work.claimed.request_id):
            if before is not None:
                before.join()
            self._give_way(work)
            self._host.metrics.running.labels(kind).inc()
            _log.info("%s begins under epoch %d", kind, work.claimed.epoch, extra={"action": "task"})
            finish = carry_out(self._host, work)
            end = str(work.why or End.STALE) if finish is None else str(finish.to)
            _log.info("%s ends: %s", kind, end, extra={"action": "task"})
            self._host.metrics.running.labels(kind).dec()
            self._host.metrics.tasks.labels(kind, end).inc()
        if finish is not None:
            self._forget_notes(order)
            self._outbox.put(finish)
            if work.epoch != finish.epoch:  # claimed again just now
                self._outbox.restamp(work.task_id, work.epoch)
            if finish.to is not TaskState.DONE:
                _log.debug("task %s: %s", work.task_id, finish.error)
        elif work.why is End.STOPPED:
            self._host.said.say(HAND_BACK, HandBack(task_id=work.task_id, epoch=work.epoch))
        else:
            self.give_up(work.task_id)
        with self._lock:
            if self._works.get(work.task_id) is work:
                del self._works[work.task_id], self._threads[work.task_id]
        self._done()

    def _forget_notes(self, order: object) -> None:
        """No other claim of the task follows."""
        if isinstance(order, BackupOrder):
            try:
                notes.forget(self._host.settings.state_dir, order.vm)
            except (OSError, BadName) as error:  # the next task of the VM begins them anew
                _log.warning("notes of what was stored of VM %s stay: %s", order.vm, error)

    def _give_way(self, work: Work) -> None:
        """The end of a run is told while its VM is still being captured here: somebody has given that up already."""
        order = work.order
        if not isinstance(order, FinishOrder):
            return
        for other in self.working():
            theirs = other.order
            if isinstance(theirs, BackupOrder) and (theirs.backupjobrun, theirs.vm) == (order.backupjobrun, order.vm):
                other.end(End.STALE)
                with self._lock:
                    thread = self._threads.get(other.task_id)
                if thread is not None:
                    thread.join()

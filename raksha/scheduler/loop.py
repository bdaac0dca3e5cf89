"""The life of a scheduler process: a row of its own, and its steps again and again until it is told to stop.

A step that fails (the database is away, say) is logged, and comes again with the next round: no failure ends the loop.
Rounds begin with a random part of the interval, so that schedulers started together do not look together for ever.
Somebody's hint (`raksha.wake`) begins a round at once. Agents are answered beside that (`serve`). A drained or disabled
scheduler gives heartbeats and answers, nothing else.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial

import raksha
from raksha.config_scheduler import SchedulerSettings
from raksha.db import runs, services
from raksha.db.models import Vault
from raksha.db.session import Database
from raksha.errors import RakshaError, RowNotFound, StillNeeded
from raksha.rpc import Bus
from raksha.scheduler import (
    clearing,
    collecting,
    committing,
    deleting,
    housekeeping,
    restore_start,
    retaining,
    trust_ends,
    verify_start,
    verifying,
)
from raksha.scheduler.about import about_run
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.scheduler.advance import advance
from raksha.scheduler.background import Background
from raksha.scheduler.dispatch import dispatch
from raksha.scheduler.metrics import Metrics
from raksha.scheduler.reap import reap
from raksha.scheduler.serve import handlers
from raksha.scheduler.tick import tick
from raksha.states import RunState, ServiceKind, ServiceState
from raksha.wake import AGENTS, SCHEDULERS, WAKE, Wake

_log = logging.getLogger(__name__)

#: seconds between two hints that begin a round: a thousand of them are no thousand rounds
_BREATH = 0.2
#: runs of which the commit is begun in one round
_AT_ONCE = 100
#: seconds between two looks for rows that have done their work
_TIDY = 600.0


class Loop:
    """One scheduler. `run` returns when `stop` was called, after the step that is under way."""

    def __init__(
        self, database: Database, settings: SchedulerSettings, bus: Bus | None = None, access: Access = ENVIRONMENT
    ) -> None:
        self._database = database
        self._settings = settings
        self._bus = bus
        self._access = access
        self._instance = str(uuid.uuid4())
        self._id: str | None = None
        self._stopped = False
        self._woken = threading.Event()
        self._background = Background(settings.workers)
        self.metrics = Metrics()
        #: in this order: what one does, the next can go on with
        self._steps: tuple[tuple[str, Callable[[], object]], ...] = (
            ("reap", lambda: reap(database, settings)),
            ("advance", lambda: advance(database, settings)),
            ("tick", lambda: tick(database)),
            ("dispatch", self._dispatch),
            ("commit", self._commit),
            ("restore", self._restore),
            ("verify", self._verify),
            ("clear", self._clear),
            ("delete", self._delete),
            ("retain", self._retain),
            ("collect", self._collect),
            ("tidy", self._tidy),
        )
        #: when steps that need not be done each round were done last
        self._done_at: dict[str, float] = {}

    def stop(self) -> None:
        """From any thread; not from a signal handler, which may have interrupted whoever holds the lock."""
        self._stopped = True
        self._woken.set()

    def wake(self, _hint: Wake | None = None) -> None:
        """Begin the next round now."""
        self._woken.set()

    def run(self) -> None:
        with closing(self._background), self._heard():
            while not self._stopped:
                begun = time.monotonic()
                self._woken.clear()
                self.round()
                if not self._stopped:
                    time.sleep(_BREATH)
                left = self._settings.interval * random.uniform(0.75, 1.25) - (time.monotonic() - begun)  # noqa: S311
                if left > 0 and not self._stopped:
                    self._woken.wait(left)

    def round(self) -> None:
        """Every step once, each for itself."""
        if not self._guarded("heartbeat", self._heartbeat):
            return
        for name, step in self._steps:
            if self._stopped:
                return
            self._guarded(name, step)
        self.metrics.round_at.set_to_current_time()

    def _guarded(self, name: str, step: Callable[[], object]) -> object:
        try:
            with self.metrics.step(name):
                done = step()
        except RakshaError as error:
            _log.error("%s: %s", name, error, extra={"action": name})
            return None
        except Exception:  # what nobody thought of must not end the loop for all others
            _log.exception("%s failed", name, extra={"action": name})
            return None
        self.metrics.note(done)
        _log.debug("%s: %s", name, done, extra={"action": name})
        return done

    def _heartbeat(self) -> bool:
        """Whether it is to work. Raises `DatabaseUnavailable`, `DatabaseBusy`, `CommitUnknown`."""
        try:
            row = self._database.run(lambda s: services.heartbeat(s, self._id or "", self._instance))
        except RowNotFound:
            name = self._settings.name
            facts = {"instance": self._instance, "host": name, "version": raksha.__version__}
            row = self._database.run(lambda s: services.register(s, ServiceKind.SCHEDULER, name, **facts))
            self._id = row.id
        except StillNeeded:
            # harmless, as any number may work; but it is not what anybody wants
            _log.warning("another scheduler has the name %s, too: give each its own", self._settings.name)
            return True
        return row.state == ServiceState.ENABLED

    def _dispatch(self) -> object:
        done = dispatch(self._database, self._settings, self._access)
        self._tell(done.hosts)
        return done

    def _commit(self) -> int:
        """Runs whose commit was begun."""
        begun = 0
        for id in committing.waiting(self._database, _AT_ONCE):
            begun += self._background.submit(f"commit {id}", partial(self._commit_one, id))
        return begun

    def _commit_one(self, run_id: str) -> None:
        with self.metrics.step("commit one"), about_run(self._database, run_id):
            self._tell(committing.commit(self._database, self._settings, run_id, self._instance, self._access))
        with self._database.reading() as session:
            run = runs.get(session, None, run_id)
        self.metrics.moved.labels(run.state).inc()
        if run.state == RunState.AVAILABLE:
            retaining.retain(self._database, self._settings, run.backupjob_id)
        self.wake()

    def _verify(self) -> int:
        """Verifications that were begun."""
        done = verify_start.start(self._database, self._settings)
        for id in done.read:
            self._background.submit(f"verify {id}", partial(verifying.judge, self._database, id, self._access))
        return done.begun

    def _clear(self) -> bool:
        self._background.submit("end trusts", lambda: trust_ends.of_restores(self._database, self._access))
        return self._background.submit("clear", lambda: clearing.clear(self._database, self._access))

    def _delete(self) -> int:
        """Runs whose deletion was begun."""
        begun = 0
        for id in deleting.waiting(self._database, _AT_ONCE):
            begun += self._background.submit(f"delete {id}", partial(self._delete_one, id))
        self._background.submit("remove jobs", self._remove_jobs)
        return begun

    def _remove_jobs(self) -> None:
        def collect(vault: Vault) -> object:
            return collecting.collect(self._database, self._settings, vault, self._instance, self._access)

        if deleting.remove_jobs(self._database, access=self._access, collect=collect):
            self.wake()

    def _delete_one(self, run_id: str) -> None:
        with self.metrics.step("delete one"), about_run(self._database, run_id):
            gone = deleting.delete(self._database, self._settings, run_id, self._instance, self._access)
        if gone:
            self.wake()

    def _retain(self) -> bool:
        """All jobs: policies may have changed, or whoever committed last died before it came to this."""
        due = self._due("retain", self._settings.retention_interval)
        return due and self._background.submit("retain all", self._retain_all)

    def _retain_all(self) -> None:
        for id in retaining.all_jobs(self._database):
            if self._stopped:
                return
            retaining.retain(self._database, self._settings, id)

    def _collect(self) -> int:
        """Vaults whose collection was begun."""
        begun = 0
        for vault in collecting.due(self._database, self._settings):
            begun += self._background.submit(f"collect {vault.id}", partial(self._collect_one, vault))
        return begun

    def _collect_one(self, vault: Vault) -> None:
        with self.metrics.step("collect one"):
            self.metrics.note(collecting.collect(self._database, self._settings, vault, self._instance, self._access))

    def _tidy(self) -> object:
        return housekeeping.tidy(self._database, self._settings, self._access) if self._due("tidy", _TIDY) else None

    def _due(self, name: str, seconds: float) -> bool:
        if name in self._done_at and time.monotonic() - self._done_at[name] < seconds:
            return False
        self._done_at[name] = time.monotonic()
        return True

    def _restore(self) -> object:
        done = restore_start.start(self._database, self._settings)
        self._tell(done.hosts)
        return done

    def _tell(self, hosts: Iterable[str]) -> None:
        for host in sorted(hosts):
            if self._bus is None or not self._bus.to(AGENTS, host).cast(WAKE, Wake()):
                return

    def _heard(self) -> AbstractContextManager[None]:
        if self._bus is None:
            return nullcontext()
        answers = handlers(self._database, self._settings, self.wake, self._access)
        return self._bus.serve(SCHEDULERS, self._settings.name, {**answers, WAKE: self.wake})

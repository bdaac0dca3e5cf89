"""What tenants do meanwhile: jobs with schedules, runs and restores by hand, all over REST."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from raksha.db.columns import SECOND
from raksha.states import RunState
from tests.bed.deployment import Deployment
from tests.bed.rest import Refused, Rest
from tests.service.guests import Guest
from tests.service.watching import ENDED, GONE, Watcher

#: seconds between two runs of a schedule: the least that there is
EVERY = 60
KEEP = 3
#: bytes a second, the least that there is: an increment of records streams for seconds
_BANDWIDTH = 65536
#: seconds between two requests of somebody who looks
_PAUSE = 0.2
_GROUP = ("gathering", "freezing", "snapshotting")


class Asked(NamedTuple):
    """A restore."""

    id: str
    run: str
    guest: Guest
    host: str
    #: of the new VM; None: files
    name: str | None


class Story:
    """Jobs, and what was asked for by hand."""

    def __init__(self, deployment: Deployment, watcher: Watcher, seed: int, alone: dict[str, Guest],
                 group: list[Guest]) -> None:  # fmt: skip
        self._deployment = deployment
        self._watcher = watcher
        self._dice = random.Random(seed + 1)
        self.rest = deployment.rest()
        #: guests by job; and when each job's schedule fires first, epoch seconds
        self.jobs: dict[str, list[Guest]] = {}
        self.anchors: dict[str, int] = {}
        self.group_job = ""
        #: runs that were asked for by hand
        self.by_hand: list[str] = []
        #: those of them that came when all was over
        self.last: list[str] = []
        self.restores: list[Asked] = []
        #: when the schedules were stopped: before, and after
        self.paused = (0.0, 0.0)
        self._make_jobs(alone, group)

    def _make_jobs(self, alone: dict[str, Guest], group: list[Guest]) -> None:
        engines = ("overlay", "pull", "overlay")
        self._until_seen([*alone.values(), *group])
        for number, ((host, guest), engine) in enumerate(zip(alone.items(), engines, strict=True)):
            self._job(f"alone on {host}", [guest], number, engine=engine)
        self.group_job = self._job("together", group, 3, engine="overlay", consistency_group=True)

    def _until_seen(self, guests: list[Guest]) -> None:
        until = time.monotonic() + 120
        while not {guest.uuid for guest in guests} <= {vm["id"] for vm in self.rest.get("/vms")["vms"]}:
            assert time.monotonic() < until, "the agents do not see the guests"
            self._deployment.supervise()
            time.sleep(0.3)

    def _job(self, name: str, guests: list[Guest], number: int, **more: Any) -> str:
        first = int(time.time()) + 5 + number * EVERY // 4
        body = {
            "name": name, "vms": [{"id": guest.uuid} for guest in guests], "quiesce": "auto",
            "schedule": {"every": EVERY, "anchor": datetime.fromtimestamp(first, UTC).isoformat()},
            "retention": {"keep_last": KEEP}, "bandwidth_limit": _BANDWIDTH, **more,
        }  # fmt: skip
        id: str = self.rest.post("/backupjobs", body)["id"]
        self.jobs[id], self.anchors[id] = guests, first
        return id

    # -- by hand ------------------------------------------------------------------------------------

    def bring_about(self, phase: str) -> None:
        """Ask for work in which a phase comes, unless there is some."""
        if phase == "restoring" and self.restore():
            return
        job = self.group_job if phase in _GROUP else self._dice.choice(list(self.jobs))
        idle = not any(run["job"] == job and run["state"] not in (*ENDED, GONE) for run in self._watcher.runs.values())
        if idle:
            self.run(job)

    def run(self, job: str) -> str:
        """A run by hand."""
        id: str = self.rest.post(f"/backupjobs/{job}/backupjobruns")["id"]
        self.by_hand.append(id)
        return id

    def restore(self) -> bool:
        """One VM of some restore point, to some host."""
        points = [id for id, run in self._watcher.runs.items() if run["state"] == RunState.AVAILABLE]
        if not points:
            return False
        run = self._dice.choice(sorted(points))
        job = self._watcher.runs[run]["job"]
        guest = self._dice.choice(self.jobs[job])
        host = self._dice.choice(list(self._deployment.hosts))
        name = f"{guest.name}-again-{len(self.restores)}" if self._dice.random() < 0.7 else None
        target = {"kind": "domain" if name else "files", "host": host}
        vm = {"id": guest.uuid, **({"name": name} if name else {})}
        try:
            made = self.rest.post(f"/backupjobs/{job}/backupjobruns/{run}", {"target": target, "vms": [vm]})
        except Refused as refused:
            # retention was faster
            assert refused.status in (404, 409), refused
            return False
        self.restores.append(Asked(made["id"], run, guest, host, name))
        return True

    # -- the end ------------------------------------------------------------------------------------

    def pause(self) -> None:
        """No schedule fires any more."""
        for job in self.jobs:
            self.rest.put(f"/backupjobs/{job}", {"enabled": False})

    def fired(self, job: str, until: float) -> range:
        """Fire times of its schedule, epoch µs."""
        return range(self.anchors[job] * SECOND, round(until * SECOND), EVERY * SECOND)


class Tenant:
    """A thread that looks at everything that there is, over and over: an API may say "not now", and nothing worse."""

    def __init__(self, rest: Rest) -> None:
        self.rest = rest
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tenant", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(_PAUSE):
            try:
                self._look()
            except (Refused, TimeoutError, AssertionError) as error:
                self.failed.append(f"{type(error).__name__}: {error}")

    def _look(self) -> None:
        for noun in ("vms", "restores", "backupjobs"):
            found = self.rest.all(f"/{noun}", noun)
        for job in found:
            for run in self.rest.all(f"/backupjobs/{job['id']}/backupjobruns", "backupjobruns"):
                try:
                    assert self.rest.get(f"/backupjobs/{job['id']}/backupjobruns/{run['id']}")["id"] == run["id"]
                except Refused as refused:
                    # retention was faster
                    if refused.status != 404:
                        raise
                if self._stop.wait(_PAUSE):
                    return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(240)


def wait(true: Callable[[], object], what: Callable[[], object], deployment: Deployment, seconds: float) -> None:
    """Raises `AssertionError` with what is missing."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not within {seconds} s: {what()}"
        deployment.supervise()
        time.sleep(0.3)

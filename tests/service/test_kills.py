"""A whole deployment backs up and restores on schedule while everything in it is killed: nothing is lost, doubled or
stuck.

    RAKSHA_SEED=7 RAKSHA_KILLS=200 ./run-tests service        the same kills again, or more of them
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from sqlalchemy import select

from raksha.db import rows
from raksha.db.models import BackupJob, Restore, Vault
from raksha.states import RunState
from tests.bed.deployment import Deployment
from tests.service import settled
from tests.service.guests import Sampler, make_guests
from tests.service.killing import Killer, plan
from tests.service.story import KEEP, Story, Tenant, wait
from tests.service.watching import PHASES, Watcher, unfinished

HOSTS = ("host-a", "host-b", "host-c")
KILLS = int(os.environ.get("RAKSHA_KILLS", "54"))
#: seconds in which everything must have come to its end
SETTLED = 300


@pytest.mark.bed
@pytest.mark.timeout(600 + 60 * KILLS)
def test_nothing_is_lost_doubled_or_stuck(tmp_path: Path) -> None:
    seed = int(os.environ.get("RAKSHA_SEED") or random.SystemRandom().randrange(1_000_000))
    everything = len(PHASES) <= KILLS
    print(f"\nRAKSHA_SEED={seed} RAKSHA_KILLS={KILLS}", flush=True)
    with Deployment(tmp_path, HOSTS) as deployment:
        alone, group = make_guests(deployment.hosts)
        guests = [*alone.values(), *group]
        sampler, tenant = Sampler(guests), Tenant(deployment.rest())
        try:
            watcher = Watcher(deployment.database)
            story = Story(deployment, watcher, seed, alone, group)
            killer = Killer(deployment, watcher, story.bring_about)
            killer.carry_out(plan(seed, KILLS, deployment.processes))
            if everything:
                killer.visit_the_rest(plan(seed + 1, 4 * len(PHASES), deployment.processes))
            come_to_rest(deployment, story, watcher)
        finally:
            tenant.stop()
            sampler.stop()
        print(f"killed {dict(killer.killed)}\nduring {dict(killer.during)}, {killer.missed} elsewhere than planned")
        for who, rest in (("asked for", story.rest), ("looked at", tenant.rest)):
            print(f"{who} over REST: {rest.repeated} requests repeated, answers {rest.statuses}")
        print(f"started again because they had ended by themselves: {deployment.ended}")
        check_all(deployment, story, watcher, tmp_path)
        assert sum(killer.killed.values()) >= KILLS
        if everything:
            assert set(PHASES) <= set(killer.during) and set(deployment.processes) == set(killer.killed)
        assert not tenant.failed, tenant.failed[:5]
        assert not deployment.tracebacks(), deployment.tracebacks()


def come_to_rest(deployment: Deployment, story: Story, watcher: Watcher) -> None:
    """No kills, no schedules: what is under way ends. Then each job runs once more, as if nothing had been."""
    wait(lambda: not due(deployment), lambda: due(deployment), deployment, SETTLED)
    began = time.time()
    story.pause()
    story.paused = began, time.time()

    def over() -> bool:
        watcher.look()
        with deployment.database.reading() as session:
            return not unfinished(session)

    def left() -> list[str]:
        with deployment.database.reading() as session:
            return unfinished(session)

    wait(over, left, deployment, SETTLED)
    last = {job: story.run(job) for job in story.jobs}
    story.last = list(last.values())
    wait(over, left, deployment, SETTLED)
    states = {id: (watcher.runs[id]["state"], watcher.runs[id]["error"]) for id in story.last}
    assert {state for state, _ in states.values()} == {RunState.AVAILABLE}, states
    # retention, and two collections after it: the first may have begun before
    wait(lambda: over() and points_kept(watcher, story), left, deployment, SETTLED)
    for _ in range(2):
        quiet = collected(deployment)
        wait(lambda quiet=quiet: over() and collected(deployment) > quiet, left, deployment, SETTLED)  # type: ignore[misc]
    settled.check_group(deployment, last[story.group_job])
    print(f"at rest {time.time() - began:.0f} s after the last kill", flush=True)


def due(deployment: Deployment) -> list[str]:
    """Jobs of which a fire time has come that nobody has dealt with."""
    with deployment.database.reading() as session:
        return list(session.scalars(select(BackupJob.name).where(BackupJob.next_run_at <= rows.clock(session))))


def points_kept(watcher: Watcher, story: Story) -> bool:
    there = [run["job"] for run in watcher.runs.values() if run["state"] == RunState.AVAILABLE]
    return all(there.count(job) <= KEEP for job in story.jobs)


def collected(deployment: Deployment) -> int:
    with deployment.database.reading() as session:
        return session.scalars(select(Vault.collected_at)).one() or 0


def check_all(deployment: Deployment, story: Story, watcher: Watcher, folder: Path) -> None:
    print(f"runs: {dict(settled.check_runs(deployment, story, watcher))}", flush=True)
    settled.check_fire_times(deployment, story, watcher, dict.fromkeys(story.jobs, story.paused))
    points, taken = settled.check_points(deployment, story, folder / "out")
    settled.check_database(deployment, points)
    settled.check_vault(deployment)
    with deployment.database.reading() as session:
        mine = {restore.id for restore in session.scalars(select(Restore))}
    guests = [guest for of_job in story.jobs.values() for guest in of_job]
    for host in deployment.hosts.values():
        settled.check_host(host, [guest for guest in guests if guest.host is host], mine)
    restores = settled.check_restores(deployment, story, watcher.taken | taken)
    for name in deployment.commands:
        assert deployment.stop(name) == 0, name
    settled.check_guests(guests, folder)
    print(f"{points} restore points and {restores} of {len(story.restores)} restores are right", flush=True)

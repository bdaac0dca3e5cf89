"""Verifications find an agent, what they find counts for every restore point that needs it, and damage is healed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.db import backups, runs, tasks, verifications
from raksha.db.columns import SECOND
from raksha.db.models import BackupJob, BackupJobRun, Task, Verification
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.errors import StateConflict, StillNeeded
from raksha.scheduler import consolidating, housekeeping, verify_start, verifying
from raksha.scheduler.reap import reap
from raksha.states import BackupKind, BackupState, PinHolder, Reason, RunState, TaskKind, TaskState, Trigger
from raksha.states import VerificationState as State
from raksha.tasks import REPORT, DiskProgress, Report, VerifyOrder
from tests.unit.scheduler.service import Service

DAYS = 86400.0


@pytest.fixture
def service(sqlite: Database, tmp_path: Path) -> Service:
    made = Service(sqlite, tmp_path, verify_every=0.0)
    made.agent("host-a").have("web", "vda", "vdb", clusters=130)
    return made


def ask(service: Service, job: str, run: str | None = None, **more: Any) -> str:
    def work(session: Session) -> str:
        row = session.get_one(BackupJob, job)
        return verifications.create(session, row, run, trigger=Trigger.REQUEST, **more).id

    return service.database.run(work)


def go(service: Service) -> verify_start.Started:
    reap(service.database, service.settings)
    done = verify_start.start(service.database, service.settings)
    for id in done.read:
        verifying.judge(service.database, id, service.access)
    return done


def through(service: Service, job: str, run: str | None = None, **more: Any) -> Verification:
    """Asked for, read by an agent, judged."""
    id = ask(service, job, run, **more)
    go(service)
    assert sum(agent.work() for agent in service.agents) > 0
    go(service)
    return row(service, id)


def row(service: Service, id: str) -> Verification:
    with service.database.reading() as session:
        return verifications.get(session, None, id)


def pinned(service: Service, id: str) -> int:
    with service.database.reading() as session:
        return len(backups.pinned_by(session, id))


def states(service: Service, run: str) -> set[BackupState]:
    with service.database.reading() as session:
        return {copy.state for copy in backups.of_run(session, run)}


def left_of(service: Service, id: str) -> list[Task]:
    with service.database.reading() as session:
        return tasks.of_verification(session, id)


def data_of(service: Service) -> list[Path]:
    """Segments with data of disks, the largest first."""
    root = next((service.folder / "vaults").iterdir()) / "backupjobs_segments"
    return sorted((path for path in root.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)


def damage(path: Path) -> bytes:
    """One byte; what was there."""
    whole = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(whole[:999] + bytes([whole[999] ^ 1]) + whole[1000:])
    return whole


def test_what_is_asked_for_is_read_by_an_agent_and_told(service: Service) -> None:
    job = service.job("web")
    first = service.backup(job, BackupKind.FULL)
    service.agents[0].write("web", 3)
    second = service.backup(job)
    id = ask(service, job, second)
    assert go(service).begun == 1
    assert (go(service).begun, row(service, id).state, pinned(service, id)) == (0, State.QUEUED, 4)
    (task,) = service.agents[0].claim(kinds=[TaskKind.VERIFY])
    order = task.order
    assert isinstance(order, VerifyOrder)
    assert {(copy.key.backupjobrun, copy.key.resource) for copy in order.copies} == {(second, "vda"), (second, "vdb")}
    assert {copy.key.backupjobrun for copy in order.recorded or ()} == {first, second}
    assert (order.data, order.percent, order.heal, set(order.machines)) == (True, 100, True, {second})
    disk = DiskProgress(resource="data", size=10, total=10, done=4, sent=4)
    service.agents[0].ask[REPORT](Report(task_id=task.task_id, epoch=task.epoch, number=1, step="x", disks=(disk,)))
    under_way = row(service, id)
    assert (under_way.state, under_way.bytes_done, under_way.bytes_total) == (State.RUNNING, 4, 10)
    service.agents[0].do(task)
    assert row(service, id).state == State.RUNNING, "until it is judged"
    go(service)
    done = row(service, id)
    assert (done.state, done.copies, done.findings, done.healed, done.error) == (State.DONE, 2, [], [], None)
    assert (pinned(service, id), left_of(service, id)) == (0, [])
    assert service.run_row(second).verified_at is not None
    assert service.run_row(first).verified_at is None, "of that one only what the other builds on was read"
    service.check(job, first, second)


def test_all_points_of_a_job_in_one_pass(service: Service) -> None:
    job = service.job("web")
    points = [service.backup(job, BackupKind.FULL)]
    for number in range(3):
        service.agents[0].write("web", number)
        points.append(service.backup(job))
    done = through(service, job)
    assert (done.state, done.copies) == (State.DONE, 8)
    assert all(service.run_row(point).verified_at is not None for point in points)
    assert len(service.agents[0].verified) == 1


def test_damage_counts_for_every_point_that_needs_it_and_the_next_backup_heals_it(service: Service) -> None:
    agent = service.agents[0]
    nightly, weekly = service.job("web"), service.job("web", name="weekly")
    base = service.backup(nightly, BackupKind.FULL)
    agent.write("web", 129)  # in a small segment of its own
    above = service.backup(nightly)
    # another job of the same VM, which stored no data of its own
    shared = service.backup(weekly, BackupKind.FULL)
    service.check(weekly, shared)
    victim = data_of(service)[0]
    whole = damage(victim)
    found = through(service, nightly, above)
    (finding,) = found.findings
    assert (finding["code"], finding["object"].endswith(victim.name)) == ("object_corrupt", True)
    assert found.healed == [] and found.state == State.DONE
    for run in (base, above, shared):
        assert service.run_row(run).state == RunState.DEGRADED, run
        assert service.run_row(run).error["code"] == "object_corrupt"
        assert service.run_row(run).verified_at is None
    # the disk that is hit is read whole, the other one goes on; nothing is shared with what is damaged
    healing = service.backup(nightly)
    hit = next(copy.resource for copy in _copies(service, base) if copy.state == BackupState.DEGRADED)
    order = agent.orders[-1]
    assert order.reasons == {hit: Reason.PARENT_DAMAGED}
    assert set(order.parents) == {"vda", "vdb"} - {hit}
    service.check(nightly, healing)
    again = through(service, nightly)
    assert again.findings == [] and [name.rpartition("/")[2] for name in again.healed] == [victim.name]
    assert victim.read_bytes() == whole
    assert {service.run_row(run).state for run in (base, above, healing)} == {RunState.AVAILABLE}
    assert service.run_row(base).error is None and service.run_row(base).verified_at is not None
    # what another job has of it is found whole when that one is looked at
    assert service.run_row(shared).state == RunState.DEGRADED
    assert through(service, weekly).healed == []
    assert service.run_row(shared).state == RunState.AVAILABLE
    service.check(nightly, base, above, healing)
    service.check(weekly, shared)


def test_a_point_that_was_stored_while_damage_was_found_is_no_sound_one(service: Service) -> None:
    agent, job = service.agents[0], service.job("web")
    base = service.backup(job, BackupKind.FULL)
    agent.write("web", 129)
    late = service.to_commit(job)  # it builds on the first, of which nothing is known yet
    damage(data_of(service)[0])
    assert through(service, job, base).findings
    assert service.commit(late) == RunState.DEGRADED
    assert service.run_row(late).error["code"] == "damaged"
    hit = {copy.resource for copy in _copies(service, base) if copy.state == BackupState.DEGRADED}
    assert {copy.resource for copy in _copies(service, late) if copy.state == BackupState.DEGRADED} == hit != {
        "vda", "vdb"
    }  # fmt: skip
    agent.work()
    healing = service.backup(job)
    assert agent.orders[-1].reasons == dict.fromkeys(hit, Reason.PARENT_DAMAGED)
    assert through(service, job).healed
    assert {service.run_row(run).state for run in (base, late, healing)} == {RunState.AVAILABLE}
    service.check(job, base, late, healing)


def test_a_consolidation_that_was_cut_off_is_no_damage(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job = service.job("web")
    base = service.backup(job, BackupKind.FULL)
    service.agents[0].write("web", 3)
    above = service.backup(job)
    with monkeypatch.context() as patch:
        patch.setattr(consolidating, "settle", _not_yet)
        service.delete(base)
    assert any(copy.other_map_digest for copy in _copies(service, above))
    assert through(service, job, above).findings == []
    assert service.run_row(above).state == RunState.AVAILABLE
    service.go_on_deleting()
    assert through(service, job, above).findings == []
    service.check(job, above)


def test_what_is_lost_keeps_nothing_from_going_that_goes_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Backup` of a copy that came to stand alone can be made of what is there only."""
    job = service.job("web")
    made = [service.backup(job, BackupKind.FULL)]
    for number in range(2):
        service.agents[0].write("web", number)
        made.append(service.backup(job))
    with monkeypatch.context() as patch:
        patch.setattr(consolidating, "settle", _not_yet)
        service.delete(made[0])
    data_of(service)[0].unlink()
    data_of(service)[0].unlink()
    service.go_on_deleting()
    assert service.run_row(made[0]).state == RunState.DELETING, "others need what it has"
    service.delete(*made[1:])
    for _ in range(3):
        service.go_on_deleting()
    with service.database.reading() as session:
        assert [session.get(BackupJobRun, run) for run in made] == [None] * 3
    service.collect()
    assert data_of(service) == []


def _not_yet(_database: Database, _catalog: object, copy: Any) -> None:
    raise StillNeeded(noun="copy", id=copy.id, found=copy.state, detail="somebody reads it")


def test_another_copy_with_a_damaged_map_holds_up_nothing(service: Service) -> None:
    job, other = service.job("web"), service.job("web", name="other")
    run = service.backup(job, BackupKind.FULL)
    beside = service.backup(other, BackupKind.FULL)
    root = next((service.folder / "vaults").iterdir()) / "backupjobs" / other / beside
    for path in root.rglob("BackupMap-*"):
        path.chmod(0o600)
        path.write_bytes(b"no map")
    damage(data_of(service)[0])
    done = through(service, job, run)
    assert (done.state, len(done.findings), pinned(service, done.id)) == (State.DONE, 1, 0)
    assert service.run_row(run).state == RunState.DEGRADED


def _copies(service: Service, run: str) -> list[Any]:
    with service.database.reading() as session:
        return list(backups.of_run(session, run))


def test_what_the_owner_of_the_account_edits_or_removes_is_found(service: Service) -> None:
    job = service.job("web")
    one, two = service.backup(job, BackupKind.FULL), service.backup(job, BackupKind.FULL)
    root = next((service.folder / "vaults").iterdir()) / "backupjobs" / job
    machine = root / one / "web" / "VMMetadata"
    machine.chmod(0o600)
    machine.write_bytes(machine.read_bytes().replace(b"<domain/>", b"<evil/>"))
    (root / two / "run.json").unlink()
    found = through(service, job)
    assert {finding["object"].rpartition("/")[2] for finding in found.findings} == {"VMMetadata", "run.json"}
    assert {service.run_row(run).state for run in (one, two)} == {RunState.DEGRADED}


def test_some_of_the_data_proves_nothing_but_what_it_finds(service: Service) -> None:
    job = service.job("web")
    point = service.backup(job, BackupKind.FULL)
    done = through(service, job, percent=40)
    assert (done.state, done.findings, service.run_row(point).verified_at) == (State.DONE, [], None)
    assert 0 <= service.agents[0].verified[-1].offset < 100
    for path in data_of(service):
        damage(path)
    assert through(service, job, percent=40).findings
    assert service.run_row(point).state == RunState.DEGRADED
    # and does not make it whole again
    assert through(service, job, data=False).findings == []
    assert service.run_row(point).state == RunState.DEGRADED


def test_what_is_read_stays_until_the_end(service: Service) -> None:
    job = service.job("web")
    base = service.backup(job, BackupKind.FULL)
    service.backup(job)
    id = ask(service, job, base)
    go(service)
    (task,) = service.agents[0].claim(kinds=[TaskKind.VERIFY])
    service.delete(base)
    service.go_on_deleting()
    assert service.run_row(base).state == RunState.DELETING
    service.agents[0].do(task)
    go(service)
    assert row(service, id).findings == []
    service.go_on_deleting()
    service.go_on_deleting()
    with service.database.reading() as session:
        assert session.get(BackupJobRun, base) is None and session.get(Verification, id) is None, "it goes with its run"


def test_one_at_a_time_and_it_can_be_cancelled(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    with pytest.raises(StateConflict):
        ask(service, job, run)
    service.database.run(lambda s: verifications.request_cancel(s, id))
    go(service)
    assert row(service, id).state == State.CANCELLED
    # at work
    id = ask(service, job, run)
    go(service)
    (task,) = service.agents[0].claim(kinds=[TaskKind.VERIFY])
    service.database.run(lambda s: verifications.request_cancel(s, id))
    go(service)
    assert row(service, id).state == State.RUNNING
    service.agents[0].finish(task, None, TaskState.CANCELLED)
    go(service)
    assert (row(service, id).state, pinned(service, id), left_of(service, id)) == (State.CANCELLED, 0, [])
    with pytest.raises(StateConflict):
        service.database.run(lambda s: verifications.request_cancel(s, id))


def test_an_agent_that_fails_or_dies(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    go(service)
    (task,) = service.agents[0].claim(kinds=[TaskKind.VERIFY])
    over = update(Task).where(Task.id == task.task_id).values(lease_until=1)
    service.database.run(lambda s: s.execute(over) and None)
    go(service)
    (task,) = service.agents[0].claim(kinds=[TaskKind.VERIFY])
    service.agents[0].finish(task, None, TaskState.ERROR)
    go(service)
    ended = row(service, id)
    assert (ended.state, ended.error["code"], pinned(service, id)) == (State.ERROR, "task_failed", 0)
    assert service.run_row(run).state == RunState.AVAILABLE, "nothing was found"
    service.delete(run)


def test_a_scheduler_that_dies_before_it_has_judged(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    go(service)
    damage(data_of(service)[0])
    service.agents[0].work()
    with monkeypatch.context() as patch:
        patch.setattr(verifying, "_end", _die)
        with pytest.raises(SystemExit):
            verifying.judge(service.database, id, service.access)
    assert service.run_row(run).state == RunState.AVAILABLE
    verifying.judge(service.database, id, service.access)
    verifying.judge(service.database, id, service.access)
    assert (row(service, id).state, service.run_row(run).state) == (State.DONE, RunState.DEGRADED)


def _die(*_: object, **__: object) -> None:
    raise SystemExit


def test_a_job_with_more_copies_than_one_statement_may_name(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    go(service)
    service.agents[0].work()
    mine = [copy.id for copy in _copies(service, run)]
    others = frozenset(f"copy {number}" for number in range(40_000))
    judged = verifying._Judged(others | {mine[0]}, frozenset({mine[1], *(f"of {each}" for each in others)}), (), ())
    service.database.run(lambda s: verifying._end(s, id, [judged]))
    assert [copy.state for copy in _copies(service, run)] == [BackupState.AVAILABLE, BackupState.DEGRADED]
    assert service.run_row(run).state == RunState.DEGRADED


def test_a_point_that_is_gone(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    service.backup(job, BackupKind.FULL)
    id = ask(service, job, run)
    service.database.run(lambda s: runs.begin_deleting(s, run))
    go(service)
    assert (row(service, id).state, row(service, id).error["code"]) == (State.ERROR, "run_gone")


def test_by_age_the_longest_unread_first_and_damaged_before_all(service: Service) -> None:
    first, second = service.job("web"), service.job("web", name="second")
    for job in (first, second):
        service.backup(job, BackupKind.FULL)
    service.settings = replace(service.settings, verify_every=7 * DAYS)
    assert go(service).begun == 0, "they are new"
    _finished_long_ago(service, first, 9)
    _finished_long_ago(service, second, 8)
    assert go(service).begun == 1
    assert go(service).begun == 0, "one at a time in a project"
    (one,) = _all(service)
    assert (one.trigger, one.backupjobrun_id, one.percent, one.user_id) == (Trigger.SCHEDULE, None, 15, None)
    service.agents[0].work()
    assert service.agents[0].verified[-1].bandwidth_limit == 50 << 20
    for _ in range(3):
        go(service)
        service.agents[0].work()
    go(service)
    assert {each.backupjob_id for each in _all(service)} == {first, second}
    assert {each.state for each in _all(service)} == {State.DONE}
    assert go(service).begun == 0, "not again before its time"
    # the one with damage first, whenever it was looked at last
    late = {first: 9, second: 8}
    run = next(run for run in _copies_runs(service, second))
    service.database.run(lambda s: _degrade(s, run))
    for job, days in late.items():
        _looked_at_long_ago(service, job, days)
    go(service)
    (one,) = (each for each in _all(service) if each.state == State.QUEUED)
    assert (one.backupjob_id, one.percent) == (second, 100)


def _all(service: Service) -> list[Verification]:
    with service.database.reading() as session:
        return list(session.query(Verification).order_by(Verification.created_at))


def _copies_runs(service: Service, job: str) -> list[str]:
    with service.database.reading() as session:
        return [run.id for run in runs.points_of(session, job)]


def _degrade(session: Session, run: str) -> None:
    transition(session, BackupJobRun, run, RunState.DEGRADED)


def _finished_long_ago(service: Service, job: str, days: int) -> None:
    older = {"finished_at": BackupJobRun.finished_at - round(days * DAYS * SECOND)}
    statement = update(BackupJobRun).where(BackupJobRun.backupjob_id == job).values(**older)
    service.database.run(lambda s: s.execute(statement) and None)


def _looked_at_long_ago(service: Service, job: str, days: int) -> None:
    older = {"created_at": Verification.created_at - round(days * DAYS * SECOND)}
    statement = update(Verification).where(Verification.backupjob_id == job).values(**older)
    service.database.run(lambda s: s.execute(statement) and None)


def test_pins_of_nobody_are_found(service: Service) -> None:
    job = service.job("web")
    run = service.backup(job, BackupKind.FULL)
    with service.database.reading() as session:
        ids = [copy.id for copy in backups.of_run(session, run)]
    service.database.run(lambda s: backups.pin(s, PinHolder.VERIFY, "gone", ids))
    assert housekeeping.tidy(service.database, service.settings).pins == 2

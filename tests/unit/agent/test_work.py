"""One claimed task: its lease, its epochs, its end, and what is told of it."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from raksha.agent.outbox import Outbox
from raksha.agent.work import End, Work
from raksha.errors import Interrupted
from raksha.journal import Journal
from raksha.states import TaskState
from raksha.tasks import BackupOrder, Claimed, DiskProgress, Finish, Finished, FinishOrder, Renewed, VaultAccess

ORDER = BackupOrder(backupjob="job", backupjobrun="run", vm="vm")


def claimed(epoch: int = 1, lease: float = 60.0, order: BackupOrder | FinishOrder = ORDER) -> Claimed:
    return Claimed(task_id="task", epoch=epoch, lease_seconds=lease, order=order)


def test_a_lease_counts_from_the_question() -> None:
    """The answer may have taken its time: the database's lease began before it came."""
    now = time.monotonic()
    work = Work(claimed(lease=10.0), now - 11)
    assert not work.has_lease()
    assert work.renew_at() < now
    work.renewed(Renewed(lease_seconds=10.0), now)
    assert work.has_lease() and now < work.renew_at() < now + 5


def test_a_step_waits_for_its_lease_and_no_longer_than_it_is_wanted() -> None:
    work = Work(claimed(lease=0.5), time.monotonic() - 1)
    work.end(End.CANCELLED)
    with pytest.raises(Interrupted):
        work.wait_for_lease()
    work = Work(claimed(), time.monotonic())
    work.wait_for_lease()


def test_somebody_else_who_has_it_outweighs_every_other_reason() -> None:
    work = Work(claimed(), time.monotonic())
    work.end(End.STOPPED)
    work.end(End.CANCELLED)
    assert work.why is End.STOPPED
    work.end(End.STALE)
    work.end(End.CANCELLED)
    assert work.why is End.STALE


def test_a_new_claim_numbers_its_reports_anew_and_stores_under_the_old_name() -> None:
    work = Work(claimed(), time.monotonic())
    assert [work.report().number for _ in range(2)] == [1, 2]
    work.adopt(claimed(epoch=5), time.monotonic())
    assert (work.report().epoch, work.report().number) == (5, 2)
    assert work.claimed.claim == "task.1"


def test_progress_of_disks_one_after_the_other_and_side_by_side() -> None:
    progress = Work(claimed(), time.monotonic()).progress
    progress.expect("vda", 100)
    progress.expect("vdb", 50)
    one, two = progress.disk("vda"), progress.disk("vdb")
    one.begin("vda", 80)
    two.begin("vdb", 50)
    one.advance(30, 3)
    two.advance(50, 7)
    two.end()
    one.advance(10)
    assert progress.seen()[1] == (
        DiskProgress(resource="vda", size=100, total=80, done=40, sent=3),
        DiskProgress(resource="vdb", size=50, total=50, done=50, sent=7),
    )
    before = progress.changes
    progress.begin("web:vdc", 10)  # as restores name them
    progress.advance(4)
    progress.end()
    progress.advance(100)  # nothing is under way
    assert progress.seen()[1][-1] == DiskProgress(resource="vdc", size=10, total=10, done=4, sent=0)
    assert progress.changes > before


def test_ends_stay_until_they_are_taken_over_restarts(tmp_path: object) -> None:
    journal = Journal(tmp_path)  # type: ignore[arg-type]
    box = Outbox(journal)
    first = Finish(task_id="a", epoch=1, to=TaskState.DONE, result=Finished(warnings=("x",)))
    second = Finish(task_id="b", epoch=2, to=TaskState.ERROR, error={"code": "c", "fields": {"n": 1}})
    box.put(first)
    box.put(second)
    journal.close()
    journal = Journal(tmp_path)  # type: ignore[arg-type]
    box = Outbox(journal)
    assert box.waiting() == [first, second]
    assert box.restamp("b", 7) and not box.restamp("c", 7)
    assert [(each.task_id, each.epoch) for each in box.waiting()] == [("a", 1), ("b", 7)]
    box.taken("a")
    box.taken("a")
    assert [each.task_id for each in box.waiting()] == ["b"]
    journal.close()


def test_what_opens_the_vault_is_renewed_with_the_lease() -> None:
    def lent(token: str) -> dict[str, str]:
        return {"OS_STORAGE_URL": "http://swift/v1/AUTH_a", "OS_AUTH_TOKEN": token}

    def of(epoch: int, token: str) -> Claimed:
        return replace(claimed(epoch), vault=VaultAccess(url="swift://", vault_uuid="v", credentials=lent(token)))

    work = Work(of(1, "one"), time.monotonic())
    assert work.lent is not None and work.lent.current().token == "one"
    work.renewed(Renewed(lease_seconds=10.0, credentials=lent("two")), time.monotonic())
    assert work.lent.current().token == "two"
    work.renewed(Renewed(lease_seconds=10.0), time.monotonic())
    assert work.lent.current().token == "two"
    work.adopt(of(2, "three"), time.monotonic())
    assert work.lent.current().token == "three"
    assert Work(claimed(), time.monotonic()).lent is None

"""Every command against the real API: what is printed, where, and with which exit code."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
import yaml
from sqlalchemy import update
from sqlalchemy.orm import Session

from raksha.client import Client, errors, osc, waiting
from raksha.client.commands import COMMANDS
from raksha.client.commands.base import _in_openstack
from raksha.client.commands.job import CreateJob
from raksha.db import verifications
from raksha.db.columns import now
from raksha.db.models import BackupJobRunVm, Verification
from raksha.db.session import Database
from raksha.db.transition import transition
from raksha.states import RunState, VerificationState
from tests.unit.api import world
from tests.unit.client.cli import Raksha, called
from tests.unit.client.conftest import Wire, logged_in

SEEN = ({"target": "vda", "size": 1 << 30, "reason": None},)


@pytest.fixture
def raksha(client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Raksha]:
    with called(client, capsys, monkeypatch) as call:
        yield call


@pytest.fixture
def operator(wire: Wire, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Raksha]:
    with called(Client(logged_in(wire, "admin"), project_id="p1"), capsys, monkeypatch) as call:
        yield call


def test_the_example_of_the_manual(raksha: Raksha, client: Client) -> None:
    example = (
        "job create nightly --vm web --vm db --exclude db:vdb --every day --at 02:00 --timezone Europe/Paris "
        "--keep-daily 7 --keep-weekly 4 --quiesce"
    )
    assert example in CreateJob.examples
    found = raksha(*example.split())
    assert (found.code, found.err) == (0, "")
    assert "02:00" in found.out and "Europe/Paris" in found.out and "db (without vdb)" in found.out
    job = client.jobs.find("nightly")
    assert job.quiesce == "require"
    assert {vm.id: vm.excluded_disks for vm in job.vms} == {world.WEB: (), world.DB: ("vdb",)}
    assert job.schedule is not None and (job.schedule.cron, job.schedule.zone) == ("0 2 * * *", "Europe/Paris")
    assert job.retention is not None
    assert (job.retention.daily, job.retention.weekly, job.retention.zone) == (7, 4, "Europe/Paris")


def test_every_option_of_a_job(raksha: Raksha, client: Client) -> None:
    words = ["job", "create", "all", "--vm", "web", "--tag", "gold", "--having", "tier=1", "--cron", "@daily",
             "--start", "2027-01-01T00:00:00Z", "--end", "2028-01-01T00:00:00Z", "--window", "22:00-06:00",
             "--jitter", "10m", "--full-every", "7", "--missed", "skip", "--keep-last", "3", "--keep-timezone", "UTC",
             "--engine", "pull", "--one-by-one", "--on-vm-failure", "degrade", "--retries", "2", "--retry-delay", "5m",
             "--bandwidth-limit", "20M", "--max-parallel-disks", "2", "--host", "host-a", "--zone", "east",
             "--vault", "main", "--description", "x", "--property", "a=b", "--paused"]  # fmt: skip
    found = raksha(*words, "-f", "json")
    assert found.code == 0, found.err
    shown = found.json
    assert shown["schedule"]["jitter"] == 600 and shown["bandwidth_limit"] == 20 << 20 and shown["state"] == "paused"
    assert shown["vm_selector"] == {"tags": ["gold"], "metadata": {"tier": "1"}}
    assert shown["placement"] == {"hosts": ["host-a"], "zones": ["east"]} and shown["metadata"] == {"a": "b"}
    assert shown["retry"] == {"retries": 2, "delay": 300} and shown["consistency_group"] is False
    assert client.jobs.find("all").vault_service_id == client.vaults.find("main").id
    assert client.jobs.find("all").etag is not None


def test_a_job_is_changed_where_it_is_said(raksha: Raksha, client: Client) -> None:
    said = "job create nightly --vm web --every day --at 02:00 --timezone Europe/Paris --keep-daily 7"
    assert raksha(*said.split()).code == 0
    said = "job set nightly --jitter 5m --keep-monthly 6 --add-vm db --exclude db:vdb --retries 1"
    assert raksha(*said.split()).code == 0
    job = client.jobs.find("nightly")
    assert job.schedule is not None and (job.schedule.cron, job.schedule.jitter) == ("0 2 * * *", 300)
    assert job.retention is not None and (job.retention.daily, job.retention.monthly) == (7, 6)
    assert {vm.id: vm.excluded_disks for vm in job.vms} == {world.WEB: (), world.DB: ("vdb",)}
    said = "job set nightly --every 6h --remove-vm web --include db:vdb --no-retention --retry-delay 1m --name n"
    assert raksha(*said.split()).code == 0
    job = client.jobs.find("n")
    assert job.schedule is not None and (job.schedule.every, job.schedule.zone) == (21600, "Europe/Paris")
    assert job.retention is None and [(vm.id, vm.excluded_disks) for vm in job.vms] == [(world.DB, ())]
    assert job.retry is not None and (job.retry.retries, job.retry.delay) == (1, 60)
    assert raksha("job", "set", "n", "--no-schedule").code == 0
    assert client.jobs.find("n").schedule is None


def test_verifications(raksha: Raksha, client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    point = world.point(database, job.id)
    made = raksha("verification", "create", "--job", "nightly", "--run", "latest", "--no-data", "-f", "json")
    assert made.code == 0, made.err
    assert (made.json["backupjobrun_id"], made.json["data"]) == (point.id, False)
    id = made.json["id"]
    assert f"raksha verification watch {id}" in made.err
    assert raksha("verification", "create", "--job", "nightly", "--percent", "10", "-f", "json").json["percent"] == 10
    again = raksha("verification", "create", "--run", point.id)
    assert again.code != 0 and id in again.err
    listed = raksha("verification", "list", "--job", "nightly", "--state", "queued", "-f", "json").json
    assert {each["Read"] for each in listed} == {0, 10}
    assert raksha("verification", "cancel", id[:8]).code == 0
    hit = {"backupjob": job.id, "backupjobrun": point.id, "vm": world.WEB, "resource": "vda"}
    finding = {"object": "backupjobs_segments/ab/1", "code": "object_missing", "detail": "It is gone.", "hits": [hit]}

    def done(session: Session) -> None:
        transition(session, Verification, id, VerificationState.RUNNING)
        verifications.end(session, id, VerificationState.DONE, findings=[finding])

    database.run(done)
    found = raksha("verification", "show", id[:8])
    assert found.code != 0 and "It is gone." in found.out and "1 damaged object" in found.err
    missing = raksha("verification", "create")
    assert missing.code == 2 and "Add --job JOB" in missing.err


def test_test_restores(raksha: Raksha, client: Client, database: Database) -> None:
    made = raksha(
        "job", "create", "nightly", "--vm", world.WEB, "--test-restore", "7d", "--test-marker", "up", "-f", "json"
    )
    assert made.code == 0, made.err
    job = client.jobs.find("nightly")
    assert job.test_restore is not None and (job.test_restore.every, job.test_restore.marker) == (604800, "up")
    assert raksha("job", "set", "nightly", "--test-restore", "never", "--test-timeout", "5m").code == 0
    job = client.jobs.find("nightly")
    assert job.test_restore is not None
    assert (job.test_restore.every, job.test_restore.marker, job.test_restore.timeout) == (0, "up", 300)
    point = world.point(database, job.id)
    wrong = raksha("verification", "create", "--job", "nightly", "--marker", "x")
    assert wrong.code == 2 and "Add --boot" in wrong.err
    begun = raksha(
        "verification", "create", "--job", "nightly", "--boot", "--vm", world.WEB, "--boot-timeout", "1m", "-f", "json"
    )
    assert begun.code == 0, begun.err
    assert (begun.json["boot"], begun.json["backupjobrun_id"], begun.json["marker"]) == (True, point.id, "up")
    id = begun.json["id"]
    reason = {"code": "no_marker", "message": "nothing was heard"}
    booted = {"id": world.WEB, "name": "web", "outcome": "failed", "proven_by": None, "reason": reason, "seconds": 60.0}
    seen = {"unproven_at": now(), "unproven_reason": reason, "proven_restorable_at": now(), "proven_by": "marker"}

    def done(session: Session) -> None:
        transition(session, Verification, id, VerificationState.RUNNING)
        verifications.end(session, id, VerificationState.DONE, vms=[booted])
        session.execute(update(BackupJobRunVm).where(BackupJobRunVm.backupjobrun_id == point.id).values(**seen))

    database.run(done)
    found = raksha("verification", "show", id[:8])
    assert found.code != 0 and "web: failed after 60 s: nothing was heard" in found.out
    assert "1 of 1 VMs are not proven" in found.err
    (listed,) = raksha("verification", "list", "-f", "json").json
    assert (listed["Read"], listed["Findings"]) == ("booted", 1)
    shown = raksha("run", "show", point.id)
    assert "came up in a test (marker)" in shown.out and "nothing was heard" in shown.out
    assert "proven_restorable_at" in raksha("job", "show", "nightly").out


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("job show nothing", 3, "no job 'nothing'. `raksha job list`"),
        ("job create x", 2, "Nothing is named to be protected. Add --vm"),
        ("job create x --vm nothing", 3, "no vm 'nothing'. `raksha vm list`"),
        ("job create x --vm web --exclude web", 2, "--exclude web names no disk"),
        ("job create x --vm web --exclude db:vda", 2, "db is not among the VMs of the job. Add --vm db"),
        ("job create x --vm web --every day", 2, "--at is missing"),
        ("job create x --vm web --jitter 5m", 2, "does not say when"),
        ("job create x --vm web --every 6h --timezone Nowhere", 2, "Nowhere"),
        ("job create x --vm web --every 1s", 2, "request id"),
        ("job create x --vm web --bandwidth-limit much", 2, "is no size"),
        ("job create x --vm web --property a", 2, "KEY=VALUE"),
        ("job create x --vm web --vault nowhere", 3, "no vault 'nowhere'"),
        ("job create x --vm web --force web", 2, "storage"),
        ("job set twin --name x", 2, "2 jobs are called 'twin'"),
        ("job set there", 2, "Nothing is named to be changed"),
        ("job set there --no-schedule --every 6h", 2, "both set and taken away"),
        ("job set there --remove-vm db", 2, "not in the job"),
        ("job set there --include web:vdb", 2, "not left out"),
        ("job list --sort colour", 2, "sort"),
        ("run show ffff", 3, "no run 'ffff'"),
        ("run show latest", 2, "Add --job JOB"),
        ("run show latest --job there", 3, "no run 'latest'"),
        ("run list --marker x", 2, "need a job"),
        ("run set ffff", 2, "Add --protect"),
        ("run delete latest --job there", 2, "not taken for a deletion"),
        ("restore show ffff", 3, "no restore 'ffff'"),
        ("service list", 4, "admin operates"),
        ("schedule preview", 2, "No schedule is given"),
        ("schedule preview --cron nonsense", 2, "nonsense"),
        ("vm show nothing", 3, "no vm 'nothing'"),
        ("job list --limit 0", 2, "no number above 0"),
        ("job list --colour", 2, "unrecognized arguments"),
        ("job create", 2, "required: NAME"),
        ("job", 2, "There is: job list, job show"),
        ("jbo list", 2, "There is: job create"),
        ("xyzzy", 2, "no command"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_to_do(
    raksha: Raksha, client: Client, words: str, code: int, says: str
) -> None:
    for name in ("twin", "twin", "there"):
        client.jobs.create(name, vms=[{"id": world.WEB}])
    found = raksha(*words.split())
    assert (found.code, found.out) == (code, ""), found
    assert says in found.err
    assert "usage:" in found.err or len(found.err.splitlines()) == 1


def test_lists_for_people_and_programs(raksha: Raksha, client: Client) -> None:
    ids = [client.jobs.create(f"job{number}", vms=[{"id": world.WEB}]).id for number in range(3)]
    table = raksha("job", "list", "--sort", "name:desc", "--limit", "2")
    assert table.code == 0 and "job2" in table.out and "job1" in table.out and "job0" not in table.out
    assert [each["ID"] for each in raksha("job", "list", "--sort", "name", "-f", "json").json] == ids
    assert [each["ID"] for each in yaml.safe_load(raksha("job", "list", "--sort", "name", "-f", "yaml").out)] == ids
    rows = list(csv.reader(io.StringIO(raksha("job", "list", "--sort", "name", "-f", "csv").out)))
    assert rows[0] == ["ID", "Name", "State", "VMs", "Schedule", "Next run"] and [row[0] for row in rows[1:]] == ids
    assert raksha("job", "list", "--sort", "name", "--marker", ids[1], "-f", "value", "-c", "ID").out.split() == [
        ids[2]
    ]
    assert raksha("job", "list", "--state", "paused", "--state", "suspended", "-f", "json").json == []
    assert raksha("job", "list", "--vm", "db", "-f", "json").json == []
    disks = raksha("vm", "list", "--name", "web", "-f", "csv", "-c", "Disks").out
    assert disks.splitlines()[1] == '"vda"'
    assert yaml.safe_load(raksha("vm", "list", "--name", "web", "-f", "yaml").out)[0]["Disks"] == ["vda"]


def test_pages_behind_pages(wire: Wire, raksha: Raksha, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API gives 100 a page where nothing is said."""
    ids = {client.jobs.create(f"job{number}", vms=[{"id": world.WEB}]).id for number in range(103)}
    wire.sent.clear()
    assert {each["ID"] for each in raksha("job", "list", "-f", "json").json} == ids
    assert len(wire.sent) == 2
    assert len(raksha("job", "list", "--limit", "101", "-f", "json").json) == 101


def test_pause_resume_and_delete_of_many(raksha: Raksha, client: Client) -> None:
    for name in ("a", "b"):
        client.jobs.create(name, vms=[{"id": world.WEB}], schedule={"every": 3600})
    assert raksha("job", "pause", "a", "b").code == 0
    assert {job.state for job in client.jobs.list()} == {"paused"}
    assert "next run" in raksha("job", "resume", "a").err
    found = raksha("job", "delete", "a", "nothing", "b")
    assert found.code == 3 and "job nothing: There is no job 'nothing'" in found.err and "1 of 3 failed" in found.err
    assert {job.state for job in client.jobs.list()} == {"deleting"}
    assert raksha("job", "pause", "b", "nothing").code == 1  # of different kinds


def test_restore_points_are_not_deleted_by_chance(raksha: Raksha, client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    point = world.point(database, job.id)
    found = raksha("job", "delete", "nightly")
    assert found.code == 4 and "--with-runs" in found.err
    assert raksha("run", "set", point.id[:8], "--protect", "--description", "x", "-f", "json").json["protected"] is True
    assert raksha("run", "delete", point.id).code == 4
    assert raksha("run", "set", point.id, "--unprotect").code == 0
    assert raksha("run", "delete", point.id[:8], "--job", "nightly").code == 0
    assert client.runs.get(job.id, point.id).state == "deleting"


def test_runs_of_all_jobs(raksha: Raksha, client: Client, database: Database) -> None:
    made = [client.jobs.create(name, vms=[{"id": world.WEB}]) for name in ("a", "b")]
    points = [world.point(database, made[number % 2].id, taken_at=1000 + number).id for number in range(4)]
    every = raksha("run", "list", "-f", "json").json
    assert [each["ID"] for each in every] == points[::-1]
    assert [each["Job"] for each in every] == ["b", "a", "b", "a"]
    assert [each["ID"] for each in raksha("run", "list", "--limit", "1", "-f", "json").json] == points[-1:]
    assert [each["ID"] for each in raksha("run", "list", "a", "--sort", "created_at", "-f", "json").json] == points[::2]
    assert raksha("run", "list", "a", "--state", "error", "--protected", "-f", "json").json == []
    shown = raksha("run", "show", "latest", "--job", "a")
    assert points[2] in shown.out and "vda: 1 GiB" in shown.out


def test_a_run_that_nobody_waits_for(raksha: Raksha, client: Client) -> None:
    client.jobs.create("nightly", vms=[{"id": world.WEB}])
    found = raksha("job", "run", "nightly", "--full", "--protect", "--description", "d", "-f", "json")
    assert found.code == 0 and (found.json["kind"], found.json["protected"]) == ("full", True)
    assert f"raksha run watch {found.json['id']}" in found.err
    cancelled = raksha("run", "cancel", found.json["id"])
    assert cancelled.code == 0 and "is being cancelled" in cancelled.err


def test_waiting_for_a_run(raksha: Raksha, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    point, failed = world.point(database, job.id), world.run(database, job.id, RunState.ERROR)
    assert raksha("run", "watch", point.id, "-f", "json").json["state"] == "available"
    ended = raksha("run", "watch", failed.id, "-f", "json")
    assert (ended.code, ended.json["state"]) == (1, "error") and "ended as error" in ended.err

    def interrupted(*_: Any, **__: Any) -> Iterator[Any]:
        yield client.runs.get(job.id, point.id)
        raise KeyboardInterrupt

    monkeypatch.setattr(waiting, "changes", interrupted)
    found = raksha("job", "run", "nightly", "--wait")
    assert found.code == 130 and found.out == ""
    assert "The run goes on: `raksha run watch" in found.err


def test_restores(raksha: Raksha, client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    point = world.point(database, job.id, disks=("vda", "vdb"))
    plan = raksha(
        "restore", "create", "latest", "--vm", "web", "--disk", "vdb", "--name", "again", "--dry-run", "-f", "json"
    )
    assert plan.code == 0, plan.err
    (vm,) = plan.json["vms"]
    assert (vm["new_name"], [disk["resource"] for disk in vm["disks"]]) == ("again", ["vdb"])
    assert raksha("run", "restore-plan", point.id[:8], "--to", "in-place", "-f", "json").json["kind"] == "in_place"
    assert list(client.restores.list()) == []
    made = raksha("restore", "create", point.id, "--name", "web=again", "--start", "--disk-format", "raw", "-f", "json")
    assert made.code == 0, made.err
    assert made.json["target"]["start"] is True and made.json["target"]["format"] == "raw"
    id = made.json["id"]
    assert f"raksha restore watch {id}" in made.err
    assert [
        each["ID"] for each in raksha("restore", "list", "--run", point.id, "--state", "queued", "-f", "json").json
    ] == [id]
    assert raksha("restore", "show", id[:8], "-f", "json").json["vms"][0]["name"] == "again"
    assert raksha("restore", "cancel", id).code == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("--vm mail", 3, "no VM 'mail'. It has: web, db"),
        (f"--vm {world.WEB} --disk {world.DB}:vda", 2, "not among the VMs to restore. Add --vm"),
        ("--disk vda", 2, "of which of 2 VMs"),
        ("--name again", 2, "of which of 2 VMs"),
        ("--to server --network x --no-network", 2, "exclude each other"),
        ("--to server", 2, "no cloud"),
        ("--to in-place --start", 2, "Does not go with in_place"),
        (f"--vm {world.WEB} --disk vdz", 2, "no disk vdz"),
    ],
)
def test_restores_that_cannot_be(
    raksha: Raksha, client: Client, database: Database, words: str, code: int, says: str
) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    point = world.point(database, job.id, vms=(world.WEB, world.DB))
    found = raksha("restore", "create", point.id, *words.split())
    assert (found.code, found.out) == (code, "") and says in found.err, found


def test_what_is_no_restore_point(raksha: Raksha, client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}])
    failed = world.run(database, job.id, RunState.ERROR)
    found = raksha("restore", "create", failed.id)
    assert found.code == 2 and "it is no restore point. `raksha run list" in found.err


def test_looking_around(raksha: Raksha, client: Client, database: Database) -> None:
    job = client.jobs.create("nightly", vms=[{"id": world.WEB}], schedule={"cron": "0 2 * * *"})
    for day in (1, 2, 3):
        world.point(database, job.id, taken_at=day * 86400)
    assert "it has a host device" in raksha("vm", "list").out
    assert raksha("vm", "show", "web", "-f", "json").json["jobs"] == [job.id]
    assert raksha("vault", "list", "-f", "json").json[0]["Default"] is True
    usage = raksha("usage", "show", "-f", "json").json
    assert (usage["jobs"], usage["runs"], usage["max_jobs"]) == (1, 3, client.limits.get().max_jobs)
    assert "any" in raksha("usage", "show").out
    assert raksha("limits", "show", "-f", "json").json["max_page_size"] == 1000
    preview = raksha("job", "retention-preview", "nightly", "--keep-last", "1", "-f", "json")
    assert [each["Stays"] for each in preview.json] == [False, False, True] and "1 stay, 2 go" in preview.err
    times = raksha("schedule", "preview", "--every", "day", "--at", "02:00", "--count", "3", "-f", "json")
    assert len(times.json) == 3 and times.json[0]["Time"].endswith("T02:00:00Z") and "02:00" in times.err
    assert raksha("job", "take-over", "nightly").code == 0


def test_services_for_operators(operator: Raksha) -> None:
    assert {each["Name"] for each in operator("service", "list", "--kind", "agent", "-f", "json").json} == {
        "host-a",
        "host-b",
    }
    assert operator("service", "set", "host-a", "--drain", "--reason", "memory").code == 0
    found = operator("service", "list", "--host", "host-a", "-f", "json").json
    assert found[0]["State"] in ("draining", "drained")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_that_are_right(raksha: Raksha, name: str) -> None:
    words = name.split()
    for asked in ((*words, "--help"), ("help", *words)):
        found = raksha(*asked)
        assert found.code == 0 and found.out.startswith(f"usage: raksha {name}")
        assert f"  raksha {name}" in found.out.split("examples:")[1]


def test_help_tells_of_all(raksha: Raksha) -> None:
    for asked in (["--help"], ["-h"], ["help"], ["--url", "x", "--help"]):
        found = raksha(*asked)
        assert found.code == 0 and "raksha vm list" in found.out and "local" in found.out and "serve" in found.out
        assert all(name.split()[1] in found.out for name in COMMANDS)
        assert max(map(len, found.out.splitlines())) <= 120
    assert raksha().code == 2
    assert "--os-auth-url" in raksha("help", "options").out


def test_completion(raksha: Raksha) -> None:
    found = raksha("complete")
    assert found.code == 0 and "cmds_job_create=" in found.out and "--quiesce" in found.out


def test_names_do_not_rule_the_terminal(raksha: Raksha, client: Client, database: Database) -> None:
    client.jobs.create("a\x9b31mb", vms=[{"id": world.WEB}])
    for words in (("job", "list"), ("job", "show", "a\x9b31mb"), ("job", "pause", "a\x9b31mb")):
        found = raksha(*words)
        assert found.code == 0 and "\x9b" not in found.out + found.err


def test_a_service_that_is_away_for_a_moment_ends_no_watch() -> None:
    answers: list[Any] = [errors.Unreachable("x"), errors.api_error(503, "x", "x")]

    class Done:
        ended = True

    def look() -> Any:
        if answers:
            raise answers.pop()
        return Done()

    assert len(list(waiting.changes(look, 0, sleep=lambda _: None))) == 1
    with pytest.raises(errors.Unreachable):
        list(waiting.changes(lambda: (_ for _ in ()).throw(errors.Unreachable("x")), 0, -1, lambda _: None))


def test_openstack_finds_the_same_commands() -> None:
    """As they were installed: setup.py reads the table without importing it."""
    found = {each.name: each.value for each in entry_points(group="openstack.data_protection.v1")}
    assert found == {f"protection_{name.replace(' ', '_')}": where for name, where in COMMANDS.items()}
    (plugin,) = [each for each in entry_points(group="openstack.cli.extension") if each.name == osc.API_NAME]
    assert plugin.load() is osc


def test_hints_name_the_front_door_that_was_taken() -> None:
    assert _in_openstack("`raksha job list` shows") == "`openstack protection job list` shows"
    assert _in_openstack("`raksha serve` and raksha's") == "`raksha serve` and raksha's"

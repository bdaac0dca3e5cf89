"""`raksha-manage`: vaults, processes, limits, users."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from raksha.api.http_basic import HttpBasic
from raksha.cmd import manage
from raksha.db import migrate, services, usage, vaults
from raksha.db.session import Database
from raksha.states import BackupKind, ServiceKind, ServiceState
from tests.bed.databases import PROJECT, opened
from tests.unit.scheduler.service import Service


class Manage:
    """The command on a database and users of its own."""

    def __init__(self, folder: Path, database: Database, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.database, self._capsys = folder, database, capsys
        self.users = folder / "users"

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it prints: results, or with an exit code the error."""
        with pytest.raises(SystemExit) as ended:
            manage.main(["--state-dir", str(self.folder), *words])
        told = self._capsys.readouterr()
        assert ended.value.code == code, told
        return told.err if code else told.out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr("bcrypt.gensalt", lambda cost=4, gensalt=bcrypt.gensalt: gensalt(4))
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        migrate.upgrade(database)
        yield Manage(tmp_path, database, capsys)


# -- vaults -------------------------------------------------------------------------------------------


def test_vaults_from_the_first_to_the_second_default(run: Manage) -> None:
    assert run("vault", "list") == "no vault services\n"
    run("vault", "add", "main", "file:///srv/vault", "--default")
    run("vault", "add", "gold", "swift://gold", "--project", "sales", "--max-runs", "3", "--account", "project")
    (gold, main) = run.json("vault", "list")["vaults"]
    assert (main["kind"], main["url"], main["is_default"], main["enabled"]) == (
        "directory", "file:///srv/vault", True, True)  # fmt: skip
    assert (gold["kind"], gold["project"], gold["max_runs"], gold["account"]) == ("swift", "sales", 3, "project")
    run("vault", "set", "gold", "--project", "all", "--max-runs", "any", "--default")
    (gold, main) = run.json("vault", "list")["vaults"]
    assert (gold["project"], gold["max_runs"], gold["is_default"], main["is_default"]) == (None, None, True, False)
    assert gold["account"] == "project"
    run("vault", "disable", "gold")
    with run.database.reading() as session:
        assert [service.name for service in vaults.services(session, "sales")] == ["main"]
    assert "disabled, default" in run("vault", "list")
    run("vault", "enable", "gold")
    with run.database.reading() as session:
        assert [service.name for service in vaults.services(session, "sales")] == ["gold", "main"]


def test_the_address_of_a_vault_can_be_put_right_until_it_is_used(run: Manage) -> None:
    run("vault", "add", "main", "file:///srv/valt")
    run("vault", "set", "main", "--url", "file:///srv/vault")
    with run.database.reading() as session:
        service = vaults.named(session, "main")
    assert service.url == "file:///srv/vault"
    run.database.run(lambda s: vaults.of_project(s, service, "sales", "file:///srv/vault/sales"))
    assert "projects have stored at file:///srv/vault already" in run(
        "vault", "set", "main", "--url", "file:///other", code=2
    )
    assert run.json("vault", "list")["vaults"][0]["projects"] == 1


def test_a_vault_is_imported(run: Manage, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    with opened(f"sqlite:///{tmp_path}/old.db") as database:
        migrate.upgrade(database)
        service = Service(database, tmp_path / "old")
        service.agent().have("web")
        job = service.job("web")
        point = service.backup(job, BackupKind.FULL)
    run("vault", "add", "main", f"file://{tmp_path}/old/vaults", "--default")
    assert "1 restore points of 1 unknown jobs would come back" in run("vault", "import", "main", PROJECT, "--dry-run")
    told = run.json("vault", "import", "main", PROJECT)
    assert (told["runs"], told["jobs"], told["left_out"]) == ([point], [job], {})
    assert "0 restore points of 0 unknown jobs are back; 1 were known" in run("vault", "import", "main", PROJECT)
    assert "There is no vault" in run("vault", "import", "main", "nobody", code=3)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("add", "main", "file:///b"), 4, "There is a vault service main already."),
        (("add", "other", "ftp://x"), 2, "unknown scheme"),
        (("add", "other", "swift://user:secret@host"), 2, "it may have no user"),
        (("add", "other", "file:///b", "--max-runs", "0"), 2, "--max-runs 0"),
        (("add", " ", "file:///b"), 2, "name"),
        (("set", "none", "--default"), 3, "none"),
        (("set", "main"), 2, "it names nothing to be changed"),
        (("disable", "none"), 3, "none"),
    ],
)
def test_what_is_wrong_with_a_vault_is_told(run: Manage, words: tuple[str, ...], code: int, says: str) -> None:
    run("vault", "add", "main", "file:///a", "--default")
    before = run.json("vault", "list")
    told = run("vault", *words, code=code)
    assert told.startswith("raksha-manage: ") and says in told and "secret" not in told
    assert run.json("vault", "list") == before


# -- processes ----------------------------------------------------------------------------------------


@pytest.fixture
def registered(run: Manage) -> Manage:
    facts = {"instance": "i", "version": "1.2"}
    for kind, name in ((ServiceKind.AGENT, "one"), (ServiceKind.AGENT, "two"), (ServiceKind.SCHEDULER, "one")):
        run.database.run(lambda s, kind=kind, name=name: services.register(s, kind, name, host=name, **facts))
    return run


def state(run: Manage, kind: str, name: str) -> tuple[str, str | None]:
    found = [each for each in run.json("service", "list")["services"] if (each["kind"], each["name"]) == (kind, name)]
    return found[0]["state"], found[0]["reason"]


def test_processes_are_listed_and_told_what_is_wanted(registered: Manage) -> None:
    found = registered.json("service", "list")["services"]
    assert [(each["kind"], each["name"], each["alive"]) for each in found] == [
        ("agent", "one", True), ("agent", "two", True), ("scheduler", "one", True)]  # fmt: skip
    registered("service", "drain", "two", "--reason", "new disks")
    assert state(registered, "agent", "two") == (ServiceState.DRAINING, "new disks")
    registered("service", "disable", "two")
    assert state(registered, "agent", "two")[0] == ServiceState.DISABLED
    registered("service", "enable", "two")
    assert state(registered, "agent", "two")[0] == ServiceState.ENABLED
    assert [line.split()[:2] for line in registered("service", "list").splitlines()[1:]] == [
        ["agent", "one"], ["agent", "two"], ["scheduler", "one"]]  # fmt: skip


def test_a_name_that_two_have_needs_its_kind(registered: Manage) -> None:
    assert "say which with --kind" in registered("service", "disable", "one", code=2)
    registered("service", "disable", "one", "--kind", "agent")
    assert state(registered, "agent", "one")[0] == ServiceState.DISABLED
    assert state(registered, "scheduler", "one")[0] == ServiceState.ENABLED
    assert "three" in registered("service", "disable", "three", code=3)


# -- limits -------------------------------------------------------------------------------------------


def test_limits_of_projects(run: Manage) -> None:
    assert run("limit", "list") == "no limits\n"
    run("limit", "set", "sales", "max_jobs", "5")
    run("limit", "set", "sales", "max_stored_bytes", "-1")
    run("limit", "set", "other", "max_runs", "0")
    with run.database.reading() as session:
        assert usage.limits(session, "sales") == {"jobs": 5, "stored_bytes": -1}
    assert run.json("limit", "list", "sales")["limits"] == [
        {"project": "sales", "limit": "max_jobs", "value": 5},
        {"project": "sales", "limit": "max_stored_bytes", "value": -1},
    ]
    run("limit", "unset", "sales", "max_jobs")
    assert [line.split() for line in run("limit", "list").splitlines()[1:]] == [
        ["other", "max_runs", "0"], ["sales", "max_stored_bytes", "any"]]  # fmt: skip


@pytest.mark.parametrize("words", [("max_jobs", "-2"), ("max_jobs", "many"), ("jobs", "1"), ("max_jobs", str(2**63))])
def test_what_is_no_limit_is_refused(run: Manage, words: tuple[str, ...]) -> None:
    run("limit", "set", "sales", *words, code=2)
    assert run("limit", "list") == "no limits\n"


# -- users --------------------------------------------------------------------------------------------


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def right(run: Manage, name: str, password: str) -> bool:
    """As the API sees it."""
    basic = HttpBasic(run.users)
    return basic._is_right(basic._users.get(name), password.encode())


def test_users_come_and_change_and_go(run: Manage, typed: Callable[[str], None]) -> None:
    typed("correct horse\n")
    run("user", "add", "alice", "--project", "sales", "--roles", "reader,auditor")
    assert stat.S_IMODE(run.users.stat().st_mode) == 0o600
    made = run("user", "add", "bob", "--project", "sales", "--generate").splitlines()[-1].removeprefix("password: ")
    assert right(run, "alice", "correct horse") and right(run, "bob", made) and not right(run, "bob", "correct horse")
    found = run.json("user", "list")["users"]
    assert [(user["name"], user["project"], user["roles"]) for user in found] == [
        ("alice", "sales", ["auditor", "reader"]), ("bob", "sales", ["member", "reader"])]  # fmt: skip
    with run.users.open("a") as file:
        file.write("# a remark\n")
    typed("another horse\n")
    run("user", "passwd", "alice")
    assert right(run, "alice", "another horse") and not right(run, "alice", "correct horse") and right(run, "bob", made)
    run("user", "remove", "bob")
    assert [user["name"] for user in run.json("user", "list")["users"]] == ["alice"]
    assert run.users.read_text().endswith("# a remark\n")
    assert sorted(path.name for path in run.folder.iterdir() if "users" in path.name) == ["users"]


def test_the_password_that_stood_in_a_file_goes_with_it(run: Manage, typed: Callable[[str], None]) -> None:
    from raksha.api.http_basic import create_default_users

    made = create_default_users(run.users)
    assert made.password_file.exists()
    typed("correct horse\n")
    run("user", "passwd", "admin")
    assert right(run, "admin", "correct horse") and not made.password_file.exists()


@pytest.mark.parametrize(
    ("words", "stdin", "code", "says"),
    [
        (("add", "alice", "--project", "sales"), "correct horse\n", 4, "There is a user alice already."),
        (("add", "b:d", "--project", "sales"), "correct horse\n", 2, "b:d"),
        (("add", "bob", "--project", "sa les"), "correct horse\n", 2, "sa les"),
        (("add", "bob", "--project", "sales", "--roles", "member,"), "correct horse\n", 2, "roles"),
        (("add", "bob", "--project", "sales"), "short\n", 2, "8 to 72"),
        (("add", "bob", "--project", "sales"), "", 2, "8 to 72"),
        (("passwd", "alice"), "x" * 73, 2, "8 to 72"),
        (("passwd", "bob"), "correct horse\n", 3, "bob"),
        (("remove", "bob"), "", 3, "bob"),
        (("list", "--users-file", "/nowhere/users"), "", 2, "/nowhere/users cannot be read"),
    ],
)
def test_what_is_wrong_with_a_user_is_told(
    run: Manage, typed: Callable[[str], None], words: tuple[str, ...], stdin: str, code: int, says: str
) -> None:
    typed("a fine password\n")
    run("user", "add", "alice", "--project", "sales")
    before = run.users.read_bytes()
    typed(stdin)
    told = run("user", *words, code=code)
    assert says in told and (not stdin.strip() or stdin.strip() not in told)
    assert run.users.read_bytes() == before


@pytest.mark.system
def test_the_file_stays_its_owners(run: Manage, typed: Callable[[str], None]) -> None:
    typed("correct horse\n")
    run("user", "add", "alice", "--project", "sales")
    os.chown(run.users, 65534, 65534)
    run("user", "remove", "alice")
    assert (run.users.stat().st_uid, run.users.stat().st_gid) == (65534, 65534)


# -- all ----------------------------------------------------------------------------------------------


def test_an_error_is_json_where_the_result_would_be(run: Manage, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        manage.main(["--state-dir", str(run.folder / "none"), "vault", "list", "--json"])
    assert ended.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad_argument"


def test_a_database_of_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raksha.db").touch()
    command = [sys.executable, "-m", "raksha.cmd.manage", "--state-dir", tmp_path, "service", "list"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 4
    assert found.stderr.splitlines()[1].strip().startswith("Run `raksha-manage db upgrade`"), found.stderr


# -- the catalogue of a cloud -------------------------------------------------------------------------


def test_the_commands_that_make_the_service_known(run: Manage) -> None:
    lines = run("catalog", "--url", "https://backup.example:9700/", "--region", "here").splitlines()
    assert all(line.startswith("openstack ") for line in lines)
    assert "openstack service create --name raksha --description 'Backup of virtual machines' data-protection" in lines
    for interface in ("public", "internal", "admin"):
        endpoint = "'https://backup.example:9700/v1/%(project_id)s'"
        assert f"openstack endpoint create --region here data-protection {interface} {endpoint}" in lines
    assert run.json("catalog", "--url", "http://a")["commands"][0].startswith("openstack user create")


@pytest.mark.parametrize(("words", "says"), [((), "public_endpoint"), (("--url", "backup.example"), "no http")])
def test_without_an_address_nothing_can_be_registered(run: Manage, words: tuple[str, ...], says: str) -> None:
    assert says in run("catalog", *words, code=2)

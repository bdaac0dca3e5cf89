"""Users in a file: who gets in, what the file must be, and how the embedded default makes one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import bcrypt
import flask
import pytest
from werkzeug.test import EnvironBuilder

from raksha.api.http_basic import HttpBasic, create_default_users, line
from raksha.errors import NotAuthenticated, SettingsWrong
from tests.unit.api.conftest import COST, HASHED, PASSWORD, Api, basic, error, write_private


def request(headers: dict[str, str]) -> flask.Request:
    return flask.Request(EnvironBuilder(headers=headers).get_environ())


def test_who_knows_the_password_gets_in_and_nobody_else(api: Api) -> None:
    assert api("GET", "/v1/p1/limits").status_code == 200
    for headers in (
        {},
        basic("member", "wrong"),
        basic("member", ""),
        basic("member", PASSWORD + "\0"),
        basic("Member"),
        basic("nobody-of-that-name"),
        basic("member", "x" * 5000),
        basic("member", "\udcff".encode("utf-8", "surrogatepass").decode("latin-1")),
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer member"},
        {"X-Auth-Token": "member"},
    ):
        answer = api("GET", "/v1/p1/limits", None, headers=headers)
        error(answer, 401, "not_authenticated")
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="raksha", charset="UTF-8"'


def test_a_password_that_begins_alike_is_another_one(tmp_path: Path) -> None:
    """bcrypt looks at 72 bytes only."""
    known = "k" * 72
    authenticator = HttpBasic(write_private(tmp_path / "users", line("long", known, "p", "reader", COST)))
    assert authenticator.identify(request(basic("long", known))).user_id == "long"
    for other in (known + "x", known[:-1]):
        with pytest.raises(NotAuthenticated):
            authenticator.identify(request(basic("long", other)))


def test_roles_bring_what_they_imply(users_file: Path) -> None:
    authenticator = HttpBasic(users_file)
    assert authenticator.identify(request(basic("admin"))).roles == {"admin", "member", "reader"}
    assert authenticator.identify(request(basic("member"))).roles == {"member", "reader"}
    assert authenticator.identify(request(basic("nobody"))).roles == {"auditor"}


def test_an_unknown_name_takes_as_long_as_a_wrong_password(tmp_path: Path) -> None:
    cost = 10
    authenticator = HttpBasic(write_private(tmp_path / "users", line("known", PASSWORD, "p", "reader", cost)))

    def seconds(name: str) -> float:
        began = time.thread_time()
        with pytest.raises(NotAuthenticated):
            authenticator.identify(request(basic(name, "wrong")))
        return time.thread_time() - began

    known, unknown = (min(seconds(name) for _ in range(3)) for name in ("known", "unknown"))
    assert unknown > known / 2, (known, unknown)


def test_a_right_password_is_slow_once_and_a_wrong_one_always(tmp_path: Path) -> None:
    authenticator = HttpBasic(write_private(tmp_path / "users", line("known", PASSWORD, "p", "reader", 10)))
    times = []
    for _ in range(2):
        began = time.thread_time()
        authenticator.identify(request(basic("known")))
        times.append(time.thread_time() - began)
    assert times[1] < times[0] / 5
    with pytest.raises(NotAuthenticated):
        authenticator.identify(request(basic("known", PASSWORD + "x")))


def test_a_changed_file_counts_at_once(users_file: Path, api: Api) -> None:
    assert api("GET", "/v1/p1/limits").status_code == 200
    changed = bcrypt.hashpw(b"new password", bcrypt.gensalt(COST)).decode()
    users_file.write_text(f"member:{changed}:p1:member\n")
    error(api("GET", "/v1/p1/limits"), 401, "not_authenticated")
    assert api("GET", "/v1/p1/limits", None, headers=basic("member", "new password")).status_code == 200


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o610, 0o777])
def test_a_file_that_others_can_reach_is_refused(users_file: Path, mode: int) -> None:
    users_file.chmod(mode)
    with pytest.raises(SettingsWrong, match="0600"):
        HttpBasic(users_file)


def test_a_file_that_becomes_readable_lets_nobody_in(users_file: Path, api: Api) -> None:
    users_file.chmod(0o644)
    answer = api("GET", "/v1/p1/limits")
    error(answer, 500, "settings_wrong")
    assert str(users_file) not in answer.get_data(as_text=True)


@pytest.mark.system
def test_a_file_of_somebody_else_is_refused(users_file: Path) -> None:
    os.chown(users_file, 12345, 12345)
    with pytest.raises(SettingsWrong, match="12345"):
        HttpBasic(users_file)


@pytest.mark.parametrize(
    "text",
    ["alice", f"alice:{HASHED}:p1", "alice:secret:p1:reader", f"al/ice:{HASHED}:p1:reader",
     f"alice:{HASHED}:p 1:reader", f"alice:{HASHED}:p1:", f"alice:{HASHED}:p1:reader\nalice:{HASHED}:p2:admin"],
    # the hash, whose salt is another in each process, must not be part of a test's name
    ids=["name only", "no roles", "no hash", "a slash", "a space", "empty roles", "twice"],
)  # fmt: skip
def test_a_line_that_is_none_is_told_by_its_number_and_without_its_secret(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsWrong) as raised:
        HttpBasic(write_private(tmp_path / "users", f"# users\n\n{text}\n"))
    assert f"users:{text.count(chr(10)) + 3}: " in str(raised.value)
    assert HASHED not in str(raised.value) and "secret" not in str(raised.value)


def test_no_file_is_an_error_and_not_an_open_door(tmp_path: Path) -> None:
    with pytest.raises(SettingsWrong, match="cannot be read"):
        HttpBasic(tmp_path / "none")
    with pytest.raises(SettingsWrong):
        HttpBasic(tmp_path)


def test_the_embedded_default_has_one_user_with_a_password_of_its_own(tmp_path: Path) -> None:
    made = create_default_users(tmp_path / "users")
    password = made.password_file.read_text().rstrip("\n")
    assert len(password) >= 32
    for path in (tmp_path / "users", made.password_file):
        assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["users", "users.admin-password"]
    assert password not in (tmp_path / "users").read_text()
    identity = HttpBasic(tmp_path / "users").identify(request(basic(made.name, password)))
    assert (identity.user_id, identity.project_id, identity.is_admin) == ("admin", "default", True)

    before = (tmp_path / "users").read_bytes()
    assert create_default_users(tmp_path / "users") == made
    assert ((tmp_path / "users").read_bytes(), made.password_file.read_text()) == (before, password + "\n")


def test_a_first_start_that_was_cut_off_is_made_good(tmp_path: Path) -> None:
    first = create_default_users(tmp_path / "users")
    (tmp_path / "users").unlink()
    second = create_default_users(tmp_path / "users")
    password = second.password_file.read_text().strip()
    assert second == first
    assert HttpBasic(tmp_path / "users").identify(request(basic("admin", password))).is_admin


def test_users_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsWrong, match="cannot be made"):
        create_default_users(tmp_path / "none" / "users")


def test_the_app_lets_in_by_file_only(make_api: Callable[..., Api]) -> None:
    api = make_api()
    assert api("GET", "/v1/p2/limits", "stranger").status_code == 200

"""Who is asking, and where: what comes first, and what is said if nothing does."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from raksha.client import errors, login


def options(**given: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"state_dir": None, "url": None, **given})


class Nothing:
    """A configuration that must not be asked."""


def test_the_folder_of_a_serve(tmp_path: Path) -> None:
    (tmp_path / login._PASSWORD).write_text("secret\n")
    others = {"OS_AUTH_URL": "http://cloud.example"}
    named = options(state_dir=str(tmp_path))
    assert login.client(named, Nothing(), others).transport.url == "http://127.0.0.1:9797/v1/default"
    told = {**others, "RAKSHA_STATE_DIR": str(tmp_path), "RAKSHA_URL": "http://a.example:1", "RAKSHA_PROJECT": "p"}
    assert login.client(options(), Nothing(), told).transport.url == "http://a.example:1/v1/p"
    with pytest.raises(errors.NotLoggedIn, match="No such file") as caught:
        login.client(options(state_dir=str(tmp_path / "x")), Nothing(), {})
    assert "--state-dir" in caught.value.told()


def test_the_standard_folder_only_where_nothing_else_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login.os, "geteuid", lambda: 1000)
    environment = {"XDG_STATE_HOME": str(tmp_path)}
    (tmp_path / "raksha").mkdir()
    (tmp_path / "raksha" / login._PASSWORD).write_text("secret\n")
    assert login.client(options(), Nothing(), environment).project_id == "default"
    for name, value in (("OS_CLOUD", "x"), ("OS_AUTH_TYPE", "http_basic"), ("OS_USERNAME", "x")):
        with pytest.raises(AttributeError, match="get_one"):
            login.client(options(), Nothing(), {**environment, name: value})
    with pytest.raises(AttributeError, match="get_one"):
        login.client(options(os_auth_url="http://cloud.example"), Nothing(), environment)


def test_the_folder_is_that_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    from raksha.config import default_state_dir

    for uid in (0, 1000):
        monkeypatch.setattr(login.os, "geteuid", lambda uid=uid: uid)
        monkeypatch.setenv("XDG_STATE_HOME", "/state")
        assert login.state_folder({"XDG_STATE_HOME": "/state"}) == default_state_dir()


def test_a_password_that_nobody_can_be_asked_for() -> None:
    with pytest.raises(errors.NotLoggedIn, match="no terminal"):
        login.asked()

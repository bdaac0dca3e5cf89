"""`auth_strategy = keystone`: what is wrong with its section is told at the start. With a real Keystone:
tests/openstack/test_identity.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raksha import config_check
from raksha.api import keystone
from raksha.errors import SettingsWrong
from tests.unit.api.conftest import Api, error

COMPLETE = """\
[api]
auth_strategy = keystone
[keystone_authtoken]
www_authenticate_uri = http://keystone.example:5000/
auth_url = http://127.0.0.1:1/v3
auth_type = password
username = raksha
password = s3cret
project_name = service
user_domain_name = Default
project_domain_name = Default
service_token_roles = service
service_token_roles_required = true
"""


def conf(folder: Path, text: str = COMPLETE) -> Path:
    path = folder / "raksha.conf"
    path.write_text(text)
    return path


def without(word: str) -> str:
    return "\n".join(line for line in COMPLETE.splitlines() if not line.startswith(word))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (without("auth_type"), "says no auth_type"),
        (COMPLETE.replace("= true", "= false"), "service_token_roles_required must be true"),
        (COMPLETE + "include_service_catalog = false\n", "include_service_catalog must be true"),
        (COMPLETE.replace("= password", "= nothing"), "nothing"),
        ("workers = 3\n", "keystone_authtoken"),
    ],
)
def test_a_section_that_cannot_work_is_told_at_the_start(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsWrong, match=says) as told:
        keystone.load(conf(tmp_path, text))
    assert "s3cret" not in str(told.value)


def test_without_a_token_the_way_to_keystone_is_told(tmp_path: Path, make_api: Callable[..., Api]) -> None:
    file = conf(tmp_path)
    config_check.check(file)
    api = make_api(authenticator=keystone.load(file)[0])
    answer: Any = api("GET", "/v1/p1/limits", None)
    error(answer, 401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == 'Keystone uri="http://keystone.example:5000/"'


def test_what_a_caller_says_of_himself_is_not_believed(tmp_path: Path, make_api: Callable[..., Api]) -> None:
    claim = {"X-Identity-Status": "Confirmed", "X-User-Id": "u", "X-Project-Id": "p1", "X-Roles": "admin"}
    api = make_api(authenticator=keystone.load(conf(tmp_path))[0])
    error(api("GET", "/v1/p1/limits", None, headers=claim), 401, "not_authenticated")

"""etc/raksha.conf.sample is what the options in the code make of it, and changes nothing when all of it is in force."""

from __future__ import annotations

import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
from keystoneauth1 import loading
from keystonemiddleware import opts as keystonemiddleware_opts
from msgspec.structs import fields, replace
from oslo_config import cfg

from raksha import (
    config,
    config_agent,
    config_api,
    config_check,
    config_database,
    config_notifications,
    config_scheduler,
)
from raksha.config import Settings
from raksha.config_agent import AgentSettings
from raksha.config_api import ApiSettings
from raksha.config_database import DatabaseSettings
from raksha.config_notifications import NotificationSettings
from raksha.config_scheduler import SchedulerSettings

REPOSITORY = Path(__file__).parents[2]
SAMPLE = REPOSITORY / "etc/raksha.conf.sample"
OPTION = re.compile(r"^#(\w+ =.*)$", re.MULTILINE)


@pytest.fixture
def uncommented(tmp_path: Path) -> Path:
    path = tmp_path / "raksha.conf"
    path.write_text(OPTION.sub(r"\1", SAMPLE.read_text()))
    return path


def options_in(path: Path) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    cfg.ConfigParser(str(path), found).parse()
    return found


def test_it_is_what_the_generator_writes() -> None:
    made = runpy.run_path(str(REPOSITORY / "scripts/sample_configuration.py"))["text"]()
    assert SAMPLE.read_text() == made, "run scripts/sample_configuration.py"
    assert max(map(len, made.splitlines())) <= 120


def test_every_option_is_in_it_once_below_its_help(uncommented: Path) -> None:
    found = options_in(uncommented)
    for section, options in config_check.OPTIONS.items():
        counts = Counter({name: len(values) for name, values in found.pop(section).items()})
        assert counts == Counter(option.name for option in options), section
        assert all(option.help and option.help.endswith(".") for option in options), section
    assert set(found) == {"keystone_authtoken", "trustee"}
    assert [option.name for option in config_check.OPTIONS["host"]] == [field.name for field in fields(Settings)]
    bare = re.findall(r"\n\n#\w+ =.*", SAMPLE.read_text())
    assert bare == []


def test_all_of_it_in_force_is_the_defaults(uncommented: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.conf"
    empty.write_text("")
    config_check.check(uncommented)
    standard = {"libvirt_uri": "qemu:///system", "state_dir": Path("/var/lib/raksha")}
    assert config.load(uncommented) == config.load(empty, **standard)
    assert config_api.load(uncommented) == ApiSettings()
    assert config_database.load(uncommented) == config_database.load(empty)
    assert replace(config_database.load(uncommented), connection="") == DatabaseSettings(connection="")
    assert replace(config_scheduler.load(uncommented), name="") == SchedulerSettings()
    assert config_notifications.load(uncommented) == NotificationSettings()
    assert replace(config_agent.load(uncommented), host="") == AgentSettings()


def test_what_is_shown_of_other_libraries_is_theirs(uncommented: Path) -> None:
    found = options_in(uncommented)
    login = {option.dest for option in loading.get_auth_plugin_conf_options("password")}
    login |= {option.dest for option in loading.get_auth_common_conf_options()}
    session = {option.dest for option in loading.get_session_conf_options()}
    middleware = {o.dest for _, options in keystonemiddleware_opts.list_auth_token_opts() for o in options}
    assert set(found["keystone_authtoken"]) <= login | middleware
    assert set(found["trustee"]) <= login | session | {"user_id", "interface", "region_name"}

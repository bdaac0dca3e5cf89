"""Migrations are found from a checkout and from what is installed; the settings of the database."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raksha import config_database
from raksha.cmd import manage
from raksha.config_database import OPTIONS
from raksha.db import migrate
from raksha.db.session import Database
from raksha.errors import SchemaWrong, SettingsWrong
from tests.bed.databases import opened
from tests.bed.swift import CHECKOUT


def test_an_installed_package_carries_its_migrations(tmp_path: Path) -> None:
    source, installed = tmp_path / "source", tmp_path / "installed"
    for name in ("raksha", "alembic"):
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(CHECKOUT / name, source)
    build = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(installed)]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
    shutil.rmtree(source)
    url = f"sqlite:///{tmp_path}/raksha.db"
    command = [sys.executable, "-m", "raksha.cmd.manage", "--database", url, "db", "upgrade"]
    told = subprocess.run(command, cwd=installed, check=True, capture_output=True, text=True, timeout=60).stdout
    assert told == f"{migrate.head()} (up to date)\n"
    assert not list(installed.rglob("__pycache__/*alembic*"))


def test_a_database_of_a_later_raksha_is_refused(sqlite: Database) -> None:
    with sqlite.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'later'")
    with pytest.raises(SchemaWrong, match="has schema later; this Raksha needs"):
        migrate.check(sqlite)


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/raksha.db") as database:
        with database.engine.begin() as connection:
            # in the way of a table that comes late
            connection.exec_driver_sql("CREATE TABLE pins (id INTEGER)")
        with pytest.raises(Exception, match="pins already exists"):
            migrate.upgrade(database)
        with database.engine.connect() as connection:
            tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        assert tables == ["pins"]


def test_settings_come_from_file_environment_and_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "raksha.conf"
    file.write_text("[database]\nconnection = sqlite:////from-file\nmax_pool_size = 9\n")
    found = config_database.load(file)
    assert (found.connection, found.max_pool_size, found.max_overflow) == ("sqlite:////from-file", 9, 50)
    monkeypatch.setenv("OS_DATABASE__CONNECTION", "sqlite:////from-environment")
    assert config_database.load(file).connection == "sqlite:////from-environment"
    assert config_database.load(file, "sqlite:////asked-for").connection == "sqlite:////asked-for"
    file.write_text("[database]\nmax_pool_size = none\n")
    with pytest.raises(SettingsWrong, match="max_pool_size"):
        config_database.load(file)


def test_the_sample_shows_every_setting_with_its_default() -> None:
    section = (CHECKOUT / "etc/raksha.conf.sample").read_text().partition("\n[database]\n")[2].partition("\n[")[0]
    shown = dict(re.findall(r"^#(\w+) = ?(.*)$", section, re.M))
    assert shown == {option.name: "" if option.default is None else str(option.default) for option in OPTIONS}


def test_manage_tells_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        manage.main(["--database", f"sqlite:///{tmp_path}/none/raksha.db", "db", "current"])
    assert ended.value.code == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines()[0] == "raksha-manage: The database did not answer: unable to open database file."

"""Settings: defaults, file, overrides."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raksha import config
from raksha.errors import SettingsWrong


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "raksha.conf"
    path.write_text("[host]\nworkers = 7\nagent_timeout = 9\n")
    settings = config.load(path, workers=3, state_dir="relative/state", overlay_dir=None)
    assert (settings.workers, settings.agent_timeout) == (3, 9)
    assert settings.state_dir == Path.cwd() / "relative/state"
    assert settings.overlay_dir is None


@pytest.mark.parametrize("text", ["[host]\nworkers = 0\n", "[host]\nworkers = many\n", "workers = 3\n", "[host\n"])
def test_a_wrong_value_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "raksha.conf"
    path.write_text(text)
    with pytest.raises(SettingsWrong):
        config.load(path)


@pytest.mark.parametrize("there", [True, False])
def test_a_variable_wins_over_the_file_and_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    path = tmp_path / "raksha.conf"
    monkeypatch.setattr(config, "STANDARD_FILE", path)
    if there:
        path.write_text("[host]\nworkers = 7\nagent_timeout = 9\n")
    monkeypatch.setenv("OS_HOST__WORKERS", "3")
    assert (config.load().workers, config.load(workers=2).workers) == (3, 2)
    assert config.load().agent_timeout == (9 if there else 5)
    monkeypatch.setenv("OS_HOST__WORKERS", "many")
    with pytest.raises(SettingsWrong, match="workers"):
        config.load()


def test_where_nothing_is_set_nothing_is_imported_for_it(tmp_path: Path) -> None:
    """It would take a third of the time in which a short command starts."""
    nowhere = f"pathlib.Path({str(tmp_path)!r}, 'none.conf')"
    code = f"import sys, pathlib; from raksha import config; config.STANDARD_FILE = {nowhere}; "
    code += "config.load(); print('oslo_config' in sys.modules)"
    for more, imported in (({}, "False"), ({"OS_HOST__WORKERS": "3"}, "True")):
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("OS_")}, **more}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == imported


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsWrong):
        config.load(tmp_path / "none.conf")

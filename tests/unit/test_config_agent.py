"""[agent] of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from raksha import config_agent
from raksha.config_agent import AgentSettings
from raksha.errors import SettingsWrong


def load(tmp_path: Path, text: str) -> AgentSettings:
    path = tmp_path / "raksha.conf"
    path.write_text(f"[agent]\n{text}\n")
    return config_agent.load(path)


def test_defaults_file_and_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(tmp_path, "")
    assert found.host and replace(found, host="") == AgentSettings()
    monkeypatch.setenv("OS_AGENT__CAPACITY", "7")
    found = load(tmp_path, "capacity = 2\nhost = kvm-3\nrestore_dirs = /srv/a, /srv/b\n")
    assert (found.capacity, found.host, found.restore_dirs) == (7, "kvm-3", (Path("/srv/a"), Path("/srv/b")))


@pytest.mark.parametrize("text", ["capacity = 0", "patience = 0", "metrics_port = 70000", "restore_dirs = a/b",
                                  "drain_timeout = -1", "look_interval = 0"])  # fmt: skip
def test_a_wrong_value_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsWrong, match=text.partition(" ")[0]):
        load(tmp_path, text)

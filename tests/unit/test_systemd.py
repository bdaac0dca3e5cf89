"""The units in etc/systemd: systemd understands every line of them, and what they start is there."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
UNITS = sorted((CHECKOUT / "etc/systemd").glob("*.service"))
PREFIX = "/opt/raksha/bin/"


@pytest.fixture(params=UNITS, ids=[unit.stem for unit in UNITS])
def unit(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def settings(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


def test_there_is_one_for_each_process() -> None:
    assert [unit.stem for unit in UNITS] == ["raksha-agent", "raksha-api", "raksha-scheduler", "raksha-serve"]


def test_systemd_has_nothing_to_say_about_it(unit: Path, tmp_path: Path) -> None:
    (command,) = settings(unit, "ExecStart")
    program = tmp_path / Path(command.split()[0]).name
    program.symlink_to("/bin/true")
    changed = tmp_path / unit.name
    changed.write_text(unit.read_text().replace(PREFIX, f"{tmp_path}/"))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", changed], capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "info"},
    )  # fmt: skip
    said = [line for line in (found.stdout + found.stderr).splitlines() if unit.stem in line]
    assert (found.returncode, said) == (0, [])


def test_a_word_that_systemd_does_not_know_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text("[Service]\nExecStart=/bin/true\nProtectSytem=full\n")
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", wrong], capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert "ProtectSytem" in found.stdout + found.stderr


def test_what_it_starts_is_installed(unit: Path) -> None:
    (command,) = settings(unit, "ExecStart")
    program = command.removeprefix(PREFIX).split()[0]
    assert f'"{program} = raksha.cmd.' in (CHECKOUT / "setup.py").read_text()


def test_nothing_is_killed_behind_an_agent(unit: Path) -> None:
    """The watchdog that thaws a guest outlives whoever froze it."""
    if unit.stem in ("raksha-agent", "raksha-serve"):
        assert (settings(unit, "KillMode"), settings(unit, "OOMPolicy")) == (["process"], ["continue"])
    else:
        assert settings(unit, "CapabilityBoundingSet") == [""]
        assert settings(unit, "User") == ["raksha"]


def test_an_end_in_order_has_the_time_it_needs(unit: Path) -> None:
    from raksha.config_agent import AgentSettings

    (seconds,) = map(int, settings(unit, "TimeoutStopSec"))
    drains = unit.stem in ("raksha-agent", "raksha-serve")
    assert seconds >= (AgentSettings().drain_timeout + 30 if drains else 35)

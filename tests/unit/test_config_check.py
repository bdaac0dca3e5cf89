"""What nobody knows in a configuration is an error of every process, and is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raksha import config_check
from raksha.errors import SettingsWrong

PROCESSES = {
    "agent": ["raksha.cmd.agent", "--config", "{}"],
    "api": ["raksha.cmd.api", "--config", "{}"],
    "scheduler": ["raksha.cmd.scheduler", "--config", "{}"],
    "manage": ["raksha.cmd.manage", "--config", "{}", "db", "current"],
    "local": ["raksha.cmd.main", "local", "vms", "--config", "{}"],
}


def conf(folder: Path, text: str) -> Path:
    path = folder / "raksha.conf"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[api]\nthreds = 3\n", r"\[api\] has no option threds \(is it threads\?\)"),
        ("[api]\nThreads = 3\n", r"\[api\] has no option Threads \(is it threads\?\)"),
        ("[agents]\ncapacity = 3\n", r"there is no section \[agents\] \(is it agent\?\)"),
        ("[DEFAULT]\ndebug = true\n", r"there is no section \[DEFAULT\]"),
        ("[host]\nlibvirt_url = a\n[database]\nurl = b\n", r"libvirt_url \(is it libvirt_uri\?\); \[database\] .* url"),
        ("[scheduler]\ncapacity = 4\n", r"\[scheduler\] has no option capacity"),
        ("workers = 3\n", "Section must be started"),
    ],
)
def test_what_nobody_knows_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsWrong, match=says):
        config_check.check(conf(tmp_path, text))


def test_what_is_known_is_let_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_API__THREADS", "3")
    monkeypatch.setenv("OS_AUTH_URL", "x")
    monkeypatch.setenv("OS_SOMETHING__ELSE", "x")
    lines = [(f"[{name}]", *(f"{option} = 1" for option in options)) for name, options in config_check.SECTIONS.items()]
    config_check.check(conf(tmp_path, "\n".join(line for section in lines for line in section)))


def test_a_variable_that_nobody_knows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_SCHEDULER__INTERVALL", "3")
    with pytest.raises(SettingsWrong, match=r"OS_SCHEDULER__INTERVALL.*is it interval"):
        config_check.check()


@pytest.mark.parametrize("words", PROCESSES.values(), ids=PROCESSES)
def test_every_process_looks(tmp_path: Path, words: list[str]) -> None:
    file = str(conf(tmp_path, "[scheduler]\nintervall = 3\n"))
    command = [sys.executable, "-m", *(word.format(file) for word in words)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2, found.stderr
    assert "[scheduler] has no option intervall (is it interval?)" in found.stderr
    assert "Traceback" not in found.stderr

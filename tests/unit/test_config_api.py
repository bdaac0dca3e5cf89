"""[api] of the configuration: defaults, file, environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from raksha import config_api
from raksha.config_api import ApiSettings, Limits
from raksha.errors import SettingsWrong


def conf(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "raksha.conf"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert config_api.load(conf(tmp_path, "")) == ApiSettings()


def test_file_and_environment_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_API__THREADS", "3")
    text = "[api]\nthreads = 5\nworkers = 2\nmax_jobs = 9\nusers_file = /x/users\npublic_endpoint = https://a.example\n"
    found = config_api.load(conf(tmp_path, text))
    assert (found.threads, found.workers, found.limits) == (3, 2, Limits(max_jobs=9))
    assert (found.users_file, found.public_endpoint) == (Path("/x/users"), "https://a.example")


@pytest.mark.parametrize(
    "text",
    ["threads = 0", "threads = many", "auth_strategy = noauth", "public_endpoint = ftp://a",
     "public_endpoint = https://", "public_endpoint = a.example", "max_page_size = 5000",
     "tls_key = /x", "tls_certificate = /x", "max_body_bytes = 1"],
)  # fmt: skip
def test_a_wrong_value_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsWrong):
        config_api.load(conf(tmp_path, f"[api]\n{text}\n"))

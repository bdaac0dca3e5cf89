"""[api] of the configuration: defaults, file, environment, and the sample that operators start from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raksha import config_api
from raksha.config_api import ApiSettings, Limits
from raksha.errors import SettingsWrong

SAMPLE = Path(__file__).parents[2] / "etc/raksha.conf.sample"


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


def test_the_sample_shows_every_option_with_its_default(tmp_path: Path) -> None:
    section = SAMPLE.read_text().split("[api]")[1].split("\n[")[0]
    shown = dict(re.findall(r"^#(\w+) = ?(.*)$", section, re.MULTILINE))
    assert set(shown) == {option.name for option in config_api.OPTIONS}
    uncommented = "".join(f"{name} = {value}\n" for name, value in shown.items() if value)
    assert config_api.load(conf(tmp_path, f"[api]\n{uncommented}")) == ApiSettings()

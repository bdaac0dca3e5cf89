"""What the site of docs/ is made of leaves nothing out. `make docs` checks links and toctrees."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path

from raksha import config_agent, config_check, config_opts
from raksha.client.commands import COMMANDS
from raksha.config import Settings

DOCS = Path(__file__).parents[2] / "docs"


def test_every_command_is_on_the_page_of_commands_once() -> None:
    text = (DOCS / "cli/service.rst").read_text(encoding="utf-8")
    patterns = [each for line in re.findall(r"raksha-commands:: (.*)", text) for each in line.split(",")]
    for words in COMMANDS:
        assert sum(fnmatch(words, pattern) for pattern in patterns) == 1, words


def test_every_request_has_a_chapter_of_the_rest_reference() -> None:
    document = json.loads((DOCS / "openapi.json").read_bytes())
    chapters = {tag["name"] for tag in document["tags"]}
    for path, item in document["paths"].items():
        for method in item.keys() - {"parameters"}:
            operation = item[method]
            assert len(chapters.intersection(operation["tags"])) == 1, (method, path)
            assert operation["summary"], (method, path)


def test_tools_of_oslo_config_get_every_option_with_the_default_that_is_in_force() -> None:
    listed = {section: {option.name: option for option in options} for section, options in config_opts.list_opts()}
    assert {section: frozenset(options) for section, options in listed.items()} == config_check.SECTIONS
    settings = Settings(libvirt_uri="", state_dir=Path())
    assert listed["host"]["workers"].default == settings.workers
    assert listed["host"]["freeze_deadline"].default == settings.freeze_deadline
    assert listed["agent"]["capacity"].default == {each.name: each.default for each in config_agent.OPTIONS}["capacity"]
    # the options that processes read are not changed by that
    assert all(option.default is None for option in config_check.OPTIONS["host"])

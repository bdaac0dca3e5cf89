"""What a configuration file may hold at all: an option or a section that nobody knows is an error, for every process.

oslo.config passes over what it was not asked for, so a slip of the pen would leave a default in force and nobody the
wiser. All processes read one file, so each of them looks at all of its sections.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from oslo_config import cfg, iniparser

from raksha import config_agent, config_api, config_database, config_file, config_notifications, config_scheduler
from raksha.errors import SettingsWrong

STANDARD_FILE = Path("/etc/raksha/raksha.conf")

#: of each section, in the order in which operators read them
OPTIONS: Mapping[str, list[cfg.Opt]] = {
    "host": config_file.OPTIONS,
    "api": config_api.OPTIONS,
    "database": config_database.OPTIONS,
    "scheduler": config_scheduler.OPTIONS,
    "notifications": config_notifications.OPTIONS,
    "agent": config_agent.OPTIONS,
}
SECTIONS: Mapping[str, frozenset[str]] = {
    section: frozenset(option.name for option in options) for section, options in OPTIONS.items()
}
#: sections of others, who look at them themselves
_FOREIGN = frozenset({"keystone_authtoken", "trustee"})


def check(path: Path | None = None) -> None:
    """Of a file (default: /etc/raksha/raksha.conf if it is there) and of the variables `OS_SECTION__OPTION`.

    Raises `SettingsWrong`, with all that nobody knows.
    """
    _check_variables(os.environ)
    file = path or (STANDARD_FILE if STANDARD_FILE.exists() else None)
    if file is None:
        return
    found: dict[str, dict[str, list[str]]] = {}
    try:
        cfg.ConfigParser(str(file), found).parse()
    except (iniparser.ParseError, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=str(error)) from error
    problems = []
    for section, options in found.items():
        if section in _FOREIGN:
            continue
        if section not in SECTIONS:
            problems.append(f"there is no section [{section}]{_meant(section, {*SECTIONS, *_FOREIGN})}")
            continue
        unknown = [name for name in options if name not in SECTIONS[section]]
        problems += [f"[{section}] has no option {name}{_meant(name, SECTIONS[section])}" for name in unknown]
    if problems:
        raise SettingsWrong(detail=f"{file}: {'; '.join(problems)}")


def has_section(file: Path | None, name: str) -> bool:
    """Whether a file that was checked, or a variable, says anything of this section."""
    if any(variable.startswith(f"OS_{name.upper()}__") for variable in os.environ):
        return True
    found: dict[str, dict[str, list[str]]] = {}
    if file is not None:
        cfg.ConfigParser(str(file), found).parse()
    return bool(found.get(name))


def _check_variables(environment: Mapping[str, str]) -> None:
    for name in environment:
        prefix, _, option = name.partition("__")
        section = prefix.removeprefix("OS_").lower()
        if prefix == f"OS_{section.upper()}" and section in SECTIONS and option.lower() not in SECTIONS[section]:
            meant = _meant(option.lower(), SECTIONS[section])
            raise SettingsWrong(detail=f"the variable {name}: [{section}] has no option {option.lower()}{meant}")


def _meant(word: str, known: Iterable[str]) -> str:
    near = get_close_matches(word.lower(), known, 1)
    return f" (is it {near[0]}?)" if near else ""

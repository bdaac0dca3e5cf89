"""Write etc/raksha.conf.sample from the options that are registered, their help and their defaults.

usage: .venv/bin/python scripts/sample_configuration.py        (the tests fail while it is not current)

Not by oslo-config-generator: it writes `<None>` for what is unset, which is a value once it is uncommented, a line of
its own for each bound, and all the options of keystonemiddleware and keystoneauth, of which few matter here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from msgspec.structs import fields
from oslo_config import cfg

from raksha.config import Settings
from raksha.config_check import OPTIONS

REPOSITORY = Path(__file__).parents[1]
WIDTH = 120

HEAD = """\
/etc/raksha/raksha.conf, read by every Raksha process on this host. Command-line options win over it.
All values shown are the defaults, but for those of [keystone_authtoken] and [trustee], which are examples.
scripts/sample_configuration.py makes this file from the options in the code: change it there."""

#: before the header of a section
INTRODUCTIONS = {
    "host": "How VMs of this host are captured, with or without the service.",
    "api": """\
-- The service: raksha-api, raksha-scheduler, raksha-agent, raksha serve --------
`raksha local` needs nothing of what follows. A process reads the sections of its own; an option or a section that \
none of them knows is an error for all.

The REST API, and the limits of projects.""",
    "database": "The database, for raksha-api, raksha-scheduler and raksha-manage. The names are those of oslo.db.",
    "scheduler": "What raksha-scheduler does how often, how much may run at once, and how long it waits for others.",
    "notifications": "What others are told over the message bus, as by services of OpenStack. raksha serve has none.",
    "agent": "raksha-agent, one on each hypervisor: how much it takes on, and where it may restore to.",
    "keystone_authtoken": """\
Where auth_strategy is keystone: how the API asks Keystone about tokens. The options are those of keystonemiddleware, \
as in every OpenStack service; the user has the roles admin and service in the project of services.""",
    "trustee": """\
The user that jobs are delegated to, by a trust of their owner's. The API needs the id of that user, and interface and \
region_name: which addresses of the cloud are asked. Schedulers log in as that user. Agents need none of it. Unset: \
jobs act as the service. The project is for vaults in accounts that tenants open through the service alone (`--account \
service`).""",
}

#: sections whose options are other libraries': the ones that are usual, with examples
EXAMPLES = {
    "keystone_authtoken": {
        "www_authenticate_uri": "http://127.0.0.1:5000/",
        "auth_url": "http://127.0.0.1:5000/v3",
        "auth_type": "password",
        "username": "raksha",
        "password": "",
        "project_name": "service",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "memcached_servers": "127.0.0.1:11211",
        "service_token_roles": "service",
        "service_token_roles_required": "true",
    },
    "trustee": {
        "user_id": "",
        "auth_type": "password",
        "auth_url": "http://127.0.0.1:5000/v3",
        "password": "",
        "project_name": "service",
        "project_domain_name": "Default",
        "interface": "public",
        "region_name": "",
        "cafile": "",
    },
}


def text() -> str:
    """The whole file."""
    parts = [_comment(HEAD)]
    for section, options in OPTIONS.items():
        parts.append(f"{_comment(INTRODUCTIONS[section])}\n[{section}]")
        parts += [f"{_comment(option.help)}\n{_line(option.name, default(option))}" for option in options]
    for section, examples in EXAMPLES.items():
        lines = [_line(name, value) for name, value in examples.items()]
        parts.append("\n".join([_comment(INTRODUCTIONS[section]), f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


def default(option: cfg.Opt) -> str:
    """As it is written in a file; empty: unset. The options of [host] have theirs in `Settings` alone."""
    value = option.default if option.sample_default is None else option.sample_default
    if value is None:
        value = {field.name: field.default for field in fields(Settings)}.get(option.name)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ",".join(value)
    return "" if value is None else str(value)


def _line(name: str, value: str) -> str:
    return f"#{name} = {value}".rstrip()


def _comment(words: str) -> str:
    return "\n".join(_commented(words))


def _commented(words: str) -> Iterator[str]:
    for line in words.splitlines():
        yield from wrap(line, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False) or ["#"]


if __name__ == "__main__":
    (REPOSITORY / "etc/raksha.conf.sample").write_text(text())

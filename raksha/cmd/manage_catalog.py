"""`raksha-manage catalog`: what makes the service known to an OpenStack cloud. Prints commands, and runs none of them:
who may run them is a person, with the rights of the cloud's administrator."""

from __future__ import annotations

import argparse
import shlex
from typing import Any
from urllib.parse import urlsplit

from raksha import config_api
from raksha.cmd.output import Output
from raksha.db.session import Database
from raksha.errors import BadArgument

#: of the service in the catalogue, as the OpenStack service-types authority has it
TYPE = "data-protection"
NAME = "raksha"


def add_to(nouns: Any) -> None:
    about = "print the commands that make the service known to an OpenStack cloud"
    command = nouns.add_parser("catalog", help=about, description=about)
    command.add_argument("--url", metavar="URL",
                         help="where clients reach the API; default: [api] public_endpoint")  # fmt: skip
    command.add_argument("--region", metavar="NAME", default="RegionOne", help="default: RegionOne")
    command.add_argument("--json", action="store_true", help="one JSON document")
    command.set_defaults(call=_catalog)


def _catalog(_database: Database, options: argparse.Namespace, output: Output) -> None:
    """Raises `BadArgument`, `SettingsWrong`."""
    url = options.url or config_api.load(options.config).public_endpoint
    if not url:
        raise BadArgument(argument="--url", detail="it is needed: [api] public_endpoint is not set")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise BadArgument(argument=f"--url {url}", detail="it is no http or https URL")
    found = [shlex.join(words) for words in commands(url.rstrip("/"), options.region)]
    output.result({"commands": found}, found)


def commands(url: str, region: str) -> list[list[str]]:
    """Each as words. The user has both roles: `service` to look at tokens, `admin` to ask Nova for a server's host."""
    endpoint = f"{url}/v1/%(project_id)s"
    return [
        ["openstack", "user", "create", "--domain", "default", "--password-prompt", NAME],
        *(["openstack", "role", "add", "--project", "service", "--user", NAME, role] for role in ("service", "admin")),
        ["openstack", "service", "create", "--name", NAME, "--description", "Backup of virtual machines", TYPE],
        *(
            ["openstack", "endpoint", "create", "--region", region, TYPE, interface, endpoint]
            for interface in ("public", "internal", "admin")
        ),
    ]

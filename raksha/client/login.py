"""Who is asking, and where: for the command `raksha`. The first of these that is there:

    --state-dir, RAKSHA_STATE_DIR       the folder of a `raksha serve` on this host: the user and password that it made
    OS_* or --os-*, clouds.yaml         as for `openstack`: Keystone, or OS_AUTH_TYPE=http_basic with OS_ENDPOINT,
                                        OS_USERNAME, OS_PASSWORD and OS_PROJECT_ID
    the folder where `raksha serve` keeps its state by default, if we can read it

`--url` (RAKSHA_URL) is the address of the API in any case, `--os-project-id` (RAKSHA_PROJECT) the project.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keystoneauth1 import exceptions
from keystoneauth1.http_basic import HTTPBasicAuth
from keystoneauth1.session import Session

from raksha.client import SERVICE_TYPE, Client
from raksha.client.errors import NotLoggedIn

#: of `raksha serve`
_URL, _USER, _PROJECT, _PASSWORD = "http://127.0.0.1:9797", "admin", "default", "users.admin-password"
#: variables and options that name a login
_LOGIN = ("auth_type", "auth_url", "endpoint", "token", "username", "user_id", "application_credential_id",
          "application_credential_name", "cloud")  # fmt: skip
HINT = (
    "On the host of a `raksha serve`: run it as the user of the service, or add --state-dir DIR. From elsewhere: set "
    "OS_AUTH_TYPE=http_basic, OS_ENDPOINT, OS_USERNAME, OS_PASSWORD and OS_PROJECT_ID. In a cloud: OS_CLOUD, or the "
    "OS_* variables of its openrc file."
)


def client(options: argparse.Namespace, config: Any, environment: Mapping[str, str] = os.environ) -> Client:
    """`config`: `openstack.config.OpenStackConfig`. Raises `NotLoggedIn`."""
    folder = options.state_dir or environment.get("RAKSHA_STATE_DIR")
    url = options.url or environment.get("RAKSHA_URL")
    project = environment.get("RAKSHA_PROJECT")
    if folder:
        return _of_serve(Path(folder), url, project)
    if not _says_login(options, environment):
        standard = state_folder(environment)
        if os.access(standard / _PASSWORD, os.R_OK):
            return _of_serve(standard, url, project)
    return _of_cloud(options, config, url, project)


def state_folder(environment: Mapping[str, str]) -> Path:
    """Of a `raksha serve` that was not told another one."""
    if os.geteuid() == 0:
        return Path("/var/lib/raksha")
    base = environment.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "raksha"


def _says_login(options: argparse.Namespace, environment: Mapping[str, str]) -> bool:
    named = any(getattr(options, f"os_{name}", None) for name in ("cloud", "auth_url", "username", "token", "endpoint"))
    return named or any(environment.get(f"OS_{name.upper()}") for name in _LOGIN)


def _of_serve(folder: Path, url: str | None, project: str | None) -> Client:
    try:
        password = (folder / _PASSWORD).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise NotLoggedIn(
            f"The password of `raksha serve` cannot be read: {error.strerror}: {folder / _PASSWORD}",
            "Name the folder that it told as its state (--state-dir), as the user who runs it. If the file was removed "
            "since there are other users, log in as one of them with OS_AUTH_TYPE=http_basic.",
        ) from error
    session = Session(HTTPBasicAuth(url or _URL, _USER, password), verify=_verify())
    return Client(session, project_id=project or _PROJECT)


def _of_cloud(options: argparse.Namespace, config: Any, url: str | None, project: str | None) -> Client:
    from openstack.exceptions import ConfigException

    try:
        cloud = config.get_one(argparse=options, validate=False)
        # of variables and options it is told beside `auth`, of clouds.yaml within
        said = {**cloud.config, **(cloud.config.get("auth") or {})}
        if said.get("auth_type") == "http_basic":
            return _basic(cloud, {**said, "os_project_id": getattr(options, "os_project_id", None)}, url, project)
        if not said.get("auth_url") and said.get("auth_type") != "admin_token":
            raise NotLoggedIn("Nothing says where the service is, and who you are", HINT)
        cloud = config.get_one(argparse=options)
        session = cloud.get_session()
        endpoint = url or cloud.get_endpoint(SERVICE_TYPE)
        region = cloud.get_region_name(SERVICE_TYPE) or None
        interface = cloud.get_interface(SERVICE_TYPE) or "public"
    except (ConfigException, exceptions.ClientException) as error:
        raise NotLoggedIn(f"The login is not complete: {' '.join(str(error).split())}", HINT) from error
    return Client(session, endpoint_override=endpoint, region_name=region, interface=interface, project_id=project)


def _basic(cloud: Any, said: Mapping[str, Any], url: str | None, project: str | None) -> Client:
    user, password = said.get("username"), said.get("password")
    endpoint = url or said.get("endpoint") or cloud.get_endpoint(SERVICE_TYPE)
    missing = [name for name, value in (("OS_ENDPOINT", endpoint), ("OS_USERNAME", user)) if not value]
    if missing:
        raise NotLoggedIn(f"For http_basic {' and '.join(missing)} must be set", HINT)
    verify, cert = cloud.get_requests_verify_args()
    session = Session(HTTPBasicAuth(endpoint, user, password or asked()), verify=verify, cert=cert)
    return Client(session, project_id=project or said.get("os_project_id") or said.get("project_id"))


def asked(prompt: str | None = None) -> str:
    """A password, on a terminal. Raises `NotLoggedIn`."""
    if not sys.stdin.isatty():
        raise NotLoggedIn("There is no password, and no terminal to ask for it", "Set OS_PASSWORD.")
    return getpass.getpass(prompt or "Password: ")


def _verify() -> str | bool:
    return os.environ.get("OS_CACERT") or True

"""`openstack protection …`: what the OpenStack client asks of a plugin. The commands are entry points (setup.py).

The login is that of `openstack`; `--os-data-protection-endpoint-override`, or the variable of that name, says where the
API is if the catalogue does not.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from raksha.client import SERVICE_TYPE, Client

DEFAULT_API_VERSION = "1"
API_NAME = "data_protection"
API_VERSION_OPTION = "os_data_protection_api_version"
API_VERSIONS = ("1",)
_ENDPOINT = "OS_DATA_PROTECTION_ENDPOINT_OVERRIDE"


def make_client(instance: Any) -> Client:
    """Of a client manager of `openstack`: what commands find as `app.client_manager.data_protection`."""
    options = instance._cli_options
    endpoint = options.config.get("data_protection_endpoint_override") or options.get_endpoint(SERVICE_TYPE)
    interface = instance.interface or "public"
    return Client(
        instance.session, region_name=instance.region_name or None, interface=interface, endpoint_override=endpoint
    )


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument(
        "--os-data-protection-api-version",
        metavar="<data-protection-api-version>",
        default=os.environ.get("OS_DATA_PROTECTION_API_VERSION", DEFAULT_API_VERSION),
        choices=API_VERSIONS,
        help="version of the data protection API (Env: OS_DATA_PROTECTION_API_VERSION)",
    )
    parser.add_argument(
        "--os-data-protection-endpoint-override",
        metavar="<url>",
        default=os.environ.get(_ENDPOINT),
        help=f"address of the data protection API, in the place of the catalogue's (Env: {_ENDPOINT})",
    )
    return parser

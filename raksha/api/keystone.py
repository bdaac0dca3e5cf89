"""Keystone in front of the API: keystonemiddleware, set up by `[keystone_authtoken]` of the configuration file; and
what is asked with the tokens that it has let in.

The section is the middleware's own, as every OpenStack service has it. What it needs to start is checked here, so that
a slip is an error at the start and not a 500 at each request.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from oslo_config import cfg

from raksha.api.auth import Keystone
from raksha.api.delegation import Grantor
from raksha.errors import SettingsWrong

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from raksha.openstack.compute import Servers

SECTION = "keystone_authtoken"


def load(file: Path | None) -> tuple[Keystone, Grantor | None, Servers]:
    """Who says who callers are; who makes trusts of theirs to the user that `[trustee] user_id` names (None: jobs act
    as the service); who asks Nova about their servers. As the file says, and `OS_KEYSTONE_AUTHTOKEN__*`. Asks nothing
    of Keystone yet.

    Raises `SettingsWrong`: the section is not complete, or the packages are not installed.
    """
    try:
        from keystoneauth1 import exceptions, loading
        from keystonemiddleware.auth_token import AuthProtocol
        from keystonemiddleware.opts import list_auth_token_opts

        from raksha.openstack import compute, trusts
    except ImportError as error:
        detail = f"auth_strategy = keystone needs the package {error.name}: pip install 'raksha[keystone,openstack]'"
        raise SettingsWrong(detail=detail) from error
    conf = cfg.ConfigOpts()

    def in_front(application: WSGIApplication) -> WSGIApplication:
        # it takes its options out of what it is given
        options = {"oslo_config_config": conf, "delay_auth_decision": True}
        middleware: WSGIApplication = AuthProtocol(application, options)
        return middleware

    try:
        conf([], project="raksha", default_config_files=[str(file)] if file else [], default_config_dirs=[])
        for group, known in list_auth_token_opts():
            conf.register_opts(known, group)
        loading.register_auth_conf_options(conf, SECTION)
        if loading.load_auth_from_conf_options(conf, SECTION) is None:
            raise SettingsWrong(detail=f"auth_strategy = keystone, but [{SECTION}] says no auth_type")
    except (cfg.Error, exceptions.ClientException, OSError, UnicodeDecodeError) as error:
        raise SettingsWrong(detail=f"[{SECTION}]: {error}") from error
    section = conf[SECTION]
    if not section.service_token_roles_required:
        detail = f"[{SECTION}] service_token_roles_required must be true: else any token passes for a service's"
        raise SettingsWrong(detail=detail)
    if not section.include_service_catalog:
        raise SettingsWrong(detail=f"[{SECTION}] include_service_catalog must be true: it tells where Nova is")
    url = section.www_authenticate_uri or section.auth_url
    trustee = trusts.trustee_id(file)
    verify = False if section.insecure else section.cafile or True
    grantor = None if trustee is None else trusts.Grantor(section.auth_url or url, trustee, verify)
    return Keystone(in_front, url), grantor, compute.load(file, verify)

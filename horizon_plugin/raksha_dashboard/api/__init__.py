"""The service, as pages ask for it: `client(request)` is a `raksha.client.Client` with the caller's own token.

Errors are shown, never swallowed: `told` turns a `ClientError` into one of Horizon's messages, with the request id that
operators find in the service's log. A page whose data is missing is shown without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.utils.encoding import force_str
from django.utils.translation import gettext as _
from horizon import exceptions, messages
from keystoneauth1 import exceptions as keystone_errors
from keystoneauth1 import session, token_endpoint
from openstack_auth import utils as login
from openstack_dashboard.api import base

from raksha.client import Client, errors

SERVICE_TYPE = "data-protection"
#: seconds that a page waits for one answer; RAKSHA_TIMEOUT in local_settings.py
_TIMEOUT = 30
_LOGIN_AGAIN = (errors.NotAuthenticated, errors.NotLoggedIn)


class _Session(session.Session):
    """People wait for pages: nothing is asked twice, and for no longer than is said here."""

    def request(self, *args: Any, **more: Any) -> Any:
        more.update(connect_retries=0, status_code_retries=0, timeout=getattr(settings, "RAKSHA_TIMEOUT", _TIMEOUT))
        return super().request(*args, **more)


def client(request: Any, project_id: str | None = None) -> Client:
    """Of the caller's project and region, or, for operators, of another project. Asks nothing yet.

    Raises Horizon's `ServiceCatalogException` where the catalogue has no such service.
    """
    project = project_id or request.user.tenant_id
    known: dict[str, Client] = request.__dict__.setdefault("_raksha_clients", {})
    if project not in known:
        endpoint = base.url_for(request, SERVICE_TYPE)
        verify = False if settings.OPENSTACK_SSL_NO_VERIFY else settings.OPENSTACK_SSL_CACERT or True
        auth = token_endpoint.Token(endpoint, request.user.token.id)
        known[project] = Client(_Session(auth, verify=verify), endpoint_override=endpoint, project_id=project)
    return known[project]


def token_in(request: Any, project_id: str) -> str:
    """Of the caller, for another of his projects, as Horizon gets one when he changes to that. Raises `ClientError`."""
    keystone, _fixed = login.fix_auth_url_version_prefix(request.user.endpoint)
    auth = login.get_token_auth_plugin(auth_url=keystone, token=request.user.unscoped_token, project_id=project_id)
    try:
        return str(auth.get_token(login.get_session(original_ip=login.get_client_ip(request))))
    except keystone_errors.ClientException as error:
        raise errors.ClientError(force_str(_("Keystone gave no token for the other project."))) from error


def message(what: Any, error: errors.ClientError) -> str:
    """What went wrong, in a sentence for a person, and the id that operators ask for."""
    said = f"{force_str(what)} {errors.sentence(error.message)}"
    return f"{said} ({_('request id')} {error.request_id})" if error.request_id else said


@contextmanager
def told(request: Any, what: Any, *, redirect: str | None = None, fail: bool = False) -> Iterator[None]:
    """Show what goes wrong inside. `redirect`: go there then. `fail`: tell Horizon's action that it failed.

    A token that is not taken any more leads to the login, as everywhere in Horizon.
    """
    try:
        yield
    except _LOGIN_AGAIN:
        exceptions.handle(request, what, redirect=redirect)
    except errors.ClientError as error:
        messages.error(request, message(what, error))
        if redirect:
            raise exceptions.Http302(redirect) from error
        if fail:
            raise exceptions.HandledException((type(error), error, error.__traceback__)) from error
    except base.exceptions.ServiceCatalogException:
        exceptions.handle(request, what, redirect=redirect)

"""Acting in one project of a cloud with a token that somebody lends, and renews.

No password is here, and nothing logs in: the addresses of the services come with the token. It is not written down, and
part of no log, error or repr.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cinderclient import client as cinder
from cinderclient import exceptions as cinder_errors
from keystoneauth1 import exceptions
from keystoneauth1.plugin import BaseAuthPlugin
from keystoneauth1.session import Session
from novaclient import client as nova
from novaclient import exceptions as nova_errors

from raksha.errors import CloudMissing, CloudRefused, CloudUnavailable, RakshaError

#: what Nova and Cinder must be able to do at least: Xena
_NOVA, _CINDER = "2.90", "3.64"
#: of what a restore makes: whose it is, and which disk
MARK, DISK = "raksha_restore", "raksha_disk"
#: seconds for each answer, unless it is data that is sent
PATIENCE = 30.0

# at DEBUG they write requests down, with their bodies
for _name in ("keystoneauth", "novaclient", "cinderclient"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class LentLogin(BaseAuthPlugin):
    """For any thread."""

    def __init__(self, token: str, endpoints: Mapping[str, str], verify: str | bool = True) -> None:
        """`verify`: whether certificates are checked, or the file of those that are trusted."""
        super().__init__()
        self._token = token
        self._verify = verify
        self.endpoints = dict(endpoints)

    def renew(self, token: str) -> None:
        self._token = token

    def get_token(self, session: Session) -> str:  # noqa: ARG002
        return self._token

    def get_endpoint(self, session: Session, **wanted: Any) -> str | None:  # noqa: ARG002
        return self.endpoints.get(wanted.get("service_type") or "")

    def invalidate(self) -> bool:
        """There is no other token: whoever lends brings a new one in time."""
        return False

    def __repr__(self) -> str:
        return f"LentLogin({sorted(self.endpoints)})"

    def session(self, patience: float = PATIENCE) -> Session:
        return Session(auth=self, verify=self._verify, timeout=patience, redirect=False)

    def compute(self) -> Any:
        """python-novaclient. Raises `CloudRefused`."""
        return nova.Client(_NOVA, session=self.session(), endpoint_override=self.endpoint("compute"))

    def volumes(self) -> Any:
        """python-cinderclient. Raises `CloudRefused`."""
        return cinder.Client(_CINDER, session=self.session(), endpoint_override=self.endpoint("block-storage"))

    def endpoint(self, service: str) -> str:
        """Raises `CloudRefused` where the cloud has no such service."""
        found = self.endpoints.get(service)
        if found is None:
            raise CloudRefused(service=service, detail="the catalog does not have it")
        return found.rstrip("/")


@contextmanager
def asking(service: str) -> Iterator[None]:
    """What a service says no to, in words of ours. Raises `CloudMissing`, `CloudRefused`, `CloudUnavailable`."""
    try:
        yield
    except (exceptions.ClientException, nova_errors.ClientException, cinder_errors.ClientException) as error:
        status = getattr(error, "http_status", None) or getattr(error, "code", None) or 503
        kind: type[RakshaError] = CloudRefused
        if status == 404:
            kind = CloudMissing
        elif status >= 500 or status in (408, 429):
            kind = CloudUnavailable
        # the addresses that were asked stay out of it
        raise kind(service=service, detail=_said(status, error)) from None
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        detail = f"its answer cannot be read ({type(error).__name__})"
        raise CloudUnavailable(service=service, detail=detail) from error


def _said(status: int, error: Exception) -> str:
    told = (getattr(error, "details", None), getattr(error, "message", None), type(error).__name__)
    # clients say so where a service has said nothing
    text = next(said for each in told if each and (said := str(each).strip()) not in ("", "n/a"))
    return f"{status} {text.splitlines()[0][:300]}"

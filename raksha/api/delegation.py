"""What lets a job act for its owner when nobody is logged in: a Keystone trust, made with the caller's own token.

Without Keystone there is nothing to delegate: jobs act as the service.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from raksha.api.services import identity, services
from raksha.db import jobs
from raksha.errors import CommitUnknown, NotAuthenticated, RakshaError

_log = logging.getLogger(__name__)


class Grantor(Protocol):
    """Makes trusts (`raksha.openstack.trusts`)."""

    def make(self, token: str, *, user_id: str, project_id: str) -> str:
        """Raises `TrustRefused`, `IdentityUnavailable`."""
        ...

    def remove(self, token: str, trust_id: str) -> None:
        """Raises `IdentityUnavailable`."""
        ...


@contextmanager
def trusted() -> Iterator[str | None]:
    """A new trust of the caller's; at the end it is removed, unless a job has it by then. None: none is needed.

    It is made before the transaction that needs it: nothing waits for Keystone while rows are locked. Raises
    `TrustRefused`, `IdentityUnavailable`.
    """
    grantor, who = services().grantor, identity()
    if grantor is None:
        yield None
        return
    if who.token is None:
        raise NotAuthenticated(challenge="Keystone")
    trust = grantor.make(who.token, user_id=who.user_id, project_id=who.project_id)
    try:
        yield trust
    except CommitUnknown:  # a job may have it in a moment
        _log.warning("a new trust of user %s may be left over", who.user_id)
        raise
    except BaseException:
        _remove_unless_needed(grantor, who.token, trust, who.user_id)
        raise
    else:
        _remove_unless_needed(grantor, who.token, trust, who.user_id)


def _remove_unless_needed(grantor: Grantor, token: str, trust: str, user_id: str) -> None:
    try:
        with services().database.reading() as session:
            needed = jobs.has_trust(session, trust)
        if not needed:
            grantor.remove(token, trust)
    except RakshaError as error:  # it may be needed: it stays
        _log.warning("a new trust of user %s may be left over: %s", user_id, error)

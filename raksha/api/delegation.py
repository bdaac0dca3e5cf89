"""What lets a job, or a restore into another project, act for its owner when nobody is logged in: a Keystone trust,
made with the caller's own token.

Without Keystone there is nothing to delegate: jobs act as the service.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from sqlalchemy.orm import Session

from raksha.api.services import identity, services
from raksha.api.target_project import Target
from raksha.db import jobs, restores
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

    def access(self, token: str) -> Any:
        """What Keystone says of a token. Raises `TargetTokenRefused`, `IdentityUnavailable`."""
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
    with _made(grantor, who.token, who.project_id, jobs.has_trust) as trust:
        yield trust


@contextmanager
def trusted_in(target: Target | None) -> Iterator[str | None]:
    """As `trusted`, in another project, and a restore may have it by the end. None: it stays in its own.

    Raises what that raises.
    """
    grantor = services().grantor
    if target is None or grantor is None:
        yield None
        return
    with _made(grantor, target.token, target.project_id, restores.has_trust) as trust:
        yield trust


@contextmanager
def _made(grantor: Grantor, token: str, project_id: str, has: Callable[[Session, str], bool]) -> Iterator[str]:
    user_id = identity().user_id
    trust = grantor.make(token, user_id=user_id, project_id=project_id)

    def remove_unless_needed() -> None:
        _remove_unless_needed(grantor, token, trust, user_id, has)

    try:
        yield trust
    except CommitUnknown:  # it may be needed in a moment
        _log.warning("a new trust of user %s may be left over", user_id)
        raise
    except BaseException:
        remove_unless_needed()
        raise
    else:
        remove_unless_needed()


def _remove_unless_needed(
    grantor: Grantor, token: str, trust: str, user_id: str, has: Callable[[Session, str], bool]
) -> None:
    try:
        with services().database.reading() as session:
            needed = has(session, trust)
        if not needed:
            grantor.remove(token, trust)
    except RakshaError as error:  # it may be needed: it stays
        _log.warning("a new trust of user %s may be left over: %s", user_id, error)

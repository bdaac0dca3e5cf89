"""Ends the trusts of restores into other projects, when these have ended: done, failed, cancelled, or given up.

Soon, as nothing is to act in that project any longer than what was asked for; and again until Keystone has done it. A
task of such a restore that somebody claims afterwards is refused (`claims`).
"""

from __future__ import annotations

import logging
from functools import partial

from raksha.db import restores
from raksha.db.session import Database
from raksha.errors import IdentityUnavailable
from raksha.scheduler.access import ENVIRONMENT, Access

_log = logging.getLogger(__name__)

#: restores of one round
_AT_ONCE = 100


def of_restores(database: Database, access: Access = ENVIRONMENT) -> int:
    """How many are no more."""
    with database.reading() as session:
        over = [(restore.id, restore.trust_id) for restore in restores.with_ended_trusts(session, _AT_ONCE)]
    gone = 0
    for id, trust in over:
        try:
            access.end(trust or "")
        except IdentityUnavailable as error:
            _log.warning("the trust of restore %s cannot be ended yet: %s", id, error, extra={"action": "end_trust"})
            break
        database.run(partial(restores.forget_trust, id=id))
        gone += 1
    return gone

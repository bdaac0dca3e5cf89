"""Everything that agents may ask a scheduler: verb and answer, on one screen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from raksha.config_scheduler import SchedulerSettings
from raksha.db.session import Database
from raksha.rpc import Handler, Verb
from raksha.scheduler import agents, claims, groups
from raksha.scheduler.access import ENVIRONMENT, Access
from raksha.tasks import CLAIM, ENTER, FINISH, HAND_BACK, HEARTBEAT, LOOK, REGISTER, RENEW, REPORT, THAWED


def handlers(
    database: Database, settings: SchedulerSettings, wake: Callable[[], None], access: Access = ENVIRONMENT
) -> Mapping[Verb[Any, Any], Handler]:
    """`wake`: called after what gives a scheduler something to do."""

    def then_wake(handler: Handler) -> Handler:
        def handle(said: Any) -> Any:
            answer = handler(said)
            wake()
            return answer

        return handle

    return {
        REGISTER: partial(agents.register, database, settings),
        HEARTBEAT: partial(agents.heartbeat, database),
        CLAIM: partial(claims.claim, database, settings, access=access),
        RENEW: partial(claims.renew, database, settings, access=access),
        REPORT: partial(claims.report, database),
        FINISH: then_wake(partial(claims.finish, database)),
        HAND_BACK: then_wake(partial(claims.hand_back, database)),
        ENTER: partial(groups.enter, database, settings),
        LOOK: partial(groups.look, database),
        THAWED: partial(groups.thawed, database),
    }

"""What a task is about to make, told before it is made: whoever finds it later knows whose it was."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from raksha.agent.host import Host
from raksha.agent.work import Work
from raksha.errors import Interrupted
from raksha.tasks import NOT_NOW, REPORT

#: seconds between two attempts to be heard
_PAUSE = 0.5


def announce(host: Host, work: Work, made: Sequence[dict[str, Any]]) -> None:
    """Until a scheduler has heard it. Raises `Interrupted`, `EpochStale`, `StateConflict`."""
    name = host.agent.host or socket.gethostname()
    work.made = tuple({**each, "host": name} for each in made)
    while True:
        work.check()
        try:
            host.schedulers.call(REPORT, work.report())
        except NOT_NOW:
            if work.over.wait(_PAUSE):
                raise Interrupted() from None
        else:
            return

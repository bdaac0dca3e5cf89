"""What a backup from storage has in the cloud for the time being, as schedulers are told: before it is made, and gone.

They keep it with the task, and remove what a dead agent leaves. See `raksha/scheduler/temporary.py` for the words.
"""

from __future__ import annotations

import logging
import socket
from typing import Any

from raksha.agent.announcing import announce
from raksha.agent.host import Host
from raksha.agent.work import End, Work
from raksha.errors import RakshaError
from raksha.tasks import REPORT

_log = logging.getLogger(__name__)

SNAPSHOT, VOLUME, ATTACHMENT = "temp_snapshot", "temp_volume", "attachment"


class Notes:
    """Of one task. For one thread."""

    def __init__(self, host: Host, work: Work) -> None:
        self._host = host
        self._work = work
        self._said: dict[tuple[str, str], dict[str, Any]] = {}

    def tell(self, *notes: dict[str, Any]) -> None:
        """Heard by a scheduler before it returns. Raises `Interrupted`, `EpochStale`, `StateConflict`."""
        self._note(notes)
        announce(self._host, self._work, list(self._said.values()))

    def gone(self, *notes: dict[str, Any]) -> None:
        """It was removed. Said once: who looks for it finds nothing."""
        self._note([{**note, "gone": True} for note in notes])
        if self._work.why is End.STALE:
            return
        name = self._host.agent.host or socket.gethostname()
        self._work.made = tuple({**each, "host": name} for each in self._said.values())
        try:
            self._host.schedulers.call(REPORT, self._work.report())
        except RakshaError as error:
            _log.info("nobody heard what was removed: %s", error)

    def _note(self, notes: Any) -> None:
        for note in notes:
            self._said[note["kind"], note["volume"]] = note

"""Ends of claims, kept in the host's journal until a scheduler has taken them: over restarts, however long that is."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from raksha.journal import Journal
from raksha.tasks import Finish

_DECODER = msgspec.json.Decoder(Finish)


class Outbox:
    """For any thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def put(self, finish: Finish) -> None:
        """Durable when it returns."""
        self._journal.keep_result(finish.task_id, msgspec.json.encode(finish).decode())

    def waiting(self) -> list[Finish]:
        """The oldest first."""
        return [_DECODER.decode(body) for _task, body in self._journal.results()]

    def has(self, task_id: str) -> bool:
        return any(finish.task_id == task_id for finish in self.waiting())

    def restamp(self, task_id: str, epoch: int) -> bool:
        """The task was claimed again while its end was waiting here: that is the end of the new claim. False: none."""
        for finish in self.waiting():
            if finish.task_id == task_id:
                self.put(replace(finish, epoch=epoch))
                return True
        return False

    def taken(self, task_id: str) -> None:
        """Somebody has it, or nobody wants it."""
        self._journal.forget_result(task_id)

"""What was seen in one round of `dispatch`, so that it is not looked up again for each run: a thousand of them wait."""

from __future__ import annotations

from collections.abc import Mapping

from raksha.config_scheduler import SchedulerSettings
from raksha.db.columns import SECOND
from raksha.db.models import BackupJobRun, Service
from raksha.errors import IdentityUnavailable
from raksha.scheduler.placement import Wait
from raksha.scheduler.whose import Asked


class Round:
    """Of one scheduler."""

    def __init__(self, settings: SchedulerSettings, now: int, alive: Mapping[str, Service], asked: Asked) -> None:
        self.settings = settings
        self.now = now
        #: agents by id
        self.alive = alive
        #: slots, by kind and name, of which none is left
        self.full: set[tuple[str, str]] = set()
        #: slots, by kind and name, that are kept for runs which were overtaken too long
        self.kept: set[tuple[str, str]] = set()
        #: vaults that were to be made in this round, and why that failed
        self.unmade: dict[str, Wait | None] = {}
        #: the same of vault services that do not answer: one that is away is waited for once
        self.away: dict[str, Wait] = {}
        #: Keystone does not answer
        self.identity_away: IdentityUnavailable | None = None
        #: what Nova has said
        self.asked = asked
        #: bytes that projects had stored when the round came to them, where that is limited
        self.stored: dict[str, int] = {}
        #: trusts that stand
        self.trusted: set[str] = set()

    def waited(self, run: BackupJobRun) -> float:
        """Seconds."""
        return (self.now - run.created_at) / SECOND

    def in_vain(self, run: BackupJobRun) -> bool:
        """What it waited for when it was looked at last has nothing left for anybody: a thousand that wait for one host
        cost one look a round."""
        said = (run.queued_reason or {}).get("slot")
        return ("project", run.project_id) in self.full or (said is not None and tuple(said) in self.full)
